//! The pure half of the connection to the agent: whom to obey, what to keep, when to dial again.
//!
//! Promises: events are numbered from 1 and kept until acked, at most [`KEPT`]; the newest exit is
//! never the one that is dropped. Knows no sockets.

use crate::protocol::{Event, EventKind};

/// How many events are kept while nobody acks.
pub const KEPT: usize = 64;
/// First pause before dialling again, in milliseconds.
pub const REDIAL_MIN_MS: u64 = 10;
/// Longest pause before dialling again, in milliseconds.
pub const REDIAL_MAX_MS: u64 = 1000;

/// Whether the peer of the socket is the agent: a process outside our pid namespace, which the
/// kernel shows as pid 0 in `SO_PEERCRED` (unix(7), pid_namespaces(7)), with uid 0. Processes of
/// the container always have a pid here, so that none of them can pass.
pub fn is_obeyed(pid: u32, uid: u32) -> bool {
    pid == 0 && uid == 0
}

/// The pause after `pause`, in milliseconds.
pub fn next_redial(pause: u64) -> u64 {
    pause.saturating_mul(2).clamp(REDIAL_MIN_MS, REDIAL_MAX_MS)
}

/// Events that the agent has not acked, oldest first.
#[derive(Debug)]
pub struct Outbox<'p> {
    events: [Option<Event<'p>>; KEPT],
    length: usize,
    next_seq: u64,
}

impl<'p> Outbox<'p> {
    /// No events; the first will be number 1.
    pub const fn new() -> Self {
        Self {
            events: [None; KEPT],
            length: 0,
            next_seq: 1,
        }
    }

    /// Numbers and keeps an event. When there is no room the least telling one goes: the oldest
    /// agent-ready, else the oldest exit of an in-container agent, else the oldest.
    pub fn push(&mut self, kind: EventKind<'p>, app: &str) -> Event<'p> {
        let event = Event {
            seq: self.next_seq,
            kind,
        };
        self.next_seq += 1;
        if self.length == KEPT {
            let ready = |kind: &EventKind<'_>| matches!(kind, EventKind::AgentReady { .. });
            let agent = |kind: &EventKind<'_>| matches!(kind, EventKind::Exited { name, .. } if *name != app);
            let victim = self
                .position(ready)
                .or_else(|| self.position(agent))
                .unwrap_or(0);
            self.remove(victim);
        }
        if let Some(room) = self.events.get_mut(self.length) {
            *room = Some(event);
            self.length += 1;
        }
        event
    }

    /// Forgets every event up to and including `seq`. An ack of what was never sent forgets
    /// nothing more than there is.
    pub fn ack(&mut self, seq: u64) {
        while self.iter().next().is_some_and(|event| event.seq <= seq) {
            self.remove(0);
        }
    }

    /// The kept events, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Event<'p>> + '_ {
        self.events.iter().take(self.length).flatten().copied()
    }

    /// Number of the oldest kept event, or of the next one.
    pub fn first_unacked_seq(&self) -> u64 {
        self.iter().next().map_or(self.next_seq, |event| event.seq)
    }

    fn position(&self, wanted: impl Fn(&EventKind<'_>) -> bool) -> Option<usize> {
        self.iter().position(|event| wanted(&event.kind))
    }

    fn remove(&mut self, index: usize) {
        if let Some(tail) = self.events.get_mut(index..self.length) {
            tail.rotate_left(1);
            self.length -= 1;
        }
    }
}

impl Default for Outbox<'_> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ExitStatus;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn exited(name: &str) -> EventKind<'_> {
        EventKind::Exited {
            name,
            pid: 2,
            status: ExitStatus::Code(0),
            oom: false,
            generation: 1,
        }
    }

    #[test]
    fn only_root_outside_of_the_namespace_is_obeyed() {
        assert!(is_obeyed(0, 0));
        assert!(!is_obeyed(17, 0), "root inside the container");
        assert!(!is_obeyed(0, 1000), "a user of the host");
        assert!(!is_obeyed(0, 65_534), "somebody of another user namespace");
    }

    #[test]
    fn pauses_double_up_to_a_second() {
        let pauses: Vec<u64> =
            core::iter::successors(Some(next_redial(0)), |p| Some(next_redial(*p)))
                .take(9)
                .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }

    #[test]
    fn a_flapping_agent_does_not_push_out_the_apps_story() {
        let mut outbox = Outbox::new();
        outbox.push(EventKind::Armed, "app");
        outbox.push(
            EventKind::AppStarted {
                generation: 2,
                pid: 9,
            },
            "app",
        );
        for _ in 0..200 {
            outbox.push(exited("log"), "app");
            outbox.push(EventKind::AgentReady { name: "log" }, "app");
        }
        outbox.push(exited("app"), "app");
        outbox.push(EventKind::Stopped, "app");
        let kept: Vec<EventKind<'_>> = outbox.iter().map(|event| event.kind).collect();
        assert_eq!(kept.len(), KEPT);
        for kind in [EventKind::Armed, exited("app"), EventKind::Stopped] {
            assert!(kept.contains(&kind), "{kind:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_not_acked_is_kept_in_order(steps in proptest::collection::vec((0u8..3, 0u64..150), 1..150)) {
            let mut outbox = Outbox::new();
            let (mut pushed, mut acked) = (0, 0);
            for (step, seq) in steps {
                match step {
                    0 => outbox.ack(seq),
                    1 => pushed = outbox.push(exited("app"), "app").seq,
                    _ => pushed = outbox.push(EventKind::Armed, "app").seq,
                }
                if step == 0 { acked = acked.max(seq.min(pushed)); }
                let kept: Vec<u64> = outbox.iter().map(|event| event.seq).collect();
                prop_assert!(kept.is_sorted() && kept.iter().all(|seq| *seq > acked));
                let expected = ((pushed - acked) as usize).min(KEPT);
                prop_assert_eq!(kept.len(), expected);
                prop_assert!(expected == 0 || kept.last() == Some(&pushed), "the newest is never dropped");
                prop_assert_eq!(outbox.first_unacked_seq(), kept.first().copied().unwrap_or(pushed + 1));
            }
        }
    }
}
