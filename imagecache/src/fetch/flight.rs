//! The same blob wanted by several is fetched by one at a time; the others wait, and find it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::lanes::Urgency;
use crate::Digest;

/// Blobs that are wanted now.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Digest, Weak<Flight>>>);

/// One blob that is wanted by at least one.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// Held by whoever fetches.
    pub turn: tokio::sync::Mutex<()>,
    /// How many of those that want it are activations.
    activations: AtomicUsize,
    /// Bytes that are here.
    pub done: AtomicU64,
}

impl Flights {
    /// Joins those that want the blob.
    pub fn join(&self, digest: &Digest, urgency: Urgency) -> Joined {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there = flights.get(digest).and_then(Weak::upgrade);
        let flight = there.unwrap_or_else(|| {
            // Those that ended leave their entries; new ones sweep.
            flights.retain(|_, flight| flight.strong_count() > 0);
            let flight = Arc::new(Flight::default());
            flights.insert(digest.clone(), Arc::downgrade(&flight));
            flight
        });
        if urgency == Urgency::Activation {
            flight.activations.fetch_add(1, Ordering::Relaxed);
        }
        Joined { flight, urgency }
    }

    /// Bytes that are here of a blob that is wanted now.
    pub fn done(&self, digest: &Digest) -> Option<u64> {
        let flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let flight = flights.get(digest)?.upgrade()?;
        Some(flight.done.load(Ordering::Relaxed))
    }
}

/// One that wants the blob, until it is dropped.
#[derive(Debug)]
pub(super) struct Joined {
    pub flight: Arc<Flight>,
    urgency: Urgency,
}

impl Joined {
    /// The highest urgency of all that want it.
    pub fn urgency(&self) -> Urgency {
        match self.flight.activations.load(Ordering::Relaxed) {
            0 => Urgency::PrePull,
            _ => Urgency::Activation,
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if self.urgency == Urgency::Activation {
            self.flight.activations.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_want_a_blob_share_its_highest_urgency() {
        let flights = Flights::default();
        let digest = Digest::of(b"x");
        let first = flights.join(&digest, Urgency::PrePull);
        assert_eq!(first.urgency(), Urgency::PrePull);
        let second = flights.join(&digest, Urgency::Activation);
        assert_eq!(first.urgency(), Urgency::Activation);
        assert!(Arc::ptr_eq(&first.flight, &second.flight));
        drop(second);
        assert_eq!(first.urgency(), Urgency::PrePull);
    }

    #[test]
    fn a_blob_that_nobody_wants_is_forgotten() {
        let flights = Flights::default();
        let digest = Digest::of(b"x");
        drop(flights.join(&digest, Urgency::PrePull));
        assert_eq!(flights.done(&digest), None);
        let other = flights.join(&Digest::of(b"y"), Urgency::PrePull);
        other.flight.done.store(7, Ordering::Relaxed);
        assert_eq!(flights.done(&Digest::of(b"y")), Some(7));
        assert_eq!(flights.0.lock().unwrap().len(), 1);
    }
}
