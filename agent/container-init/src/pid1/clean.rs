//! What a process leaves behind is removed before it is started again: by a process of its own, so
//! that a large tree or a slow disk does not hold PID 1 up.
//!
//! Directories are emptied and stay; what is mounted below them stays as it is; symbolic links are
//! removed, never followed. `/proc/sysvipc` stands for the System V IPC objects of the namespace.
//! Anything else that cannot be removed fails the whole, which says so by its exit code.

use container_init::plan::{Ports, Process, Strings};
use container_init::procfs;
use core::ffi::CStr;

use super::lines;
use super::say::{Number, say};
use super::sys::{self, Entries, Errno, Fd, Forked, Ipc, Remove};

/// Stands for System V IPC objects among the paths.
const IPC: &CStr = c"/proc/sysvipc";
/// The deepest directory that is emptied.
const DEPTH: usize = 48;
/// Between two looks at the listening sockets.
const LOOK_MS: u64 = 1;

/// Begins to clean after a process; returns the pid of what does it and ends with 0 when all is
/// done.
// What cleaning needs is not to be on the stack of the loop, for ever.
#[inline(never)]
pub fn begin(process: &Process<'_>) -> sys::Result<u32> {
    match sys::fork()? {
        Forked::Parent(pid) => Ok(pid),
        Forked::Child => {
            let done = paths(process) && ports(process.ports);
            sys::exit(u8::from(!done))
        }
    }
}

fn paths(process: &Process<'_>) -> bool {
    let paths: Strings<'_> = process.clean;
    paths.iter().fold(true, |done, path| {
        let removed = if path == IPC { ipc() } else { clean(path) };
        if let Err(errno) = removed {
            say(&[
                process.name.as_bytes(),
                b": cannot clean ",
                path.to_bytes(),
                b": errno ",
                Number::new(errno.0).as_bytes(),
            ]);
        }
        done && removed.is_ok()
    })
}

fn clean(path: &CStr) -> sys::Result<()> {
    match sys::open_directory(path) {
        Ok(directory) => empty(&directory, 0),
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => match sys::unlink(path) {
            Err(Errno::ENOENT) => Ok(()),
            result => result,
        },
        Err(errno) => Err(errno),
    }
}

/// Passes over the directory until one removes nothing: names may move while others go.
fn empty(directory: &Fd, depth: usize) -> sys::Result<()> {
    loop {
        let (mut removed, mut failed) = (0, None);
        let mut entries = Entries::new();
        while sys::read_entries(directory, &mut entries, |name| {
            match remove(directory, name, depth) {
                Ok(Gone::Yes) => removed += 1,
                Ok(Gone::Stays) => {}
                Err(errno) => failed = Some(errno),
            }
        })? {}
        match (removed, failed) {
            (0, None) => return Ok(()),
            (0, Some(errno)) => return Err(errno),
            _ => sys::rewind(directory),
        }
    }
}

enum Gone {
    Yes,
    /// Something is mounted there.
    Stays,
}

fn remove(directory: &Fd, name: &CStr, depth: usize) -> sys::Result<Gone> {
    match sys::remove_at(directory, name, Remove::File) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(Gone::Yes),
        Err(Errno::EBUSY) => return Ok(Gone::Stays),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    match sys::remove_at(directory, name, Remove::Directory) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(Gone::Yes),
        Err(Errno::EBUSY) => return Ok(Gone::Stays),
        Err(Errno::ENOTEMPTY) if depth < DEPTH => {}
        Err(errno) => return Err(errno),
    }
    match sys::open_below(directory, name) {
        Ok(below) => empty(&below, depth + 1)?,
        // Another file system.
        Err(Errno::EXDEV) => return Ok(Gone::Stays),
        Err(errno) => return Err(errno),
    }
    match sys::remove_at(directory, name, Remove::Directory) {
        Ok(()) | Err(Errno::ENOENT) => Ok(Gone::Yes),
        // What is mounted below it stays.
        Err(Errno::ENOTEMPTY | Errno::EBUSY) => Ok(Gone::Stays),
        Err(errno) => Err(errno),
    }
}

fn ipc() -> sys::Result<()> {
    // The columns of the owner are those of ipc/{shm,sem,msg}.c.
    for (list, kind, owner) in [
        (c"/proc/sysvipc/shm", Ipc::Memory, 7),
        (c"/proc/sysvipc/sem", Ipc::Semaphores, 4),
        (c"/proc/sysvipc/msg", Ipc::Queue, 7),
    ] {
        let mut result = Ok(());
        let read = lines::each(list, |line| {
            if let Some((id, owner)) = procfs::ipc_object(line, owner) {
                result = result.and(remove_ipc(kind, id, owner));
            }
        });
        match read {
            Ok(()) | Err(Errno::ENOENT) => result?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Only its owner, or who has CAP_SYS_ADMIN, may remove it.
fn remove_ipc(kind: Ipc, id: u32, owner: u32) -> sys::Result<()> {
    let removed = match sys::remove_ipc(kind, id) {
        Err(Errno::EPERM) => {
            sys::act_as(owner)?;
            let removed = sys::remove_ipc(kind, id);
            sys::act_as(0)?;
            removed
        }
        removed => removed,
    };
    match removed {
        // It went with its last user.
        Err(Errno::EINVAL | Errno::EIDRM) => Ok(()),
        removed => removed,
    }
}

/// Waits until nobody listens on them. What waits too long is ended from outside.
fn ports(ports: Ports<'_>) -> bool {
    while listens(ports) {
        sys::wait(&mut [], Some(LOOK_MS));
    }
    true
}

/// A port that can be bound is free. For one that cannot, the list tells whether somebody listens or
/// is only connected from it; to read it costs milliseconds, because the kernel walks the whole host's
/// connections.
fn listens(ports: Ports<'_>) -> bool {
    if ports.iter().all(|port| sys::try_port(port).is_ok()) {
        return false;
    }
    let mut found = false;
    for list in [c"/proc/net/tcp", c"/proc/net/tcp6"] {
        // Without the list there is nothing to see; a start on a taken port tells by itself.
        lines::each(list, |line| {
            let port = procfs::listening_port(line);
            found |= port.is_some_and(|port| ports.iter().any(|ours| ours == port));
        })
        .ok();
    }
    found
}
