//! The processes of a container, read on the host: what each is, uses, and descends from.
//!
//! [`look`] reads `/proc` for pids that somebody found in the container's cgroup; [`ordered`] puts
//! them into the order of their tree. Promises: the container is not touched and not asked, a
//! process that ends meanwhile is left out, the work is bounded. Deliberately knows no plan and no
//! container-init: who is which process of a plan is joined by who asks both. How lines of `/proc`
//! are read is here for everybody ([`split_stat`], [`nspid`]).

mod procfs;
mod tree;

pub use procfs::{Process, RunState, look, nspid, split_stat};
pub use tree::ordered;
