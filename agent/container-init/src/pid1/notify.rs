//! Readiness that a process tells: sd_notify datagrams and the newline on a descriptor.

use core::ffi::CStr;

use container_init::plan::{MAX_NAME, Process};

use super::path::Path;
use super::sys::{self, Fd, Sender};

/// sun_path of unix(7).
const PATH_SIZE: usize = 108;
const PREFIX: &[u8] = b"/notify-";
const _: () = assert!(PATH_SIZE > PREFIX.len() + MAX_NAME);

/// The notify socket of one process.
pub struct Notify {
    socket: Fd,
    path: Path<PATH_SIZE>,
    uid: u32,
}

impl Notify {
    /// Makes `DIR/notify-NAME`.
    pub fn make(directory: &CStr, process: &Process<'_>) -> sys::Result<Self> {
        let name = process.name.as_bytes();
        let path = Path::of(&[directory.to_bytes(), PREFIX, name]);
        let path = path.ok_or(sys::Errno::ENAMETOOLONG)?;
        Ok(Self {
            socket: sys::notify_socket(path.text())?,
            uid: process.uid,
            path,
        })
    }

    /// The socket, to wait for.
    pub fn socket(&self) -> &Fd {
        &self.socket
    }

    /// Value of `NOTIFY_SOCKET`.
    pub fn path(&self) -> &CStr {
        self.path.text()
    }

    /// Takes one datagram; `None` when there is none.
    // Its room is not to be on the stack of the loop, for ever.
    #[inline(never)]
    pub fn receive(&self) -> Option<Said> {
        let mut text = [0; 4096];
        let (length, sender) = sys::receive_from(&self.socket, &mut text).ok()?;
        let ready = text
            .get(..length)
            .unwrap_or_default()
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"READY=1");
        // Of this container, and of the process's user or root.
        let trusted =
            sender.is_some_and(|Sender { pid, uid }| pid != 0 && (uid == self.uid || uid == 0));
        Some(if ready && trusted {
            Said::Ready
        } else {
            Said::Else
        })
    }
}

/// What a datagram said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// `READY=1`, by somebody who may say so.
    Ready,
    /// Anything else.
    Else,
}

/// What the notification descriptor of a process said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Newline {
    /// A newline came.
    Ready,
    /// Something else came, or nothing.
    NotYet,
    /// Closed without a newline: it will never come.
    Closed,
}

/// Reads what there is.
pub fn newline(pipe: &Fd) -> Newline {
    let mut text = [0; 256];
    match sys::read(pipe, &mut text) {
        Ok(0) => Newline::Closed,
        Ok(length) if text.get(..length).unwrap_or_default().contains(&b'\n') => Newline::Ready,
        Ok(_) => Newline::NotYet,
        Err(sys::Errno::EAGAIN | sys::Errno::EINTR) => Newline::NotYet,
        Err(_) => Newline::Closed,
    }
}
