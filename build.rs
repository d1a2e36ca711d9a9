//! Compiles the contract with protox, so that no machine needs `protoc`.

use std::{env, fs, path::PathBuf};

/// The files that no other imports; they import the rest.
const ROOTS: [&str; 5] = [
    "oncegate/v1/idempotency_service.proto",
    "oncegate/v1/turn_service.proto",
    "oncegate/v1/admin_service.proto",
    "oncegate/v1/server_service.proto",
    "oncegate/v1/reason.proto",
];

#[expect(clippy::disallowed_methods, reason = "cargo passes the output folder in a variable")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=migrations");

    let descriptors = protox::compile(ROOTS, ["proto"])?;
    // Reflection serves these bytes, with the comments, so that grpcurl shows them.
    let out = PathBuf::from(env::var("OUT_DIR")?).join("oncegate.binpb");
    fs::write(out, protox::prost::Message::encode_to_vec(&descriptors))?;

    tonic_prost_build::configure()
        .codec_path("crate::grpc::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
