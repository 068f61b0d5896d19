//! OCI image layouts (image-spec, image-layout.md).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use oci_spec::image::{ImageIndex, OciLayout, Os};

use super::ImportError;
use super::found::{Found, FoundImage, Name, bound_names, check_config, layers_of, named};
use super::survey::Survey;
use crate::error::named as object_named;
use crate::manifest::{self, Document};
use crate::{Descriptor, Digest, PullError, Reference};

/// Says that this is a layout.
pub(super) const LAYOUT: &str = "oci-layout";
/// What is in it.
pub(super) const INDEX: &str = "index.json";
/// The only version of layouts.
pub(super) const VERSION: &str = "1.0.0";
/// A full name (containerd, docker, nerdctl).
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";
/// A tag, or a name (image-spec, annotations.md).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The images of a layout for this host.
pub(super) fn images(
    survey: &Survey,
    given: Option<&Reference>,
) -> Result<Vec<Found>, ImportError> {
    let layout: OciLayout = survey.json(LAYOUT)?;
    if layout.image_layout_version() != VERSION {
        return Err(ImportError::Malformed {
            name: LAYOUT.to_owned(),
            why: format!(
                "imageLayoutVersion is {:?}: {VERSION:?} is allowed",
                layout.image_layout_version()
            ),
        });
    }
    let index: ImageIndex = survey.json(INDEX)?;
    let entries = || index.manifests().iter().filter(|entry| fits(entry));
    bound_names(INDEX, entries().count())?;
    let mut listed = Vec::new();
    for entry in entries() {
        let target = manifest::descriptor(INDEX, entry)?;
        let name = name_of(entry.annotations().as_ref().unwrap_or(&HashMap::new()))?;
        listed.push((name, target.digest.clone(), target));
    }
    if listed.is_empty() {
        return Err(nothing_here(&index));
    }
    let mut images: HashMap<Digest, Arc<FoundImage>> = HashMap::new();
    let mut found = Vec::new();
    for (reference, target) in named(listed, given)? {
        let image = match images.entry(target.digest.clone()) {
            Entry::Occupied(image) => Arc::clone(image.get()),
            Entry::Vacant(none) => {
                Arc::clone(none.insert(Arc::new(image(survey, &reference, target)?)))
            }
        };
        found.push(Found { reference, image });
    }
    Ok(found)
}

/// Entries without a platform are looked at; the config says what they are for.
fn fits(entry: &oci_spec::image::Descriptor) -> bool {
    entry.platform().as_ref().is_none_or(|platform| {
        *platform.os() == Os::Linux && *platform.architecture() == manifest::host_architecture()
    })
}

fn nothing_here(index: &ImageIndex) -> ImportError {
    let platforms = index.manifests().iter().filter_map(|entry| {
        let platform = entry.platform().as_ref()?;
        Some(format!("{}/{}", platform.os(), platform.architecture()))
    });
    let offered: Vec<String> = platforms.collect();
    if offered.is_empty() {
        return ImportError::Malformed {
            name: INDEX.to_owned(),
            why: "it names no image".to_owned(),
        };
    }
    ImportError::Image(PullError::UnsupportedPlatform {
        reference: INDEX.to_owned(),
        wanted: format!("linux/{}", manifest::host_architecture()),
        offered: offered.join(", "),
    })
}

fn name_of(annotations: &HashMap<String, String>) -> Result<Name, ImportError> {
    let full = |key: &str, text: &str| match text.parse() {
        Ok(reference) => Ok(Name::Full(reference)),
        Err(error) => Err(ImportError::Malformed {
            name: INDEX.to_owned(),
            why: format!("annotation {key}: {error}"),
        }),
    };
    if let Some(text) = annotations.get(IMAGE_NAME) {
        return full(IMAGE_NAME, text);
    }
    match annotations.get(REF_NAME) {
        // Without a slash it is a tag, or could be one.
        Some(text) if text.contains('/') => full(REF_NAME, text),
        Some(text) => Ok(Name::None(format!("{REF_NAME} is {text:?}"))),
        None => Ok(Name::None("no annotation with a name".to_owned())),
    }
}

fn image(
    survey: &Survey,
    reference: &Reference,
    target: Descriptor,
) -> Result<FoundImage, ImportError> {
    let name = reference.to_string();
    let bytes = survey.blob(&target, INDEX)?;
    let object = object_named("manifest", &target.digest);
    let mut documents = Vec::new();
    let manifest = match manifest::document(&name, &object, &bytes)? {
        Document::Manifest(manifest) => manifest,
        Document::Index(chosen) => {
            let inner = survey.blob(&chosen, &object)?;
            let object = object_named("manifest", &chosen.digest);
            let Document::Manifest(manifest) = manifest::document(&name, &object, &inner)? else {
                return Err(ImportError::Image(PullError::Malformed {
                    object,
                    why: "an index names another index for this platform".to_owned(),
                }));
            };
            documents.push((chosen, inner));
            manifest
        }
    };
    documents.push((target.clone(), bytes));
    let config = survey.blob(&manifest.config, &object)?;
    check_config(&name, &manifest, &config)?;
    let layers = layers_of(survey, &manifest, &object)?;
    documents.insert(0, (manifest.config, config));
    Ok(FoundImage {
        target,
        documents,
        layers,
    })
}
