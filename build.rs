//! Tells the code what the nginx is that it is built for and what its C interface looks like, and the linker that the
//! module stays loaded.

use std::path::Path;

/// The C interface: types, constants and signatures are made of it.
const HEADER: &str = "include/amesh.h";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={HEADER}");
    // Destructors of Rust's thread locals, and the pthread_atfork handlers, outlive nginx's dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    let out = std::env::var("OUT_DIR")?;
    bindgen::builder()
        .header(HEADER)
        .allowlist_item("(amesh|AMESH)_.*")
        .use_core()
        .generate()?
        .write_to_file(Path::new(&out).join("abi.rs"))?;
    std::fs::write(Path::new(&out).join("abi.cdef"), declarations(&std::fs::read_to_string(HEADER)?)?)?;
    Ok(())
}

/// What of the header LuaJIT takes: it has no preprocessor. Terminated by zero.
fn declarations(header: &str) -> Result<String, String> {
    let (_, rest) = header.split_once("/* begin of the declarations */").ok_or("the declarations do not begin")?;
    let (declarations, _) = rest.split_once("/* end of the declarations */").ok_or("the declarations do not end")?;
    Ok(declarations.trim().to_owned() + "\n\0")
}
