//! A small real image: busybox in one layer, a page and users in another; as an OCI layout, pushed
//! to a registry by skopeo.

use std::fs;
use std::path::Path;
use std::process::Command;

use imagecache::Digest;
use serde_json::{Value, json};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The parts of an image, ready for any registry.
pub struct Built {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

/// Builds the image below `scratch`.
pub fn build(scratch: &Path) -> Built {
    let (base, top) = (scratch.join("base"), scratch.join("top"));
    for directory in ["bin", "etc", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(base.join(directory)).unwrap();
    }
    fs::copy("/usr/bin/busybox", base.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "httpd", "true"] {
        std::os::unix::fs::symlink("busybox", base.join("bin").join(applet)).unwrap();
    }
    fs::write(
        base.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nold:x:5:5::/:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        base.join("etc/group"),
        "root:x:0:\nstaff:x:50:web\nweb:x:101:\nlogs:x:4:joe,web\n",
    )
    .unwrap();
    fs::create_dir_all(top.join("etc")).unwrap();
    fs::create_dir_all(top.join("www")).unwrap();
    fs::write(top.join("www/index.html"), "hello\n").unwrap();
    fs::write(
        top.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:101::/www:/bin/sh\n",
    )
    .unwrap();
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for tree in [base, top] {
        let tar = run(Command::new("tar")
            .args(["-C", tree.to_str().unwrap()])
            .args([
                "--sort=name",
                "--mtime=@0",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "-c",
                ".",
            ]));
        diff_ids.push(Digest::of(&tar).to_string());
        let plain = scratch.join("layer.tar");
        fs::write(&plain, tar).unwrap();
        layers.push(run(Command::new("gzip").args([
            "-n",
            "-c",
            plain.to_str().unwrap(),
        ])));
    }
    let config = json!({"architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/bin/httpd"], "Cmd": ["-f"], "Env": ["PATH=/bin", "EMPTY="],
            "WorkingDir": "/www", "User": "web", "StopSignal": "SIGTERM"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": describe(CONFIG, &config),
        "layers": layers.iter().map(|layer| describe(LAYER, layer)).collect::<Vec<_>>()});
    Built {
        manifest: manifest.to_string().into_bytes(),
        config,
        layers,
    }
}

/// Pushes the image to `127.0.0.1:5000/<name>`.
pub fn push(built: &Built, scratch: &Path, name: &str) {
    let layout = scratch.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for bytes in built.layers.iter().chain([&built.manifest, &built.config]) {
        fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
    }
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion": "1.0.0"}"#,
    )
    .unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [describe(MANIFEST, &built.manifest)]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
        .args([
            format!("oci:{}", layout.display()),
            format!("docker://127.0.0.1:5000/{name}"),
        ]));
}

pub fn describe(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).as_str(), "size": bytes.len()})
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output.stdout
}
