//! All instances of one app on this host, and the target for each warmth.
//!
//! [`machine`] is pure: `step(event, now) -> actions`. `plan` decides what the pool does next (`roll`, while
//! it rolls to a new revision; `restart`, what it restarts in place; `stable`, which revision scale-out uses),
//! `intent` makes it durable and carries it out, `close` says when a task has ended. One driver task per pool owns the machine; it alone changes it.

mod adopt;
mod clock;
mod close;
pub mod driver;
mod effects;
mod intent;
pub mod machine;
mod plan;
mod publish;
mod rest;
mod restart;
mod roll;
mod stable;
#[cfg(test)]
mod tests;
mod trails;

pub use adopt::{Adopted, Listed, Observation};
pub use clock::{Now, begin_steady_time, read_clocks};
pub use driver::{Message, PoolHandle, Shared};
pub use effects::Effects;
pub use machine::{Action, Command, Effect, Event, HOST_PORT_TAKEN, Limits, Pool, Refusal};
pub use publish::{InstanceSnapshot, Snapshot};
pub use restart::{MOST_REUSES, NotRestarted};
pub use stable::{Evidence, Stable};
