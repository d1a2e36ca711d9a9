//! The targets, one a file.

mod auth_file;
mod certificate;
mod grpc;
mod http2;
mod jwt;
mod planted;
mod platform;

pub use platform::Platforms;

use crate::target::Target;

/// All of them, or the one of this name.
pub fn chosen(name: Option<&str>) -> Vec<Box<dyn Target>> {
    let mut targets: Vec<Box<dyn Target>> = vec![
        Box::new(Platforms::new()),
        Box::new(auth_file::AuthFile::new()),
        Box::new(jwt::Jwt::new()),
        Box::new(certificate::Certificate::new()),
        Box::new(grpc::Grpc::new()),
        Box::new(http2::Http2::new()),
    ];
    for fault in planted::Planted::ALL {
        targets.push(Box::new(fault));
    }
    targets.retain(|target| match name {
        Some(name) => target.name() == name,
        None => target.share() > 0,
    });
    targets
}
