//! The wire: the contract's messages on one side, the domain's values on the
//! other.
//!
//! Architecture Invariant: `tonic` and `prost` are used here, in `server` and in
//! `cli`; `tests/layering.rs` checks it.

mod access;
mod admin;
mod alive;
mod arriving;
mod caller;
pub mod code;
pub mod codec;
mod convert;
mod deadline;
mod door;
mod idempotency;
mod middleware;
mod reason;
mod server_info;
mod status;
mod turn;
mod web;

pub use admin::Administration;
pub use arriving::HalfOpen;
pub use door::{Door, Known};
pub use idempotency::Idempotency;
pub use middleware::{CallMetrics, Connection, GrpcService};
pub use server_info::ServerInfo;
pub use turn::TurnCalls;

/// The contract's messages, clients and servers, generated from `proto/`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated; what is to be said is said in the .proto files"
)]
pub mod pb {
    tonic::include_proto!("oncegate.v1");

    /// The compiled contract with its comments, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/oncegate.binpb"));
}
