//! Signatures of images as cosign stores them in a registry, made with the machine's openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::digest;
use crate::registry::Registry;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// A pair of keys.
#[derive(Debug)]
pub struct Signer {
    directory: PathBuf,
    private: PathBuf,
    /// File with the public key.
    pub public: PathBuf,
}

impl Signer {
    /// Makes keys in `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
        let signer = Self {
            directory: directory.to_owned(),
            private: directory.join("key.pem"),
            public: directory.join("key.pub"),
        };
        let (private, public) = (text(&signer.private)?, text(&signer.public)?);
        let make = [
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
        ];
        openssl(&[&make[..], &[private]].concat())?;
        openssl(&["ec", "-in", private, "-pubout", "-out", public])?;
        Ok(signer)
    }

    /// Signs what `digest` is in `repository` of `registry`, and stores that beside it.
    pub fn sign(&self, registry: &Registry, repository: &str, signed: &str) -> Result<()> {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": Registry::reference(repository) },
                "image": { "docker-manifest-digest": signed },
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string().into_bytes();
        let file = self.directory.join("payload");
        fs::write(&file, &payload).with_context(|| format!("write {}", file.display()))?;
        let (private, file) = (text(&self.private)?, text(&file)?);
        let signature = openssl(&["dgst", "-sha256", "-sign", private, file])?;
        let config = b"{}";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest(config), "size": config.len() },
            "layers": [{
                "mediaType": PAYLOAD,
                "digest": digest(&payload),
                "size": payload.len(),
                "annotations": { SIGNATURE: STANDARD.encode(signature) },
            }],
        });
        registry.push_blob(repository, &digest(&payload), &payload)?;
        registry.push_blob(repository, &digest(config), config)?;
        let tag = format!("{}.sig", signed.replace(':', "-"));
        let manifest = manifest.to_string();
        registry.push_manifest(repository, &tag, MANIFEST, manifest.as_bytes())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}", path.display()))
}

fn openssl(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("openssl").args(arguments).output();
    let output = output.context("run openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl {arguments:?}: {said}");
    Ok(output.stdout)
}
