//! Sockets: the agent's stream, notify datagrams with the sender's credentials, loopback probes.
#![allow(unsafe_code)]

use core::ffi::CStr;

use super::{Errno, Fd, ForKernel as _, Result, checked, umask, unlink};
use crate::pid1::arch::{number, syscall};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const STREAM: usize = 1;
const DATAGRAM: usize = 2;
/// SOCK_CLOEXEC | SOCK_NONBLOCK
const SOCKET_FLAGS: usize = 0o2_004_000;
const SOL_SOCKET: usize = 1;

fn socket(family: u16, kind: usize) -> Result<Fd> {
    // SAFETY: no pointer is passed.
    checked(unsafe {
        syscall(
            number::SOCKET,
            [usize::from(family), kind | SOCKET_FLAGS, 0, 0, 0, 0],
        )
    })
    .map(Fd::new)
}

/// Two connected ends of a stream, closed on exec. Reading waits; [`send`] never does.
pub fn pair() -> Result<(Fd, Fd)> {
    const CLOEXEC: usize = 0o2_000_000;
    let mut ends = [0i32; 2];
    let (family, kind) = (usize::from(AF_UNIX), STREAM | CLOEXEC);
    let room = ends.as_mut_ptr().addr_for_kernel();
    // SAFETY: the kernel writes two ints.
    checked(unsafe { syscall(number::SOCKETPAIR, [family, kind, 0, room, 0, 0]) })?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

/// Whether the other end of a stream has not read all that was sent (`SIOCOUTQ`, unix(7)).
pub fn unread(fd: &Fd) -> bool {
    const SIOCOUTQ: usize = 0x5411;
    let mut bytes = [0i32];
    let room = bytes.as_mut_ptr().addr_for_kernel();
    // SAFETY: the kernel writes one int.
    let asked =
        checked(unsafe { syscall(number::IOCTL, [fd.argument(), SIOCOUTQ, room, 0, 0, 0]) });
    asked.is_ok() && bytes[0] != 0
}

/// struct sockaddr_un and its used length.
fn unix_address(path: &CStr) -> Result<([u8; 110], usize)> {
    let mut address = [0; 110];
    let path = path.to_bytes_with_nul();
    let (family, room) = address.split_at_mut(2);
    family.copy_from_slice(&AF_UNIX.to_ne_bytes());
    room.get_mut(..path.len())
        .ok_or(Errno::ENAMETOOLONG)?
        .copy_from_slice(path);
    Ok((address, 2 + path.len()))
}

fn with_address(call: usize, fd: &Fd, address: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `len` bytes of the address.
    checked(unsafe {
        syscall(
            call,
            [
                fd.argument(),
                address.as_ptr().addr_for_kernel(),
                address.len(),
                0,
                0,
                0,
            ],
        )
    })
    .map(drop)
}

/// Microseconds that a dial waits for its turn when the listener's queue is full.
const TURN_US: i64 = 50_000;

/// A stream connected to the listener at `path`. Where its queue is full this waits its turn, for
/// [`TURN_US`] at most: who only looks now and then loses against others who wait. A queue that is
/// still full is `EAGAIN`.
pub fn connect_unix(path: &CStr) -> Result<Fd> {
    const SO_SNDTIMEO: usize = 21;
    let (address, length) = unix_address(path)?;
    let address = address.get(..length).unwrap_or_default();
    let fd = socket(AF_UNIX, STREAM)?;
    match with_address(number::CONNECT, &fd, address) {
        Err(Errno::EAGAIN) => {}
        answer => return answer.map(|()| fd),
    }
    // struct timeval; a stream's wait to be accepted is its send timeout (socket(7)).
    let patience = [0i64, TURN_US];
    set_option(&fd, SO_SNDTIMEO, &patience)?;
    blocking(&fd, Blocking::Yes)?;
    with_address(number::CONNECT, &fd, address)?;
    blocking(&fd, Blocking::No)?;
    Ok(fd)
}

enum Blocking {
    Yes,
    No,
}

/// Sets the file's status flags anew: `O_NONBLOCK` is the only one that a socket here has.
fn blocking(fd: &Fd, blocking: Blocking) -> Result<()> {
    const F_SETFL: usize = 4;
    const O_NONBLOCK: usize = 0o4000;
    let flags = match blocking {
        Blocking::Yes => 0,
        Blocking::No => O_NONBLOCK,
    };
    // SAFETY: no pointer is passed.
    checked(unsafe { syscall(number::FCNTL, [fd.argument(), F_SETFL, flags, 0, 0, 0]) }).map(drop)
}

/// Whether this TCP port could be listened on, at every address: `EADDRINUSE` when somebody does,
/// or is bound to it. Connections that are ending do not count (`SO_REUSEADDR`, socket(7)).
pub fn try_port(port: u16) -> Result<()> {
    const AF_INET6: u16 = 10;
    const SO_REUSEADDR: usize = 2;
    const EAFNOSUPPORT: Errno = Errno(97);
    // An IPv6 socket stands for both families; not every host has them.
    let (family, length, fd) = match socket(AF_INET6, STREAM) {
        Err(EAFNOSUPPORT) => (AF_INET, 16, socket(AF_INET, STREAM)?),
        fd => (AF_INET6, 28, fd?),
    };
    set_option(&fd, SO_REUSEADDR, &1i32)?;
    // struct sockaddr_in and sockaddr_in6 begin alike; the address is the wildcard.
    let mut address = [0u8; 28];
    let (own, rest) = address.split_at_mut(2);
    own.copy_from_slice(&family.to_ne_bytes());
    if let Some(room) = rest.first_chunk_mut() {
        *room = port.to_be_bytes();
    }
    with_address(number::BIND, &fd, address.get(..length).unwrap_or_default())
}

/// setsockopt(2) of `SOL_SOCKET` (socket(7)); `value` is what the option wants: an int, a timeval.
fn set_option<T>(fd: &Fd, option: usize, value: &T) -> Result<()> {
    // SAFETY: the kernel reads the bytes of `value`.
    checked(unsafe {
        syscall(
            number::SETSOCKOPT,
            [
                fd.argument(),
                SOL_SOCKET,
                option,
                core::ptr::from_ref(value).addr_for_kernel(),
                size_of_val(value),
                0,
            ],
        )
    })
    .map(drop)
}

/// A connection to 127.0.0.1, and whether it stands already.
pub fn connect_loopback(port: u16) -> Result<(Fd, bool)> {
    let fd = socket(AF_INET, STREAM)?;
    let mut address = [0u8; 16];
    let (family, rest) = address.split_at_mut(2);
    family.copy_from_slice(&AF_INET.to_ne_bytes());
    if let Some(room) = rest.first_chunk_mut() {
        let [high, low] = port.to_be_bytes();
        *room = [high, low, 127, 0, 0, 1];
    }
    match with_address(number::CONNECT, &fd, &address) {
        Ok(()) => Ok((fd, true)),
        Err(Errno::EINPROGRESS) => Ok((fd, false)),
        Err(errno) => Err(errno),
    }
}

/// A datagram socket at `path` that everybody may send to and that tells who sent.
pub fn notify_socket(path: &CStr) -> Result<Fd> {
    const SO_PASSCRED: usize = 16;
    let (address, length) = unix_address(path)?;
    let fd = socket(AF_UNIX, DATAGRAM)?;
    set_option(&fd, SO_PASSCRED, &1i32)?;
    unlink(path).ok();
    let before = umask(0o111);
    let bound = with_address(number::BIND, &fd, address.get(..length).unwrap_or_default());
    umask(before);
    bound.map(|()| fd)
}

/// `getsockopt` of three ints at most; returns what it wrote.
fn option(fd: &Fd, name: usize, room: &mut [u32]) -> Result<()> {
    let mut length = [u32::try_from(size_of_val(room)).unwrap_or(0)];
    let (value, length) = (
        room.as_mut_ptr().addr_for_kernel(),
        length.as_mut_ptr().addr_for_kernel(),
    );
    // SAFETY: the kernel writes at most `length` bytes of `room`, and the length.
    checked(unsafe {
        syscall(
            number::GETSOCKOPT,
            [fd.argument(), SOL_SOCKET, name, value, length, 0],
        )
    })
    .map(drop)
}

/// Pid and uid of the listener at the other end; pid 0 is outside our pid namespace.
pub fn peer(fd: &Fd) -> Result<(u32, u32)> {
    const SO_PEERCRED: usize = 17;
    // Never 0 and 0 by an answer that did not come.
    let mut credentials = [u32::MAX; 3];
    option(fd, SO_PEERCRED, &mut credentials)?;
    Ok((credentials[0], credentials[1]))
}

/// How a connection that was begun went.
pub fn connection_error(fd: &Fd) -> Result<()> {
    const SO_ERROR: usize = 4;
    let mut error = [u32::MAX];
    option(fd, SO_ERROR, &mut error)?;
    if error[0] == 0 {
        Ok(())
    } else {
        Err(Errno(error[0] as i32))
    }
}

/// Sends what fits now, without a signal when nobody listens.
pub fn send(fd: &Fd, bytes: &[u8]) -> Result<usize> {
    // MSG_NOSIGNAL | MSG_DONTWAIT
    const FLAGS: usize = 0x4040;
    // SAFETY: the kernel reads at most `len` bytes; no address is passed.
    checked(unsafe {
        syscall(
            number::SENDTO,
            [
                fd.argument(),
                bytes.as_ptr().addr_for_kernel(),
                bytes.len(),
                FLAGS,
                0,
                0,
            ],
        )
    })
}

/// Who sent a datagram, in our namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// 0 outside our pid namespace.
    pub pid: u32,
    /// User id.
    pub uid: u32,
}

/// One datagram, cut to `buf`, and its sender. Descriptors that came with it are closed by the
/// kernel: the room for control messages holds the credentials and nothing else.
pub fn receive_from(fd: &Fd, buf: &mut [u8]) -> Result<(usize, Option<Sender>)> {
    // MSG_DONTWAIT | MSG_CMSG_CLOEXEC
    const FLAGS: usize = 0x4000_0040;
    // cmsghdr {u64 length, i32 level, i32 type} and ucred {pid, uid, gid}, padded to 32 bytes.
    let mut control = [0u64; 4];
    let mut part = [buf.as_mut_ptr().addr_for_kernel(), buf.len()];
    // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
    let mut header = [
        0,
        0,
        part.as_mut_ptr().addr_for_kernel(),
        1,
        control.as_mut_ptr().addr_for_kernel(),
        32,
        0,
    ];
    // SAFETY: every pointer in the header is to memory of the length beside it.
    let received = checked(unsafe {
        syscall(
            number::RECVMSG,
            [
                fd.argument(),
                header.as_mut_ptr().addr_for_kernel(),
                FLAGS,
                0,
                0,
                0,
            ],
        )
    })?;
    let [length, kind, pid_uid, _] = control;
    // SOL_SOCKET (1) in the low half, SCM_CREDENTIALS (2) in the high half.
    let is_credentials = length == 28 && kind == (2 << 32 | 1);
    let sender = is_credentials.then_some(Sender {
        pid: pid_uid as u32,
        uid: (pid_uid >> 32) as u32,
    });
    Ok((received, sender))
}
