//! Signals: blocked once, read from a descriptor, sent by number so that real-time ones pass.
#![allow(unsafe_code)]

use super::{Errno, Fd, ForKernel as _, Result, checked, getpid, read};
use crate::pid1::arch::{number, syscall};

const SIG_SETMASK: usize = 2;
/// Size of the kernel's signal set in bytes.
const SET_SIZE: usize = 8;

/// What a processor fault raises in ourselves; blocked, it would loop: ILL, TRAP, BUS, FPE, SEGV.
const FAULTS: u64 = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10;

fn set_mask(set: u64) {
    let set = [set];
    // SAFETY: the kernel reads eight bytes; the old mask is not wanted.
    unsafe {
        syscall(
            number::RT_SIGPROCMASK,
            [
                SIG_SETMASK,
                set.as_ptr().addr_for_kernel(),
                0,
                SET_SIZE,
                0,
                0,
            ],
        )
    };
}

/// Blocks everything but processor faults.
pub fn block_all() {
    set_mask(!FAULTS);
}

/// Blocks nothing: what a new program expects.
pub fn unblock_all() {
    set_mask(0);
}

/// Gives every signal its default action, for us and for all that we execute. A runtime may have
/// left some ignored; an ignored SIGCHLD would even make exit codes vanish.
pub fn default_dispositions() {
    // struct sigaction of the kernel: handler, flags, restorer, mask; all zero is SIG_DFL.
    let action = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads 32 bytes. KILL and STOP are refused, which changes nothing.
        unsafe {
            syscall(
                number::RT_SIGACTION,
                [signal, action.as_ptr().addr_for_kernel(), 0, SET_SIZE, 0, 0],
            )
        };
    }
}

/// A descriptor that every blocked signal can be read from.
pub fn signalfd() -> Result<Fd> {
    const NEW: usize = -1_isize as usize;
    let set = [!FAULTS];
    // SAFETY: the kernel reads eight bytes. SFD_CLOEXEC | SFD_NONBLOCK.
    checked(unsafe {
        syscall(
            number::SIGNALFD4,
            [
                NEW,
                set.as_ptr().addr_for_kernel(),
                SET_SIZE,
                0o2_004_000,
                0,
                0,
            ],
        )
    })
    .map(Fd::new)
}

/// The next pending signal that somebody else sent or raised. Writing to a closed pipe raises
/// SIGPIPE in our own name; it is not meant for the app.
pub fn next_signal(fd: &Fd) -> Option<u8> {
    // struct signalfd_siginfo has 128 bytes: the number is the u32 at 0, the sender that at 12.
    let mut info = [0u8; 128];
    loop {
        match read(fd, &mut info) {
            Ok(128) => {}
            _ => return None,
        }
        let sender = info.get(12..16).unwrap_or_default();
        if sender != getpid().to_ne_bytes() {
            return info.first().copied();
        }
    }
}

/// kill(2) with its meaning of negative numbers; a process that is gone is no fault.
pub fn kill(pid: i32, signal: u8) -> Result<()> {
    const ESRCH: Errno = Errno(3);
    // SAFETY: no pointer is passed.
    match checked(unsafe {
        syscall(
            number::KILL,
            [pid as usize, usize::from(signal), 0, 0, 0, 0],
        )
    }) {
        Ok(_) | Err(ESRCH) => Ok(()),
        Err(errno) => Err(errno),
    }
}
