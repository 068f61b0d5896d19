//! What goes when room is needed: pure.
//!
//! An image goes only when nobody needs it: never one that is pinned, in use, or stable for an app.
//! Of the others, the one that was not used for longest goes first, and no more go than are needed.
//! Images share layers, so what an image frees is what no image that stays refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Serialize;

use crate::Digest;

/// Why an image stays whatever happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Somebody pinned it.
    Pinned,
    /// A container or an instance was made from it, or an app's current revision names it.
    InUse,
    /// It is the stable image of an app of this host.
    Stable,
}

/// Something that images have on the disk, and may share. An uncompressed layer without one below
/// it has the same digest as what was unpacked from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A layer's blob.
    Blob(Digest),
    /// An unpacked layer, by its chain id.
    Unpacked(Digest),
}

/// An image, as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Full name.
    pub name: String,
    /// Why it has to stay.
    pub kept: Option<Kept>,
    /// When it was last pulled, asked for or started from.
    pub last_used: SystemTime,
    /// What it needs on the disk; others may need the same.
    pub parts: BTreeSet<Part>,
}

/// What a part takes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl Size {
    fn covers(self, need: Self) -> bool {
        self.bytes >= need.bytes && self.inodes >= need.inodes
    }

    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// How much images may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// Bytes that all images may take together; 0 is no limit.
    pub bytes: u64,
    /// Files and directories that all images may have together; 0 is no limit.
    pub inodes: u64,
}

impl Budget {
    /// What `used` exceeds it by.
    pub fn excess(self, used: Size) -> Size {
        let over = |limit: u64, used: u64| match limit {
            0 => 0,
            limit => used.saturating_sub(limit),
        };
        Size {
            bytes: over(self.bytes, used.bytes),
            inodes: over(self.inodes, used.inodes),
        }
    }
}

/// An image that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// Full name.
    pub name: String,
    /// What goes with it, and with nothing before it in the plan.
    pub frees: Size,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Images that go, in order.
    pub evictions: Vec<Eviction>,
    /// What all of them free.
    pub frees: Size,
    /// What is still needed after that: nothing more may go.
    pub short: Size,
    /// Images that have to stay, by name.
    pub kept: BTreeMap<String, Kept>,
}

/// What all images take together: what several need is there once. `sizes` has the size of each
/// part; a part without one is nothing.
pub fn used(images: &[Candidate], sizes: &BTreeMap<Part, Size>) -> Size {
    let parts: BTreeSet<&Part> = images.iter().flat_map(|image| &image.parts).collect();
    let mut used = Size::default();
    for size in parts.into_iter().filter_map(|part| sizes.get(part)) {
        used.add(*size);
    }
    used
}

/// Plans how to free at least `need`. `sizes` has the size of each part; a part without one is
/// nothing.
pub fn plan(images: &[Candidate], sizes: &BTreeMap<Part, Size>, need: Size) -> Plan {
    let mut plan = Plan::default();
    let mut references: BTreeMap<&Part, usize> = BTreeMap::new();
    for part in images.iter().flat_map(|image| &image.parts) {
        *references.entry(part).or_default() += 1;
    }
    let mut free: Vec<&Candidate> = Vec::new();
    for image in images {
        match image.kept {
            Some(kept) => {
                plan.kept.insert(image.name.clone(), kept);
            }
            None => free.push(image),
        }
    }
    // Names decide among equals, so that a dry run says what the real one does.
    free.sort_by(|a, b| (a.last_used, &a.name).cmp(&(b.last_used, &b.name)));
    for image in free {
        if plan.frees.covers(need) {
            break;
        }
        let mut frees = Size::default();
        for part in &image.parts {
            if let Some(left) = references.get_mut(part) {
                *left -= 1;
                if *left == 0 {
                    frees.add(sizes.get(part).copied().unwrap_or_default());
                }
            }
        }
        plan.frees.add(frees);
        plan.evictions.push(Eviction {
            name: image.name.clone(),
            frees,
        });
    }
    plan.short = Size {
        bytes: need.bytes.saturating_sub(plan.frees.bytes),
        inodes: need.inodes.saturating_sub(plan.frees.inodes),
    };
    plan
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn part(name: u8) -> Part {
        Part::Blob(Digest::of(&[name]))
    }

    fn image(name: &str, kept: Option<Kept>, used: u64, parts: &[u8]) -> Candidate {
        Candidate {
            name: name.to_owned(),
            kept,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(used),
            parts: parts.iter().copied().map(part).collect(),
        }
    }

    fn sizes() -> BTreeMap<Part, Size> {
        let size = |name: u8| Size {
            bytes: 10 * u64::from(name),
            inodes: 1,
        };
        (0..16).map(|name| (part(name), size(name))).collect()
    }

    fn bytes(bytes: u64) -> Size {
        Size { bytes, inodes: 0 }
    }

    #[test]
    fn the_one_not_used_for_longest_goes_first_and_no_more_than_needed() {
        let images = [
            image("new", None, 30, &[1, 4]),
            image("old", None, 10, &[1, 2]),
            image("middle", None, 20, &[1, 3]),
        ];
        let plan = plan(&images, &sizes(), bytes(21));
        let names: Vec<&str> = plan.evictions.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["old", "middle"]);
        // The layer that all share stays with the one that stays.
        assert_eq!(
            plan.evictions[0].frees,
            Size {
                bytes: 20,
                inodes: 1
            }
        );
        assert_eq!(
            plan.frees,
            Size {
                bytes: 50,
                inodes: 2
            }
        );
        assert_eq!(plan.short, Size::default());
    }

    #[test]
    fn what_is_needed_stays_and_the_plan_says_what_is_short() {
        let images = [
            image("pinned", Some(Kept::Pinned), 1, &[5]),
            image("used", Some(Kept::InUse), 2, &[6]),
            image("stable", Some(Kept::Stable), 3, &[7]),
            image("free", None, 4, &[1]),
        ];
        let plan = plan(&images, &sizes(), bytes(100));
        assert_eq!(plan.evictions.len(), 1);
        assert_eq!(plan.short, bytes(90));
        assert_eq!(plan.kept["stable"], Kept::Stable);
        assert_eq!(plan.kept.len(), 3);
    }

    #[test]
    fn nothing_goes_when_nothing_is_needed() {
        let images = [image("a", None, 1, &[1])];
        assert_eq!(plan(&images, &sizes(), Size::default()).evictions, []);
        let budget = Budget {
            bytes: 100,
            inodes: 0,
        };
        let used = Size {
            bytes: 130,
            inodes: 1 << 40,
        };
        assert_eq!(budget.excess(used), bytes(30));
    }

    #[test]
    fn what_images_share_is_used_once() {
        let images = [
            image("a", None, 1, &[1, 2]),
            image("b", Some(Kept::InUse), 2, &[2, 3, 200]),
        ];
        assert_eq!(
            used(&images, &sizes()),
            Size {
                bytes: 60,
                inodes: 3
            }
        );
        let all = Size {
            bytes: u64::MAX,
            inodes: u64::MAX,
        };
        let huge = BTreeMap::from([(part(1), all), (part(2), all)]);
        assert_eq!(used(&images, &huge), all);
    }

    proptest! {
        #[test]
        fn nobody_that_is_needed_goes_and_what_is_freed_is_what_nobody_needs(
            images in prop::collection::vec(
                (0_u8..4, 0_u64..5, prop::collection::btree_set(0_u8..16, 0..6)), 0..8),
            need in 0_u64..900,
        ) {
            let kinds = [None, Some(Kept::Pinned), Some(Kept::InUse), Some(Kept::Stable)];
            let images: Vec<Candidate> = images.iter().enumerate().map(|(at, (kind, used, parts))| {
                let parts: Vec<u8> = parts.iter().copied().collect();
                image(&format!("image-{at}"), kinds[usize::from(*kind)], *used, &parts)
            }).collect();
            let sizes = sizes();
            let plan = plan(&images, &sizes, bytes(need));
            let goes: BTreeSet<&str> = plan.evictions.iter().map(|e| e.name.as_str()).collect();
            prop_assert!(images.iter().all(|i| i.kept.is_none() || !goes.contains(i.name.as_str())));
            let stays = |i: &&Candidate| !goes.contains(i.name.as_str());
            let needed: BTreeSet<&Part> = images.iter().filter(stays).flat_map(|i| &i.parts).collect();
            let all: BTreeSet<&Part> = images.iter().flat_map(|i| &i.parts).collect();
            let freed: u64 = all.difference(&needed).map(|part| sizes[*part].bytes).sum();
            prop_assert_eq!(plan.frees.bytes, freed);
            prop_assert_eq!(plan.short.bytes, need.saturating_sub(freed));
            if let Some(last) = plan.evictions.last() {
                // Without the last one it would not have been enough.
                prop_assert!(plan.frees.bytes - last.frees.bytes < need);
            }
            if plan.short.bytes > 0 {
                prop_assert_eq!(plan.evictions.len(), images.iter().filter(|i| i.kept.is_none()).count());
            }
        }
    }
}
