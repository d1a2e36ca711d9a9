//! The targets, one a file.

mod grpc;
mod platform;

pub use grpc::Grpc;
pub use platform::Platforms;

use crate::target::Target;

/// All of them.
pub fn all() -> Vec<Box<dyn Target>> {
    vec![Box::new(Platforms::new()), Box::new(Grpc::new())]
}
