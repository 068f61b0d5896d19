//! Signals: blocked once, read from a descriptor, sent by number so that real-time ones pass.
#![allow(unsafe_code)]

use super::{Errno, Fd, ForKernel as _, Result, checked, getpid, read};
use crate::pid1::arch::{number, syscall};

const SIG_SETMASK: usize = 2;
/// Size of the kernel's signal set in bytes.
const SET_SIZE: usize = 8;

const SIGCHLD: usize = 17;
const SIG_IGN: u64 = 1;

/// What we were executed with, and what all that we execute gets back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inherited {
    mask: u64,
    /// Ignored dispositions survive an execution by themselves (execve(2)). This one we cannot keep:
    /// exit codes would vanish.
    ignores_children: bool,
}

impl Inherited {
    /// Blocks every signal, so that each is read from [`signalfd`]. A fault of our own still ends
    /// us: the kernel does not queue what it forces.
    pub fn take() -> Self {
        let mut action = [0u64; 4];
        act(SIGCHLD, None, Some(&mut action));
        let ignores_children = action[0] == SIG_IGN;
        if ignores_children {
            act(SIGCHLD, Some(&[0; 4]), None);
        }
        Self {
            mask: set_mask(u64::MAX),
            ignores_children,
        }
    }

    /// For a child, before it executes.
    pub fn restore(self) {
        if self.ignores_children {
            act(SIGCHLD, Some(&[SIG_IGN, 0, 0, 0]), None);
        }
        set_mask(self.mask);
    }
}

/// rt_sigaction(2): struct sigaction of the kernel is handler, flags, restorer, mask.
fn act(signal: usize, new: Option<&[u64; 4]>, old: Option<&mut [u64; 4]>) {
    let new = new.map_or(0, |new| new.as_ptr().addr_for_kernel());
    let old = old.map_or(0, |old| old.as_mut_ptr().addr_for_kernel());
    // SAFETY: the kernel reads and writes 32 bytes each, or nothing.
    unsafe { syscall(number::RT_SIGACTION, [signal, new, old, SET_SIZE, 0, 0]) };
}

/// Returns the mask before.
fn set_mask(set: u64) -> u64 {
    let (set, mut old) = ([set], [0]);
    // SAFETY: the kernel reads and writes eight bytes.
    unsafe {
        syscall(
            number::RT_SIGPROCMASK,
            [
                SIG_SETMASK,
                set.as_ptr().addr_for_kernel(),
                old.as_mut_ptr().addr_for_kernel(),
                SET_SIZE,
                0,
                0,
            ],
        )
    };
    old[0]
}

/// Blocks nothing, for a process that only waits to be ended.
pub fn unblock_all() {
    set_mask(0);
}

/// A descriptor that every blocked signal can be read from.
pub fn signalfd() -> Result<Fd> {
    const NEW: usize = -1_isize as usize;
    let set = [u64::MAX];
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

/// A signal that was sent to us.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Which.
    pub signal: u8,
    /// Somebody sent it; otherwise the kernel raised it.
    pub sent: bool,
    /// What came with it (sigqueue(3)).
    pub value: Option<u64>,
}

/// struct signalfd_siginfo has 128 bytes; as many as are read at once.
const INFO_SIZE: usize = 128;
/// Room for signals that are read at once.
pub type Infos = [u8; 32 * INFO_SIZE];

/// The pending signals, as far as there is room: [`received`] tells each. One read for many keeps a
/// storm of them cheap.
pub fn next_signals<'i>(fd: &Fd, room: &'i mut Infos) -> &'i [u8] {
    let length = read(fd, room).unwrap_or(0);
    room.get(..length).unwrap_or_default()
}

/// The signals in what [`next_signals`] read. Writing to a closed pipe raises SIGPIPE in our own
/// name, and giving up the terminal SIGHUP and SIGCONT; these are not meant for the app.
pub fn received(infos: &[u8]) -> impl Iterator<Item = Received> + '_ {
    const SI_QUEUE: i32 = -1;
    let own = getpid();
    let (infos, _) = infos.as_chunks::<INFO_SIZE>();
    infos.iter().filter_map(move |info| {
        // The number is the u32 at 0, the code the i32 at 8, the sender the u32 at 12, the value the
        // u64 at 48 (signalfd(2)).
        let word = |at: usize| {
            let bytes = info.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let value = info.get(48..).and_then(|rest| rest.first_chunk());
        let code = word(8).cast_signed();
        let value = value.filter(|_| code == SI_QUEUE);
        (word(12) != own).then_some(Received {
            signal: word(0) as u8,
            sent: code <= 0,
            value: value.map(|bytes| u64::from_ne_bytes(*bytes)),
        })
    })
}

/// sigqueue(3): a signal with a value; a process that is gone is no fault.
pub fn queue(pid: i32, signal: u8, value: u64) -> Result<()> {
    // siginfo_t: signo, errno and code are ints at 0, 4, 8; pid and uid at 16 and 20; value at 24.
    let mut info = [0u64; 16];
    info[0] = u64::from(signal);
    info[1] = u64::from((-1_i32).cast_unsigned());
    info[2] = u64::from(getpid());
    info[3] = value;
    let info = info.as_ptr().addr_for_kernel();
    // SAFETY: siginfo_t has 128 bytes.
    gone_is_fine(checked(unsafe {
        syscall(
            number::RT_SIGQUEUEINFO,
            [pid as usize, usize::from(signal), info, 0, 0, 0],
        )
    }))
}

fn gone_is_fine(result: Result<usize>) -> Result<()> {
    match result {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// kill(2) with its meaning of negative numbers; a process that is gone is no fault.
pub fn kill(pid: i32, signal: u8) -> Result<()> {
    gone_is_fine(kill_anyone(pid, signal).map(|()| 0))
}

/// The same, telling when there is nobody (`ESRCH`).
pub fn kill_anyone(pid: i32, signal: u8) -> Result<()> {
    // SAFETY: no pointer is passed.
    checked(unsafe {
        syscall(
            number::KILL,
            [pid as usize, usize::from(signal), 0, 0, 0, 0],
        )
    })
    .map(drop)
}

/// A process that cannot be mistaken for a later one of the same pid.
pub fn pidfd(pid: u32) -> Result<Fd> {
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::PIDFD_OPEN, [pid as usize, 0, 0, 0, 0, 0]) }).map(Fd::new)
}

/// kill(2) of a [`pidfd`]; a process that is gone is no fault.
pub fn kill_held(process: &Fd, signal: u8) -> Result<()> {
    let arguments = [process.argument(), usize::from(signal), 0, 0, 0, 0];
    // SAFETY: the siginfo pointer is null.
    gone_is_fine(checked(unsafe {
        syscall(number::PIDFD_SEND_SIGNAL, arguments)
    }))
}
