//! The controlling terminal: who has it, and how it is handed over.
#![allow(unsafe_code)]

use super::{ForKernel as _, Result, checked, getpid, setsid};
use crate::pid1::arch::{number, syscall};

const TIOCSCTTY: usize = 0x540e;
const TIOCGPGRP: usize = 0x540f;
const TIOCSPGRP: usize = 0x5410;
const TIOCNOTTY: usize = 0x5422;

/// What standard input is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// No terminal of ours.
    None,
    /// Our controlling terminal, and we lead its session: the command can have it as its own.
    Leader,
    /// Our controlling terminal in somebody else's session (a shell's): the command becomes the
    /// foreground.
    Member,
}

fn ioctl(request: usize, argument: usize) -> Result<()> {
    // SAFETY: the requests here take nothing, a number, or a pointer to an int that lives.
    checked(unsafe { syscall(number::IOCTL, [0, request, argument, 0, 0, 0]) }).map(drop)
}

/// Looks at standard input.
pub fn terminal() -> Terminal {
    let mut group = [0i32];
    if ioctl(TIOCGPGRP, group.as_mut_ptr().addr_for_kernel()).is_err() {
        return Terminal::None;
    }
    // SAFETY: no pointer is passed.
    match checked(unsafe { syscall(number::GETSID, [0; 6]) }) {
        Ok(session) if session == getpid() as usize => Terminal::Leader,
        _ => Terminal::Member,
    }
}

/// Before the command is made: a terminal belongs to one session only. The kernel tells us by
/// SIGHUP and SIGCONT, in our own name.
pub fn give_up_terminal(terminal: Terminal) {
    if terminal == Terminal::Leader {
        ioctl(TIOCNOTTY, 0).ok();
    }
}

/// In the command's process, every signal being blocked: a session or group of its own, and the
/// terminal. Without it the command still runs.
pub fn take_terminal(terminal: Terminal) -> Result<()> {
    match terminal {
        Terminal::None => setsid(),
        Terminal::Leader => {
            setsid()?;
            ioctl(TIOCSCTTY, 0).ok();
            Ok(())
        }
        Terminal::Member => {
            // SAFETY: no pointer is passed.
            checked(unsafe { syscall(number::SETPGID, [0; 6]) })?;
            let group = [getpid().cast_signed()];
            ioctl(TIOCSPGRP, group.as_ptr().addr_for_kernel()).ok();
            Ok(())
        }
    }
}
