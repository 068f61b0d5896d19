//! What a service manager does with sockets, without one: it opens them, keeps what the agent
//! stores (`FDSTORE=1`), and passes all of it by `LISTEN_FDS` to the next agent.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A socket with its name.
#[derive(Debug)]
pub struct Named {
    /// `FileDescriptorName=` or `FDNAME=`.
    pub name: String,
    /// The socket.
    pub socket: OwnedFd,
}

impl Named {
    /// Opens a listening socket at `path`, as a socket unit does.
    pub fn listen(name: &str, path: &Path) -> Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        let socket =
            UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            socket: socket.into(),
        })
    }

    /// The same socket once more.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            socket: self.socket.try_clone().context("duplicate a socket")?,
        })
    }
}

/// One notification, with the descriptors that it carried.
pub(crate) fn receive(notifications: &UnixDatagram) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut datagram = [0; 4096];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let received = recvmsg(
        notifications,
        &mut [IoSliceMut::new(&mut datagram)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    let text = String::from_utf8_lossy(&datagram[..received.bytes]);
    Ok((text.into_owned(), descriptors))
}

/// What a notification asks to be stored.
pub(crate) fn stored(text: &str, descriptors: Vec<OwnedFd>) -> Vec<Named> {
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let wanted = text.lines().any(|line| line == "FDSTORE=1");
    let descriptors = descriptors.into_iter().filter(|_| wanted);
    descriptors
        .map(|socket| Named {
            name: name.unwrap_or("stored").to_owned(),
            socket,
        })
        .collect()
}
