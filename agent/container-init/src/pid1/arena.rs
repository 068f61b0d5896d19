//! The memory of the program, all of it in .bss, and the entry that hands it out once.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};

use container_init::plan::MAX_PLAN;

use super::say::say;
use super::sys;
use super::turn::Buffers;

/// Every large buffer. Pages that are never touched cost nothing.
pub struct Arena {
    pub plan: [u8; MAX_PLAN + 1],
    pub turn: Buffers,
}

struct Once(UnsafeCell<Arena>);

// SAFETY: taken once, by the only thread, in `entry`.
unsafe impl Sync for Once {}

static ARENA: Once = Once(UnsafeCell::new(Arena {
    plan: [0; MAX_PLAN + 1],
    turn: Buffers::new(),
}));

/// Called by `_start` with the kernel's initial stack: argc, then argv, then null.
///
/// # Safety
/// Only for `_start`, once, with the stack pointer that the kernel gave.
pub unsafe extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: argc stands at the stack pointer (System V ABI, x86-64, 3.4.1).
    let count = unsafe { stack.read() };
    let arguments = (1..=count).map(move |at| {
        // SAFETY: argc pointers to strings follow, which live as long as the process.
        unsafe { CStr::from_ptr(stack.add(at).cast::<*const c_char>().read()) }
    });
    // SAFETY: `entry` runs once, so that this is the only reference ever made.
    let arena = unsafe { &mut *ARENA.0.get() };
    super::run(arguments, arena)
}

/// A panic would be a fault of ours. The container ends: an init that is not sure of its state
/// must not hold an app.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say(&[b"internal error"]);
    sys::exit(125)
}
