//! Real, small OCI images: the machine's static busybox, a page, whatever else a test needs. Large
//! ones, and odd ones, are on disk: [`cached`], [`layout`].

pub mod archive;
pub mod cached;
pub mod catalogue;
pub mod layout;
pub mod signer;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::registry::Registry;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Commands of busybox that the images have as links.
const APPLETS: [&str; 16] = [
    "cat", "chmod", "echo", "hostname", "httpd", "id", "kill", "ln", "ls", "mkdir", "nc", "rm",
    "sh", "sleep", "touch", "wget",
];

/// The first line of the page that [`Image::web`] serves.
pub const PAGE: &str = "hello from a nodeagent instance";

/// An image in the making: one layer and what is to be run.
#[derive(Debug, Clone)]
pub struct Image {
    layer: Vec<(Header, String, Vec<u8>, String)>,
    command: Vec<String>,
    env: Vec<String>,
}

/// An image that was pushed.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// `127.0.0.1:5000/web:1`.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Digest of its only layer's blob.
    pub layer: String,
}

impl Image {
    /// Busybox and an empty `/tmp`; runs `sh`.
    pub fn busybox() -> Result<Self> {
        let busybox = fs::read("/bin/busybox").context("read /bin/busybox (busybox-static)")?;
        let mut image = Self {
            layer: Vec::new(),
            command: vec!["/bin/sh".to_owned()],
            env: vec!["PATH=/bin".to_owned()],
        };
        for directory in ["bin", "etc", "proc", "sys", "dev", "run", "www"] {
            image.entry(EntryType::Directory, directory, 0o755, Vec::new(), "");
        }
        image.entry(EntryType::Directory, "tmp", 0o1777, Vec::new(), "");
        image.entry(EntryType::Regular, "bin/busybox", 0o755, busybox, "");
        for applet in APPLETS {
            let path = format!("bin/{applet}");
            image.entry(EntryType::Symlink, &path, 0o777, Vec::new(), "busybox");
        }
        let users = "root:x:0:0:root:/:/bin/sh\nweb:x:1000:1000:web:/tmp:/bin/sh\n";
        let image = image.file("etc/passwd", 0o644, users).file(
            "etc/group",
            0o644,
            "root:x:0:\nweb:x:1000:\n",
        );
        Ok(image)
    }

    /// A web page ([`PAGE`]), served on port 8080 by busybox's httpd.
    pub fn web() -> Result<Self> {
        let image = Self::busybox()?
            .file("www/index.html", 0o644, format!("{PAGE}\n"))
            .runs(&["/bin/httpd", "-f", "-p", "8080", "-h", "/www"]);
        Ok(image)
    }

    /// An app that says `READY=1` at once and then sleeps: `testdata/notify-app.c`.
    pub fn notify(scratch: &Path) -> Result<Self> {
        let program = compiled("notify-app", scratch, &["-nostdlib", "-fno-builtin"])?;
        let image = Self::busybox()?
            .file("bin/notify-app", 0o755, program)
            .runs(&["/bin/notify-app"]);
        Ok(image)
    }

    /// An app that attacks its agent and serves what it achieved: `testdata/hostile-app.c`.
    pub fn hostile(scratch: &Path) -> Result<Self> {
        let program = compiled("hostile-app", scratch, &[])?;
        let image = Self::busybox()?
            .file("bin/hostile-app", 0o755, program)
            .runs(&["/bin/hostile-app"]);
        Ok(image)
    }

    /// Adds a file; its directory has to be there.
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.entry(EntryType::Regular, path, mode, content.into(), "");
        self
    }

    /// Sets what is run.
    pub fn runs(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    fn entry(&mut self, kind: EntryType, path: &str, mode: u32, content: Vec<u8>, link: &str) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        // The same content is the same digest, whenever it was made.
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        self.layer
            .push((header, path.to_owned(), content, link.to_owned()));
    }

    /// Pushes it as `name` (`web:1`).
    pub fn push(&self, registry: &Registry, name: &str) -> Result<Pushed> {
        let (repository, tag) = name
            .split_once(':')
            .context("an image name without a tag")?;
        let tar = self.tar().context("write the layer's tar")?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar).context("compress the layer")?;
        let layer = gzip.finish().context("compress the layer")?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Cmd": self.command, "Env": self.env },
            "rootfs": { "type": "layers", "diff_ids": [digest(&tar)] },
        });
        let config = config.to_string().into_bytes();
        let describe = |media_type: &str, blob: &[u8]| -> Value {
            json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(CONFIG, &config),
            "layers": [describe(LAYER, &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        registry.push_blob(repository, &digest(&layer), &layer)?;
        registry.push_blob(repository, &digest(&config), &config)?;
        registry.push_manifest(repository, tag, MANIFEST, &manifest)?;
        Ok(Pushed {
            reference: Registry::reference(name),
            digest: digest(&manifest),
            layer: digest(&layer),
        })
    }

    fn tar(&self) -> std::io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (header, path, content, link) in &self.layer {
            let mut header = header.clone();
            if link.is_empty() {
                archive.append_data(&mut header, path, content.as_slice())?;
            } else {
                archive.append_link(&mut header, path, link)?;
            }
        }
        archive.into_inner()
    }
}

/// `testdata/<name>.c`, compiled statically by the machine's gcc in `scratch`.
fn compiled(name: &str, scratch: &Path, flags: &[&str]) -> Result<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let source = directory.join(format!("{name}.c"));
    let program = scratch.join(name);
    let compiled = Command::new("gcc")
        .args(["-static", "-Os", "-s", "-Wall", "-Werror"])
        .args(flags)
        .arg("-o")
        .args([&program, &source])
        .output()
        .context("run gcc")?;
    ensure!(
        compiled.status.success(),
        "compile {}: {}",
        source.display(),
        String::from_utf8_lossy(&compiled.stderr)
    );
    fs::read(&program).with_context(|| format!("read {}", program.display()))
}

/// `sha256:<hex>` of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// This machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
