//! Whether the kernel killed for memory: the container's own counter, when it can be seen.
//!
//! Opened before anything of the container runs. Without it nothing is claimed.

use super::sys::{self, Fd, Open};

/// cgroup v2, then v1, as a container sees its own group.
const FILES: [&core::ffi::CStr; 2] = [
    c"/sys/fs/cgroup/memory.events",
    c"/sys/fs/cgroup/memory/memory.oom_control",
];

/// The counter `oom_kill` of the container's cgroup.
pub struct OomKills {
    file: Option<Fd>,
    seen: u64,
}

impl OomKills {
    /// Finds the counter.
    pub fn open() -> Self {
        let file = FILES
            .iter()
            .find_map(|path| sys::open(path, Open::Read).ok());
        let mut kills = Self { file, seen: 0 };
        kills.seen = kills.count().unwrap_or(0);
        kills
    }

    /// Whether the counter rose since the last time it was asked.
    pub fn rose(&mut self) -> bool {
        let before = self.seen;
        self.seen = self.count().unwrap_or(before);
        self.seen > before
    }

    fn count(&self) -> Option<u64> {
        let mut text = [0; 512];
        let length = sys::pread(self.file.as_ref()?, &mut text, 0).ok()?;
        let mut lines = text.get(..length)?.split(|byte| *byte == b'\n');
        let digits = lines.find_map(|line| line.strip_prefix(b"oom_kill "))?;
        digits.iter().try_fold(0u64, |count, digit| {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
            count.checked_mul(10)?.checked_add(u64::from(digit))
        })
    }
}
