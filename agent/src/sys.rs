//! The agent crate's only unsafe code.

#![allow(
    unsafe_code,
    reason = "one sys.rs per crate; each block has its SAFETY sentence"
)]

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread, and only it, into a new network namespace (unshare(2)).
///
/// The thread can not be lent to other work afterwards: callers end it.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET changes the network namespace of the calling thread and nothing else: no
    // file descriptor, address space or signal state that safe code could rely on is touched.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}
