//! Export: images as a tar of an OCI layout, with docker's `manifest.json` beside it, so that
//! `docker load`, `ctr images import`, skopeo and [`super::import`] read it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use bytes::Bytes;
use serde_json::{Value, json};

use super::ExportError;
use super::docker::MANIFEST;
use super::oci::{IMAGE_NAME, INDEX, LAYOUT, REF_NAME, VERSION};
use super::survey::blob_name;
use crate::blobs::{Blob, Blobs};
use crate::manifest::{CONFIG_LIMIT, MANIFEST_LIMIT};
use crate::{ContentStore, Descriptor, Digest, Hasher, Image};
use oci_spec::image::MediaType;

/// Bytes copied at a time.
const CHUNK: usize = 256 * 1024;

/// Images that are ready to be written: all their blobs are at hand and stay so.
///
/// Of an image for several platforms, its index is in it, and of its manifests the one for this
/// host, so that its digest stays what it was.
#[derive(Debug)]
pub struct Export {
    documents: BTreeMap<Digest, Bytes>,
    layers: BTreeMap<Digest, Blob>,
    /// Files of the layout itself.
    files: [(&'static str, Vec<u8>); 3],
}

impl Export {
    /// Finds everything. When layers are not kept any more, the error names all of the image.
    pub async fn of<S: ContentStore>(
        images: &[Image],
        blobs: &Blobs,
        store: &S,
    ) -> Result<Self, ExportError> {
        let mut documents = BTreeMap::new();
        let mut layers = BTreeMap::new();
        for image in images {
            for document in [&image.target, &image.manifest, &image.config] {
                let limit = MANIFEST_LIMIT.max(CONFIG_LIMIT);
                let bytes = store.read(&document.digest, limit).await?;
                documents.insert(document.digest.clone(), bytes);
            }
            let mut missing = Vec::new();
            for layer in &image.layers {
                match blobs.find(&layer.digest)? {
                    Some(blob) => drop(layers.insert(layer.digest.clone(), blob)),
                    None if missing.contains(&layer.digest) => {}
                    None => missing.push(layer.digest.clone()),
                }
            }
            if !missing.is_empty() {
                return Err(ExportError::NotKept {
                    reference: image.reference.to_string(),
                    missing,
                });
            }
        }
        let layout = json!({"imageLayoutVersion": VERSION}).to_string();
        let files = [
            (LAYOUT, layout.into_bytes()),
            (INDEX, index(images).to_string().into_bytes()),
            (MANIFEST, manifest(images).to_string().into_bytes()),
        ];
        Ok(Self {
            documents,
            layers,
            files,
        })
    }

    /// Writes the archive; the same images give the same bytes. Every blob is hashed on the way:
    /// when this fails, what was written is no archive. Blocks.
    pub fn write(self, to: impl Write) -> Result<(), ExportError> {
        let mut archive = tar::Builder::new(to);
        let failed = ExportError::Write;
        for (name, text) in &self.files {
            append(&mut archive, name, text.len() as u64, &text[..]).map_err(failed)?;
        }
        for directory in ["blobs/", "blobs/sha256/"] {
            let mut header = header(tar::EntryType::Directory, 0o755, 0);
            let added = archive.append_data(&mut header, directory, io::empty());
            added.map_err(failed)?;
        }
        for (digest, bytes) in &self.documents {
            let name = blob_name(digest);
            append(&mut archive, &name, bytes.len() as u64, &bytes[..]).map_err(failed)?;
        }
        for (digest, blob) in self.layers {
            let size = blob.size;
            let mut hashed = Hashed::new(blob);
            let added = append(&mut archive, &blob_name(&digest), size, &mut hashed);
            if let Some(source) = hashed.failure {
                return Err(ExportError::Read { digest, source });
            }
            added.map_err(failed)?;
            let got = hashed.hasher.finish();
            if got != digest {
                let expected = digest;
                return Err(ExportError::Damaged { expected, got });
            }
        }
        let mut to = archive.into_inner().map_err(failed)?;
        to.flush().map_err(failed)
    }
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    data: impl Read,
) -> io::Result<()> {
    let mut header = header(tar::EntryType::Regular, 0o644, size);
    archive.append_data(&mut header, name, io::BufReader::with_capacity(CHUNK, data))
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Names as containerd's exporter writes them, which docker and nerdctl read too.
fn index(images: &[Image]) -> Value {
    let entry = |image: &Image| {
        let mut entry = describe(&image.target);
        let mut annotations = json!({ IMAGE_NAME: image.reference.to_string() });
        if let Some(tag) = image.reference.tag() {
            annotations[REF_NAME] = json!(tag);
        }
        entry["annotations"] = annotations;
        entry
    };
    let manifests: Vec<Value> = images.iter().map(entry).collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageIndex.to_string(),
        "manifests": manifests,
    })
}

/// For docker before 25, which knows no layouts.
fn manifest(images: &[Image]) -> Value {
    let mut listed: BTreeMap<&Digest, (&Image, Vec<String>)> = BTreeMap::new();
    for image in images {
        let (_, tags) = listed
            .entry(&image.manifest.digest)
            .or_insert_with(|| (image, Vec::new()));
        // A tag in docker's sense has no digest behind it.
        if let Some(tag) = image.reference.tag() {
            let (registry, repository) = (image.reference.registry(), image.reference.repository());
            tags.push(format!("{registry}/{repository}:{tag}"));
        }
    }
    let entry = |(image, tags): &(&Image, Vec<String>)| {
        let layers = image.layers.iter().map(|layer| blob_name(&layer.digest));
        json!({
            "Config": blob_name(&image.config.digest),
            "RepoTags": tags,
            "Layers": layers.collect::<Vec<String>>(),
        })
    };
    listed.values().map(entry).collect()
}

fn describe(of: &Descriptor) -> Value {
    json!({"mediaType": of.media_type, "digest": of.digest.as_str(), "size": of.size})
}

/// Reads a blob and hashes what it reads. Keeps an error of the disk apart from those of whoever
/// takes the archive.
struct Hashed {
    blob: Blob,
    hasher: Hasher,
    failure: Option<io::Error>,
}

impl Hashed {
    fn new(blob: Blob) -> Self {
        Self {
            blob,
            hasher: Hasher::default(),
            failure: None,
        }
    }
}

impl Read for &mut Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.blob.file.read(buffer) {
            Ok(read) => {
                self.hasher.update(&buffer[..read]);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}
