//! Import, from the first look to the record.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::contents::Contents;
use super::fill::fill;
use super::found::Found;
use super::survey::Survey;
use super::{ImportError, docker, oci};
use crate::blobs::Blobs;
use crate::{ContentStore, Image, Reference, fetch, pull};

/// Brings the images of an OCI layout or a docker-archive here: layers into `blobs`, documents
/// into `store`, for the caller to unpack and record. `name` is for an archive with one image that
/// has no full name in it, or another one. An image with several names is in the answer as often.
/// Where an archive is both (docker 25 and newer), it is read as the layout.
///
/// Dropped, the work ends soon; what was verified stays.
pub async fn import<S: ContentStore>(
    path: &Path,
    name: Option<&Reference>,
    blobs: &Blobs,
    store: &S,
) -> Result<Vec<Image>, ImportError> {
    let cancel = Cancel::default();
    // Ends the work below when this future is dropped.
    let _given_up = GivenUp(cancel.clone());
    let (path, name, blobs) = (path.to_owned(), name.cloned(), blobs.clone());
    let work = move || layers(&path, name.as_ref(), &blobs, &cancel);
    let work = tokio::task::spawn_blocking(work).await;
    let found = work.map_err(|_| ImportError::Cancelled)??;
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

fn layers(
    path: &Path,
    name: Option<&Reference>,
    blobs: &Blobs,
    cancel: &Cancel,
) -> Result<Vec<Found>, ImportError> {
    let contents = Contents::open(path)?;
    let survey = Survey::of(&contents, cancel)?;
    let images = if survey.has(oci::LAYOUT) {
        oci::images(&survey, name)?
    } else if survey.has(docker::MANIFEST) {
        docker::images(&survey, name)?
    } else {
        return Err(ImportError::NotAnImage);
    };
    fill(&contents, &images, blobs, cancel)?;
    Ok(images)
}

/// Whether anybody still waits for the result.
#[derive(Debug, Clone, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn check(&self) -> Result<(), ImportError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(ImportError::Cancelled),
            false => Ok(()),
        }
    }
}

struct GivenUp(Cancel);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
