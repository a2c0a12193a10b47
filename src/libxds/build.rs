//! Tells the linker that the library stays loaded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // APISIX loads it into a local variable: the next collection of garbage closes it, and its thread goes on.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
