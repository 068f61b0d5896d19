//! Import, from the first look to the record.

use std::path::Path;

use super::contents::Contents;
use super::fill::fill;
use super::found::Found;
use super::survey::Survey;
use super::{ImportError, docker, oci};
use crate::blobs::Blobs;
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
    Archive::open(path, name).await?.bring(blobs, store).await
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
        images.map(|image| (&image.reference, &image.target.digest))
    }

    /// Brings all of them here: layers into `blobs`, documents into `store`, when every layer is
    /// there. Dropped, the work ends soon; what was verified stays.
    pub async fn bring<S: ContentStore>(
        self,
        blobs: &Blobs,
        store: &S,
    ) -> Result<Vec<Image>, ImportError> {
        let (blobs, contents) = (blobs.clone(), self.contents);
        let found = blocking(move |cancel| {
            fill(&contents, &self.images, &blobs, cancel)?;
            Ok(self.images)
        });
        let found = found.await?;
        let mut images = Vec::with_capacity(found.len());
        for found in found {
            for (document, bytes) in found.documents {
                fetch::keep(store, &document, bytes).await?;
            }
            let image = pull::local(&found.reference, &found.target.digest, store).await?;
            images.push(image.ok_or_else(|| ImportError::Missing {
                name: found.target.digest.to_string(),
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
