//! Blobs that work under way needs: a pull, an import, an image that is unpacked anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Digest;

/// How many need each. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Needed(Arc<Mutex<HashMap<Digest, usize>>>);

/// Blobs that are not removed while this is there.
#[derive(Debug)]
pub struct NeededBlobs {
    needed: Needed,
    digests: Vec<Digest>,
}

impl Needed {
    pub fn hold(&self, digests: impl Iterator<Item = Digest>) -> NeededBlobs {
        let digests: Vec<Digest> = digests.collect();
        let mut needed = self.lock();
        for digest in &digests {
            *needed.entry(digest.clone()).or_default() += 1;
        }
        drop(needed);
        NeededBlobs {
            needed: self.clone(),
            digests,
        }
    }

    /// As long as it is locked, nobody begins to need one.
    pub fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        // Every change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NeededBlobs {
    fn drop(&mut self) {
        let mut needed = self.needed.lock();
        for digest in &self.digests {
            if let Some(count) = needed.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    needed.remove(digest);
                }
            }
        }
    }
}
