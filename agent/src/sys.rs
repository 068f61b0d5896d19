//! The few system calls that no safe crate offers; the only `unsafe` of this crate.
#![allow(
    unsafe_code,
    reason = "one sys.rs per crate; each block has its SAFETY sentence"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `SO_PEERPIDFD` of asm-generic/socket.h, since Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;

/// A pidfd of the process that connected this unix stream socket, close-on-exec (unix(7),
/// `SO_PEERPIDFD`). `ENOPROTOOPT` before Linux 6.5; `EINVAL` or `ESRCH` once the peer was reaped.
pub(crate) fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd: RawFd = -1;
    let mut length = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call; `fd` and `length` outlive it, and `length`
    // states the size of `fd`, so that the kernel writes no further.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `fd` is a descriptor that the kernel installed for us and
    // that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Id of the cgroup (version 2) that the process of a pidfd lives in, without looking at `/proc`
/// (`PIDFD_GET_INFO` of linux/pidfd.h, since Linux 6.13; `ENOTTY` before).
pub(crate) fn cgroup_id(pidfd: &OwnedFd) -> io::Result<u64> {
    /// `struct pidfd_info` as it was in the first version: mask, cgroup id, and ids.
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroup_id: u64,
        ids: [u32; 12],
    }
    const CGROUP_ID: u64 = 1 << 2;
    // _IOWR(0xff, 11, struct pidfd_info): direction, size, type, number (asm-generic/ioctl.h).
    const GET_INFO: u32 = 3 << 30 | (size_of::<PidfdInfo>() as u32) << 16 | 0xff << 8 | 11;
    let mut info = PidfdInfo {
        mask: CGROUP_ID,
        ..PidfdInfo::default()
    };
    // SAFETY: the descriptor is borrowed for the call; `info` outlives it, and the request's number
    // states its size, so that the kernel writes no further.
    let answer = unsafe {
        libc::ioctl(
            pidfd.as_raw_fd(),
            libc::Ioctl::from(GET_INFO),
            &raw mut info,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    match info.mask & CGROUP_ID {
        0 => Err(io::ErrorKind::NotFound.into()),
        _ => Ok(info.cgroup_id),
    }
}

/// The supplementary groups that the process had when it connected this unix stream socket
/// (unix(7), `SO_PEERGROUPS`, since Linux 4.13).
pub(crate) fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let room = groups.len() * size_of::<libc::gid_t>();
        // At most 65536 groups (credentials(7)).
        let mut length = libc::socklen_t::try_from(room).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the descriptor is borrowed for the call; `groups` and `length` outlive it, and
        // `length` states the size of `groups` in bytes, so that the kernel writes no further.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        // The kernel says how much there is, or would have been.
        let count = length as usize / size_of::<libc::gid_t>();
        if answer == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Waits on a descriptor through the runtime, for example until a pidfd's process has ended.
///
/// # Panics
/// Outside of a tokio runtime with I/O.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, and moves into the `AsyncFd`: it is open, always the same,
    // and closed only after the `AsyncFd` has deregistered it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Moves the calling thread, and only it, into a new network namespace (unshare(2)).
///
/// The thread can not be lent to other work afterwards: callers end it.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET changes the network namespace of the calling thread and nothing else: no
    // file descriptor, address space or signal state that safe code could rely on is touched.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Whether the kernel's wall clock is kept right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClockState {
    /// Somebody disciplines it.
    Synchronised {
        /// How far it may be off, in microseconds.
        max_error_us: u32,
    },
    /// Nobody does.
    Unsynchronised,
}

/// Reads the clock's state without changing it (adjtimex(2) with `modes` 0).
pub(crate) fn clock_state() -> io::Result<ClockState> {
    // SAFETY: `timex` is plain integers, for which zero is a value; `modes` 0 asks to change nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` outlives the call and is of the size that the kernel fills.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    if state == libc::TIME_ERROR || timex.status & libc::STA_UNSYNC != 0 {
        return Ok(ClockState::Unsynchronised);
    }
    Ok(ClockState::Synchronised {
        max_error_us: u32::try_from(timex.maxerror).unwrap_or(u32::MAX),
    })
}

/// Gives back what only a start, a pull or an adoption needed for a moment: free memory of the
/// allocator (malloc_trim(3)), and the mapping of the program's code, of which an idle agent uses
/// little. Code stays in the page cache; what is used again is mapped again, 16 pages by one minor
/// fault. Takes a millisecond or so.
#[cfg(target_env = "gnu")]
pub(crate) fn give_memory_back() {
    // SAFETY: no pointer is passed; the allocator locks what it works on.
    unsafe { libc::malloc_trim(0) };
    let (Ok(maps), Ok(program)) = (
        std::fs::read_to_string("/proc/self/maps"),
        std::fs::read_link("/proc/self/exe"),
    ) else {
        return;
    };
    for (start, end) in code(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is a private mapping of a file that is executable and not writable, as
        // the kernel says, so that nothing in it differs from the file: a page that is dropped is
        // read from there again (madvise(2), MADV_DONTNEED). Relocated data is not executable.
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::MADV_DONTNEED,
            )
        };
    }
}

/// The ranges of `maps` (proc_pid_maps(5)) in which code of `program` lies, never written to.
fn code(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let range = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        // Permissions, offset, device, inode, and the name behind as many blanks as there are.
        let mut fields = rest.splitn(5, ' ');
        let permissions = fields.next()?;
        let name = fields.nth(3)?.trim_start();
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        (permissions == "r-xp" && name == program).then_some((address(start)?, address(end)?))
    };
    maps.lines().filter_map(range).collect()
}

/// The kernel's id of this boot. Linux always has it; an empty id is no other boot's.
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_code_of_the_program_itself_is_given_back() {
        let maps = "\
55a000000000-55a0005d0000 r--p 00000000 fe:00 131 /usr/bin/nodeagent
55a0005d0000-55a001400000 r-xp 005d0000 fe:00 131 /usr/bin/nodeagent
55a001400000-55a001490000 r--p 01400000 fe:00 131 /usr/bin/nodeagent
55a001490000-55a001498000 rw-p 01490000 fe:00 131 /usr/bin/nodeagent
55a02b000000-55a02b100000 rw-p 00000000 00:00 0                          [heap]
7f1c00000000-7f1c00150000 r-xp 00026000 fe:00 977                        /usr/lib/libc.so.6
7f1c00200000-7f1c00201000 r-xp 00000000 00:00 0                          [vdso]
7f1c00300000-7f1c00301000 r-xp 00000000 00:00 0
";
        let found = code(maps, "/usr/bin/nodeagent");
        assert_eq!(found, [(0x55a0_005d_0000, 0x55a0_0140_0000)]);
        assert!(code(maps, "/usr/bin/other").is_empty());
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn the_code_that_runs_is_found_and_runs_on_after_it_was_given_back() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let found = code(&maps, &program.to_string_lossy());
        let here = give_memory_back as *const () as usize;
        assert!(
            found
                .iter()
                .any(|(start, end)| (*start..*end).contains(&here)),
            "{here:x} is not in {found:x?}"
        );
        for _ in 0..10 {
            give_memory_back();
        }
        assert_eq!(code(&maps, &program.to_string_lossy()), found);
    }

    #[test]
    fn the_groups_of_the_peer_are_those_of_its_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
        let mut own: Vec<u32> = line
            .unwrap()
            .split_whitespace()
            .map(|gid| gid.parse().unwrap())
            .collect();
        let mut told = peer_groups(&one).unwrap();
        own.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, own);
    }

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        match peer_pidfd(&one) {
            Ok(fd) => {
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
                    .unwrap();
                assert!(
                    info.contains(&format!("Pid:\t{}\n", std::process::id())),
                    "{info}"
                );
            }
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOPROTOOPT), "{e}"),
        }
    }

    #[test]
    fn processes_of_one_cgroup_have_one_cgroup_id() {
        let own = rustix::process::getpid();
        let open = |pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let id = cgroup_id(&open(own).unwrap());
        match &id {
            Ok(id) => assert_ne!(*id, 0),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOTTY), "{e}"),
        }
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        assert_eq!(cgroup_id(&open(pid).unwrap()).ok(), id.ok());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
