//! Which bytes of a blob are there: pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges of bytes that do not touch one another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range; it may overlap what is there.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            start = start.min(from);
            end = end.max(to);
            self.0.remove(&from);
        }
        self.0.insert(start, end);
    }

    /// Takes a range out.
    pub fn take(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&from, &to)) = self.0.range(..range.end).next_back() {
            if to <= range.start {
                break;
            }
            self.0.remove(&from);
            if from < range.start {
                self.0.insert(from, range.start);
            }
            if to > range.end {
                self.0.insert(range.end, to);
            }
        }
    }

    /// What of `within` is not there, in order.
    pub fn gaps(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = within.start;
        // The one that begins before `within` may reach into it.
        if let Some((_, &to)) = self.0.range(..=at).next_back() {
            at = at.max(to);
        }
        for (&from, &to) in self.0.range(within.start..) {
            if from >= within.end {
                break;
            }
            if from > at {
                gaps.push(at..from);
            }
            at = at.max(to);
        }
        if at < within.end {
            gaps.push(at..within.end);
        }
        gaps
    }

    /// Bytes from the front that are there.
    pub fn contiguous(&self) -> u64 {
        self.0.get(&0).copied().unwrap_or(0)
    }

    /// Where the range that holds `at` ends.
    pub fn end_of(&self, at: u64) -> Option<u64> {
        let (_, &to) = self.0.range(..=at).next_back()?;
        (at < to).then_some(to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Ranges;

    proptest! {
        #[test]
        fn ranges_are_what_a_table_of_bytes_would_say(
            steps in prop::collection::vec((any::<bool>(), 0_u64..64, 0_u64..64), 0..40),
            (a, b) in (0_u64..64, 0_u64..64),
        ) {
            let mut ranges = Ranges::default();
            let mut table = [false; 64];
            for (add, a, b) in steps {
                let range = a.min(b)..a.max(b);
                table[a.min(b) as usize..a.max(b) as usize].fill(add);
                match add {
                    true => ranges.add(range),
                    false => ranges.take(range),
                }
            }
            let within = a.min(b)..a.max(b);
            let mut missing = [false; 64];
            for gap in ranges.gaps(within.clone()) {
                prop_assert!(!gap.is_empty());
                missing[gap.start as usize..gap.end as usize].fill(true);
            }
            for at in 0..64 {
                let want = within.contains(&at) && !table[at as usize];
                prop_assert_eq!(missing[at as usize], want);
                let end = table[at as usize].then(|| (at..64).find(|at| !table[*at as usize]).unwrap_or(64));
                prop_assert_eq!(ranges.end_of(at), end);
            }
            let front = table.iter().take_while(|there| **there).count() as u64;
            prop_assert_eq!(ranges.contiguous(), front);
        }
    }
}
