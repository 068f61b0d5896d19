//! Which peers are left alone for a while, and why.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What was wrong with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It could not be reached, did not answer in time, or was too slow.
    Away,
    /// It does not let us in.
    Refuses,
    /// It sent bytes that are not the blob.
    WrongBytes,
}

impl Trouble {
    /// How long it is not asked.
    fn rest(self) -> Duration {
        match self {
            Self::Away => Duration::from_secs(30),
            Self::Refuses => Duration::from_secs(60),
            Self::WrongBytes => Duration::from_secs(600),
        }
    }

    /// One word, for status and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Refuses => "refuses",
            Self::WrongBytes => "wrong bytes",
        }
    }
}

/// A peer and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// `host:port`.
    pub address: String,
    /// What was wrong, and for how long it is still not asked.
    pub rests: Option<(Trouble, Duration)>,
}

/// Of all peers, by number.
#[derive(Debug, Default)]
pub(super) struct Standing(Mutex<HashMap<usize, (Trouble, Instant)>>);

impl Standing {
    /// The peer is left alone for a while. A worse thing that was known of it stays.
    pub fn failed(&self, host: usize, trouble: Trouble, now: Instant) {
        let until = now + trouble.rest();
        let mut resting = self.lock();
        let known = resting.entry(host).or_insert((trouble, until));
        if known.1 <= until {
            *known = (trouble, until);
        }
    }

    /// What is wrong with the peer, and for how long it rests.
    pub fn rests(&self, host: usize, now: Instant) -> Option<(Trouble, Duration)> {
        let (trouble, until) = self.lock().get(&host).copied()?;
        let left = until.checked_duration_since(now)?;
        (!left.is_zero()).then_some((trouble, left))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, (Trouble, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_rests_for_what_it_did_and_comes_back() {
        let (standing, now) = (Standing::default(), Instant::now());
        standing.failed(1, Trouble::WrongBytes, now);
        standing.failed(1, Trouble::Away, now);
        let (trouble, left) = standing.rests(1, now).unwrap();
        assert_eq!(
            (trouble, left),
            (Trouble::WrongBytes, Duration::from_secs(600))
        );
        assert_eq!(standing.rests(1, now + left), None);
        assert_eq!(standing.rests(2, now), None);
    }
}
