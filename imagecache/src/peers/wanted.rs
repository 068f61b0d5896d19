//! What this host is bringing now, so that those who were sent to it may wait for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::Digest;

/// Blobs on their way.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted(Arc<Mutex<HashMap<Digest, Arc<Bringing>>>>);

#[derive(Debug)]
pub(super) struct Bringing {
    /// How many bring it: those of one host share the engine's work.
    by: AtomicU64,
    /// Sign of life of whoever we wait for. Never falls, so that two who wait for each other come
    /// to a standstill that both notice.
    seen: AtomicU64,
    /// Whether bytes come, or we wait for another.
    fetching: AtomicBool,
    over: watch::Sender<bool>,
}

/// As long as it lives, others may wait for the blob.
#[derive(Debug)]
pub(super) struct Bring {
    wanted: Wanted,
    digest: Digest,
    bringing: Arc<Bringing>,
}

impl Wanted {
    /// Begins to bring a blob.
    pub fn begin(&self, digest: &Digest) -> Bring {
        let mut all = self.lock();
        let bringing = all.entry(digest.clone()).or_insert_with(|| {
            Arc::new(Bringing {
                by: AtomicU64::new(0),
                seen: AtomicU64::new(0),
                fetching: AtomicBool::new(false),
                over: watch::Sender::new(false),
            })
        });
        bringing.by.fetch_add(1, Ordering::Relaxed);
        Bring {
            wanted: self.clone(),
            digest: digest.clone(),
            bringing: Arc::clone(bringing),
        }
    }

    /// The blob on its way, when it is.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Bringing>> {
        self.lock().get(digest).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Bringing>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bringing {
    /// Returns when nobody brings it any more: it is here, or it is not.
    pub async fn over(&self) {
        let mut over = self.over.subscribe();
        // The sender lives as long as this does.
        drop(over.wait_for(|over| *over).await);
    }

    /// A number that changes while the work goes on; `own` is that of this host.
    pub fn progress(&self, own: u64) -> u64 {
        match self.fetching.load(Ordering::Relaxed) {
            true => own,
            false => self.seen.load(Ordering::Relaxed),
        }
    }
}

impl Bring {
    /// Bytes come from now on.
    pub fn fetches(&self) {
        self.bringing.fetching.store(true, Ordering::Relaxed);
    }

    /// We wait for another, and this was seen of it.
    pub fn saw(&self, progress: u64) {
        self.bringing.fetching.store(false, Ordering::Relaxed);
        self.bringing.seen.fetch_max(progress, Ordering::Relaxed);
    }
}

impl Drop for Bring {
    fn drop(&mut self) {
        let mut all = self.wanted.lock();
        if self.bringing.by.fetch_sub(1, Ordering::Relaxed) == 1 {
            all.remove(&self.digest);
            self.bringing.over.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_blob_is_on_its_way_until_the_last_is_done() {
        let (wanted, digest) = (Wanted::default(), Digest::of(b"x"));
        assert!(wanted.get(&digest).is_none());
        let (one, two) = (wanted.begin(&digest), wanted.begin(&digest));
        let bringing = wanted.get(&digest).unwrap();
        one.saw(7);
        two.saw(5);
        assert_eq!(bringing.progress(3), 7);
        two.fetches();
        assert_eq!(bringing.progress(3), 3);
        drop(one);
        assert!(bringing.over().now_or_never().is_none());
        drop(two);
        assert!(bringing.over().now_or_never().is_some());
        assert!(wanted.get(&digest).is_none());
    }
}
