//! Extractions that somebody waits for go before those that nobody waits for.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Layers of pulls that are being extracted, or wait for a place. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    layers: Mutex<usize>,
    none: Condvar,
}

/// Counts for one layer of a pull until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Turns);

impl Turns {
    pub fn take(&self) -> Turn {
        *self.layers() += 1;
        Turn(self.clone())
    }

    /// Blocks while there is a layer of a pull.
    pub fn wait(&self) {
        let waited = self.0.none.wait_while(self.layers(), |layers| *layers > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn layers(&self) -> MutexGuard<'_, usize> {
        self.0.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut layers = self.0.layers();
        *layers = layers.saturating_sub(1);
        if *layers == 0 {
            self.0.0.none.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn who_is_behind_goes_on_when_the_last_pull_has_ended() {
        let turns = Turns::default();
        turns.wait();
        let (first, second) = (turns.take(), turns.take());
        let (done, went_on) = mpsc::channel();
        let behind = thread::spawn({
            let turns = turns.clone();
            move || {
                turns.wait();
                done.send(()).unwrap();
            }
        });
        drop(first);
        assert!(went_on.try_recv().is_err());
        drop(second);
        went_on.recv().unwrap();
        behind.join().unwrap();
    }
}
