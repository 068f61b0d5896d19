//! Images on disk as an OCI image layout (image-spec, "image-layout.md"), for those that are too
//! large to be held in memory or too slow to be made each time.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{CONFIG, MANIFEST, architecture, digest};
use crate::registry::Registry;

/// How a layer's archive is compressed; by the programs that are made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// `gzip -6`.
    Gzip,
    /// `zstd -3`.
    Zstd,
    /// Two members, one behind the other (RFC 1952, 2.2).
    GzipOfTwo,
    /// Two frames, one behind the other (RFC 8878, 3.1).
    ZstdOfTwo,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::GzipOfTwo => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd | Self::ZstdOfTwo => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    fn command(self) -> Command {
        let script = match self {
            Self::None => "cat",
            Self::Gzip => "gzip -6n",
            Self::Zstd => "zstd -3q",
            Self::GzipOfTwo => "head -c 2000 | gzip -6n; cat | gzip -6n",
            Self::ZstdOfTwo => "head -c 2000 | zstd -3q; cat | zstd -3q",
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }
}

/// A blob as a manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Described {
    /// Media type.
    pub media_type: String,
    /// `sha256:<hex>`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Described>,
}

#[derive(Debug, Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Described,
    layers: Vec<Described>,
}

/// An image in a directory.
#[derive(Debug, Clone)]
pub struct Layout {
    directory: PathBuf,
    manifest: Described,
    config: Described,
    layers: Vec<Described>,
}

impl Layout {
    /// Opens the layout in `directory`, which has one image.
    pub fn open(directory: &Path) -> Result<Self> {
        let index: Index = read(&directory.join("index.json"))?;
        let manifest = index.manifests.into_iter().next();
        let manifest = manifest.with_context(|| format!("no image in {}", directory.display()))?;
        let known: Manifest = read(&blob(directory, &manifest.digest))?;
        Ok(Self {
            directory: directory.to_owned(),
            manifest,
            config: known.config,
            layers: known.layers,
        })
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }

    /// The name of its topmost layer, unpacked.
    pub fn chain_id(&self) -> Result<String> {
        let config: Config = read(&self.blob(&self.config.digest))?;
        let diff_ids = config.rootfs.diff_ids.iter().map(|id| id.parse());
        let diff_ids: Vec<imagecache::Digest> = diff_ids.collect::<Result<_, _>>()?;
        let top = imagecache::chain_ids(&diff_ids).pop();
        Ok(top.context("an image without layers")?.to_string())
    }

    /// Its layers, the lowest first.
    pub fn layers(&self) -> &[Described] {
        &self.layers
    }

    /// Bytes of all layers as they are fetched.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        blob(&self.directory, digest)
    }

    /// Reads every layer, so that the page cache has them.
    pub fn warm(&self) -> Result<()> {
        for layer in &self.layers {
            let file = self.blob(&layer.digest);
            let read = File::open(&file)
                .and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()));
            read.with_context(|| format!("read {}", file.display()))?;
        }
        Ok(())
    }

    /// Puts it into the registry as `name` (`web:1`), without an upload; returns the reference.
    pub fn place(&self, registry: &Registry, name: &str) -> Result<String> {
        let (repository, tag) = name
            .split_once(':')
            .context("an image name without a tag")?;
        for blob in self.layers.iter().chain([&self.config]) {
            registry.place_blob(repository, &blob.digest, &self.blob(&blob.digest))?;
        }
        let manifest = self.blob(&self.manifest.digest);
        registry.place_manifest(repository, tag, &self.manifest.digest, &manifest)?;
        Ok(Registry::reference(name))
    }
}

/// A layout that is being written.
#[derive(Debug)]
pub struct LayoutWriter {
    directory: PathBuf,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
}

impl LayoutWriter {
    /// A new one in `directory`, which is made.
    pub fn create(directory: &Path) -> Result<Self> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            layers: Vec::new(),
            diff_ids: Vec::new(),
        })
    }

    /// Adds the archive in the file `tar` as the next layer; the file stays.
    pub fn layer(&mut self, tar: &Path, compression: Compression) -> Result<()> {
        self.diff_ids.push(digest_of(tar)?);
        let scratch = self.directory.join("layer");
        let input = File::open(tar).with_context(|| format!("open {}", tar.display()))?;
        let output =
            File::create(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        let mut command = compression.command();
        let ended = command.stdin(input).stdout(output).status();
        let ended = ended.with_context(|| format!("run {command:?}"))?;
        ensure!(ended.success(), "{command:?} ended with {ended}");
        let (digest, size) = self.keep(&scratch)?;
        let kind = compression.media_type();
        self.layers
            .push(json!({ "mediaType": kind, "digest": digest, "size": size }));
        Ok(())
    }

    /// Adds a layer of a layout that is there: its blob is shared where the file system allows it.
    pub fn layer_of(&mut self, other: &Layout, number: usize) -> Result<()> {
        let layer = other.layers.get(number).context("no such layer")?;
        let config: Value = read(&other.blob(&other.config.digest))?;
        let diff_id = config["rootfs"]["diff_ids"][number].as_str();
        let diff_id = diff_id.context("a config without diff_ids")?;
        let (from, to) = (
            other.blob(&layer.digest),
            blob(&self.directory, &layer.digest),
        );
        if !to.exists() && fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
        self.diff_ids.push(diff_id.to_owned());
        self.layers.push(
            json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size }),
        );
        Ok(())
    }

    /// Writes config, manifest and index.
    pub fn finish(self) -> Result<Layout> {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        });
        let config = self.document(CONFIG, &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": self.layers,
        });
        let manifest = self.document(MANIFEST, &manifest)?;
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        let version = json!({ "imageLayoutVersion": "1.0.0" });
        for (name, document) in [("oci-layout", version), ("index.json", index)] {
            let file = self.directory.join(name);
            fs::write(&file, document.to_string())
                .with_context(|| format!("write {}", file.display()))?;
        }
        Layout::open(&self.directory)
    }

    fn document(&self, media_type: &str, document: &Value) -> Result<Value> {
        let text = document.to_string();
        let digest = digest(text.as_bytes());
        let file = blob(&self.directory, &digest);
        fs::write(&file, &text).with_context(|| format!("write {}", file.display()))?;
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": text.len() }))
    }

    /// Moves a file to where its digest says.
    fn keep(&self, file: &Path) -> Result<(String, u64)> {
        let digest = digest_of(file)?;
        let size = fs::metadata(file).context("look at a layer")?.len();
        let to = blob(&self.directory, &digest);
        fs::rename(file, &to).with_context(|| format!("rename to {}", to.display()))?;
        Ok((digest, size))
    }
}

fn blob(directory: &Path, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    directory.join("blobs/sha256").join(hex)
}

fn read<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<T> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))
}

/// `sha256:<hex>` of a file, by sha256sum(1): the harness is not built for speed.
fn digest_of(file: &Path) -> Result<String> {
    let mut sum = Command::new("sha256sum")
        .arg("--binary")
        .stdin(File::open(file).with_context(|| format!("open {}", file.display()))?)
        .stdout(Stdio::piped())
        .spawn()
        .context("run sha256sum(1)")?;
    let mut said = String::new();
    if let Some(output) = &mut sum.stdout {
        output.read_to_string(&mut said).context("read a digest")?;
    }
    let ended = sum.wait().context("wait for sha256sum")?;
    ensure!(ended.success(), "sha256sum ended with {ended}");
    let hex = said.split(' ').next().unwrap_or_default();
    Ok(format!("sha256:{hex}"))
}
