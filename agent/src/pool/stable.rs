//! The stable revision: what scale-out makes instances from while another image is being tried.
//!
//! ```text
//!   apply B           roll                   every instance is of B
//! A stable ───► A stable, some of B ───────► B stable, with the evidence
//!                    │
//!                    └── scale-out, refill, replacement: A, unless the task says `applied`
//! ```
//! An image becomes stable when it has covered all instances of the target. One that was set by hand
//! stays until that is taken back. With nothing of it in service there is nothing to agree with, and
//! the applied revision is used. Pure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::clock::Now;
use super::machine::{Command, Pool, count};
use crate::instance::{Phase, Revision};
use crate::journal::{StableRow, Write};
use crate::task::{ScaleImage, TaskId};

/// The revision whose image is stable, and why it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Stable {
    /// The newest revision with that image before another image was applied.
    pub revision: Arc<Revision>,
    /// Why.
    pub evidence: Evidence,
    /// Unix milliseconds since when.
    pub since_ms: u64,
}

/// Why an image is stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Evidence {
    /// Every instance of the target was active with it.
    #[serde(rename_all = "camelCase")]
    Covered {
        /// How many these were.
        instances: u32,
        /// The task that brought the last of them.
        task_id: Option<TaskId>,
    },
    /// Somebody said so.
    ByHand,
}

/// What of it the journal does not know.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    behind: bool,
    /// The commit that carries it.
    carried: Option<u64>,
}

impl Pool {
    /// The revision that instances are made from when nobody says otherwise, once `applied` is
    /// the pool's.
    pub(super) fn scale_out(&self, applied: &Arc<Revision>) -> Arc<Revision> {
        let Some(stable) = &self.stable else {
            return applied.clone();
        };
        let digest = &stable.revision.image.digest;
        let serves = |slot: &super::machine::Slot| {
            slot.instance.serving && slot.instance.revision.image.digest == *digest
        };
        let holds = stable.evidence == Evidence::ByHand || self.slots.values().any(serves);
        match applied.image.digest != *digest && holds {
            true => stable.revision.clone(),
            false => applied.clone(),
        }
    }

    /// Whether what is missing is made from the applied revision because a task said so.
    pub(super) fn told_applied(&self, command: Option<&Command>) -> bool {
        let asked = match command {
            Some(Command::Target(request)) => request.image == ScaleImage::Applied,
            _ => false,
        };
        let open = |task: &super::machine::OpenTask| {
            task.end.is_none() && task.image == ScaleImage::Applied && self.active() < task.target
        };
        asked || self.tasks.values().any(open)
    }

    /// Looks whether one revision covers all instances of the target now.
    pub(super) fn note_coverage(&mut self, now: Now) {
        if self.target == 0 || self.deleting {
            return;
        }
        let mut serving = self.slots.values().filter(|slot| slot.instance.serving);
        let Some(first) = serving.clone().next() else {
            return;
        };
        let revision = first.instance.revision.clone();
        let stays = |stable: &Stable| {
            stable.evidence == Evidence::ByHand || stable.revision.id == revision.id
        };
        if self.stable.as_ref().is_some_and(stays) {
            return;
        }
        let covers = serving.all(|slot| {
            slot.instance.phase == Phase::Active && slot.instance.revision.id == revision.id
        });
        if !covers || self.active() != self.target {
            return;
        }
        let image = &revision.image.digest;
        let former = self.stable.take();
        let former = former.filter(|former| former.revision.image.digest == *image);
        // The same image with another environment is as stable as it was.
        let (evidence, since_ms) = match former {
            Some(former) => (former.evidence, former.since_ms),
            None => (self.covered(), now.wall_ms),
        };
        self.say_stable(Some(Stable {
            revision,
            evidence,
            since_ms,
        }));
    }

    fn covered(&self) -> Evidence {
        let serving = || self.slots.values().filter(|slot| slot.instance.serving);
        let last = serving().max_by_key(|slot| slot.since_ms);
        let task = last.and_then(|slot| slot.instance.task.as_ref());
        Evidence::Covered {
            instances: count(serving()),
            task_id: task.map(|task| task.task_id.clone()),
        }
    }

    /// Another revision is about to be applied: the stable image is remembered with the newest
    /// manifest that it had.
    pub(super) fn keep_newest_of_stable(&mut self) {
        let Some(stable) = &self.stable else { return };
        let same_image = stable.revision.image.digest == self.revision.image.digest;
        if same_image && stable.revision.id != self.revision.id {
            let newest = Stable {
                revision: self.revision.clone(),
                ..stable.clone()
            };
            self.say_stable(Some(newest));
        }
    }

    /// From now on, and in the journal as soon as it can be.
    pub(super) fn say_stable(&mut self, stable: Option<Stable>) {
        self.stable = stable;
        self.unwritten_stable.behind = true;
    }

    pub(super) fn stable_is_behind(&self) -> bool {
        self.unwritten_stable.behind
    }

    /// What the journal is told of it with this commit.
    pub(super) fn carry_stable(&mut self, commit: u64) -> Option<Write> {
        if !std::mem::take(&mut self.unwritten_stable.behind) {
            return None;
        }
        self.unwritten_stable.carried = Some(commit);
        Some(Write::Stable(
            self.app.clone(),
            self.stable.as_ref().map(StableRow::of),
        ))
    }

    /// The journal refused this commit.
    pub(super) fn stable_refused(&mut self, commit: u64) {
        if self.unwritten_stable.carried == Some(commit) {
            self.unwritten_stable.behind = true;
        }
    }
}
