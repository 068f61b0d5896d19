//! What a process may use: resource limits of its own, and of a cgroup of its own.

use super::lists::Item;
use crate::wire::{Reader, Writer};

/// A resource limit as setrlimit(2) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_` number, 0..=15.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// Limits of a cgroup of its own, for a process where the container's cgroup is delegated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory; 0 for no limit.
    pub memory_bytes: u64,
    /// Microseconds of cpu in each [`Limits::CPU_PERIOD_US`]; 0 for no limit.
    pub cpu_quota_us: u32,
    /// Tasks (processes and threads); 0 for no limit.
    pub pids: u32,
}

impl Limits {
    /// The period that a cpu quota is for, in microseconds (the kernel's default).
    pub const CPU_PERIOD_US: u32 = 100_000;

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.memory_bytes);
        w.u32(self.cpu_quota_us);
        w.u32(self.pids);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Self {
        let what = "cgroup limits";
        Self {
            memory_bytes: r.u64(what),
            cpu_quota_us: r.u32(what),
            pids: r.u32(what),
        }
    }
}

impl Item<'_> for Rlimit {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u32(self.resource);
        w.u64(self.soft);
        w.u64(self.hard);
    }

    fn decode(r: &mut Reader<'_>, what: &'static str) -> Self {
        Self {
            resource: r.u32(what),
            soft: r.u64(what),
            hard: r.u64(what),
        }
    }
}
