//! Generates the protocol from the proto files that the client publishes in its own package, wherever cargo keeps that.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use prost::Message;

/// The directory of the client's proto files.
fn protos() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").context("cargo runs this")?;
    let told = Command::new(cargo).args(["metadata", "--format-version", "1", "--offline"]).output()?;
    anyhow::ensure!(told.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&told.stderr));
    let told: serde_json::Value = serde_json::from_slice(&told.stdout)?;
    let packages = told["packages"].as_array().context("cargo names packages")?;
    let client = packages.iter().find(|package| package["name"] == "kurrentdb");
    let manifest =
        client.and_then(|package| package["manifest_path"].as_str()).context("the client is one")?;
    Ok(PathBuf::from(manifest).with_file_name("protos"))
}

fn main() -> anyhow::Result<()> {
    let directory = protos()?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", directory.display());
    let files = protox::compile(["streams.proto", "serverfeatures.proto", "gossip.proto"], [&directory])?;
    // Through bytes, whichever release of the descriptor's types the compiler was built with.
    let files = prost_types::FileDescriptorSet::decode(files.encode_to_vec().as_slice())?;
    tonic_build::configure().build_client(false).bytes(["."]).compile_fds(files)?;
    Ok(())
}
