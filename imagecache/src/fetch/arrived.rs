//! What came over the network.

use std::sync::atomic::{AtomicU64, Ordering};

use super::source::SourceKind;

/// Bytes of blobs that came, wanted or not, by the kind of their source.
#[derive(Debug, Default)]
pub(super) struct Arrived([AtomicU64; SourceKind::ALL.len()]);

impl Arrived {
    pub fn add(&self, kind: SourceKind, bytes: u64) {
        self.0[kind as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn of(&self, kind: SourceKind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }
}
