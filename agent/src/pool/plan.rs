//! What a pool does next: one plan at a time, data until it is durable.
//!
//! The order of what a plan looks at: the command that waits longest, what has failed, what a reboot
//! left, what is missing in service or too many, and last the warm ones (refill yields to
//! activations).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::instance::machine::Wish;
use crate::instance::{Failure, Phase, Revision, Urgency};
use crate::journal::Write;
use crate::network::{GrantRefused, Ledger, PortRefused};
use crate::task::TaskContext;

use super::clock::Now;
use super::intent::{Change, Intent};
use super::machine::{Action, Command, OpenTask, Pool, Refusal, Slot, count};

/// Which instances in service leave.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leave<'a> {
    /// Any; those of another revision than this before others that are as far.
    Any(&'a str),
    /// Only those of another revision than this.
    Stale(&'a str),
}

impl Pool {
    /// Plans until an intent is in flight or there is nothing to do.
    pub(super) fn plan_next(&mut self, now: Now, ledger: &mut Ledger, out: &mut Vec<Action>) {
        while self.intent.is_none() {
            let command = match self.queue.pop_front() {
                // Who asks again waits for the same end.
                Some(Command::Delete { force }) if self.deleting => {
                    self.hurried |= force;
                    continue;
                }
                Some(command) => match self.refusal(&command) {
                    Some(refusal) => {
                        refuse(&command, refusal, out);
                        continue;
                    }
                    None => Some(command),
                },
                None if self.stalled_until.is_some() => return,
                None => None,
            };
            let intent = self.plan(command, now, ledger);
            if intent.command.is_none() && intent.changes.is_empty() && intent.over.is_empty() {
                if !intent.unplanned.is_empty() {
                    self.unplanned(&intent.unplanned, now);
                }
                self.finish_deletion(out);
                return;
            }
            self.send(intent, now, out);
        }
    }

    fn refusal(&self, command: &Command) -> Option<Refusal> {
        if self.deleting {
            return Some(Refusal::Deleting);
        }
        match command {
            Command::Target(request) => match request.expect_seq {
                Some(expected) if expected != self.seq => Some(Refusal::SeqMismatch {
                    expected,
                    seq: self.seq,
                    target: self.target,
                }),
                _ => request
                    .restart
                    .as_ref()
                    .and_then(|wish| self.restart_refusal(wish)),
            },
            Command::Delete { force: false } if self.serving() > 0 || self.target > 0 => {
                Some(Refusal::InUse {
                    target: self.target,
                    serving: self.serving(),
                })
            }
            Command::Delete { .. } | Command::Revise(_) | Command::Stable(_) => None,
        }
    }

    fn plan(&mut self, command: Option<Command>, now: Now, ledger: &mut Ledger) -> Intent {
        let mut intent = Intent {
            id: self.id(),
            target: self.target,
            command,
            changes: Vec::new(),
            over: Vec::new(),
            unplanned: Vec::new(),
        };
        let ending = self.plan_ends(&mut intent);
        self.plan_restart(&mut intent);
        let mut deleting = self.deleting;
        let mut task = None;
        let mut excess = if self.hurried {
            Urgency::Force
        } else {
            Urgency::Drain
        };
        match &intent.command {
            Some(Command::Target(request)) => {
                intent.target = request.verb.target(intent.target, request.to);
                task = Some(request.context.clone());
                if request.force {
                    excess = Urgency::Force;
                }
                // Somebody asks anew: no pause of the past stands in the way.
                self.failures = 0;
                self.streak = 0;
                self.retry_at = None;
                self.alarm = None;
            }
            Some(Command::Delete { force }) => {
                intent.target = 0;
                deleting = true;
                if *force {
                    excess = Urgency::Force;
                }
            }
            Some(Command::Revise(_)) => {
                self.failures = 0;
                self.streak = 0;
                self.retry_at = None;
                self.alarm = None;
            }
            Some(Command::Stable(_)) | None => {}
        }
        let applied = match &intent.command {
            Some(Command::Revise(revision)) => revision.clone(),
            _ => self.revision.clone(),
        };
        let keep = self.limits.keep_everything && !deleting;
        if !keep {
            self.plan_failed(&mut intent);
        }
        let rolling = self.rolling(intent.command.as_ref());
        let revision = match rolling.is_some() {
            true => applied.clone(),
            false => self.scale_out(&applied),
        };
        self.plan_lost(deleting, rolling.is_some(), &revision, &mut intent);
        let serving = self.serving() - ending;
        if serving < intent.target {
            if !self.pausing(now) {
                let missing = intent.target - serving;
                let task = task.clone().or_else(|| self.oldest_unmet());
                let revision = match self.told_applied(intent.command.as_ref()) {
                    true => &applied,
                    false => &revision,
                };
                self.plan_missing(missing, task, revision, &mut intent, now, ledger);
            }
        } else if let Some(rolling) = &rolling {
            self.plan_roll(rolling, &applied, &mut intent, now, ledger);
        } else if serving > intent.target {
            let (excess, urgency) = (serving - intent.target, excess);
            let leave = Leave::Any(&revision.id);
            self.plan_excess(excess, leave, urgency, task.clone(), &mut intent);
        }
        if excess == Urgency::Force {
            self.hurry(task, &mut intent);
        }
        self.plan_probed(&mut intent);
        self.plan_warm(deleting, &revision, &mut intent, now, ledger);
        intent
    }

    /// What the probes of instances in service have found, and restarts that are taken back.
    fn plan_probed(&self, intent: &mut Intent) {
        let planned: BTreeSet<u32> = intent.changes.iter().map(Change::ordinal).collect();
        let back = self
            .deserted()
            .filter(|(ordinal, _)| !planned.contains(ordinal));
        intent
            .changes
            .extend(back.map(|(ordinal, slot)| Change::Reinstate {
                ordinal,
                generation: self.next_generation(ordinal),
                task: slot.instance.task.clone(),
            }));
        for (&ordinal, slot) in &self.slots {
            let resting = slot.effect.is_none() && !planned.contains(&ordinal);
            let Some(wish) = slot.instance.wish().filter(|_| resting) else {
                continue;
            };
            intent.changes.push(match wish {
                Wish::Withdraw => Change::Withdraw { ordinal },
                Wish::Return => Change::Reinstate {
                    ordinal,
                    generation: self.generations.get(&ordinal).copied().unwrap_or(0) + 1,
                    task: slot.instance.task.clone(),
                },
                Wish::End => Change::TakeOut {
                    ordinal,
                    urgency: Urgency::Drain,
                    task: None,
                },
            });
        }
    }

    fn plan_failed(&self, intent: &mut Intent) {
        let failed = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.instance.phase == Phase::Failed);
        intent
            .changes
            .extend(failed.map(|(&ordinal, _)| Change::Discard { ordinal }));
    }

    /// After a reboot those in service come first; the others when all of these are. What nobody
    /// wants any more is discarded by [`plan_warm`](Self::plan_warm).
    fn plan_lost(&self, deleting: bool, rolling: bool, revision: &Revision, intent: &mut Intent) {
        let lost = |serving: bool| {
            self.slots.iter().filter(move |(_, slot)| {
                slot.instance.phase == Phase::Lost && slot.instance.serving == serving
            })
        };
        let restore = |ordinal: u32| Change::Restore {
            ordinal,
            generation: self.next_generation(ordinal),
        };
        let serving = self.serving();
        // A roll has more in service than the target, and says itself who leaves.
        let unwanted = match rolling {
            true => 0,
            false => serving.saturating_sub(intent.target),
        };
        let wanted = count(lost(true)).saturating_sub(unwanted);
        let in_service = lost(true).take(wanted as usize);
        intent
            .changes
            .extend(in_service.map(|(&ordinal, _)| restore(ordinal)));
        let in_service = |slot: &Slot| {
            use Phase::{Active, Restarting, Unready, Withdrawing};
            let phase = slot.instance.phase;
            phase.before_restart() || matches!(phase, Active | Restarting | Unready | Withdrawing)
        };
        let coming = |slot: &Slot| slot.instance.serving && !in_service(slot);
        if !self.slots.values().any(coming) && !deleting {
            let warm = self.slots.values().filter(|slot| {
                let instance = &slot.instance;
                let waits = instance.phase == Phase::Armed || instance.phase.on_the_way_to_armed();
                waits && !instance.serving && instance.revision.id == revision.id
            });
            let room = (revision.app.warm.armed as usize).saturating_sub(warm.count());
            let fresh = lost(false).filter(|(_, s)| s.instance.revision.id == revision.id);
            intent
                .changes
                .extend(fresh.take(room).map(|(&ordinal, _)| restore(ordinal)));
        }
    }

    /// Cheapest first: one that is still draining, armed ones, ones on their way, new ones.
    pub(super) fn plan_missing(
        &self,
        missing: u32,
        task: Option<TaskContext>,
        revision: &Arc<Revision>,
        intent: &mut Intent,
        now: Now,
        ledger: &mut Ledger,
    ) {
        let current =
            |slot: &Slot| slot.instance.revision.id == revision.id && !slot.instance.serving;
        let reinstatable = |slot: &Slot| {
            let instance = &slot.instance;
            matches!(instance.phase, Phase::Deregistering | Phase::Draining)
                && instance.urgency == Urgency::Drain
                && !instance.unhealthy
        };
        let mut chosen: Vec<Change> = Vec::new();
        let generation = |ordinal: &u32| self.next_generation(*ordinal);
        chosen.extend(
            self.slots
                .iter()
                .filter(|(_, s)| current(s) && reinstatable(s))
                .map(|(ordinal, _)| Change::Reinstate {
                    ordinal: *ordinal,
                    generation: generation(ordinal),
                    task: task.clone(),
                }),
        );
        let wanted: [fn(Phase) -> bool; 2] =
            [|phase| phase == Phase::Armed, Phase::on_the_way_to_armed];
        for wanted in wanted {
            let fits = self
                .slots
                .iter()
                .filter(|(_, s)| current(s) && wanted(s.instance.phase));
            chosen.extend(fits.map(|(ordinal, _)| Change::Activate {
                ordinal: *ordinal,
                generation: generation(ordinal),
                task: task.clone(),
            }));
        }
        chosen.truncate(missing as usize);
        let rest = missing - count(chosen.iter());
        intent.changes.extend(chosen);
        self.plan_creates(rest, Some(task), revision, intent, now, ledger);
    }

    /// `serve`: for service (with the task, if any), else for the gate.
    fn plan_creates(
        &self,
        wanted: u32,
        serve: Option<Option<TaskContext>>,
        revision: &Arc<Revision>,
        intent: &mut Intent,
        now: Now,
        ledger: &mut Ledger,
    ) {
        let planned: BTreeSet<u32> = intent.changes.iter().map(Change::ordinal).collect();
        let free = (0..u32::MAX)
            .filter(|ordinal| !self.slots.contains_key(ordinal) && !planned.contains(ordinal));
        for ordinal in free.take(wanted as usize) {
            let name = self.instance_name(ordinal);
            let grant = match ledger.grant_all(&name, &revision.app, now.steady_ms) {
                Ok(grant) => grant,
                // The one that has the app's fixed port is all that can be.
                Err(GrantRefused::Port(PortRefused::Taken { holder, .. }))
                    if serve.is_none() && holder.app == self.app =>
                {
                    return;
                }
                Err(refused) => {
                    let code = match &refused {
                        GrantRefused::Address(_) => "addresses_exhausted",
                        GrantRefused::Port(PortRefused::Taken { .. }) => "host_port_taken",
                        GrantRefused::Port(PortRefused::Exhausted { .. }) => "host_ports_exhausted",
                    };
                    intent
                        .unplanned
                        .push(Failure::new(code, refused.to_string()));
                    return;
                }
            };
            let generation = self.next_generation(ordinal);
            intent.changes.push(Change::Create {
                ordinal,
                generation,
                serve: serve.as_ref().map(|_| generation + 1),
                revision: revision.clone(),
                grant,
                task: serve.clone().flatten(),
            });
        }
    }

    /// Those that cost least to lose first: not yet let go, then not yet in service, then of another
    /// revision than scale-out uses, then the highest ordinals.
    pub(super) fn plan_excess(
        &self,
        excess: u32,
        leave: Leave<'_>,
        urgency: Urgency,
        task: Option<TaskContext>,
        intent: &mut Intent,
    ) {
        let rank = |phase: Phase| match phase {
            phase if phase.on_the_way_to_armed() || phase == Phase::Lost => 0,
            Phase::Starting | Phase::Probing => 1,
            Phase::Registering | Phase::Withdrawing | Phase::Unready => 2,
            Phase::Leaving | Phase::Emptying | Phase::Restarting => 2,
            _ => 3,
        };
        let planned: BTreeSet<u32> = intent.changes.iter().map(Change::ordinal).collect();
        let (Leave::Any(current) | Leave::Stale(current)) = leave;
        let fresh = |slot: &Slot| slot.instance.revision.id == current;
        let may =
            |slot: &Slot| slot.instance.serving && (matches!(leave, Leave::Any(_)) || !fresh(slot));
        let mut serving: Vec<(u8, bool, std::cmp::Reverse<u32>)> = self
            .slots
            .iter()
            .filter(|(ordinal, slot)| may(slot) && !planned.contains(ordinal))
            .map(|(&ordinal, slot)| {
                let rank = rank(slot.instance.phase);
                (rank, fresh(slot), std::cmp::Reverse(ordinal))
            })
            .collect();
        serving.sort_unstable();
        for (rank, _, std::cmp::Reverse(ordinal)) in serving.into_iter().take(excess as usize) {
            intent.changes.push(match rank {
                0 => Change::Unserve { ordinal },
                _ => Change::TakeOut {
                    ordinal,
                    urgency,
                    task: task.clone(),
                },
            });
        }
    }

    /// `--force` also ends the drains that are under way.
    fn hurry(&self, task: Option<TaskContext>, intent: &mut Intent) {
        let draining =
            |slot: &Slot| matches!(slot.instance.phase, Phase::Deregistering | Phase::Draining);
        let slow = self
            .slots
            .iter()
            .filter(|(_, s)| draining(s) && s.instance.urgency != Urgency::Force);
        intent
            .changes
            .extend(slow.map(|(&ordinal, _)| Change::TakeOut {
                ordinal,
                urgency: Urgency::Force,
                task: task.clone(),
            }));
    }

    fn plan_warm(
        &self,
        deleting: bool,
        revision: &Arc<Revision>,
        intent: &mut Intent,
        now: Now,
        ledger: &mut Ledger,
    ) {
        let planned: BTreeSet<u32> = intent.changes.iter().map(Change::ordinal).collect();
        let waiting = |slot: &Slot| {
            let instance = &slot.instance;
            let waits = matches!(instance.phase, Phase::Armed | Phase::Lost);
            !instance.serving && (waits || instance.phase.on_the_way_to_armed())
        };
        let unplanned = || {
            self.slots
                .iter()
                .filter(|(ordinal, s)| waiting(s) && !planned.contains(ordinal))
        };
        let (fresh, stale): (Vec<_>, Vec<_>) =
            unplanned().partition(|(_, s)| s.instance.revision.id == revision.id);
        let restored = intent.changes.iter().filter(|change| {
            let waits = |ordinal| self.slots.get(ordinal).is_some_and(|s| !s.instance.serving);
            matches!(change, Change::Restore { ordinal, .. } if waits(ordinal))
        });
        let wanted = if deleting {
            0
        } else {
            (revision.app.warm.armed as usize).saturating_sub(restored.count())
        };
        let at_once = if deleting {
            usize::MAX
        } else {
            self.limits.refill
        };
        let leaving = self
            .slots
            .values()
            .filter(|s| s.instance.phase.going_down() && s.instance.revision.id != revision.id);
        let room = at_once.saturating_sub(leaving.count());
        let keep = self.limits.keep_everything && !deleting;
        let room = if keep { 0 } else { room };
        intent.changes.extend(
            stale
                .into_iter()
                .take(room)
                .map(|(&ordinal, _)| Change::Discard { ordinal }),
        );
        if fresh.len() > wanted && !keep {
            let superfluous = fresh.iter().rev().take(fresh.len() - wanted);
            intent
                .changes
                .extend(superfluous.map(|(ordinal, _)| Change::Discard { ordinal: **ordinal }));
        } else if fresh.len() < wanted && !self.pausing(now) && !self.activation_under_way(intent) {
            self.plan_creates(
                count(fresh.len()..wanted),
                None,
                revision,
                intent,
                now,
                ledger,
            );
        }
    }

    /// Refill yields: while a task waits for instances, the host's strength is theirs. A roll waits
    /// for drains most of the time, and goes on from the gate; a restart needs no other instance.
    fn activation_under_way(&self, intent: &Intent) -> bool {
        let waits =
            |task: &OpenTask| task.end.is_none() && task.roll.is_none() && task.restart.is_none();
        matches!(intent.command, Some(Command::Target(_))) || self.tasks.values().any(waits)
    }

    fn oldest_unmet(&self) -> Option<TaskContext> {
        let unmet = self
            .tasks
            .values()
            .filter(|task| task.end.is_none() && task.restart.is_none())
            .filter(|task| self.active() < task.target);
        unmet
            .min_by_key(|task| task.seq)
            .map(|task| task.context.clone())
    }

    /// Whether there is something to do as soon as the pause is over.
    pub(super) fn wants_more(&self) -> bool {
        let warm = self
            .slots
            .values()
            .filter(|s| !s.instance.serving && !s.instance.phase.going_down());
        self.serving() < self.target
            || self.rolling(None).is_some()
            || (!self.deleting && count(warm) < self.scale_out(&self.revision).app.warm.armed)
    }

    /// What stood in the way of a plan is told with the task that waits longest.
    pub(super) fn unplanned(&mut self, failures: &[Failure], now: Now) {
        let waiting = self.rolling(None).map(|rolling| rolling.task);
        let waiting = self.oldest_unmet().or(waiting);
        if let (Some(failure), Some(task)) = (failures.first(), waiting)
            && let Some(task) = self.tasks.get_mut(&task.task_id)
        {
            task.unplanned = Some(failure.clone());
        }
        self.note_failure(now);
    }

    /// Nothing is left on the host: the app goes from the journal, then the caller is answered.
    fn finish_deletion(&mut self, out: &mut Vec<Action>) {
        let nothing_left = self.slots.is_empty() && self.tasks.is_empty() && self.queue.is_empty();
        if self.deleting && nothing_left && self.settling.is_none() && self.removal.is_none() {
            let id = self.id();
            self.removal = Some(id);
            let mut writes = self.carry(id);
            writes.push(Write::AppGone(self.app.clone()));
            out.push(Action::Commit {
                id,
                writes,
                closes: Vec::new(),
            });
        }
    }
}

pub(super) fn refuse(command: &Command, refusal: Refusal, out: &mut Vec<Action>) {
    out.push(match command {
        Command::Target(request) => Action::Refuse(request.context.task_id.clone(), refusal),
        Command::Revise(_) | Command::Stable(_) => Action::Revised(Err(refusal)),
        Command::Delete { .. } => Action::Deleted(Err(refusal)),
    });
}
