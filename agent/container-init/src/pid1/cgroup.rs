//! What the container's memory cgroup counts, when it can be seen.
//!
//! The counter of kills is opened before anything of the container runs. Without it nothing is
//! claimed.

use container_init::decimal;
use container_init::protocol::Memory;

use super::sys::{self, Fd, Open};
use core::ffi::CStr;

/// cgroup v2, then v1, as a container sees its own group.
const EVENTS: [&CStr; 2] = [
    c"/sys/fs/cgroup/memory.events",
    c"/sys/fs/cgroup/memory/memory.oom_control",
];
const LIMITS: [&CStr; 2] = [
    c"/sys/fs/cgroup/memory.max",
    c"/sys/fs/cgroup/memory/memory.limit_in_bytes",
];
const PEAKS: [&CStr; 2] = [
    c"/sys/fs/cgroup/memory.peak",
    c"/sys/fs/cgroup/memory/memory.max_usage_in_bytes",
];
/// What cgroup v1 says where there is no limit: the largest number of whole pages.
const NO_LIMIT: u64 = i64::MAX as u64 & !4095;

/// The counter `oom_kill` of the container's cgroup.
pub struct OomKills {
    file: Option<Fd>,
    seen: u64,
}

impl OomKills {
    /// Finds the counter.
    pub fn open() -> Self {
        let file = EVENTS
            .iter()
            .find_map(|path| sys::open(path, Open::Read).ok());
        let mut kills = Self { file, seen: 0 };
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
    pub fn memory(&self) -> Memory {
        let limit_bytes = number(&LIMITS).filter(|limit| *limit < NO_LIMIT);
        Memory {
            kills: self.count().unwrap_or(0),
            limit_bytes: limit_bytes.unwrap_or(u64::MAX),
            peak_bytes: number(&PEAKS).unwrap_or(0),
        }
    }

    fn count(&self) -> Option<u64> {
        let mut text = [0; 512];
        let length = sys::pread(self.file.as_ref()?, &mut text, 0).ok()?;
        let mut lines = text.get(..length)?.split(|byte| *byte == b'\n');
        decimal::parse(lines.find_map(|line| line.strip_prefix(b"oom_kill "))?)
    }
}

/// The number in the first of these files that there is.
fn number(paths: &[&CStr]) -> Option<u64> {
    let file = paths
        .iter()
        .find_map(|path| sys::open(path, Open::Read).ok())?;
    let mut text = [0; 32];
    let length = sys::read(&file, &mut text).ok()?;
    decimal::parse(text.get(..length)?.trim_ascii_end())
}
