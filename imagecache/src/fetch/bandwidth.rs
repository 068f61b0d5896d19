//! How many bytes a second may pass: a token bucket, for what all pulls of the process bring and
//! for what all peers are sent.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Nobody waits longer than this at a time, so that a wait ends soon after a pull does.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A bucket that fills at a rate and may be emptied below zero: bytes have come already when they
/// are counted, and whoever brought them waits until they are paid.
#[derive(Debug)]
struct Bucket {
    /// Bytes per second.
    rate: f64,
    /// What it holds when it is full, in bytes.
    depth: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: u64, now: Instant) -> Self {
        let rate = rate.max(1) as f64;
        // A tenth of a second may come at once.
        let depth = rate / 10.0;
        Self {
            rate,
            depth,
            level: depth,
            at: now,
        }
    }

    /// Takes out `bytes`; how long to wait for it.
    fn spend(&mut self, bytes: u64, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + passed * self.rate).min(self.depth) - bytes as f64;
        let debt = (-self.level).max(0.0) / self.rate;
        Duration::try_from_secs_f64(debt).unwrap_or(LONGEST_WAIT)
    }
}

/// The limit. Clones of a fetcher share it.
#[derive(Debug)]
pub(crate) struct Bandwidth(Option<Mutex<Bucket>>);

impl Bandwidth {
    /// Bytes per second; 0 is no limit.
    pub fn new(rate: u64) -> Self {
        Self((rate > 0).then(|| Mutex::new(Bucket::new(rate, Instant::now()))))
    }

    /// Counts bytes that have come, or are about to go, and waits until more may.
    pub async fn spend(&self, bytes: usize) {
        let Some(bucket) = &self.0 else { return };
        let wait = bucket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spend(bytes as u64, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn what_is_spent_is_paid_in_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        assert_eq!(bucket.spend(100, start), Duration::ZERO);
        assert_eq!(bucket.spend(500, start), Duration::from_millis(500));
        let later = start + Duration::from_millis(400);
        assert_eq!(bucket.spend(100, later), Duration::from_millis(200));
    }

    #[test]
    fn a_bucket_does_not_save_up() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.spend(200, later), Duration::from_millis(100));
    }

    #[test]
    fn a_clock_that_stands_still_is_no_harm() {
        let now = Instant::now();
        let mut bucket = Bucket::new(10, now);
        bucket.spend(1, now + Duration::from_secs(1));
        assert_eq!(bucket.spend(1, now), Duration::from_millis(100));
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let spent = Bandwidth::new(0).spend(usize::MAX).now_or_never();
        assert!(spent.is_some());
    }
}
