//! Compiles `proto/` with protox, so that building needs no protoc, and keeps the comments for reflection.

use std::{env, fs, path::PathBuf};

const FILES: [&str; 6] = [
    "courtier/v1/message.proto",
    "courtier/v1/publisher.proto",
    "courtier/v1/subscriber.proto",
    "courtier/v1/failed_messages.proto",
    "courtier/v1/message_log.proto",
    "courtier/v1/queue_admin.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?;
    let descriptors = compiler.file_descriptor_set();

    let out = PathBuf::from(env::var("OUT_DIR")?);
    // The encoded form of the compiler keeps source info: reflection serves the comments.
    fs::write(
        out.join("descriptors.bin"),
        compiler.encode_file_descriptor_set(),
    )?;

    tonic_prost_build::configure()
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .bytes(".courtier.v1")
        .codec_path("crate::grpc::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
