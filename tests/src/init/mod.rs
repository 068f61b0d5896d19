//! container-init and its peers as the first process of a pid namespace, without a runtime: what
//! the benchmark and the soak of PID 1 stand on.
//!
//! Promises: what runs in a [`Running`] container is gone when that is dropped, because pid 1 of
//! its namespace was killed. Everything unsafe is in `sys`.

pub mod gate;
pub mod peer;
pub mod plan;
pub mod proc;
pub mod running;
mod sys;
pub mod workload;

pub use gate::Gate;
pub use peer::Init;
pub use running::{Place, Running};
pub use workload::Workload;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC: one clock for all processes of the machine.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither is negative (clock_gettime(2)).
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
