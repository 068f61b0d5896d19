//! What the workload needs of the kernel that no safe crate gives: handlers and plain clones.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::io::{Error, Result};
use std::sync::atomic::AtomicU64;

use rustix::process::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What [`handle`] installs. It may only make calls that are safe in a handler (signal-safety(7)).
pub type Handler = extern "C" fn(c_int);

/// The next process that this thread makes is pid 1 of a new pid namespace.
pub fn unshare_pid() -> Result<()> {
    // SAFETY: descriptors stay shared; only where children go is changed.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
    Ok(())
}

/// Calls `handler` on a signal.
pub fn handle(signal: c_int, handler: Handler) -> Result<()> {
    // SAFETY: all zero is a sigaction with an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is whole and lives through the call; the handlers of the workload make one
    // write(2), sleep and _exit.
    checked(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    Ok(())
}

/// Ends the process at once; safe in a handler.
pub fn end(code: c_int) -> ! {
    // SAFETY: does not return, so that nothing is left in between.
    unsafe { libc::_exit(code) }
}

/// A counter that is the same in this process and in those it forks.
pub fn shared_counter() -> Result<&'static AtomicU64> {
    // SAFETY: new memory, nowhere in particular.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<AtomicU64>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: a page of zeroes, aligned as pages are, that is never unmapped.
    Ok(unsafe { &*page.cast::<AtomicU64>() })
}

/// Runs `work` in a process that ends when it is done or when this one is gone.
pub fn fork_for_life(work: impl FnOnce()) -> Result<()> {
    // SAFETY: the workload has one thread, so that the copy is whole.
    if checked(unsafe { libc::fork() })? != 0 {
        return Ok(());
    }
    // SAFETY: no pointer is passed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    work();
    end(0)
}

/// Makes so many orphans at once that have ended: children of a process that ends after them and
/// has waited for none. Returns their pids in the order of their birth.
pub fn zombies(count: usize) -> Result<Vec<Pid>> {
    let mut born: Vec<c_int> = vec![0; count];
    // SAFETY: `bear` gets the list that it wants, which lives until its process has ended.
    let parent = unsafe { clone(PARENT.top(), bear, (&raw mut born).cast()) }?;
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    checked(unsafe { libc::waitpid(parent, &raw mut status, libc::__WALL) })?;
    match status {
        0 => Ok(born.into_iter().filter_map(Pid::from_raw).collect()),
        _ => Err(Error::other("a process could not be made")),
    }
}

extern "C" fn bear(born: *mut c_void) -> c_int {
    // SAFETY: `zombies` passed its list, and waits.
    let born = unsafe { &mut *born.cast::<Vec<c_int>>() };
    for pid in born {
        // SAFETY: `end_at_once` looks at nothing.
        match unsafe { clone(CHILD.top(), end_at_once, std::ptr::null_mut()) } {
            Ok(child) => *pid = child,
            Err(_) => return 1,
        }
    }
    0
}

extern "C" fn end_at_once(_: *mut c_void) -> c_int {
    0
}

/// A process in our memory; we are suspended until it ends. Nothing is copied, so that processes
/// come as fast as they can.
///
/// # Safety
/// Nobody else uses the stack that ends at `top`, and `argument` is what `run` wants.
unsafe fn clone(
    top: *mut c_void,
    run: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> Result<c_int> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the caller's promise; `run` makes system calls and touches its stack, its argument
    // and errno, while the one thread that shares them is suspended.
    checked(unsafe { libc::clone(run, top, flags, argument) })
}

fn checked(result: c_int) -> Result<c_int> {
    match result {
        -1 => Err(Error::last_os_error()),
        result => Ok(result),
    }
}

const STACK_SIZE: usize = 64 * 1024;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: used only by a child of `clone`, while its parent, which has one thread, is suspended.
unsafe impl Sync for Stack {}

static PARENT: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));
static CHILD: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));

impl Stack {
    fn top(&self) -> *mut c_void {
        self.0.get().cast::<u8>().wrapping_add(STACK_SIZE).cast()
    }
}
