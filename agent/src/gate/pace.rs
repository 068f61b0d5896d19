//! How fast a peer may talk, and how often we complain about peers.

use std::sync::{Mutex, PoisonError};
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
