//! An image in an archive: what of it goes where.

use std::sync::Arc;

use bytes::Bytes;

use super::ImportError;
use super::survey::Survey;
use crate::manifest::{self, Manifest};
use crate::{Descriptor, Digest, Reference};

/// Most names of all images of an archive.
const MOST_NAMES: usize = 1000;

/// A name of an image that an archive has.
#[derive(Debug)]
pub(super) struct Found {
    pub reference: Reference,
    /// Shared by all its names.
    pub image: Arc<FoundImage>,
}

/// An image that an archive has, complete as far as names and sizes tell.
#[derive(Debug)]
pub(super) struct FoundImage {
    /// What the name means: an index or the manifest itself.
    pub target: Descriptor,
    /// Config, manifest and index, in the order in which they may be recorded.
    pub documents: Vec<(Descriptor, Bytes)>,
    /// Its layers, with the names of their files.
    pub layers: Vec<(String, Descriptor)>,
}

/// What the archive, or the caller, says an image is called.
#[derive(Debug)]
pub(super) enum Name {
    /// A full name.
    Full(Reference),
    /// No full name; for the error, what there is instead.
    None(String),
}

/// Refuses more names than an archive may have; `file` is the one that has them.
pub(super) fn bound_names(file: &str, names: usize) -> Result<(), ImportError> {
    match names > MOST_NAMES {
        true => Err(ImportError::Malformed {
            name: file.to_owned(),
            why: format!("it has {names} names of images; at most {MOST_NAMES}"),
        }),
        false => Ok(()),
    }
}

/// The names of the images, each with what it means: what the caller gave stands for what the
/// archive says.
pub(super) fn named<T>(
    images: Vec<(Name, Digest, T)>,
    given: Option<&Reference>,
) -> Result<Vec<(Reference, T)>, ImportError> {
    if let Some(given) = given {
        let mut images = images;
        // One image with several names is one image.
        images.dedup_by(|one, other| one.1 == other.1);
        let count = images.len();
        let image = images.into_iter().next();
        return match image {
            Some((_, _, image)) if count == 1 => Ok(vec![(given.clone(), image)]),
            _ => Err(ImportError::SeveralImages {
                name: given.to_string(),
                count,
            }),
        };
    }
    let names = images.into_iter().map(|(name, target, image)| match name {
        Name::Full(reference) => Ok((reference, image)),
        Name::None(found) => Err(ImportError::Unnamed { target, found }),
    });
    names.collect()
}

/// Refuses a config that does not fit the manifest, or this host. `image` is what it is called.
pub(super) fn check_config(
    image: &str,
    manifest: &Manifest,
    config: &[u8],
) -> Result<(), ImportError> {
    let object = crate::error::named("config", &manifest.config.digest);
    let layers = manifest.layers.len();
    manifest::settings(image, &object, config, layers)?;
    Ok(())
}

/// The layers of a manifest in a layout: where their bytes are.
pub(super) fn layers_of(
    survey: &Survey,
    manifest: &Manifest,
    wanted_by: &str,
) -> Result<Vec<(String, Descriptor)>, ImportError> {
    let mut layers = Vec::with_capacity(manifest.layers.len());
    for layer in &manifest.layers {
        let name = super::survey::blob_name(&layer.digest);
        let (at, seen) = survey.file(&name, wanted_by)?;
        super::survey::check_size(&name, layer.size, seen.size)?;
        layers.push((at.to_owned(), layer.clone()));
    }
    Ok(layers)
}
