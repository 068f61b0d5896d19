//! One at a time for each chain, however many pulls of this process want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use crate::Digest;

/// Locks by chain id; those that nobody holds or awaits are forgotten.
#[derive(Debug, Clone, Default)]
pub(super) struct Chains(Arc<Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>>);

impl Chains {
    /// Waits until nobody else is at this chain; says whether somebody was.
    pub async fn lock(&self, chain: &Digest) -> (OwnedMutexGuard<()>, bool) {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match locks.get(chain).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    locks.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::default();
                    locks.insert(chain.clone(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        match Arc::clone(&lock).try_lock_owned() {
            Ok(guard) => (guard, false),
            Err(_) => (lock.lock_owned().await, true),
        }
    }
}
