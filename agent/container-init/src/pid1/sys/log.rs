//! What capturing output needs: pipes, files that are rotated, writing without waiting, time of day.
#![allow(unsafe_code)]

use core::ffi::CStr;

use super::{Errno, Fd, ForKernel as _, Result, checked, has_room, pipe, write_raw};
use crate::pid1::arch::{number, syscall};

const F_GETFL: usize = 3;
const F_SETFL: usize = 4;
const O_NONBLOCK: usize = 0o4_000;

/// A pipe for a process's output. Our end never waits. Everybody may open the other one by name:
/// `/dev/stdout` is it, and the process may be of any user.
pub fn pipe_for_output() -> Result<(Fd, Fd)> {
    let (reading, writing) = pipe()?;
    // SAFETY: no pointer is passed. Only a process that opens by name misses it.
    unsafe { syscall(number::FCHMOD, [writing.argument(), 0o622, 0, 0, 0, 0]) };
    wait_for_writers(&writing);
    Ok((reading, writing))
}

/// Writers of this end wait for room, whatever the one before has set on the end that they share.
pub fn wait_for_writers(writing: &Fd) {
    // SAFETY: no pointer is passed.
    let flags =
        checked(unsafe { syscall(number::FCNTL, [writing.argument(), F_GETFL, 0, 0, 0, 0]) });
    if let Ok(flags) = flags
        && flags & O_NONBLOCK != 0
    {
        let flags = flags & !O_NONBLOCK;
        // SAFETY: no pointer is passed.
        unsafe { syscall(number::FCNTL, [writing.argument(), F_SETFL, flags, 0, 0, 0]) };
    }
}

/// How many bytes are in a pipe (FIONREAD); 0 when it cannot be told.
pub fn unread_bytes(pipe: &Fd) -> usize {
    const FIONREAD: usize = 0x541b;
    let mut count = [0i32];
    let room = count.as_mut_ptr().addr_for_kernel();
    // SAFETY: the kernel writes one int.
    unsafe { syscall(number::IOCTL, [pipe.argument(), FIONREAD, room, 0, 0, 0]) };
    usize::try_from(count[0]).unwrap_or(0)
}

/// A counter that can be waited for (eventfd(2)); reading and adding never wait.
pub fn event() -> Result<Fd> {
    // SAFETY: no pointer is passed. EFD_CLOEXEC | EFD_NONBLOCK
    checked(unsafe { syscall(number::EVENTFD2, [0, 0o2_004_000, 0, 0, 0, 0]) }).map(Fd::new)
}

/// Wakes who waits for it.
pub fn ring(event: &Fd) {
    // A counter that is full wakes as well.
    write_raw(event.raw(), &1u64.to_ne_bytes()).ok();
}

/// Opens a log in a directory to append to it; made when missing. As [`super::open`], nothing is
/// followed and nothing waited for.
pub fn open_for_log(directory: &Fd, name: &CStr) -> Result<Fd> {
    // O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY
    const FLAGS: usize = 0o1 | 0o100 | 0o2_000 | 0o2_404_400;
    let name = name.as_ptr().addr_for_kernel();
    // SAFETY: the name ends in NUL.
    checked(unsafe {
        syscall(
            number::OPENAT,
            [directory.argument(), name, FLAGS, 0o640, 0, 0],
        )
    })
    .map(Fd::new)
}

/// renameat(2) in one directory.
pub fn rename_at(directory: &Fd, from: &CStr, to: &CStr) -> Result<()> {
    let (from, to) = (
        from.as_ptr().addr_for_kernel(),
        to.as_ptr().addr_for_kernel(),
    );
    let directory = directory.argument();
    // SAFETY: both names end in NUL.
    checked(unsafe { syscall(number::RENAMEAT, [directory, from, directory, to, 0, 0]) }).map(drop)
}

/// The most that a pipe with any room takes at once (PIPE_BUF).
const AT_ONCE: usize = 4096;

/// Writes to a standard stream what it takes now, at most [`AT_ONCE`] bytes; `EAGAIN` when it takes
/// nothing.
pub fn offer(stream: i32, bytes: &[u8]) -> Result<usize> {
    const RWF_NOWAIT: usize = 8;
    if !has_room(stream) {
        return Err(Errno::EAGAIN);
    }
    let bytes = bytes.get(..bytes.len().min(AT_ONCE)).unwrap_or_default();
    let part = [bytes.as_ptr().addr_for_kernel(), bytes.len()];
    let parts = part.as_ptr().addr_for_kernel();
    // The offset -1 is the stream's own, in two halves.
    let (low, high) = (usize::MAX, usize::MAX);
    let arguments = [stream as usize, parts, 1, low, high, RWF_NOWAIT];
    // SAFETY: one struct iovec, of bytes that the kernel only reads.
    match checked(unsafe { syscall(number::PWRITEV2, arguments) }) {
        // Not every kind of file and not every kernel can; there was room an instant ago.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ESPIPE) => {
            write_raw(stream, bytes)
        }
        result => result,
    }
}

/// An instant of the time of day.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Since 1970.
    pub seconds: u64,
    /// Below a second.
    pub nanoseconds: u32,
}

/// The time of day.
pub fn wall_clock() -> Moment {
    const CLOCK_REALTIME: usize = 0;
    let mut time = [0i64; 2];
    let room = time.as_mut_ptr().addr_for_kernel();
    // SAFETY: struct timespec is two 64-bit words.
    unsafe { syscall(number::CLOCK_GETTIME, [CLOCK_REALTIME, room, 0, 0, 0, 0]) };
    Moment {
        seconds: u64::try_from(time[0]).unwrap_or(0),
        nanoseconds: u32::try_from(time[1]).unwrap_or(0),
    }
}
