//! What needs `unsafe`: descriptors by number, and variables of the process.
#![allow(
    unsafe_code,
    reason = "one sys.rs per crate; each block has its SAFETY sentence"
)]

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes the descriptors `numbers`, close-on-exec from now on. `EBADF` for one that is not open;
/// then none is taken.
///
/// The caller has from the process's environment that they were passed to it, and asks once.
pub(crate) fn take(numbers: std::ops::Range<RawFd>) -> io::Result<Vec<OwnedFd>> {
    for number in numbers.clone() {
        // SAFETY: no memory is involved; a number that is not open is answered by EBADF.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: each is open (the call above), was passed for this process to own (sd_listen_fds(3)),
    // and is owned by nobody else: the variables that name them are read once and then removed.
    Ok(numbers
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect())
}

/// Removes the variables from the environment, unless other threads could be reading it.
pub(crate) fn forget(variables: &[&str]) -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has other threads already"));
    }
    for variable in variables {
        // SAFETY: this is the only thread of the process, so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(variable) };
    }
    Ok(())
}
