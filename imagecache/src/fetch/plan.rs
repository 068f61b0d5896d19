//! Which bytes of a blob are asked for next: pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// What is missing and asked of nobody yet, cut into chunks from the front to the end: what comes
/// first can be hashed first.
#[derive(Debug)]
pub(super) struct Plan {
    /// By start.
    open: BTreeMap<u64, u64>,
    chunk: u64,
}

impl Plan {
    /// For these ranges; of a large one, `chunk` bytes are asked for at a time.
    pub fn new(missing: Vec<Range<u64>>, chunk: u64) -> Self {
        let mut plan = Self {
            open: BTreeMap::new(),
            chunk: chunk.max(1),
        };
        plan.give_back(missing);
        plan
    }

    /// The next chunk. Chunks end at multiples of their size, so that caches on the way see the
    /// same ranges from everybody; what would be left over as less than half a chunk goes along.
    pub fn take(&mut self) -> Option<Range<u64>> {
        let (start, end) = self.open.pop_first()?;
        let next = start.saturating_add(self.chunk) / self.chunk * self.chunk;
        if end <= next.saturating_add(self.chunk / 2) {
            return Some(start..end);
        }
        self.open.insert(next, end);
        Some(start..next)
    }

    /// Everything, for a source that sends the whole blob anyhow.
    pub fn take_all(&mut self) -> Vec<Range<u64>> {
        let all = std::mem::take(&mut self.open);
        all.into_iter().map(|(start, end)| start..end).collect()
    }

    /// Whoever had these did not bring them.
    pub fn give_back(&mut self, ranges: impl IntoIterator<Item = Range<u64>>) {
        let ranges = ranges.into_iter().filter(|range| !range.is_empty());
        self.open
            .extend(ranges.map(|range| (range.start, range.end)));
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// What `ranges` and `others` have in common; both are in order.
pub(super) fn common(ranges: &[Range<u64>], others: &[Range<u64>]) -> Vec<Range<u64>> {
    let pairs = ranges
        .iter()
        .flat_map(|range| others.iter().map(move |other| (range, other)));
    pairs
        .map(|(range, other)| range.start.max(other.start)..range.end.min(other.end))
        .filter(|common| !common.is_empty())
        .collect()
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges are the subject"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(plan: &mut Plan) -> Vec<Range<u64>> {
        std::iter::from_fn(|| plan.take()).collect()
    }

    #[test]
    fn a_small_blob_is_asked_for_in_one() {
        assert_eq!(all(&mut Plan::new(vec![0..100], 100)), [0..100]);
        assert_eq!(all(&mut Plan::new(vec![0..150], 100)), [0..150]);
        assert!(all(&mut Plan::new(vec![], 100)).is_empty());
    }

    #[test]
    fn a_large_blob_is_cut_at_multiples() {
        assert_eq!(
            all(&mut Plan::new(vec![0..260], 100)),
            [0..100, 100..200, 200..260]
        );
        assert_eq!(
            all(&mut Plan::new(vec![30..40, 70..320], 100)),
            [30..40, 70..100, 100..200, 200..320]
        );
    }

    #[test]
    fn what_comes_back_is_taken_again_in_its_place() {
        let mut plan = Plan::new(vec![0..400], 100);
        let (first, second) = (plan.take(), plan.take());
        assert_eq!((first, second), (Some(0..100), Some(100..200)));
        plan.give_back([150..200, 0..0]);
        assert_eq!(plan.take(), Some(150..200));
        assert_eq!(plan.take_all(), [200..400]);
        assert!(plan.is_empty());
    }

    #[test]
    fn what_is_common_is_found() {
        assert_eq!(
            common(&[0..10, 20..30], &[5..22, 29..40]),
            [5..10, 20..22, 29..30]
        );
        assert!(common(&[0..10], &[10..20]).is_empty());
    }

    proptest! {
        #[test]
        fn every_missing_byte_is_taken_once(
            cuts in proptest::collection::btree_set(0u64..5000, 0..12),
            chunk in 1u64..700,
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let missing: Vec<Range<u64>> =
                cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let taken = all(&mut Plan::new(missing.clone(), chunk));
            for range in &taken {
                prop_assert!(range.end - range.start <= chunk + chunk / 2 + 1);
            }
            let bytes = |ranges: Vec<Range<u64>>| ranges.into_iter().flatten().collect::<Vec<u64>>();
            prop_assert_eq!(bytes(taken), bytes(missing));
        }
    }
}
