//! The memory twins: a content store and an unpacker that keep everything in maps. For tests and
//! for the hollow agent; they pass [`crate::conformance`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::{
    Begun, BlobWriter, ContentStore, Descriptor, Digest, Layer, Prepared, Snapshot, StoreError,
    UnpackError, Unpacker, Workplace, blobs,
};

#[derive(Debug, Default)]
struct Blob {
    bytes: Bytes,
    labels: BTreeMap<String, String>,
}

/// A content store in memory. Clones share their content.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    blobs: Arc<Mutex<BTreeMap<Digest, Blob>>>,
}

impl MemoryStore {
    /// Digests of all blobs.
    pub fn digests(&self) -> Vec<Digest> {
        lock(&self.blobs).keys().cloned().collect()
    }
}

impl ContentStore for MemoryStore {
    type Writer = MemoryWriter;

    async fn has(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(lock(&self.blobs).contains_key(digest))
    }

    async fn begin(&self, blob: &Descriptor) -> Result<Begun<MemoryWriter>, StoreError> {
        if self.has(&blob.digest).await? {
            return Ok(Begun::Present);
        }
        Ok(Begun::Writer(MemoryWriter {
            store: self.clone(),
            blob: blob.clone(),
            bytes: Vec::new(),
        }))
    }

    async fn read(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let blobs = lock(&self.blobs);
        let blob = found(&blobs, digest)?;
        let size = blob.bytes.len() as u64;
        if size > limit {
            return Err(StoreError::TooLarge {
                digest: digest.clone(),
                size,
                limit,
            });
        }
        Ok(blob.bytes.clone())
    }

    async fn label(
        &self,
        digest: &Digest,
        labels: BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        match lock(&self.blobs).get_mut(digest) {
            Some(blob) => {
                blob.labels.extend(labels);
                Ok(())
            }
            None => Err(StoreError::NotFound {
                digest: digest.clone(),
            }),
        }
    }

    async fn labels(&self, digest: &Digest) -> Result<BTreeMap<String, String>, StoreError> {
        Ok(found(&lock(&self.blobs), digest)?.labels.clone())
    }
}

/// Writes one blob of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryWriter {
    store: MemoryStore,
    blob: Descriptor,
    bytes: Vec<u8>,
}

impl BlobWriter for MemoryWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn commit(self) -> Result<(), StoreError> {
        let digest = self.blob.digest;
        if self.bytes.len() as u64 != self.blob.size || Digest::of(&self.bytes) != digest {
            return Err(StoreError::Mismatch { digest });
        }
        let bytes = Bytes::from(self.bytes);
        lock(&self.store.blobs).entry(digest).or_insert(Blob {
            bytes,
            labels: BTreeMap::new(),
        });
        Ok(())
    }

    async fn abort(self) {}
}

/// An unpacker that only remembers which chains were applied; it takes plain tar layers, whose
/// digest is their diff id.
#[derive(Debug, Clone, Default)]
pub struct MemoryUnpacker {
    chains: Arc<Mutex<BTreeSet<Digest>>>,
}

impl Unpacker for MemoryUnpacker {
    async fn unpacked(&self, chain_id: &Digest) -> Result<bool, UnpackError> {
        Ok(lock(&self.chains).contains(chain_id))
    }

    fn workplace(&self) -> Option<&Workplace> {
        None
    }

    async fn prepare(&self, layer: &Layer) -> Result<Snapshot, UnpackError> {
        Err(takes_no_trees(layer))
    }

    async fn commit(&self, layer: &Layer, _: &Prepared) -> Result<(), UnpackError> {
        Err(takes_no_trees(layer))
    }

    async fn discard(&self, _: &Prepared) {}

    async fn apply(&self, layer: &Layer, blob: &blobs::Blob) -> Result<(), UnpackError> {
        let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or(0)];
        let read = blob.file.read_exact_at(&mut bytes, 0);
        read.map_err(|source| UnpackError::Read {
            layer: layer.blob.digest.clone(),
            source,
        })?;
        let mut chains = lock(&self.chains);
        if layer
            .parent
            .as_ref()
            .is_some_and(|parent| !chains.contains(parent))
        {
            return Err(failed(layer, "its parent is not unpacked"));
        }
        let got = Digest::of(&bytes);
        if got != layer.diff_id {
            return Err(UnpackError::DiffId {
                layer: layer.blob.digest.clone(),
                expected: layer.diff_id.clone(),
                got: got.to_string(),
            });
        }
        chains.insert(layer.chain_id.clone());
        Ok(())
    }
}

fn takes_no_trees(layer: &Layer) -> UnpackError {
    failed(layer, "memory takes no trees")
}

fn failed(layer: &Layer, why: &str) -> UnpackError {
    UnpackError::Failed {
        operation: "unpack layer",
        object: layer.blob.digest.to_string(),
        source: why.into(),
    }
}

fn found<'b>(blobs: &'b BTreeMap<Digest, Blob>, digest: &Digest) -> Result<&'b Blob, StoreError> {
    blobs.get(digest).ok_or_else(|| StoreError::NotFound {
        digest: digest.clone(),
    })
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics while it holds the lock, so a poisoned one still guards whole maps.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_memory_store_conforms() {
        crate::conformance::content_store(&MemoryStore::default()).await;
    }
}
