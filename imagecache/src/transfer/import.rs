//! Import, from the first look to the record.

use std::path::Path;

use super::contents::Contents;
use super::fill::fill;
use super::found::Found;
use super::survey::Survey;
use super::{ImportError, docker, oci};
use crate::blobs::{Blobs, NeededBlobs};
use crate::waiting::{Cancel, while_waited_for};
use crate::{ContentStore, Digest, Image, Reference, fetch, pull};

/// Brings the images of an OCI layout or a docker-archive here: layers into `blobs`, documents
/// into `store`, for the caller to unpack and record. See [`Archive`].
pub async fn import<S: ContentStore>(
    path: &Path,
    name: Option<&Reference>,
    blobs: &Blobs,
    store: &S,
) -> Result<Vec<Image>, ImportError> {
    let archive = Archive::open(path, name).await?;
    archive.fill(blobs).await?.bring(store).await
}

/// An OCI layout or a docker-archive that was looked at: what is in it is known, and nothing of it
/// is here. Where an archive is both (docker 25 and newer), it is read as the layout.
#[derive(Debug)]
pub struct Archive {
    contents: Contents,
    images: Vec<Found>,
}

impl Archive {
    /// Looks at what is at `path`. `name` is for an archive with one image that has no full name in
    /// it, or another one.
    pub async fn open(path: &Path, name: Option<&Reference>) -> Result<Self, ImportError> {
        let (path, name) = (path.to_owned(), name.cloned());
        blocking(move |cancel| {
            let contents = Contents::open(&path)?;
            let survey = Survey::of(&contents, cancel)?;
            let images = if survey.has(oci::LAYOUT) {
                oci::images(&survey, name.as_ref())?
            } else if survey.has(docker::MANIFEST) {
                docker::images(&survey, name.as_ref())?
            } else {
                return Err(ImportError::NotAnImage);
            };
            Ok(Self { contents, images })
        })
        .await
    }

    /// Its images: each name, and what the name means. One with several names is there as often.
    pub fn images(&self) -> impl Iterator<Item = (&Reference, &Digest)> {
        let images = self.images.iter();
        images.map(|found| (&found.reference, &found.image.target.digest))
    }

    /// Brings the layers of all of them into `blobs`. Dropped, the work ends soon; what was verified
    /// stays.
    pub async fn fill(self, blobs: &Blobs) -> Result<Filled, ImportError> {
        let layers = self.images.iter().flat_map(|found| &found.image.layers);
        let needed = blobs.need(layers.map(|(_, layer)| layer.digest.clone()));
        let (blobs, contents) = (blobs.clone(), self.contents);
        let images = blocking(move |cancel| {
            fill(&contents, &self.images, &blobs, cancel)?;
            Ok(self.images)
        });
        Ok(Filled {
            images: images.await?,
            _needed: needed,
        })
    }
}

/// Images of an archive whose layers are in the store, and stay as long as this is there.
#[derive(Debug)]
pub struct Filled {
    images: Vec<Found>,
    _needed: NeededBlobs,
}

impl Filled {
    /// Brings their documents into `store`, each behind what it names.
    pub async fn bring<S: ContentStore>(&self, store: &S) -> Result<Vec<Image>, ImportError> {
        let mut images = Vec::with_capacity(self.images.len());
        for Found { reference, image } in &self.images {
            for (document, bytes) in &image.documents {
                fetch::keep(store, document, bytes.clone()).await?;
            }
            let target = &image.target.digest;
            let image = pull::local(reference, target, store).await?;
            images.push(image.ok_or_else(|| ImportError::Missing {
                name: target.to_string(),
                wanted_by: "the import".to_owned(),
            })?);
        }
        Ok(images)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> Result<T, ImportError> + Send + 'static,
) -> Result<T, ImportError> {
    while_waited_for(work)
        .await
        .map_err(|_| ImportError::Cancelled)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::manifest::host_architecture;

    fn config(layer: &[u8]) -> String {
        let architecture = host_architecture().to_string();
        let diff_ids = [Digest::of(layer).to_string()];
        json!({"architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
    }

    fn docker(names: &[&str]) -> Vec<(String, String)> {
        let saved = json!([{"Config": "c.json", "RepoTags": names, "Layers": ["l.tar"]}]);
        let files = [
            ("c.json", config(b"layer")),
            ("l.tar", "layer".to_owned()),
            ("manifest.json", saved.to_string()),
        ];
        files.map(|(name, text)| (name.to_owned(), text)).into()
    }

    fn oci(names: &[&str]) -> Vec<(String, String)> {
        let mut files = Vec::new();
        let mut blob = |kind: &str, text: String| {
            let digest = Digest::of(text.as_bytes());
            let media_type = format!("application/vnd.oci.image.{kind}");
            let size = text.len();
            files.push((format!("blobs/sha256/{}", digest.hex()), text));
            json!({"mediaType": media_type, "digest": digest.as_str(), "size": size})
        };
        let config = blob("config.v1+json", config(b"layer"));
        let layer = blob("layer.v1.tar", "layer".to_owned());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let manifest = blob("manifest.v1+json", manifest.to_string());
        let entry = |name: &&str| {
            let mut entry = manifest.clone();
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            entry
        };
        let manifests: Vec<Value> = names.iter().map(entry).collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        files.push(("index.json".to_owned(), index.to_string()));
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        files.push(("oci-layout".to_owned(), layout.to_string()));
        files
    }

    #[tokio::test]
    async fn all_names_of_an_image_share_what_is_known_of_it() {
        let names = ["r.example/a:1", "r.example/b:1", "r.example/c:1"];
        for files in [docker(&names), oci(&names)] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut tar = tar::Builder::new(file.as_file());
            for (name, text) in &files {
                let mut header = tar::Header::new_gnu();
                header.set_size(text.len() as u64);
                let added = tar.append_data(&mut header, name, text.as_bytes());
                added.unwrap();
            }
            tar.finish().unwrap();
            let archive = Archive::open(file.path(), None).await.unwrap();
            let found = archive.images().map(|(name, _)| name.to_string());
            assert_eq!(found.collect::<Vec<_>>(), names);
            let first = &archive.images[0].image;
            let is_first = |found: &Found| Arc::ptr_eq(&found.image, first);
            assert!(archive.images.iter().all(is_first));
        }
    }
}
