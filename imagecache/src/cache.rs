//! The image cache of a process: what all its pulls share.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;

use crate::Descriptor;
use crate::blobs::{self, Blobs, BlobsError};
use crate::error::{PullError, named};
use crate::fetch::{FetchOptions, Sources};
use crate::receipt::Origin;
use crate::registry::Registries;
use crate::unpack::{Extraction, Fetched};

/// The image cache. Clones share it.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) registries: Registries,
    pub(crate) blobs: Blobs,
    pub(crate) extraction: Extraction,
}

/// How a blob came.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub from: Origin,
    /// Who sent most of it.
    pub sender: Option<String>,
    /// Bytes that came over the network.
    pub bytes: u64,
    pub took: Duration,
}

impl Cache {
    /// Opens the cache whose blobs lie in `root`.
    pub fn open(
        root: &Path,
        options: &FetchOptions,
        extraction: Extraction,
    ) -> Result<Self, BlobsError> {
        Ok(Self {
            registries: Registries::new(options),
            blobs: Blobs::open(root)?,
            extraction,
        })
    }

    /// Our own store.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(crate) async fn fetch(
        &self,
        sources: &Sources,
        blob: Descriptor,
    ) -> Result<Fetched<Arrival>, PullError> {
        let begin = Instant::now();
        let partial = match self.blobs.begin(&blob)? {
            blobs::Begun::Present(present) => {
                return Ok(Fetched {
                    blob: present,
                    report: Arrival {
                        from: Origin::Store,
                        sender: None,
                        bytes: 0,
                        took: begin.elapsed(),
                    },
                });
            }
            blobs::Begun::Partial(partial) => partial,
            blobs::Begun::Busy => {
                return Err(PullError::Malformed {
                    object: "busy".into(),
                    why: "interim".into(),
                });
            }
        };
        let object = named("layer", &blob.digest);
        let source = Arc::clone(&sources.ordered[0]);
        let fail = |failure: crate::fetch::Failure| {
            failure.of(source.name(), source.repository(), &object)
        };
        for range in partial.missing() {
            let mut incoming = source.open(&blob, range).await.map_err(fail)?;
            let mut at = incoming.range.start;
            while let Some(bytes) = incoming.bytes.next().await {
                let bytes = bytes.map_err(fail)?;
                partial.write_at(at, &bytes)?;
                at += bytes.len() as u64;
            }
        }
        let present = partial.commit().map_err(|error| PullError::Malformed {
            object: object.clone(),
            why: error.to_string(),
        })?;
        Ok(Fetched {
            blob: present,
            report: Arrival {
                from: source.kind().into(),
                sender: Some(source.name().to_owned()),
                bytes: blob.size,
                took: begin.elapsed(),
            },
        })
    }
}
