//! Takes the descriptors of Envoy's protos out of the package `envoy-types`, which carries them beside its generated
//! code, leaves away what only readers of documentation need, and lists the fields that hold secrets.

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
    let marked = Marks::decode(bytes.as_slice()).map_err(|e| format!("{}: {e}", source.display()))?;
    let sensitive: String = marked.sensitive().iter().map(|name| format!("{name}\n")).collect();
    if sensitive.is_empty() {
        return Err(format!("{} marks no field as sensitive: secrets could not be told", source.display()).into());
    }
    for file in &mut set.file {
        file.source_code_info = None;
        file.service.clear();
        file.options = None;
        file.message_type.iter_mut().for_each(strip);
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (name, bytes) in [("envoy.bin", set.encode_to_vec()), ("sensitive.txt", sensitive.into_bytes())] {
        let path = out.join(name);
        std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// A `FileDescriptorSet` as far as `udpa.annotations.sensitive` needs it: `prost-types` drops extensions of options.
#[derive(Clone, PartialEq, Message)]
struct Marks {
    #[prost(message, repeated, tag = "1")]
    file: Vec<FileMarks>,
}

#[derive(Clone, PartialEq, Message)]
struct FileMarks {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "4")]
    message: Vec<MessageMarks>,
}

#[derive(Clone, PartialEq, Message)]
struct MessageMarks {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    field: Vec<FieldMarks>,
    #[prost(message, repeated, tag = "3")]
    nested: Vec<MessageMarks>,
}

#[derive(Clone, PartialEq, Message)]
struct FieldMarks {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "8")]
    options: Option<OptionMarks>,
}

#[derive(Clone, PartialEq, Message)]
struct OptionMarks {
    /// `udpa.annotations.sensitive`.
    #[prost(bool, tag = "76569463")]
    sensitive: bool,
}

impl Marks {
    /// The full names of the fields that are marked.
    fn sensitive(&self) -> Vec<String> {
        let mut names = Vec::new();
        for file in &self.file {
            file.message.iter().for_each(|m| m.sensitive(&file.package, &mut names));
        }
        names
    }
}

impl MessageMarks {
    fn sensitive(&self, scope: &str, names: &mut Vec<String>) {
        let scope = format!("{scope}.{}", self.name);
        let marked = self.field.iter().filter(|f| f.options.as_ref().is_some_and(|o| o.sensitive));
        names.extend(marked.map(|f| format!("{scope}.{}", f.name)));
        self.nested.iter().for_each(|m| m.sensitive(&scope, names));
    }
}

/// The JSON form depends on two options: that a message is the entry of a map, and packing. That a field is deprecated is
/// told to people.
fn strip(message: &mut DescriptorProto) {
    for field in &mut message.field {
        if field.options.as_ref().is_some_and(|o| o.packed.is_none() && !o.deprecated()) {
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
