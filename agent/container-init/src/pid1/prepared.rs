//! The app's process, made while the container waits at the gate, so that a start needs no fork.
//!
//! ```text
//!   PID 1                                         the waiting process
//!   make ── fork ───────────────────────────────► session, streams, limits, groups, ids, directory
//!                                                  sleeps in read(2)
//!   start ── the start's frame ─────────────────► environment, execve
//!         ◄─ end of the stream ──────────────────  executed: its end was closed on exec
//!         ◄─ a byte, or a reset ─────────────────  did not execute
//! ```
//!
//! Promises: it has memory of its own, hidden as PID 1's is, and no descriptor of PID 1's beside
//! the stream; nothing is due and nobody wakes while it waits; it ends with PID 1, with the stream,
//! and by any signal. It is not the app before it has executed: whenever it did not, whatever the
//! reason, [`super::spawn`] starts the app and finds the words. Deliberately has no words itself
//! but for a fork that fails.

use container_init::plan::Process;
use container_init::protocol::{MAX_FRAME, Request, Start, first_frame};

use super::spawn::{self, Order, Program};
use super::sys::{self, Errno, Fd, Forked, Poll};

const SIGKILL: u8 = 9;
const SIGCONT: u8 = 18;

/// How long it may take to read the start. One that was stopped by a signal never reads; another
/// process is made then, so that nobody in the container can hold PID 1 up.
const READ_WITHIN_MS: u64 = 500;

/// Room for the start's frame.
pub type Frame = [u8; MAX_FRAME];

/// A process that waits to become the app.
pub struct Prepared {
    pid: u32,
    stream: Fd,
}

impl Prepared {
    /// Makes the process. What fails in it ends it.
    pub fn make(
        process: &Process<'static>,
        order: Order<'_>,
        buffers: &mut spawn::Buffers,
        frame: &mut Frame,
    ) -> sys::Result<Self> {
        let (ours, its) = sys::pair()?;
        match sys::fork()? {
            Forked::Parent(pid) => Ok(Self { pid, stream: ours }),
            Forked::Child => {
                drop(ours);
                wait_and_execute(process, order, its, buffers, frame);
                sys::exit(0)
            }
        }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it execute, and returns its pid once it has. `None` when it has not and will not.
    pub fn start(self, start: Start<'_>, frame: &mut Frame) -> Option<u32> {
        let length = Request::Start(start).encode(frame).ok()?;
        if sys::send(&self.stream, frame.get(..length)?) != Ok(length) {
            // It is gone, or has not the whole frame and cannot execute.
            self.end();
            return None;
        }
        let mut answer = [Poll::readable(&self.stream)];
        sys::wait(&mut answer, Some(READ_WITHIN_MS));
        if !answer.iter().any(Poll::happened) && sys::unread(&self.stream) {
            sys::kill(self.pid.cast_signed(), SIGKILL).ok();
        }
        loop {
            match sys::read(&self.stream, &mut [0]) {
                // It read the start and its end is closed. If it was killed in between, it was the
                // app that was killed.
                Ok(0) => return Some(self.pid),
                Err(Errno::EINTR) => {}
                // It could not execute; or it ended without having read: ECONNRESET (unix(7)).
                _ => return None,
            }
        }
    }

    /// Ends it: the start will not come.
    pub fn end(self) {
        drop(self.stream);
        // One that was stopped would not see the end of the stream.
        sys::kill(self.pid.cast_signed(), SIGCONT).ok();
    }
}

/// The waiting process. Comes back when it does not execute.
fn wait_and_execute(
    process: &Process<'static>,
    order: Order<'_>,
    stream: Fd,
    buffers: &mut spawn::Buffers,
    frame: &mut Frame,
) -> Option<()> {
    let newline = order.newline.map(|(_, number)| number);
    let number = stream.raw().cast_unsigned();
    // Its own descriptor may be wanted at the very number of the stream.
    let stream = if newline == Some(number) {
        sys::duplicate(&stream).ok()?
    } else {
        stream
    };
    spawn::become_process(process, &order).ok()?;
    sys::hide_memory().ok()?;
    let number = stream.raw().cast_unsigned();
    sys::close_others([number, newline.unwrap_or(number)]);
    // Pages are copied when they are first written to: now, and not when it counts.
    Program::collect(process, &order, buffers)?;
    let start = receive(&stream, frame);
    let order = Order { start, ..order };
    if start.is_some()
        && let Some(mut program) = Program::collect(process, &order, buffers)
    {
        program.execute();
    }
    sys::send(&stream, b"!").ok();
    Some(())
}

/// Waits for a start; `None` at the end of the stream.
fn receive<'f>(stream: &Fd, frame: &'f mut Frame) -> Option<Start<'f>> {
    let mut length = 0;
    while !matches!(first_frame(frame.get(..length)?), Ok(Some(_))) {
        match sys::read(stream, frame.get_mut(length..)?) {
            Ok(0) => return None,
            Ok(more) => length += more,
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
    match Request::decode(first_frame(frame.get(..length)?).ok()??.body) {
        Ok(Request::Start(start)) => Some(start),
        _ => None,
    }
}
