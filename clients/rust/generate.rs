//! Generates `src/pb/oncegate.v1.rs` from the contract into the folder that its argument names.

use std::{env, path::Path};

/// The files that no other imports; they import the rest.
const ROOTS: [&str; 5] = [
    "oncegate/v1/idempotency_service.proto",
    "oncegate/v1/turn_service.proto",
    "oncegate/v1/admin_service.proto",
    "oncegate/v1/server_service.proto",
    "oncegate/v1/reason.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = env::args().nth(1).ok_or("usage: generate FOLDER")?;
    let contract = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let descriptors = protox::compile(ROOTS, [contract])?;
    tonic_prost_build::configure().build_server(false).out_dir(folder).compile_fds(descriptors)?;
    Ok(())
}
