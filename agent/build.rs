//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A position-independent program of this size has a megabyte of relocations, which every start
    // reads. Packed (DT_RELR) they are some kilobytes; needs glibc 2.36, as Debian 12 has it.
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
