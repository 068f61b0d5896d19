//! What `docker save` writes (docker image specification v1.2): `manifest.json`, configs, and
//! layers that are tars, not compressed, so that a layer's digest is its diff id.
//!
//! There is no manifest in it: one is made, the same one from the same archive.

use std::sync::Arc;

use oci_spec::image::{ImageConfiguration, MediaType};
use serde::Deserialize;
use serde_json::json;

use super::ImportError;
use super::found::{Found, FoundImage, Name, bound_names, check_config, named};
use super::survey::Survey;
use crate::manifest::{Manifest, bound_layers};
use crate::{Descriptor, Digest, Reference};

/// What is in the archive.
pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Saved {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// The images of the archive.
pub(super) fn images(
    survey: &Survey,
    given: Option<&Reference>,
) -> Result<Vec<Found>, ImportError> {
    let saved: Vec<Saved> = survey.json(MANIFEST)?;
    if saved.is_empty() {
        return Err(malformed("it names no image"));
    }
    // One without a tag needs a name as well.
    let names = saved.iter().map(|saved| saved.tags().len().max(1));
    bound_names(MANIFEST, names.sum())?;
    let mut listed = Vec::new();
    for saved in saved {
        let image = Arc::new(make(survey, &saved)?);
        let mut list = |name| listed.push((name, image.target.digest.clone(), Arc::clone(&image)));
        if saved.tags().is_empty() {
            list(Name::None("no RepoTags".to_owned()));
        }
        for tag in saved.tags() {
            let name = tag.parse().map(Name::Full);
            list(name.map_err(|error| malformed(&format!("RepoTags: {error}")))?);
        }
    }
    let named = named(listed, given)?.into_iter();
    let found = named.map(|(reference, image)| Found { reference, image });
    Ok(found.collect())
}

/// The image, with a manifest that is made for its config and its layers.
fn make(survey: &Survey, saved: &Saved) -> Result<FoundImage, ImportError> {
    bound_layers(saved.layers.len()).map_err(|why| malformed(&why))?;
    let config = survey.document(&saved.config, MANIFEST)?;
    let parsed: ImageConfiguration =
        serde_json::from_slice(&config).map_err(|error| ImportError::Malformed {
            name: saved.config.clone(),
            why: error.to_string(),
        })?;
    let diff_ids = parsed.rootfs().diff_ids();
    if diff_ids.len() != saved.layers.len() {
        return Err(malformed(&format!(
            "it names {} layers, {} has {} diff ids",
            saved.layers.len(),
            saved.config,
            diff_ids.len()
        )));
    }
    let (mut layers, mut names) = (Vec::new(), Vec::new());
    for (name, diff_id) in saved.layers.iter().zip(diff_ids) {
        let (at, seen) = survey.file(name, MANIFEST)?;
        if seen.compressed {
            return Err(ImportError::Entry {
                name: name.clone(),
                why: "it is compressed, which layers of a docker-archive are not: an OCI layout may have it (`skopeo copy docker-archive:… oci-archive:…`)".to_owned(),
            });
        }
        let digest = diff_id.parse().map_err(|error: crate::InvalidDigest| {
            let (name, why) = (saved.config.clone(), error.to_string());
            ImportError::Malformed { name, why }
        })?;
        layers.push(Descriptor {
            media_type: MediaType::ImageLayer.to_string(),
            digest,
            size: seen.size,
        });
        names.push(at.to_owned());
    }
    let manifest = Manifest {
        config: Descriptor {
            media_type: MediaType::ImageConfig.to_string(),
            digest: Digest::of(&config),
            size: config.len() as u64,
        },
        layers,
    };
    let text = text_of(&manifest);
    let target = Descriptor {
        media_type: MediaType::ImageManifest.to_string(),
        digest: Digest::of(&text),
        size: text.len() as u64,
    };
    let called = saved.tags().first().unwrap_or(&saved.config);
    check_config(called, &manifest, &config)?;
    Ok(FoundImage {
        target: target.clone(),
        documents: vec![(manifest.config, config), (target, text.into())],
        layers: names.into_iter().zip(manifest.layers).collect(),
    })
}

fn text_of(manifest: &Manifest) -> Vec<u8> {
    let describe = |of: &Descriptor| json!({"mediaType": of.media_type, "digest": of.digest.as_str(), "size": of.size});
    let layers: Vec<_> = manifest.layers.iter().map(describe).collect();
    let text = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageManifest.to_string(),
        "config": describe(&manifest.config),
        "layers": layers,
    });
    text.to_string().into_bytes()
}

fn malformed(why: &str) -> ImportError {
    ImportError::Malformed {
        name: MANIFEST.to_owned(),
        why: why.to_owned(),
    }
}
