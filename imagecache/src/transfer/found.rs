//! An image in an archive: what of it goes where.

use bytes::Bytes;

use super::ImportError;
use super::survey::Survey;
use crate::manifest::{self, Manifest};
use crate::{Descriptor, Reference};

/// An image that an archive has, complete as far as names and sizes tell.
#[derive(Debug)]
pub(super) struct Found {
    /// Its name.
    pub reference: Reference,
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

/// The names of the images: what the caller gave stands for what the archive says.
pub(super) fn named<T>(
    images: Vec<(Name, Descriptor, T)>,
    given: Option<&Reference>,
) -> Result<Vec<(Reference, Descriptor, T)>, ImportError> {
    if let Some(given) = given {
        let mut images = images;
        // One image with several names is one image.
        images.dedup_by(|one, other| one.1.digest == other.1.digest);
        let count = images.len();
        let image = images.into_iter().next();
        return match image {
            Some((_, target, rest)) if count == 1 => Ok(vec![(given.clone(), target, rest)]),
            _ => Err(ImportError::SeveralImages {
                name: given.to_string(),
                count,
            }),
        };
    }
    let names = images.into_iter().map(|(name, target, rest)| match name {
        Name::Full(reference) => Ok((reference, target, rest)),
        Name::None(found) => Err(ImportError::Unnamed {
            target: target.digest,
            found,
        }),
    });
    names.collect()
}

/// Refuses a config that does not fit the manifest, or this host.
pub(super) fn check_config(
    reference: &Reference,
    manifest: &Manifest,
    config: &[u8],
) -> Result<(), ImportError> {
    let object = crate::error::named("config", &manifest.config.digest);
    let layers = manifest.layers.len();
    manifest::settings(&reference.to_string(), &object, config, layers)?;
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
