//! Takes the descriptors of Envoy's protos out of the package `envoy-types`, which carries them beside its generated
//! code, and leaves away what only readers of documentation need.

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet};
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const PACKAGE: &str = "envoy-types";

fn main() -> Result<(), Box<dyn Error>> {
    let source = descriptors()?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", source.display());
    let bytes = std::fs::read(&source).map_err(|e| format!("{}: {e}", source.display()))?;
    let mut set = FileDescriptorSet::decode(bytes.as_slice())
        .map_err(|e| format!("{} is no FileDescriptorSet: {e}", source.display()))?;
    for file in &mut set.file {
        file.source_code_info = None;
        file.service.clear();
        file.options = None;
        file.message_type.iter_mut().for_each(strip);
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("envoy.bin");
    std::fs::write(&out, set.encode_to_vec()).map_err(|e| format!("{}: {e}", out.display()))?;
    Ok(())
}

/// The JSON form depends on two options: that a message is the entry of a map, and packing.
fn strip(message: &mut DescriptorProto) {
    for field in &mut message.field {
        if field.options.as_ref().is_some_and(|o| o.packed.is_none()) {
            field.options = None;
        }
    }
    message.nested_type.iter_mut().for_each(strip);
}

/// Where the package has its descriptors.
fn descriptors() -> Result<PathBuf, Box<dyn Error>> {
    let cargo = std::env::var("CARGO")?;
    // The lock file decides on the version, and the sources for this platform are there already: this build needs them.
    let out = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform"])
        .arg(std::env::var("TARGET")?)
        .output()?;
    if !out.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
    let manifest = packages
        .iter()
        .find(|p| p["name"] == PACKAGE)
        .and_then(|p| p["manifest_path"].as_str())
        .ok_or_else(|| format!("cargo metadata does not know the package {PACKAGE}"))?;
    Ok(PathBuf::from(manifest).with_file_name("src").join("generated/types.bin"))
}
