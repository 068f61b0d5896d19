//! One connection with a verified container-init.
//!
//! A command is written by its caller, straight into the socket; only what the socket does not
//! take waits here for the session's task. Both directions are bounded: at most [`OUTBOX_LIMIT`]
//! bytes wait for the peer, one frame and one read of the peer's are held, and a peer that talks
//! faster than [`Pace`] allows waits in its own socket.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use container_init::Malformed;
use container_init::protocol::{Report, Request, first_frame};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::entry::{Entry, Taken};
use super::error::GateError;
use super::pace::Pace;
use crate::instance::ContainerId;

/// Bytes that may wait for a peer: some frames of the largest size.
const OUTBOX_LIMIT: usize = 256 * 1024;
/// Bytes taken by one read.
const READ_SIZE: usize = 16 * 1024;
/// How long an ack may wait for more to ack: at once it would wake container-init while the app
/// starts on the same cores. Unacked events are sent again, so that nothing is lost by it.
const ACK_AFTER: Duration = Duration::from_millis(50);
/// So many events are acked at once: container-init keeps 64 for the next connection.
const ACK_AT_ONCE: u32 = 16;

/// A connection.
pub(super) struct Session {
    stream: UnixStream,
    /// Frames, whole or the rest of one, that the socket did not take.
    outbox: Mutex<Vec<u8>>,
    unsent: Notify,
    closing: CancellationToken,
}

/// Why a frame was not sent.
pub(super) enum Unsent {
    Congested(usize),
    Write(io::Error),
}

impl Unsent {
    pub(super) fn of(self, container: &ContainerId) -> GateError {
        let container = container.clone();
        match self {
            Self::Congested(unsent) => GateError::Congested { container, unsent },
            Self::Write(source) => GateError::Write { container, source },
        }
    }
}

/// Why a session ended, apart from being told to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the connection failed")]
    Connection(#[source] io::Error),
    #[error("the peer broke the protocol")]
    Protocol(#[source] Malformed),
    #[error("the peer said hello twice")]
    SecondHello,
}

impl Session {
    pub(super) fn new(stream: UnixStream, closing: CancellationToken) -> Self {
        Self {
            stream,
            outbox: Mutex::default(),
            unsent: Notify::new(),
            closing,
        }
    }

    /// Writes a whole frame: now if the socket takes it, in its turn if not.
    pub(super) fn send(&self, frame: &[u8]) -> Result<(), Unsent> {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let written = if outbox.is_empty() {
            self.write(frame).map_err(Unsent::Write)?
        } else {
            0
        };
        let rest = frame.get(written..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        if outbox.len() + rest.len() > OUTBOX_LIMIT {
            return Err(Unsent::Congested(outbox.len()));
        }
        outbox.extend_from_slice(rest);
        self.unsent.notify_one();
        Ok(())
    }

    /// Ends the session's task.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// As much as the socket takes now, perhaps nothing.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.stream.try_write(bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                answer => return answer,
            }
        }
    }

    /// Sends what waits, when the socket takes it. Never returns but with a failure.
    async fn flush(&self) -> io::Error {
        loop {
            self.unsent.notified().await;
            loop {
                if let Err(e) = self.stream.writable().await {
                    return e;
                }
                let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
                match self.write(&outbox) {
                    Ok(written) => drop(outbox.drain(..written)),
                    Err(e) => return e,
                }
                if outbox.is_empty() {
                    *outbox = Vec::new();
                    break;
                }
            }
        }
    }

    /// Reads and takes in reports until the connection ends or is closed. `inbox` is what was
    /// read behind the hello.
    pub(super) async fn run(
        self: &Arc<Self>,
        mut inbox: Inbox,
        entry: &Entry,
        shared: &Shared,
    ) -> Result<(), Ended> {
        let mut pace = Pace::new(Instant::now());
        let mut unacked = Unacked::default();
        let flush = self.flush();
        tokio::pin!(flush);
        let mut hears = true;
        if self
            .take_all(&mut inbox, entry, shared, &mut pace, &mut unacked)?
            .is_over()
        {
            return Ok(());
        }
        loop {
            let readable = async {
                let resume = pace.resume();
                if resume > Instant::now() {
                    sleep_until(resume).await;
                }
                self.stream.readable().await
            };
            tokio::select! {
                () = self.closing.cancelled() => return Ok(()),
                failed = &mut flush, if hears => {
                    hears = unheard(entry, failed);
                    continue;
                }
                seq = unacked.due() => {
                    unacked = Unacked::default();
                    if let Err(Unsent::Write(failed)) = self.say(&Request::Ack { seq }) {
                        hears = unheard(entry, failed);
                    }
                    continue;
                }
                ready = readable => ready.map_err(Ended::Connection)?,
            }
            match inbox.read(&self.stream).map_err(Ended::Connection)? {
                Read::Bytes => {
                    if self
                        .take_all(&mut inbox, entry, shared, &mut pace, &mut unacked)?
                        .is_over()
                    {
                        return Ok(());
                    }
                }
                Read::Nothing => {}
                Read::End => return Ok(()),
            }
        }
    }

    /// Takes in every whole frame.
    fn take_all(
        self: &Arc<Self>,
        inbox: &mut Inbox,
        entry: &Entry,
        shared: &Shared,
        pace: &mut Pace,
        unacked: &mut Unacked,
    ) -> Result<Goes, Ended> {
        let now = Instant::now();
        let mut goes = Goes::On;
        while let Some(body) = inbox.next_frame().map_err(Ended::Protocol)? {
            pace.frame(now);
            let report = Report::decode(body).map_err(Ended::Protocol)?;
            if let Report::Hello(_) = report {
                return Err(Ended::SecondHello);
            }
            match entry.take(self, &report, &shared.notices) {
                Taken::Yes => {}
                Taken::Superseded => {
                    goes = Goes::Over;
                    break;
                }
            }
            if let Report::Event(event) = report {
                unacked.add(event.seq, now);
            }
        }
        inbox.compact();
        Ok(goes)
    }

    /// Sends one of the gate's own small frames, or says that there is no room for it.
    pub(super) fn ask(&self, request: &Request<'_>) -> Result<(), Unsent> {
        let mut frame = [0; 32];
        let length = request
            .encode(&mut frame)
            .map_err(|e| Unsent::Write(io::Error::other(e)))?;
        self.send(frame.get(..length).unwrap_or_default())
    }

    /// Sends one of the gate's own small frames, that may be left out.
    pub(super) fn say(&self, request: &Request<'_>) -> Result<(), Unsent> {
        match self.ask(request) {
            // Acks are cumulative and events are sent again: one that is left out costs nothing.
            Err(Unsent::Congested(_)) => Ok(()),
            answer => answer,
        }
    }
}

/// An init that ended hears nothing more; what it said before, how its processes ended, is still to
/// be read. Says that nothing has to be written any more.
fn unheard(entry: &Entry, failed: io::Error) -> bool {
    tracing::debug!(container = %entry.container(), error = %failed, "a container-init hears no more");
    false
}

/// The newest event that was taken in and not acked.
#[derive(Default)]
struct Unacked {
    newest: u64,
    count: u32,
    due: Option<Instant>,
}

impl Unacked {
    fn add(&mut self, seq: u64, now: Instant) {
        self.newest = self.newest.max(seq);
        self.count += 1;
        if self.count >= ACK_AT_ONCE {
            self.due = Some(now);
        }
        self.due.get_or_insert(now + ACK_AFTER);
    }

    /// The event to ack, when it is time; never without one.
    async fn due(&self) -> u64 {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
        self.newest
    }
}

enum Goes {
    On,
    Over,
}

impl Goes {
    fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }
}

/// What a read brought.
pub(super) enum Read {
    Bytes,
    Nothing,
    End,
}

/// Bytes that were read and not yet taken: less than one frame between reads, and then at most
/// [`READ_SIZE`] more. Holds no memory while it is empty.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    taken: usize,
}

impl Inbox {
    /// Reads once.
    pub(super) fn read(&mut self, stream: &UnixStream) -> io::Result<Read> {
        let mut buffer = [0; READ_SIZE];
        match stream.try_read(&mut buffer) {
            Ok(0) => Ok(Read::End),
            Ok(length) => {
                self.bytes
                    .extend_from_slice(buffer.get(..length).unwrap_or_default());
                Ok(Read::Bytes)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Read::Nothing)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the next frame is whole, or is none at all.
    pub(super) fn has_frame(&self) -> bool {
        !matches!(
            first_frame(self.bytes.get(self.taken..).unwrap_or_default()),
            Ok(None)
        )
    }

    /// Kind and body of the next whole frame.
    pub(super) fn next_frame(&mut self) -> Result<Option<&[u8]>, Malformed> {
        let frame = first_frame(self.bytes.get(self.taken..).unwrap_or_default())?;
        Ok(frame.map(|frame| {
            self.taken += frame.length;
            frame.body
        }))
    }

    /// Gives taken bytes back.
    pub(super) fn compact(&mut self) {
        if self.taken == self.bytes.len() {
            self.bytes = Vec::new();
        } else {
            self.bytes.drain(..self.taken);
        }
        self.taken = 0;
    }
}
