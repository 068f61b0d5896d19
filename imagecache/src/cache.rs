//! The image cache of a process: what all its pulls share.

use std::path::Path;

use crate::Descriptor;
use crate::blobs::{Blobs, BlobsError};
use crate::error::PullError;
use crate::fetch::{FetchOptions, Fetched, Fetcher, Sources, Urgency};
use crate::progress::{Board, PullProgress};
use crate::records::{Records, RecordsError};
use crate::registry::Registries;
use crate::unpack::Extraction;

/// The image cache. Clones share it.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) registries: Registries,
    fetcher: Fetcher,
    pub(crate) blobs: Blobs,
    pub(crate) extraction: Extraction,
    pub(crate) board: Board,
    records: Records,
}

/// Why a cache was not opened.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Its blobs.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    /// Its records.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

impl Cache {
    /// Opens the cache whose blobs lie in `root`.
    pub fn open(
        root: &Path,
        options: &FetchOptions,
        extraction: Extraction,
    ) -> Result<Self, CacheError> {
        Ok(Self {
            registries: Registries::new(options),
            fetcher: Fetcher::new(options),
            blobs: Blobs::open(root)?,
            extraction,
            board: Board::default(),
            records: Records::open(root)?,
        })
    }

    /// Our own store.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The records of images in our own store.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Pulls under way, in the order in which they began.
    pub fn under_way(&self) -> Vec<PullProgress> {
        self.board.look(|digest| self.fetcher.progress(digest))
    }

    /// Brings a layer's blob into our own store, unless it is there.
    pub(crate) async fn fetch(
        &self,
        sources: &Sources,
        blob: Descriptor,
        urgency: Urgency,
    ) -> Result<Fetched, PullError> {
        self.fetcher
            .blob(sources, "layer", &blob, &self.blobs, urgency)
            .await
    }
}
