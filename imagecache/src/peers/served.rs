//! What peers were sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::OwnedSemaphorePermit;

/// What peers were sent since the start, and what is on its way to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// Bytes of blobs that were handed to connections.
    pub bytes: u64,
    /// Uploads that are running.
    pub uploads: u64,
}

/// What all uploads count.
#[derive(Debug, Default)]
pub(super) struct Counts {
    bytes: AtomicU64,
    uploads: AtomicU64,
}

impl Counts {
    pub fn now(&self) -> Served {
        Served {
            bytes: self.bytes.load(Ordering::Relaxed),
            uploads: self.uploads.load(Ordering::Relaxed),
        }
    }
}

/// One upload, as long as it runs.
#[derive(Debug)]
pub(super) struct Upload {
    counts: Arc<Counts>,
    /// Free for the next one when this one is over.
    _place: OwnedSemaphorePermit,
}

impl Upload {
    pub fn begin(counts: Arc<Counts>, place: OwnedSemaphorePermit) -> Self {
        counts.uploads.fetch_add(1, Ordering::Relaxed);
        Self {
            counts,
            _place: place,
        }
    }

    /// That many bytes more are handed to the connection.
    pub fn sent(&self, bytes: usize) {
        self.counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.counts.uploads.fetch_sub(1, Ordering::Relaxed);
    }
}
