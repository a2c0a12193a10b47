//! Tells the code what the nginx is that it is built for, and the linker that the module stays loaded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Destructors of Rust's thread locals, and the pthread_atfork handlers, outlive nginx's dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
