//! Instances that ended and whose place stays empty (`restartPolicy`). Pure.
//!
//! What ended leaves the pool in any case. By the policy of the app's current revision either
//! another instance takes its place, or the target falls by one: in the same intent that takes the
//! instance out, so that a kill between the two neither starts the app again nor lessens the target
//! twice. Only what was let go counts: an instance that never got to start its app is made again.

use crate::app::RestartPolicy;
use crate::instance::machine::{COMPLETED, Wish};
use crate::instance::{Failure, Instance, Phase, Urgency};

use super::intent::{Change, Intent};
use super::machine::{OpenTask, Pool, Slot, count};

/// Its app was started, for service.
pub(super) fn let_go(instance: &Instance) -> bool {
    let begins = instance.phase.on_the_way_to_armed() || instance.phase == Phase::Lost;
    instance.serving && !begins
}

fn is_replaced(policy: RestartPolicy, failure: Option<&Failure>) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => failure.is_none_or(|failure| failure.code != COMPLETED),
        RestartPolicy::Never => false,
    }
}

impl Pool {
    /// An instance that was let go has failed.
    pub(super) fn note_end(&mut self, ordinal: u32) {
        let policy = self.revision.app.restart;
        if let Some(slot) = self.slots.get_mut(&ordinal) {
            slot.over = !is_replaced(policy, slot.instance.failure.as_ref());
        }
    }

    /// Takes those that end for good out of an intent's target. Returns how many of them still
    /// count as serving: those whose probes say that they have to be ended.
    pub(super) fn plan_ends(&self, intent: &mut Intent) -> u32 {
        let policy = self.revision.app.restart;
        let ends = |slot: &Slot| {
            let ended = slot.instance.wish() == Some(Wish::End) && slot.effect.is_none();
            ended && !is_replaced(policy, slot.instance.failure.as_ref())
        };
        let over = self.slots.iter().filter(|(_, slot)| slot.over);
        intent.over = over.map(|(&ordinal, _)| ordinal).collect();
        let ending = self.slots.iter().filter(|(_, slot)| ends(slot));
        let ending: Vec<u32> = ending.map(|(&ordinal, _)| ordinal).collect();
        intent.over.extend(&ending);
        intent.target = intent.target.saturating_sub(count(intent.over.iter()));
        intent
            .changes
            .extend(ending.iter().map(|&ordinal| Change::TakeOut {
                ordinal,
                urgency: Urgency::Drain,
                task: None,
            }));
        count(ending.iter())
    }

    /// The intent that says so is durable.
    pub(super) fn lessen(&mut self, over: &[u32]) {
        for ordinal in over {
            if let Some(slot) = self.slots.get_mut(ordinal) {
                slot.over = false;
            }
            let chose = |task: &&mut OpenTask| task.picked.contains(ordinal);
            for task in self.tasks.values_mut().filter(chose) {
                task.lessened = true;
            }
        }
    }
}
