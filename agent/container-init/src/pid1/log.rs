//! Output of the processes on its way into their logs.
//!
//! ```text
//!   process ── pipe ──► the writer, a thread of ours ──► PATH, PATH.1, ...
//!                                                  └───► our own stdout and stderr
//! ```
//!
//! Owns the pipes: made once, before anything of the container runs, and kept for every incarnation
//! of their process, so that neither a start nor a restart makes or leaks anything, and no process
//! ever gets SIGPIPE. PID 1 itself never reads one and never writes a log: a disk that hangs holds
//! the writer, whose pipes fill up, and then the processes that write, but neither signals nor
//! reaping nor a stop. Without a process that has a log there is no writer. Where pipes or a thread
//! cannot be had, the processes append to the files themselves, and that is said.

mod file;
mod through;
mod writer;

use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use container_init::plan::{MAX_PROCESSES, Output, Plan, Process};

use super::say::{Number, say};
use super::sys::{self, Errno, Fd, Poll};
pub use writer::{Buffers, Writer};
use writer::{Captured, Events};

/// How long the end of the container waits for the writer.
const DRAIN_MS: u64 = 1000;
/// The longest path of a directory with logs.
const MAX_DIRECTORY: usize = 512;

/// What PID 1 tells the writer.
pub struct Orders {
    /// Bit n: process n of the plan has ended.
    ended: AtomicU32,
    /// All that is in the pipes is to be written, and that said.
    drain: AtomicBool,
}

impl Orders {
    pub const fn new() -> Self {
        Self {
            ended: AtomicU32::new(0),
            drain: AtomicBool::new(false),
        }
    }
}

/// The writing ends of one process.
#[derive(Default)]
pub struct Pipes {
    pub stdout: Option<Fd>,
    pub stderr: Option<Fd>,
}

/// PID 1's side.
pub struct Logs {
    pipes: [Pipes; MAX_PROCESSES],
    writer: Option<(Events, &'static Orders)>,
}

impl Logs {
    /// Of processes whose output is not captured.
    pub fn none() -> Self {
        Self {
            pipes: Default::default(),
            writer: None,
        }
    }

    /// Makes the pipes of a plan, and the writer when there are any.
    pub fn begin(
        plan: &Plan<'static>,
        room: &'static mut Option<Writer>,
        buffers: &'static mut Buffers,
        orders: &'static Orders,
    ) -> Self {
        let mut logs = Self::none();
        if !plan.processes.iter().any(|process| is_logged(&process)) {
            return logs;
        }
        if let Err(errno) = logs.make(plan, room, buffers, orders) {
            say(&[
                b"logs cannot be written for the processes, which do it themselves: errno ",
                Number::new(errno.0).as_bytes(),
            ]);
            logs.pipes = Default::default();
        }
        logs
    }

    fn make(
        &mut self,
        plan: &Plan<'static>,
        room: &'static mut Option<Writer>,
        buffers: &'static mut Buffers,
        orders: &'static Orders,
    ) -> sys::Result<()> {
        let events = Events::new()?;
        let writer = room.insert(Writer::new(buffers, orders, events.duplicate()?));
        for (index, process) in plan.processes.iter().enumerate() {
            if let (true, Some(log), Some(pipes)) =
                (is_logged(&process), process.log, self.pipes.get_mut(index))
            {
                let (directory, name) = open_directory(log.path)?;
                let mut captured = Captured::new(directory, name, log);
                for (output, stream, writing) in [
                    (process.stdout, 0, &mut pipes.stdout),
                    (process.stderr, 1, &mut pipes.stderr),
                ] {
                    if output == Output::Log {
                        let (reading, ours) = sys::pipe_for_output()?;
                        captured.read(stream, reading);
                        *writing = Some(ours);
                    }
                }
                writer.capture(index, captured);
            }
        }
        sys::thread(writer)?;
        self.writer = Some((events, orders));
        Ok(())
    }

    /// Where a process writes to; nothing for one without a log, or when there is no writer.
    pub fn pipes(&self, process: usize) -> Option<&Pipes> {
        self.pipes.get(process)
    }

    /// A process has ended: a line that it began is finished.
    pub fn ended(&self, process: usize) {
        if let Some((events, orders)) = &self.writer {
            orders.ended.fetch_or(1 << process, Ordering::Release);
            sys::ring(&events.wake);
        }
    }

    /// Waits until all that was written is in the logs, unless a disk does not let that be.
    pub fn drain(&self) {
        let Some((events, orders)) = &self.writer else {
            return;
        };
        orders.drain.store(true, Ordering::Release);
        sys::ring(&events.wake);
        let deadline = sys::now() + DRAIN_MS;
        let mut drained = [Poll::readable(&events.drained)];
        while !drained.iter().any(Poll::happened) {
            let left = deadline.saturating_sub(sys::now());
            if left == 0 {
                return say(&[b"the logs do not get to their disk: their last lines are lost"]);
            }
            sys::wait(&mut drained, Some(left));
        }
    }
}

fn is_logged(process: &Process<'_>) -> bool {
    [process.stdout, process.stderr].contains(&Output::Log)
}

/// The directory of a path, and the name in it.
fn open_directory(path: &'static CStr) -> sys::Result<(Fd, &'static CStr)> {
    let bytes = path.to_bytes_with_nul();
    let slash = bytes.iter().rposition(|byte| *byte == b'/');
    let slash = slash.ok_or(Errno::EINVAL)?;
    let name = bytes
        .get(slash + 1..)
        .and_then(|name| CStr::from_bytes_with_nul(name).ok());
    let mut parent = [0; MAX_DIRECTORY];
    // At least the root's slash, at most what leaves a NUL.
    let directory = bytes.get(..slash.max(1)).unwrap_or_default();
    parent
        .get_mut(..MAX_DIRECTORY - 1)
        .and_then(|room| room.get_mut(..directory.len()))
        .ok_or(Errno::ENAMETOOLONG)?
        .copy_from_slice(directory);
    let parent = CStr::from_bytes_until_nul(&parent).map_err(|_| Errno::ENAMETOOLONG)?;
    Ok((sys::open_directory(parent)?, name.ok_or(Errno::EINVAL)?))
}
