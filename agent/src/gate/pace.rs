//! How fast a peer may talk, what turning peers away may cost, and how often we complain of them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Frames of one peer that are taken at once after a silence.
const BURST: u32 = 256;
/// Time that each further frame has to be apart from the one before.
const INTERVAL: Duration = Duration::from_millis(10);

/// Paces the frames of one peer: a burst, then one every [`INTERVAL`]. What comes faster stays in
/// the socket, which makes the peer wait, not us grow.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the frames so far would have ended, had they come evenly.
    earned: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { earned: now }
    }

    /// Counts a frame.
    pub(super) fn frame(&mut self, now: Instant) {
        self.earned = self.earned.max(now) + INTERVAL;
    }

    /// When the next frame may be read; in the past when it may be at once.
    pub(super) fn resume(&self) -> Instant {
        self.earned
            .checked_sub(INTERVAL * BURST)
            .unwrap_or(self.earned)
    }
}

/// What a peer that is turned away has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnedAwayAfter {
    /// A look at its process: a thread, a pidfd, two files of `/proc`.
    Look,
    /// Nothing but who it is: it, or one like it, was turned away just now.
    Glance,
}

impl TurnedAwayAfter {
    /// What it costs the agent, about; on a slow machine it is more, and so is everything else.
    const fn cost(self) -> Duration {
        match self {
            Self::Look => Duration::from_micros(150),
            Self::Glance => Duration::from_micros(20),
        }
    }
}

/// By what a peer is known again, at no cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Known {
    /// Its process id. One that is given to a new container-init is turned away once, and dials
    /// again.
    Process(i32),
    /// Id of its cgroup: a container that forks for each connection.
    Cgroup(u64),
}

impl Known {
    /// How long it is remembered. A container's own init has to get a look between its neighbours
    /// in the same cgroup.
    const fn memory(self) -> Duration {
        match self {
            Self::Process(_) => Duration::from_secs(1),
            Self::Cgroup(_) => Duration::from_millis(50),
        }
    }
}

/// Keeps the cost of peers that do not belong here below [`Refusals::SHARE`] of a core.
///
/// Every refusal adds its cost to a debt that time pays off. When the debt is over
/// [`Refusals::CREDIT`], the door stays shut until it is paid; who belongs here waits in the
/// kernel's queue meanwhile, or comes again, for a fortieth of a second each time. Without refusals
/// nobody ever waits.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Door>);

#[derive(Debug, Default)]
struct Door {
    /// When the debt will have been paid.
    paid: Option<Instant>,
    /// Who was turned away, and until when that is remembered.
    known: HashMap<Known, Instant>,
}

impl Refusals {
    /// One part in this many of a core.
    const SHARE: u32 = 25;
    /// Debt that is tolerated: what can be done at once after a silence.
    const CREDIT: Duration = Duration::from_millis(1);
    /// Peers that are remembered at most.
    const KNOWN: usize = 1024;

    /// Whether anybody was turned away of late, so that it is worth asking who comes.
    pub(super) fn are_owed(&self, now: Instant) -> bool {
        self.door()
            .paid
            .is_some_and(|paid| now < paid + Duration::from_secs(1))
    }

    /// Whether this peer was turned away just now. If it was a while ago, it gets one look, and
    /// those who come behind it do not.
    pub(super) fn knows(&self, peers: &[Known], now: Instant) -> bool {
        let mut door = self.door();
        let known = |peer| door.known.get(peer).is_some_and(|until| now < *until);
        if peers.iter().any(known) {
            return true;
        }
        for peer in peers {
            if let Some(until) = door.known.get_mut(peer) {
                *until = now + peer.memory();
            }
        }
        false
    }

    /// A peer was turned away, and is remembered as `peers`.
    pub(super) fn turned_away(
        &self,
        after: TurnedAwayAfter,
        peers: impl IntoIterator<Item = Known>,
        now: Instant,
    ) {
        let mut door = self.door();
        let owed = after.cost() * Self::SHARE;
        door.paid = Some(door.paid.map_or(now, |paid| paid.max(now)) + owed);
        for peer in peers {
            if door.known.len() >= Self::KNOWN {
                door.known.retain(|_, until| now < *until);
            }
            if door.known.len() < Self::KNOWN {
                door.known.insert(peer, now + peer.memory());
            }
        }
    }

    /// Until when the door stays shut; `None` when the next may come in.
    pub(super) fn shut_until(&self, now: Instant) -> Option<Instant> {
        let paid = self.door().paid?;
        (paid.saturating_duration_since(now) > Self::CREDIT * Self::SHARE).then_some(paid)
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        // Every change is whole when it can panic no more.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One warning per window, with the number of those left out.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<Option<Window>>);

#[derive(Debug)]
struct Window {
    ends: Instant,
    left_out: u64,
}

impl Complaints {
    const WINDOW: Duration = Duration::from_secs(10);

    /// `Some(number left out since the last one)` when this one may be logged.
    pub(super) fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match window.as_mut() {
            Some(open) if now < open.ends => {
                open.left_out += 1;
                None
            }
            last => {
                let left_out = last.map_or(0, |open| open.left_out);
                *window = Some(Window {
                    ends: now + Self::WINDOW,
                    left_out: 0,
                });
                Some(left_out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_babbler_is_read_at_the_pace_and_a_burst_is_not_delayed() {
        let now = Instant::now() + Duration::from_secs(3600);
        let mut pace = Pace::new(now);
        for _ in 0..BURST {
            pace.frame(now);
        }
        assert!(pace.resume() <= now);
        for _ in 0..100 {
            pace.frame(now);
        }
        assert_eq!(pace.resume(), now + INTERVAL * 100);
        pace.frame(now + Duration::from_secs(60));
        assert!(
            pace.resume() <= now + Duration::from_secs(60),
            "a silence earns a new burst"
        );
    }

    /// What a storm that never pauses may do within ten seconds: how often each way, and the
    /// longest time that the door was shut.
    fn storm(peer: impl Fn(i32) -> Vec<Known>) -> (u32, u32, Duration) {
        let refusals = Refusals::default();
        let begin = Instant::now();
        let mut now = begin;
        let (mut looks, mut glances, mut longest) = (0, 0, Duration::ZERO);
        while now < begin + Duration::from_secs(10) {
            if let Some(until) = refusals.shut_until(now) {
                longest = longest.max(until - now);
                now = until;
            }
            let peers = peer(looks + glances);
            let after = if refusals.knows(&peers, now) {
                refusals.turned_away(TurnedAwayAfter::Glance, [], now);
                glances += 1;
                TurnedAwayAfter::Glance
            } else {
                refusals.turned_away(TurnedAwayAfter::Look, peers, now);
                looks += 1;
                TurnedAwayAfter::Look
            };
            now += after.cost();
        }
        (looks as u32, glances as u32, longest)
    }

    #[test]
    fn a_storm_costs_a_twenty_fifth_of_a_core_whoever_makes_it() {
        let most = Duration::from_secs(10) / Refusals::SHARE + 2 * Refusals::CREDIT;
        let one = |_| vec![Known::Process(7)];
        let new_each_time = |n| vec![Known::Process(n)];
        let of_one_container = |n| vec![Known::Process(n), Known::Cgroup(3)];
        let storms: [fn(i32) -> Vec<Known>; 3] = [one, new_each_time, of_one_container];
        for peer in storms {
            let (looks, glances, shut) = storm(peer);
            let cost =
                TurnedAwayAfter::Look.cost() * looks + TurnedAwayAfter::Glance.cost() * glances;
            assert!(
                cost <= most,
                "{looks} looks and {glances} glances cost {cost:?}"
            );
            assert!(looks + glances > 1000, "nobody gets in: {looks}, {glances}");
            assert!(shut < Duration::from_millis(30), "shut for {shut:?}");
        }
        let (looks, glances, _) = storm(one);
        assert!(
            looks <= 11 && glances > 10_000,
            "a known process is looked at again: {looks}"
        );
        let (looks, glances, _) = storm(of_one_container);
        assert!(
            (100..=210).contains(&looks),
            "its own init gets a look: {looks}"
        );
        assert!(glances > 10_000, "{glances}");
    }

    #[test]
    fn a_few_refusals_shut_nobody_out_and_a_refusal_is_forgotten() {
        let refusals = Refusals::default();
        let now = Instant::now();
        assert!(!refusals.are_owed(now));
        for pid in 0..5 {
            refusals.turned_away(TurnedAwayAfter::Look, [Known::Process(pid)], now);
        }
        assert!(refusals.are_owed(now));
        assert_eq!(refusals.shut_until(now), None);
        assert!(refusals.knows(&[Known::Process(3)], now));
        assert!(!refusals.knows(&[Known::Cgroup(3)], now));
        let later = now + Known::Process(3).memory();
        assert!(!refusals.knows(&[Known::Process(3)], later));
        assert!(
            refusals.knows(&[Known::Process(3)], later),
            "one look, and not two"
        );
        assert!(!refusals.are_owed(later + Duration::from_secs(1)));
    }

    #[test]
    fn memory_of_refusals_is_bounded() {
        let refusals = Refusals::default();
        let now = Instant::now();
        for pid in 0..10_000 {
            refusals.turned_away(TurnedAwayAfter::Look, [Known::Process(pid)], now);
        }
        assert_eq!(refusals.door().known.len(), Refusals::KNOWN);
        let later = now + Known::Process(0).memory();
        refusals.turned_away(TurnedAwayAfter::Look, [Known::Process(7)], later);
        assert_eq!(refusals.door().known.len(), 1);
    }

    #[test]
    fn complaints_are_one_a_window_and_count_the_rest() {
        let complaints = Complaints::default();
        let now = Instant::now();
        assert_eq!(complaints.admit(now), Some(0));
        assert_eq!(complaints.admit(now), None);
        assert_eq!(complaints.admit(now), None);
        assert_eq!(complaints.admit(now + Complaints::WINDOW), Some(2));
    }
}
