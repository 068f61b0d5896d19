//! Links the program without start files, without libc and at a fixed address. Given here and
//! not in `RUSTFLAGS`, so that only the program is linked that way.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    if std::env::var_os("CARGO_FEATURE_PID1").is_some() {
        for argument in [
            "-nostartfiles",
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,--build-id=none",
            "-Wl,--no-eh-frame-hdr",
            "-Wl,-z,noexecstack",
            "-Wl,-z,norelro",
            concat!("-Wl,-T,", env!("CARGO_MANIFEST_DIR"), "/link.ld"),
        ] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
