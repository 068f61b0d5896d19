//! When the host's lease is renewed and when it is surely over. Pure: monotonic time is an argument.
//!
//! The wall clock has no part in it: a step of it neither renews nor ends anything.

use std::time::Duration;

use tokio::time::Instant;

/// etcd looks for expired leases every 500 ms (server/lease: `expiredLeaseCheckInterval`, and the
/// revocation goes through its log after that).
const EXPIRY_LAG: Duration = Duration::from_secs(1);

/// The clock of one lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewals {
    ttl: Duration,
    last: Instant,
}

impl Renewals {
    /// At the start of the agent: a lease that another process of it held was renewed before.
    pub(super) fn begun(ttl: Duration, now: Instant) -> Self {
        Self { ttl, last: now }
    }

    /// etcd has acknowledged a grant or renewal at `now`, the time of its answer.
    pub(super) fn renewed(&mut self, now: Instant) {
        self.last = now;
    }

    /// When the next renewal is due: at a third of the time to live.
    pub(super) fn due(&self) -> Instant {
        self.last + self.ttl / 3
    }

    /// Whether the lease has expired at etcd, whatever became of our requests since.
    pub(super) fn surely_over(&self, now: Instant) -> bool {
        now >= self.last + self.ttl + EXPIRY_LAG
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_at_a_third_and_over_only_after_all_of_it() {
        let ttl = Duration::from_secs(60);
        let start = Instant::now();
        let mut renewals = Renewals::begun(ttl, start);
        assert_eq!(renewals.due(), start + Duration::from_secs(20));
        let later = start + Duration::from_secs(50);
        assert!(!renewals.surely_over(later));
        renewals.renewed(later);
        assert!(!renewals.surely_over(start + Duration::from_secs(110)));
        assert!(renewals.surely_over(start + Duration::from_secs(111)));
    }

    /// SIGSTOP, a pause of a virtual machine: at the first look afterwards the renewal is overdue
    /// and the lease over.
    #[test]
    fn a_pause_longer_than_the_time_to_live_is_noticed_at_the_first_look() {
        let start = Instant::now();
        let renewals = Renewals::begun(Duration::from_secs(60), start);
        let after = start + Duration::from_secs(90);
        assert!(renewals.due() <= after && renewals.surely_over(after));
    }
}
