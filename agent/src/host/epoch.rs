//! The journal's epoch: whether the journal before it was lost, and from where numbers go on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::alarm::{AlarmCode, Alarms, Subject};
use crate::journal::Loss;

/// Generations and sequence numbers of one epoch: no host uses up as many.
const NUMBERS_OF_AN_EPOCH: u64 = 1_000_000;

/// The present epoch.
#[derive(Debug)]
pub(super) struct Epoch {
    /// Counts the journals of this host that were lost, from 1.
    pub number: u64,
    floor: AtomicU64,
    loss: Mutex<Option<Loss>>,
}

impl Epoch {
    /// As the journal has it.
    pub fn new(number: u64, floor: u64, loss: Option<Loss>) -> Self {
        Self {
            number,
            floor: AtomicU64::new(floor),
            loss: Mutex::new(loss),
        }
    }

    /// What an epoch begins with: greater than any number of those before it, also than the largest
    /// that was observed.
    pub fn first_floor(number: u64, observed: u64) -> u64 {
        let reserved = number.saturating_sub(1).saturating_mul(NUMBERS_OF_AN_EPOCH);
        reserved.max(observed.saturating_add(NUMBERS_OF_AN_EPOCH))
    }

    /// Generations and sequence numbers are greater than this.
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::Relaxed)
    }

    pub fn set_floor(&self, floor: u64) {
        self.floor.store(floor, Ordering::Relaxed);
    }

    /// The loss that nobody has accepted yet.
    pub fn loss(&self) -> Option<Loss> {
        self.locked().clone()
    }

    /// Whether a lost journal waits to be accepted.
    pub fn is_lost(&self) -> bool {
        self.locked().is_some()
    }

    /// The journal was lost.
    pub fn lose(&self, loss: Loss, alarms: &Alarms) {
        alarms.raise(AlarmCode::JournalLost, Subject::Host, sentence(&loss));
        *self.locked() = Some(loss);
    }

    /// The loss is accepted.
    pub fn accept(&self, alarms: &Alarms) {
        alarms.clear(AlarmCode::JournalLost, &Subject::Host);
        *self.locked() = None;
    }

    fn locked(&self) -> MutexGuard<'_, Option<Loss>> {
        // Every change is one assignment: a panic elsewhere leaves it whole.
        self.loss.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sentence(loss: &Loss) -> String {
    let aside = match &loss.set_aside {
        Some(path) => format!("; the file is kept as {}", path.display()),
        None => String::new(),
    };
    format!(
        "the journal was lost: {}{aside}; targets are what was observed in service, ids of earlier tasks are \
         not known, and nothing is removed until `nodeagent journal accept`",
        loss.reason
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_an_epoch_are_greater_than_all_before() {
        assert_eq!(Epoch::first_floor(2, 17), 1_000_017);
        assert_eq!(Epoch::first_floor(4, 17), 3_000_000);
    }
}
