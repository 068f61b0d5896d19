//! The registry's files as its storage driver lays them out (distribution, registry/storage/paths.go):
//! a large image is placed there by hard links instead of being uploaded.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::ground::Ground;

/// Where the registries of a host have their content.
pub(super) fn root(ground: &Ground) -> PathBuf {
    ground.path("registry")
}

/// Puts the file `blob` into the storage at `root` as the blob `digest` of `repository`.
pub(super) fn place_blob(root: &Path, repository: &str, digest: &str, blob: &Path) -> Result<()> {
    let data = data(root, digest)?;
    if !data.exists() {
        let directory = data.parent().context("a blob without a directory")?;
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        // Another file system is not wrong, only slower.
        if fs::hard_link(blob, &data).is_err() {
            fs::copy(blob, &data).with_context(|| format!("copy {}", blob.display()))?;
        }
    }
    link(root, repository, "_layers", digest)
}

/// Puts the file `manifest` into the storage as `tag` of `repository`.
pub(super) fn place_manifest(
    root: &Path,
    repository: &str,
    tag: &str,
    digest: &str,
    manifest: &Path,
) -> Result<()> {
    place_blob(root, repository, digest, manifest)?;
    link(root, repository, "_manifests/revisions", digest)?;
    link(
        root,
        repository,
        &format!("_manifests/tags/{tag}/index"),
        digest,
    )?;
    let current = format!("_manifests/tags/{tag}/current/link");
    write(&repositories(root, repository).join(current), digest)
}

fn data(root: &Path, digest: &str) -> Result<PathBuf> {
    let Some(hex) = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64) else {
        bail!("not a digest: {digest}");
    };
    let path = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    Ok(root.join(path))
}

fn repositories(root: &Path, repository: &str) -> PathBuf {
    root.join("docker/registry/v2/repositories")
        .join(repository)
}

fn link(root: &Path, repository: &str, kind: &str, digest: &str) -> Result<()> {
    let name = digest.replace(':', "/");
    let file = repositories(root, repository).join(format!("{kind}/{name}/link"));
    write(&file, digest)
}

fn write(file: &Path, text: &str) -> Result<()> {
    let directory = file.parent().context("a link without a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
