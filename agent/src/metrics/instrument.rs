//! What counts and what measures: atomics, no locks, no allocation after the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// That many more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets of every histogram, in microseconds: from a warm activation's step
/// to a task's deadline.
pub const BOUNDS_US: [u64; 16] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 15_000_000, 60_000_000,
];

/// Durations, by size.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound and one for what is above the last; not cumulative.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// One more of this length.
    pub fn observe(&self, duration: Duration) {
        self.observe_us(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// One more of this length in microseconds.
    pub fn observe_us(&self, us: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// How many of at most each bound, and at the end how many there are.
    pub(super) fn cumulative(&self) -> [u64; BOUNDS_US.len() + 1] {
        let mut sum = 0;
        std::array::from_fn(|n| {
            sum += self.buckets[n].load(Ordering::Relaxed);
            sum
        })
    }

    pub(super) fn sum_seconds(&self) -> f64 {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_its_bucket_and_in_all_above() {
        let histogram = Histogram::default();
        for us in [0, 250, 251, 1_000_000, 90_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let counts = histogram.cumulative();
        assert_eq!((counts[0], counts[1]), (2, 3));
        assert_eq!((counts[10], counts[11]), (3, 4));
        assert_eq!((counts[15], counts[16]), (4, 5));
        assert!((histogram.sum_seconds() - 91.000_501).abs() < 1e-9);
    }
}
