//! Typed system calls: the only place, with `arch`, where PID 1 is unsafe.
//!
//! Made directly and not through a crate, because the peer outside our pid namespace is pid 0,
//! which the usual types for `SO_PEERCRED` and `SCM_CREDENTIALS` cannot hold, and because real-time
//! signals, `kill(-1)` and signalfd are needed. Every wrapper is safe to call with any argument.
#![allow(unsafe_code)]

mod credentials;
mod ipc;
mod log;
mod process;
mod signal;
mod socket;
mod terminal;
mod thread;

pub use credentials::{
    act_as, clear_ambient, drop_from_bounding_set, limit_capabilities, set_gid, set_groups, set_uid,
};
pub use ipc::{Ipc, remove_ipc};
pub use log::{
    event, offer, open_for_log, pipe_for_output, rename_at, ring, unread_bytes, wait_for_writers,
    wall_clock,
};
pub use process::{
    Forked, Pointers, Reaped, Vfork, adopt_orphans, execve, exit, fork, getpid, getppid,
    hide_memory, set_limit, set_nice, set_parent_death_signal, setsid, vfork, wait_any,
};
pub use signal::{
    Infos, Inherited, Received, kill, kill_anyone, kill_held, next_signals, pidfd, queue, received,
    signalfd, unblock_all,
};
pub use socket::{
    Sender, connect_loopback, connect_unix, connection_error, notify_socket, pair, peer,
    receive_from, send, try_port, unread,
};
pub use terminal::{Terminal, give_up_terminal, take_terminal, terminal};
pub use thread::{Work, thread};

use core::ffi::CStr;

use super::arch::{number, syscall};

/// Why the kernel said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub const EPERM: Self = Self(1);
    pub const ENOENT: Self = Self(2);
    pub const ESRCH: Self = Self(3);
    pub const EINTR: Self = Self(4);
    pub const EAGAIN: Self = Self(11);
    pub const EACCES: Self = Self(13);
    pub const EBUSY: Self = Self(16);
    pub const EEXIST: Self = Self(17);
    pub const EXDEV: Self = Self(18);
    pub const ENOTDIR: Self = Self(20);
    pub const EISDIR: Self = Self(21);
    pub const EINVAL: Self = Self(22);
    pub const ESPIPE: Self = Self(29);
    pub const EROFS: Self = Self(30);
    pub const EPIPE: Self = Self(32);
    pub const ENAMETOOLONG: Self = Self(36);
    pub const ENOSYS: Self = Self(38);
    pub const ENOTEMPTY: Self = Self(39);
    pub const ELOOP: Self = Self(40);
    pub const EIDRM: Self = Self(43);
    pub const EOPNOTSUPP: Self = Self(95);
    pub const EINPROGRESS: Self = Self(115);
}

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

fn checked(result: isize) -> Result<usize> {
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        // -4095..=-1 fits.
        Err(_) => Err(Errno(-(result as i32))),
    }
}

/// A descriptor that is closed when it goes.
#[derive(Debug)]
pub struct Fd(i32);

impl Fd {
    fn new(raw: usize) -> Self {
        // The kernel's descriptors fit.
        Self(raw as i32)
    }

    /// Its number.
    pub fn raw(&self) -> i32 {
        self.0
    }

    /// Leaves it open for good.
    pub fn leak(self) {
        core::mem::forget(self);
    }

    fn argument(&self) -> usize {
        self.0 as usize
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: no pointer is passed, and the descriptor is ours.
        unsafe { syscall(number::CLOSE, [self.argument(), 0, 0, 0, 0, 0]) };
    }
}

/// Reads once.
pub fn read(fd: &Fd, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes of `buf`.
    checked(unsafe {
        syscall(
            number::READ,
            [
                fd.argument(),
                buf.as_mut_ptr().addr_for_kernel(),
                buf.len(),
                0,
                0,
                0,
            ],
        )
    })
}

/// Writes once to a descriptor by number, for the standard streams.
pub fn write_raw(fd: i32, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most `len` bytes of `bytes`.
    checked(unsafe {
        syscall(
            number::WRITE,
            [
                fd as usize,
                bytes.as_ptr().addr_for_kernel(),
                bytes.len(),
                0,
                0,
                0,
            ],
        )
    })
}

/// pread(2).
pub fn pread(fd: &Fd, buf: &mut [u8], offset: u64) -> Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes of `buf`.
    checked(unsafe {
        syscall(
            number::PREAD64,
            [
                fd.argument(),
                buf.as_mut_ptr().addr_for_kernel(),
                buf.len(),
                offset as usize,
                0,
                0,
            ],
        )
    })
}

/// pwrite(2).
pub fn pwrite(fd: &Fd, bytes: &[u8], offset: u64) -> Result<usize> {
    // SAFETY: the kernel reads at most `len` bytes of `bytes`.
    checked(unsafe {
        syscall(
            number::PWRITE64,
            [
                fd.argument(),
                bytes.as_ptr().addr_for_kernel(),
                bytes.len(),
                offset as usize,
                0,
                0,
            ],
        )
    })
}

/// fallocate(2) from the beginning.
pub fn fallocate(fd: &Fd, length: usize) -> Result<()> {
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::FALLOCATE, [fd.argument(), 0, 0, length, 0, 0]) }).map(drop)
}

/// The working directory, where a descriptor of a directory is wanted (openat(2)).
const AT_FDCWD: usize = -100_isize as usize;

/// What to do with a file that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Read and write it; made when missing.
    ReadWrite,
    /// Append to it; made when missing.
    Append,
    /// Read and write, without making it.
    Device,
}

/// Opens without following a last symbolic link, without waiting for a fifo's other end, and
/// closed on exec.
pub fn open(path: &CStr, how: Open) -> Result<Fd> {
    // O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY
    const ALWAYS: usize = 0o2_000_000 | 0o400_000 | 0o4_000 | 0o400;
    let flags = match how {
        Open::Read => 0,
        Open::Write => 0o1,
        Open::ReadWrite => 0o2 | 0o100,
        Open::Append => 0o1 | 0o100 | 0o2_000,
        Open::Device => 0o2,
    };
    let path = path.as_ptr().addr_for_kernel();
    // SAFETY: the path ends in NUL.
    checked(unsafe {
        syscall(
            number::OPENAT,
            [AT_FDCWD, path, ALWAYS | flags, 0o640, 0, 0],
        )
    })
    .map(Fd::new)
}

/// Opens a directory to read it, no symbolic link on the way.
pub fn open_directory(path: &CStr) -> Result<Fd> {
    // RESOLVE_NO_SYMLINKS
    open2(AT_FDCWD, path, 0x04)
}

/// Opens a directory below another one, on the same file system.
pub fn open_below(directory: &Fd, name: &CStr) -> Result<Fd> {
    // RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
    open2(directory.argument(), name, 0x08 | 0x04 | 0x01)
}

fn open2(directory: usize, path: &CStr, resolve: u64) -> Result<Fd> {
    // struct open_how: flags O_CLOEXEC | O_DIRECTORY | O_NOFOLLOW, mode, resolve.
    let how = [0o2_000_000_u64 | 0o200_000 | 0o400_000, 0, resolve];
    let (path, how) = (
        path.as_ptr().addr_for_kernel(),
        how.as_ptr().addr_for_kernel(),
    );
    // SAFETY: the path ends in NUL, struct open_how has 24 bytes.
    checked(unsafe { syscall(number::OPENAT2, [directory, path, how, 24, 0, 0]) }).map(Fd::new)
}

/// mkdir(2).
pub fn make_directory(path: &CStr) -> Result<()> {
    let path = path.as_ptr().addr_for_kernel();
    // SAFETY: the path ends in NUL.
    checked(unsafe { syscall(number::MKDIRAT, [AT_FDCWD, path, 0o755, 0, 0, 0]) }).map(drop)
}

/// Opens a file to read it, by its path from a directory.
pub fn open_at(directory: &Fd, path: &CStr) -> Result<Fd> {
    let path = path.as_ptr().addr_for_kernel();
    // SAFETY: the path ends in NUL. O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY
    checked(unsafe {
        syscall(
            number::OPENAT,
            [directory.argument(), path, 0o2_404_400, 0, 0, 0],
        )
    })
    .map(Fd::new)
}

/// Room for names of a directory, aligned as the kernel's records are.
#[repr(C, align(8))]
pub struct Entries([u8; 2048]);

impl Entries {
    pub const fn new() -> Self {
        Self([0; 2048])
    }
}

/// Reads on in a directory; hands each name but `.` and `..` to `each`, and returns false at the
/// end.
pub fn read_entries(
    directory: &Fd,
    room: &mut Entries,
    mut each: impl FnMut(&CStr),
) -> Result<bool> {
    let room = &mut room.0;
    // SAFETY: the kernel writes at most `len` bytes of `room`.
    let length = checked(unsafe {
        syscall(
            number::GETDENTS64,
            [
                directory.argument(),
                room.as_mut_ptr().addr_for_kernel(),
                room.len(),
                0,
                0,
                0,
            ],
        )
    })?;
    let mut records = room.get(..length).unwrap_or_default();
    // struct linux_dirent64: the record's length is the u16 at 16, its name begins at 19.
    while let Some(size) = records.get(16..).and_then(|rest| rest.first_chunk()) {
        let size = usize::from(u16::from_ne_bytes(*size));
        let Some((record, rest)) = records.split_at_checked(size) else {
            break;
        };
        records = rest;
        let name = record.get(19..).unwrap_or_default();
        match CStr::from_bytes_until_nul(name) {
            Ok(name) if name != c"." && name != c".." => each(name),
            _ => {}
        }
    }
    Ok(length != 0)
}

/// Begins again at the first entry of a directory.
pub fn rewind(directory: &Fd) {
    // SAFETY: no pointer is passed.
    unsafe { syscall(number::LSEEK, [directory.argument(), 0, 0, 0, 0, 0]) };
}

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remove {
    /// A file, or whatever is no directory.
    File,
    /// An empty directory.
    Directory,
}

/// unlinkat(2) below a directory.
pub fn remove_at(directory: &Fd, name: &CStr, what: Remove) -> Result<()> {
    unlink_from(directory.argument(), name, what)
}

/// unlink(2).
pub fn unlink(path: &CStr) -> Result<()> {
    unlink_from(AT_FDCWD, path, Remove::File)
}

fn unlink_from(directory: usize, name: &CStr, what: Remove) -> Result<()> {
    const AT_REMOVEDIR: usize = 0x200;
    let flags = match what {
        Remove::File => 0,
        Remove::Directory => AT_REMOVEDIR,
    };
    let name = name.as_ptr().addr_for_kernel();
    // SAFETY: the name ends in NUL.
    checked(unsafe { syscall(number::UNLINKAT, [directory, name, flags, 0, 0, 0]) }).map(drop)
}

/// What a descriptor refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFacts {
    /// A regular file with one name: not a fifo, a device or another's file by a hard link.
    pub is_own_regular: bool,
    /// Bytes.
    pub size: u64,
}

/// statx(2) of an open descriptor.
pub fn facts(fd: &Fd) -> Result<FileFacts> {
    const AT_EMPTY_PATH: usize = 0x1000;
    const BASIC: usize = 0x7ff;
    let mut buf = [0u64; 32];
    let (path, room) = (
        c"".as_ptr().addr_for_kernel(),
        buf.as_mut_ptr().addr_for_kernel(),
    );
    // SAFETY: struct statx has 256 bytes, as `buf`; the path is empty and ends in NUL.
    checked(unsafe {
        syscall(
            number::STATX,
            [fd.argument(), path, AT_EMPTY_PATH, BASIC, room, 0],
        )
    })?;
    // stx_nlink is the u32 at 16, stx_mode the u16 at 28, stx_size the u64 at 40 (statx(2)).
    let (links, mode, size) = (buf[2] as u32, (buf[3] >> 32) as u16, buf[5]);
    Ok(FileFacts {
        is_own_regular: mode & 0o170_000 == 0o100_000 && links == 1,
        size,
    })
}

/// umask(2); returns the one before.
pub fn umask(mask: usize) -> usize {
    // SAFETY: no pointer is passed.
    unsafe { syscall(number::UMASK, [mask, 0, 0, 0, 0, 0]) }.cast_unsigned()
}

/// chdir(2).
pub fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: the path ends in NUL.
    checked(unsafe {
        syscall(
            number::CHDIR,
            [path.as_ptr().addr_for_kernel(), 0, 0, 0, 0, 0],
        )
    })
    .map(drop)
}

/// A pipe, reading and writing end, neither waits, both closed on exec.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [0i32; 2];
    // SAFETY: the kernel writes two ints. O_CLOEXEC | O_NONBLOCK.
    checked(unsafe {
        syscall(
            number::PIPE2,
            [ends.as_mut_ptr().addr_for_kernel(), 0o2_004_000, 0, 0, 0, 0],
        )
    })?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

/// Makes `target` the same as `fd`, and keeps it open on exec.
pub fn place(fd: &Fd, target: u32) -> Result<()> {
    const F_SETFD: usize = 2;
    let target = target as usize;
    if fd.argument() == target {
        // SAFETY: no pointer is passed.
        return checked(unsafe { syscall(number::FCNTL, [target, F_SETFD, 0, 0, 0, 0]) }).map(drop);
    }
    // SAFETY: no pointer is passed; only what the caller named is replaced.
    checked(unsafe { syscall(number::DUP3, [fd.argument(), target, 0, 0, 0, 0]) }).map(drop)
}

/// The same open file once more, at the lowest free number from 3 on, closed on exec.
pub fn duplicate(fd: &Fd) -> Result<Fd> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::FCNTL, [fd.argument(), F_DUPFD_CLOEXEC, 3, 0, 0, 0]) })
        .map(Fd::new)
}

/// Closes everything from descriptor 3 on.
pub fn close_inherited() {
    close_range(3, u32::MAX);
}

/// Closes everything from descriptor 3 on but these two. For a process that executes or ends
/// without looking at another descriptor that it had.
pub fn close_others(kept: [u32; 2]) {
    let [a, b] = kept;
    let (low, high) = (a.min(b), a.max(b));
    let ranges = [
        (3, low.saturating_sub(1)),
        (low.saturating_add(1), high.saturating_sub(1)),
        (high.saturating_add(1), u32::MAX),
    ];
    for (first, last) in ranges {
        if first <= last {
            close_range(first, last);
        }
    }
}

fn close_range(first: u32, last: u32) {
    let range = [first as usize, last as usize, 0, 0, 0, 0];
    // SAFETY: no pointer is passed; the callers own what they close.
    let result = unsafe { syscall(number::CLOSE_RANGE, range) };
    if result < 0 {
        // Before Linux 5.9. What a runtime leaks, and what we open, has low numbers.
        for raw in first..=last.min(1023) {
            drop(Fd(raw as i32));
        }
    }
}

/// Makes sure that 0, 1 and 2 are open, so that nothing we open becomes somebody's output.
pub fn occupy_standard_streams() {
    // The root directory is there even when /dev is not; writing to it fails harmlessly.
    while let Ok(fd) = open(c"/", Open::Read) {
        let Ok(number @ 0..=2) = u32::try_from(fd.raw()) else {
            return;
        };
        // Kept open on exec, so that it is occupied for the processes too.
        place(&fd, number).ok();
        fd.leak();
    }
}

/// Milliseconds of the monotonic clock.
pub fn now() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    let mut time = [0u64; 2];
    // SAFETY: struct timespec is two 64-bit words.
    unsafe {
        syscall(
            number::CLOCK_GETTIME,
            [
                CLOCK_MONOTONIC,
                time.as_mut_ptr().addr_for_kernel(),
                0,
                0,
                0,
                0,
            ],
        )
    };
    time[0].wrapping_mul(1000).wrapping_add(time[1] / 1_000_000)
}

/// struct pollfd.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Poll {
    fd: i32,
    events: i16,
    revents: i16,
}

impl Default for Poll {
    /// Of nothing: ppoll(2) passes it over.
    fn default() -> Self {
        Self {
            fd: -1,
            events: 0,
            revents: 0,
        }
    }
}

impl Poll {
    const IN: i16 = 1;
    const OUT: i16 = 4;

    /// Waits for bytes to read.
    pub fn readable(fd: &Fd) -> Self {
        Self {
            fd: fd.0,
            events: Self::IN,
            revents: 0,
        }
    }

    /// Waits for room to write.
    pub fn writable(fd: &Fd) -> Self {
        Self {
            fd: fd.0,
            events: Self::OUT,
            revents: 0,
        }
    }

    /// Waits for either.
    pub fn both(fd: &Fd) -> Self {
        Self {
            fd: fd.0,
            events: Self::IN | Self::OUT,
            revents: 0,
        }
    }

    /// Whether anything happened, an error or a hang-up included.
    pub fn happened(&self) -> bool {
        self.revents != 0
    }
}

/// Whether a write to this descriptor would not wait, a broken one included.
fn has_room(fd: i32) -> bool {
    let mut poll = [Poll {
        fd,
        events: Poll::OUT,
        revents: 0,
    }];
    wait(&mut poll, Some(0));
    poll.iter().any(Poll::happened)
}

/// Waits until one of `polls` happens or `timeout_ms` passed; `None` waits for ever.
pub fn wait(polls: &mut [Poll], timeout_ms: Option<u64>) {
    let time = timeout_ms.map(|ms| [ms / 1000, (ms % 1000) * 1_000_000]);
    let time = time
        .as_ref()
        .map_or(0, |time| time.as_ptr().addr_for_kernel());
    // SAFETY: `polls` is an array of struct pollfd of that length, the time a struct timespec or
    // null; no signal mask is passed.
    unsafe {
        syscall(
            number::PPOLL,
            [
                polls.as_mut_ptr().addr_for_kernel(),
                polls.len(),
                time,
                0,
                8,
                0,
            ],
        )
    };
}

/// A pointer as the kernel takes it. Exposed: the kernel writes through what it is given.
trait ForKernel {
    fn addr_for_kernel(self) -> usize;
}

impl<T> ForKernel for *const T {
    fn addr_for_kernel(self) -> usize {
        self.expose_provenance()
    }
}

impl<T> ForKernel for *mut T {
    fn addr_for_kernel(self) -> usize {
        self.expose_provenance()
    }
}
