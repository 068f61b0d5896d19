//! What a keeper remembers of its blobs: who asked, in which order. Pure.
//!
//! Each one that asks is sent to one of those that asked before it, so there are no circles; the
//! first goes to the registry. A host that somebody else found to have failed is forgotten, and who
//! comes after it moves up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::hosts::Hosts;
use crate::Digest;

/// Hosts that are sent to one host before the next one is chosen.
const FAN_OUT: usize = 2;
/// Blobs remembered; beyond it those are forgotten that nobody asked for longest.
const MOST_BLOBS: usize = 4096;
/// Hosts remembered of a blob; later ones are sent to these.
const MOST_HOSTS: usize = 256;
/// A blob that nobody asked for this long is forgotten: so is who had it.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Where a host gets a blob from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Nobody is before it: from wherever it may be, in the end from the registry.
    Yours,
    /// From this host, which has it or is bringing it.
    From(usize),
}

/// The memory of one host for the blobs that it keeps.
#[derive(Debug, Default)]
pub(super) struct Keeper(HashMap<Digest, Known>);

#[derive(Debug)]
struct Known {
    asked: Instant,
    /// In the order in which they asked.
    hosts: Vec<Asked>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    host: usize,
    way: Way,
}

impl Keeper {
    /// `from` wants the blob; it found that `failed` neither has nor brings it.
    pub fn claim(
        &mut self,
        hosts: &Hosts,
        digest: &Digest,
        from: usize,
        failed: Option<usize>,
        now: Instant,
    ) -> Way {
        if !self.0.contains_key(digest) {
            self.make_room(now);
        }
        let known = self.0.entry(digest.clone()).or_insert(Known {
            asked: now,
            hosts: Vec::new(),
        });
        known.asked = now;
        if let Some(failed) = failed.filter(|failed| *failed != from) {
            known.hosts.retain(|asked| asked.host != failed);
        }
        let position = known.hosts.iter().position(|asked| asked.host == from);
        let before = position.unwrap_or(known.hosts.len());
        let way = known.way(hosts, from, before);
        match position {
            Some(position) => known.hosts[position].way = way,
            None if known.hosts.len() < MOST_HOSTS => known.hosts.push(Asked { host: from, way }),
            None => {}
        }
        way
    }

    fn make_room(&mut self, now: Instant) {
        self.0
            .retain(|_, known| now.saturating_duration_since(known.asked) < REMEMBERED);
        if self.0.len() < MOST_BLOBS {
            return;
        }
        let oldest = self.0.iter().min_by_key(|(_, known)| known.asked);
        if let Some(oldest) = oldest.map(|(digest, _)| digest.clone()) {
            self.0.remove(&oldest);
        }
    }
}

impl Known {
    /// The nearest of the first `before`; among equally near ones the first that has few enough to
    /// serve, and when all have enough, the one that has the fewest.
    fn way(&self, hosts: &Hosts, from: usize, before: usize) -> Way {
        let chosen = self.hosts[..before]
            .iter()
            .enumerate()
            .min_by_key(|(at, asked)| {
                let to = Way::From(asked.host);
                // Its own place does not count against where it was sent before.
                let others = self.hosts.iter().filter(|other| other.host != from);
                let load = others.filter(|other| other.way == to).count();
                let full = match load < FAN_OUT {
                    true => 0,
                    false => load,
                };
                (hosts.distance(from, asked.host), full, *at)
            });
        chosen.map_or(Way::Yours, |(_, asked)| Way::From(asked.host))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hosts::Peer;
    use super::*;

    fn hosts(zones: &[&str]) -> Hosts {
        let all: Vec<Peer> = zones
            .iter()
            .enumerate()
            .map(|(at, zone)| Peer {
                address: format!("h{at}:1"),
                zone: Some((*zone).to_owned()),
                rack: None,
            })
            .collect();
        Hosts::new(&all[0], &all).unwrap()
    }

    struct Table(Keeper, Hosts, Digest, Instant);

    impl Table {
        fn new(zones: &[&str]) -> Self {
            Self(
                Keeper::default(),
                hosts(zones),
                Digest::of(b"x"),
                Instant::now(),
            )
        }

        fn claim(&mut self, from: usize, failed: Option<usize>) -> Way {
            self.0.claim(&self.1, &self.2, from, failed, self.3)
        }
    }

    #[test]
    fn the_first_goes_to_the_registry_and_the_others_to_those_before_them() {
        let mut table = Table::new(&["z"; 12]);
        assert_eq!(table.claim(3, None), Way::Yours);
        assert_eq!(
            table.claim(3, None),
            Way::Yours,
            "asked again, the same answer"
        );
        for from in [0, 1] {
            assert_eq!(table.claim(from, None), Way::From(3));
        }
        assert_eq!(table.claim(5, None), Way::From(0), "3 has enough to do");
        assert_eq!(
            table.claim(1, None),
            Way::From(3),
            "asked again, the same answer"
        );
    }

    #[test]
    fn one_host_of_each_zone_crosses_over() {
        let mut table = Table::new(&["a", "a", "b", "b", "b"]);
        assert_eq!(table.claim(0, None), Way::Yours);
        assert_eq!(table.claim(2, None), Way::From(0));
        for (from, to) in [(3, 2), (4, 2), (1, 0)] {
            assert_eq!(table.claim(from, None), Way::From(to));
        }
    }

    #[test]
    fn who_failed_is_forgotten_and_the_next_one_moves_up() {
        let mut table = Table::new(&["z"; 4]);
        for from in 0..4 {
            table.claim(from, None);
        }
        assert_eq!(table.claim(2, Some(0)), Way::From(1));
        assert_eq!(table.claim(1, Some(0)), Way::Yours);
        assert_eq!(table.claim(3, Some(0)), Way::From(1));
        assert_eq!(
            table.claim(0, None),
            Way::From(2),
            "it comes back as the last"
        );
        assert_eq!(table.claim(1, Some(1)), Way::Yours, "nobody reports itself");
    }

    #[test]
    fn memory_is_bounded_and_what_nobody_asks_for_is_forgotten() {
        let mut table = Table::new(&["z"; 2]);
        for blob in 0..MOST_BLOBS as u64 + 10 {
            table.2 = Digest::of(&blob.to_le_bytes());
            table.3 += Duration::from_millis(1);
            table.claim(0, None);
        }
        assert_eq!(table.0.0.len(), MOST_BLOBS);
        assert_eq!(table.claim(1, None), Way::From(0));
        table.3 += REMEMBERED;
        table.2 = Digest::of(b"another");
        assert_eq!(table.claim(1, None), Way::Yours);
        assert_eq!(table.0.0.len(), 1);
    }

    proptest! {
        #[test]
        fn there_is_always_one_first_and_there_are_no_circles(
            claims in proptest::collection::vec((0_usize..8, proptest::option::of(0_usize..8)), 1..60)
        ) {
            let mut table = Table::new(&["a", "a", "a", "b", "b", "c", "c", "c"]);
            for (from, failed) in claims {
                table.claim(from, failed);
                let known = &table.0.0[&table.2];
                let place = |host| known.hosts.iter().position(|asked| asked.host == host);
                let at = place(from).unwrap();
                match known.hosts[at].way {
                    Way::Yours => prop_assert_eq!(at, 0),
                    Way::From(to) => prop_assert!(place(to).unwrap() < at),
                }
            }
        }
    }
}
