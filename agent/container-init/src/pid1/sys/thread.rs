//! The one thread beside PID 1's own.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{Errno, Result, checked};
use crate::pid1::arch;

/// With what stands behind it: whole pages.
const STACK_SIZE: usize = 16 * 1024 - 16;

#[repr(C, align(4096))]
struct Stack {
    room: UnsafeCell<[u8; STACK_SIZE]>,
    /// Here, because no other page is written to by it.
    taken: AtomicBool,
}

// SAFETY: used only by the one thread that `thread` makes.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack {
    room: UnsafeCell::new([0; STACK_SIZE]),
    taken: AtomicBool::new(false),
};

/// What a thread does.
pub trait Work: Send {
    /// For ever.
    fn work(&mut self) -> !;
}

/// Lets `work` run beside us, with our memory, descriptors and blocked signals. It is in our thread
/// group: nobody waits for it, kill(2) does not find it, and it ends with us. There is one at most.
pub fn thread<W: Work>(work: &'static mut W) -> Result<()> {
    unsafe extern "C" fn run<W: Work>(work: *mut c_void) -> ! {
        // SAFETY: `thread` passed a `&'static mut W` that it has given away.
        unsafe { &mut *work.cast::<W>() }.work()
    }
    if STACK.taken.swap(true, Ordering::Relaxed) {
        return Err(Errno::EBUSY);
    }
    let top = STACK.room.get().cast::<u8>().wrapping_add(STACK_SIZE);
    // SAFETY: the stack is aligned and `taken` gives it out once; `run` never returns, and `work` is
    // exclusively its own, for ever.
    checked(unsafe { arch::thread(top, run::<W>, core::ptr::from_mut(work).cast()) }).map(drop)
}
