//! What the container's memory cgroup counts, when it can be seen.
//!
//! The counter of kills is opened before anything of the container runs. Without it nothing is
//! claimed.

use container_init::decimal;
use container_init::protocol::Memory;

use super::cgroup::PREFIX;
use super::path::Path;
use super::sys::{self, Fd, Open};

/// What there is to read, in cgroup v2 and in v1.
const EVENTS: [&[u8]; 2] = [b"memory.events", b"memory.oom_control"];
const LIMITS: [&[u8]; 2] = [b"memory.max", b"memory.limit_in_bytes"];
const PEAKS: [&[u8]; 2] = [b"memory.peak", b"memory.max_usage_in_bytes"];
/// Where a container sees its own group.
const ROOTS: [&[u8]; 2] = [b"/sys/fs/cgroup/", b"/sys/fs/cgroup/memory/"];
/// What cgroup v1 says where there is no limit: the largest number of whole pages.
const NO_LIMIT: u64 = i64::MAX as u64 & !4095;

/// The counter `oom_kill` of a cgroup.
#[derive(Default)]
pub struct OomKills {
    file: Option<Fd>,
    seen: u64,
}

impl OomKills {
    /// Finds that of a process with a cgroup of its own, or the container's.
    pub fn open(own: Option<&str>) -> Self {
        let mut kills = Self {
            file: open(own, EVENTS),
            seen: 0,
        };
        kills.seen = kills.count().unwrap_or(0);
        kills
    }

    /// The number of the open counter.
    pub fn descriptor(&self) -> Option<u32> {
        self.file.as_ref().map(|file| file.raw().cast_unsigned())
    }

    /// Whether the counter rose since the last time it was asked.
    pub fn rose(&mut self) -> bool {
        let before = self.seen;
        self.seen = self.count().unwrap_or(before);
        self.seen > before
    }

    /// All that the cgroup counts.
    pub fn memory(&self, own: Option<&str>) -> Memory {
        let limit_bytes = number(own, LIMITS).filter(|limit| *limit < NO_LIMIT);
        Memory {
            kills: self.count().unwrap_or(0),
            limit_bytes: limit_bytes.unwrap_or(u64::MAX),
            peak_bytes: number(own, PEAKS).unwrap_or(0),
        }
    }

    fn count(&self) -> Option<u64> {
        let mut text = [0; 512];
        let length = sys::pread(self.file.as_ref()?, &mut text, 0).ok()?;
        let mut lines = text.get(..length)?.split(|byte| *byte == b'\n');
        decimal::parse(lines.find_map(|line| line.strip_prefix(b"oom_kill "))?)
    }
}

/// The file of version 2, or that of version 1.
fn open(own: Option<&str>, files: [&[u8]; 2]) -> Option<Fd> {
    let mut places = ROOTS.iter().zip(files);
    places.find_map(|(root, file)| {
        let path = match own {
            Some(name) => Path::<128>::of(&[root, PREFIX, name.as_bytes(), b"/", file]),
            None => Path::of(&[root, file]),
        }?;
        sys::open(path.text(), Open::Read).ok()
    })
}

fn number(own: Option<&str>, files: [&[u8]; 2]) -> Option<u64> {
    let mut text = [0; 32];
    let length = sys::read(&open(own, files)?, &mut text).ok()?;
    decimal::parse(text.get(..length)?.trim_ascii_end())
}
