//! What must survive: targets, instances, tasks and their outcomes, in one SQLite file.
//!
//! The law: an INTENT is durable before its first effect, an OUTCOME before the answer. Commits
//! of all pools go through one writer thread and share their fsync (group commit); reads have a
//! connection of their own. WAL with `synchronous=FULL`: a commit that was acknowledged survives
//! a power cut (<https://www.sqlite.org/pragma.html#pragma_synchronous>).
//!
//! A journal that is missing or damaged is set aside and a new epoch begins: what can be observed on
//! the host is rebuilt by `host`, the manifests come from their copies beside the file.
//!
//! It does not decide anything: rows are data, the machines know what they mean.

mod copies;
mod log;
mod loss;
mod read;
mod rows;
mod schema;
mod store;
mod write;

pub use loss::Loss;
pub use read::{PoolRow, Recovered, RevisionRow};
pub use rows::{InstanceRow, StableRow, StoredTask, TaskQuery, TaskRow, Write};
pub use store::{Journal, JournalError};

#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod tests;
