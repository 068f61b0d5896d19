//! Processes: clone, execute, wait, end.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_void};
use core::marker::PhantomData;

use super::{ForKernel as _, Result, checked};
use crate::pid1::arch::{self, number, syscall};
use container_init::plan::Rlimit;
use container_init::protocol::ExitStatus;

/// A list of strings as execve(2) wants it: pointers, the last one null.
#[derive(Clone, Copy)]
pub struct Pointers<'a> {
    list: &'a [*const c_char],
    strings: PhantomData<&'a CStr>,
}

impl<'a> Pointers<'a> {
    /// A list as the kernel made it on the initial stack.
    ///
    /// # Safety
    /// Every pointer but the last is a string that lives for `'a`; the last is null.
    pub unsafe fn from_kernel(list: &'a [*const c_char]) -> Self {
        Self {
            list,
            strings: PhantomData,
        }
    }

    /// The strings in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        let strings = self.list.iter().take_while(|pointer| !pointer.is_null());
        // SAFETY: what made the list vouched for strings that live for `'a`.
        strings.map(|pointer| unsafe { CStr::from_ptr(*pointer) })
    }

    /// Without the first `count`.
    pub fn skip(self, count: usize) -> Self {
        let last = self.list.len().saturating_sub(1);
        Self {
            list: self.list.get(count.min(last)..).unwrap_or_default(),
            ..self
        }
    }
    /// Puts the strings into `room`, which needs one place more than there are; `None` when it is
    /// too small.
    pub fn collect(
        room: &'a mut [*const c_char],
        strings: impl Iterator<Item = &'a CStr>,
    ) -> Option<Self> {
        let mut length = 0;
        for string in strings {
            *room.get_mut(length)? = string.as_ptr();
            length += 1;
        }
        *room.get_mut(length)? = core::ptr::null();
        Some(Self {
            list: room,
            strings: PhantomData,
        })
    }
}

/// Replaces the program; comes back only to say why not.
pub fn execve(path: &CStr, argv: Pointers<'_>, env: Pointers<'_>) -> super::Errno {
    let (path, argv, env) = (
        path.as_ptr().addr_for_kernel(),
        argv.list.as_ptr().addr_for_kernel(),
        env.list.as_ptr().addr_for_kernel(),
    );
    // SAFETY: `Pointers` are strings that live, and end in null.
    match checked(unsafe { syscall(number::EXECVE, [path, argv, env, 0, 0, 0]) }) {
        Err(errno) => errno,
        Ok(_) => super::Errno::EINVAL,
    }
}

/// Ends the process.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: no pointer is passed.
        unsafe { syscall(number::EXIT_GROUP, [usize::from(code), 0, 0, 0, 0, 0]) };
    }
}

/// Our pid in our namespace.
pub fn getpid() -> u32 {
    // SAFETY: no pointer is passed.
    unsafe { syscall(number::GETPID, [0; 6]) as u32 }
}

/// Pid of our parent in our namespace; 0 for one outside of it.
pub fn getppid() -> u32 {
    // SAFETY: no pointer is passed.
    unsafe { syscall(number::GETPPID, [0; 6]) as u32 }
}

/// Makes us the parent of orphans below us (`PR_SET_CHILD_SUBREAPER`).
pub fn adopt_orphans() -> Result<()> {
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::PRCTL, [36, 1, 0, 0, 0, 0]) }).map(drop)
}

/// Nobody in the container may trace us or read our memory (`PR_SET_DUMPABLE` 0). Also covers a
/// child that already gave up privileges and still shares our memory. One with a copy says it again
/// after it did: a change of ids falls back to `fs.suid_dumpable` (prctl(2)).
pub fn hide_memory() -> Result<()> {
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::PRCTL, [4, 0, 0, 0, 0, 0]) }).map(drop)
}

/// A session and process group of its own.
pub fn setsid() -> Result<()> {
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::SETSID, [0; 6]) }).map(drop)
}

/// prlimit64(2) of ourselves.
pub fn set_limit(limit: Rlimit) -> Result<()> {
    let value = [limit.soft, limit.hard];
    // SAFETY: struct rlimit64 is two 64-bit words; the old limit is not wanted.
    checked(unsafe {
        syscall(
            number::PRLIMIT64,
            [
                0,
                limit.resource as usize,
                value.as_ptr().addr_for_kernel(),
                0,
                0,
                0,
            ],
        )
    })
    .map(drop)
}

/// setpriority(2) of ourselves.
pub fn set_nice(nice: i8) -> Result<()> {
    let nice = isize::from(nice).cast_unsigned();
    // SAFETY: no pointer is passed. PRIO_PROCESS, ourselves.
    checked(unsafe { syscall(number::SETPRIORITY, [0, 0, nice, 0, 0, 0]) }).map(drop)
}

/// The signal that we get when our parent ends (`PR_SET_PDEATHSIG`).
pub fn set_parent_death_signal(signal: u8) -> Result<()> {
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::PRCTL, [1, usize::from(signal), 0, 0, 0, 0]) }).map(drop)
}

/// What [`wait_any`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// A child ended and is gone now.
    Child(u32, ExitStatus),
    /// There are children, and all of them live.
    NoneEnded,
    /// There is no child.
    Childless,
}

/// Reaps one child that ended, whoever made it.
pub fn wait_any() -> Reaped {
    const ANY: usize = -1_isize as usize;
    // WNOHANG | __WALL
    const FLAGS: usize = 0x4000_0001;
    let mut status = [0u32];
    // SAFETY: the kernel writes one int; usage is not wanted.
    match checked(unsafe {
        syscall(
            number::WAIT4,
            [ANY, status.as_mut_ptr().addr_for_kernel(), FLAGS, 0, 0, 0],
        )
    }) {
        Ok(0) => Reaped::NoneEnded,
        Ok(pid) => {
            let [_, _, code, signal] = status[0].to_be_bytes();
            let status = match signal & 0x7f {
                0 => ExitStatus::Code(code),
                signal => ExitStatus::Signal(signal),
            };
            Reaped::Child(pid as u32, status)
        }
        Err(_) => Reaped::Childless,
    }
}

/// Which of the two returns from [`fork`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The child, with a copy of our memory of its own.
    Child,
    /// We, with the child's pid.
    Parent(u32),
}

/// fork(2).
pub fn fork() -> Result<Forked> {
    // SAFETY: no pointer is passed. Neither side sees what the other writes. The writer's thread
    // is not copied: only it uses its memory, and it holds nothing that the child could wait for.
    Ok(match checked(unsafe { syscall(number::FORK, [0; 6]) })? {
        0 => Forked::Child,
        pid => Forked::Parent(pid as u32),
    })
}

const STACK_SIZE: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: used only by the child in `vfork`, while its only parent thread is suspended.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));

/// What a child does: prepares and executes. Runs in our memory while we are suspended.
pub trait Vfork {
    /// Comes back only when the program could not be executed; `self` carries the reason.
    fn run(&mut self);
}

/// Runs `child` in a new process until it executes or gives up; returns its pid. The child shares
/// our memory but nothing else: descriptors, credentials and directory are its own.
pub fn vfork<C: Vfork>(child: &mut C) -> Result<u32> {
    unsafe extern "C" fn run<C: Vfork>(child: *mut c_void) -> ! {
        // SAFETY: `vfork` passed a `&mut C` that lives until we executed or ended.
        let child = unsafe { &mut *child.cast::<C>() };
        child.run();
        exit(127)
    }
    let top = STACK.0.get().cast::<u8>().wrapping_add(STACK_SIZE);
    // SAFETY: the stack is 16-byte aligned and free, because only PID 1's own thread gets here, and
    // is suspended while a child uses it; `run` never returns, and `child` outlives the suspension.
    let pid = checked(unsafe { arch::vfork(top, run::<C>, core::ptr::from_mut(child).cast()) })?;
    Ok(pid as u32)
}
