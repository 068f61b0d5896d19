//! The clocks: one that only runs, one that people read, and one that survives a restart of the agent.
//!
//! What is written down and measured later (quarantines, the age of a task) may not follow a wall
//! clock that somebody sets, and the monotonic clock of one process means nothing to the next. The
//! kernel's boot time runs as long as the boot: with an offset that is the same for the whole boot
//! it counts like Unix time. The journal keeps the offset beside the boot id.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// All clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic: deadlines and back-off.
    pub at: Instant,
    /// Unix milliseconds: what people are told.
    pub wall_ms: u64,
    /// Milliseconds that no step of the wall clock moves, the same for every process of a boot;
    /// Unix milliseconds unless the wall clock was set: what is compared later.
    pub steady_ms: u64,
}

/// Steady time less boot time, in milliseconds.
static OFFSET: OnceLock<i64> = OnceLock::new();

/// All clocks at this moment.
pub fn read_clocks() -> Now {
    let wall_ms = wall_ms();
    Now {
        at: Instant::now(),
        wall_ms,
        steady_ms: boot_ms().saturating_add_signed(*OFFSET.get_or_init(fresh_offset)),
    }
}

/// Goes on with the offset that an earlier agent of this boot wrote down, or begins with one that
/// makes steady time wall time now; returns it. Only the first call of a process has an effect.
pub fn begin_steady_time(kept: Option<i64>) -> i64 {
    let offset = *OFFSET.get_or_init(|| kept.unwrap_or_else(fresh_offset));
    debug_assert!(
        kept.is_none_or(|kept| kept == offset),
        "somebody has looked at the clock before"
    );
    offset
}

fn fresh_offset() -> i64 {
    i64::try_from(wall_ms())
        .unwrap_or(i64::MAX)
        .saturating_sub_unsigned(boot_ms())
}

fn wall_ms() -> u64 {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the kernel began, sleep included (`CLOCK_BOOTTIME`, clock_gettime(2)).
fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1000 + nanoseconds / 1_000_000
}
