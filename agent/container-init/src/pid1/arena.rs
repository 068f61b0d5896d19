//! The memory of the program, all of it in .bss, and the entry that hands it out once.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ffi::c_char;
use core::mem::MaybeUninit;

use container_init::command_line::Alone;
use container_init::plan::{MAX_PLAN, Process};

use super::disk;
use super::say::say;
use super::sys;
use super::turn::Buffers;

/// Every large buffer. Pages that are never touched cost nothing.
pub struct Arena {
    pub plan: [u8; MAX_PLAN + 1],
    pub turn: Buffers,
    pub log: disk::Buffers,
    pub disk: disk::Shared,
}

/// Places for what lives as long as the program and is written once, where there is any of it.
pub struct Slots {
    pub alone: MaybeUninit<Alone>,
    pub command: MaybeUninit<Process<'static>>,
    pub disk: disk::Slots,
}

struct Once<T>(UnsafeCell<T>);

// SAFETY: taken once, in `entry`, before there is another thread.
unsafe impl<T> Sync for Once<T> {}

static ARENA: Once<Arena> = Once(UnsafeCell::new(Arena {
    plan: [0; MAX_PLAN + 1],
    turn: Buffers::new(),
    log: disk::Buffers::new(),
    disk: disk::Shared::new(),
}));

static SLOTS: Once<Slots> = Once(UnsafeCell::new(Slots {
    alone: MaybeUninit::uninit(),
    command: MaybeUninit::uninit(),
    disk: disk::Slots::new(),
}));

/// Called by `_start` with the kernel's initial stack: argc, then argv, then null.
///
/// # Safety
/// Only for `_start`, once, with the stack pointer that the kernel gave.
pub unsafe extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: argc stands at the stack pointer (System V ABI, x86-64, 3.4.1).
    let count = unsafe { stack.read() };
    let arguments = stack.wrapping_add(1);
    let environment = arguments.wrapping_add(count + 1);
    // SAFETY: argc pointers to strings and a null follow, then the environment's and a null, all of
    // which live as long as the process.
    let (arguments, environment) = unsafe { (list(arguments), list(environment)) };
    // SAFETY: `entry` runs once, so that these are the only references ever made.
    let (arena, slots) = unsafe { (&mut *ARENA.0.get(), &mut *SLOTS.0.get()) };
    super::run(arguments, environment, arena, slots)
}

/// # Safety
/// `first` is the first of pointers to strings that live for ever, the last of which is null.
unsafe fn list(first: *const usize) -> sys::Pointers<'static> {
    let first = first.cast::<*const c_char>();
    let mut length = 1;
    // SAFETY: nothing behind the null is read.
    while unsafe { !first.add(length - 1).read().is_null() } {
        length += 1;
    }
    // SAFETY: all of these were just read; the caller vouched for the rest.
    unsafe { sys::Pointers::from_kernel(core::slice::from_raw_parts(first, length)) }
}

/// A panic would be a fault of ours. The container ends: an init that is not sure of its state
/// must not hold an app.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say(&[b"internal error"]);
    sys::exit(125)
}
