//! The connection to the agent: dials, judges the peer, frames in and out, dials again.
//!
//! Promises: nothing blocks, but for a dial in a queue that is full (50 ms at most); what is not read in time by the agent ends the connection, and events
//! are sent again on the next one. No timer runs while connected.

use core::ffi::CStr;

use container_init::link::{REDIAL_MIN_MS, is_obeyed, next_redial};
use container_init::protocol::{Event, MAX_FRAME, OLDEST_VERSION, Report, VERSION};

use super::sys::{self, Errno, Fd, Poll};

/// A hello, every event that can be kept, and answers.
const OUTBOUND: usize = 2 * MAX_FRAME;

/// Room for what was not sent yet.
pub struct Outbound([u8; OUTBOUND]);

impl Outbound {
    pub const fn new() -> Self {
        Self([0; OUTBOUND])
    }
}

/// The connection, or the wait for one.
pub struct Link {
    path: &'static CStr,
    socket: Option<Fd>,
    outbound: &'static mut Outbound,
    waiting: usize,
    pause: u64,
    redial_at: Option<u64>,
    /// What we say in the hello.
    version: u16,
    /// The agent said something that makes sense, on this connection.
    was_heard: bool,
}

impl Link {
    /// Dials as soon as it is asked; never when `path` is empty.
    pub fn new(path: &'static CStr, outbound: &'static mut Outbound) -> Self {
        let redial_at = (!path.is_empty()).then_some(0);
        Self {
            path,
            socket: None,
            outbound,
            waiting: 0,
            pause: 0,
            redial_at,
            version: VERSION,
            was_heard: false,
        }
    }

    /// The protocol version to speak on this connection.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// When to dial; `None` while connected.
    pub fn due(&self) -> Option<u64> {
        self.redial_at
    }

    /// What to wait for.
    pub fn poll(&self) -> Option<Poll> {
        let wanted = if self.waiting > 0 {
            Poll::both
        } else {
            Poll::readable
        };
        self.socket.as_ref().map(wanted)
    }

    /// Dials when it is time; true when the agent is there now.
    pub fn dial(&mut self, now: u64) -> bool {
        if self.redial_at.is_none_or(|at| at > now) {
            return false;
        }
        let dialled =
            sys::connect_unix(self.path).and_then(|socket| Ok((sys::peer(&socket)?, socket)));
        match dialled {
            Ok(((pid, uid), socket)) if is_obeyed(pid, uid) => {
                self.socket = Some(socket);
                self.redial_at = None;
                true
            }
            // The agent is there and its queue is full of others: no reason to come less often.
            Err(Errno::EAGAIN) => {
                self.redial_at = Some(now + REDIAL_MIN_MS);
                false
            }
            _ => {
                self.hang_up(now);
                false
            }
        }
    }

    /// Ends the connection and plans the next.
    pub fn hang_up(&mut self, now: u64) {
        // An older agent hangs up on a hello that it does not know.
        if self.socket.take().is_some() && !self.was_heard {
            self.version = match self.version {
                VERSION => OLDEST_VERSION,
                _ => VERSION,
            };
        }
        self.was_heard = false;
        self.waiting = 0;
        self.pause = next_redial(self.pause);
        self.redial_at = Some(now + self.pause);
    }

    /// The agent spoke sense: the next time we dial fast again.
    pub fn heard(&mut self) {
        self.pause = 0;
        self.was_heard = true;
    }

    /// Puts a report behind what waits; an agent that does not read loses the connection.
    pub fn write(&mut self, report: &Report<'_>, now: u64) {
        if self.socket.is_none() {
            return;
        }
        let room = self.outbound.0.get_mut(self.waiting..).unwrap_or_default();
        match report.encode(room) {
            Ok(length) => self.waiting += length,
            Err(_) => self.hang_up(now),
        }
    }

    /// The same for an event, which an older agent may not know.
    pub fn write_event(&mut self, event: Event<'_>, now: u64) {
        if event.kind.since() <= self.version {
            self.write(&Report::Event(event), now);
        }
    }

    /// Sends what can be sent now.
    pub fn flush(&mut self, now: u64) {
        while let (Some(socket), 1..) = (&self.socket, self.waiting) {
            match sys::send(
                socket,
                self.outbound.0.get(..self.waiting).unwrap_or_default(),
            ) {
                Ok(sent) => {
                    self.outbound.0.copy_within(sent..self.waiting, 0);
                    self.waiting -= sent;
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(_) => self.hang_up(now),
            }
        }
    }

    /// Reads once into `room`; `None` when nothing came. Hangs up at the end of the stream.
    pub fn read(&mut self, room: &mut [u8], now: u64) -> Option<usize> {
        match sys::read(self.socket.as_ref()?, room) {
            Ok(0) => {}
            Ok(length) => return Some(length),
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(_) => {}
        }
        self.hang_up(now);
        None
    }
}
