//! One idempotency authority for bots in any language.
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod dedup;
pub mod domain;
pub mod grpc;
pub mod lane;
pub mod listener;
pub mod server;
pub mod session;
pub mod store;
pub mod telemetry;
