//! What goes to a disk: how processes end, and what they write.
//!
//! ```text
//!   PID 1 ─── records ──┐
//!   process ── pipe ────┴──► the writer, a thread of ours ──► exit ring, PATH, PATH.1, ...
//!                                                        └──► our own stdout and stderr
//! ```
//!
//! PID 1 itself waits for no disk: one that hangs holds the writer, whose pipes fill up, and then
//! the processes that write, but neither signals nor reaping nor a stop. Only its end waits, because
//! then nobody is left to write, and not for ever. Without a ring and a log there is no writer.
//!
//! Owns the pipes: made once, before anything of the container runs, and kept for every incarnation
//! of their process, so that neither a start nor a restart makes or leaks anything, and no process
//! ever gets SIGPIPE. Where pipes or a thread cannot be had, the processes append to their logs
//! themselves, PID 1 writes its ring itself, and that is said.

mod capture;
mod file;
mod ring;
mod through;
mod writer;

use core::ffi::CStr;
use core::mem::MaybeUninit;

use container_init::exits::{ExitRecord, Pending};
use container_init::plan::{MAX_PROCESSES, Output, Plan, Process};

use super::say::{Number, say};
use super::sys::{self, Errno, Fd};
pub use capture::Buffers;
use capture::Captured;
use ring::{Ring, RingFile};
pub use writer::Orders;
use writer::{Bell, Writer};

/// How long the end of the container waits for the disk.
const DRAIN_MS: u64 = 1000;
/// The longest path of a directory with logs.
const MAX_DIRECTORY: usize = 512;

/// What PID 1 and the writer share.
pub struct Shared {
    orders: Orders,
    exits: Pending,
}

impl Shared {
    pub const fn new() -> Self {
        Self {
            orders: Orders::new(),
            exits: Pending::new(),
        }
    }
}

/// Places for what lives as long as the program and is written once, where there is any of it.
pub struct Slots {
    ring: MaybeUninit<RingFile>,
    bell: MaybeUninit<Bell>,
    writer: MaybeUninit<Writer>,
}

impl Slots {
    pub const fn new() -> Self {
        Self {
            ring: MaybeUninit::uninit(),
            bell: MaybeUninit::uninit(),
            writer: MaybeUninit::uninit(),
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
pub struct Disk {
    pipes: [Pipes; MAX_PROCESSES],
    ring: Option<Ring>,
    writer: Option<&'static Bell>,
}

impl Disk {
    /// Nothing goes there.
    pub fn none() -> Self {
        Self {
            pipes: Default::default(),
            ring: None,
            writer: None,
        }
    }

    /// Opens the ring of a plan, makes its pipes, and the writer when there is either.
    pub fn begin(
        plan: &Plan<'static>,
        slots: &'static mut Slots,
        buffers: &'static mut Buffers,
        shared: &'static Shared,
    ) -> Self {
        let mut disk = Self::none();
        disk.ring = Ring::open(plan.exits, &mut slots.ring, &shared.exits);
        let is_logged = plan.processes.iter().any(|process| is_logged(&process));
        if !is_logged && disk.ring.is_none() {
            return disk;
        }
        let begun = Bell::new(&shared.orders).and_then(|bell| {
            let bell = slots.bell.write(bell);
            let ring = disk.ring.as_ref().map(Ring::file);
            let writer = slots.writer.write(Writer::new(ring, buffers, bell));
            if let Err(errno) = disk.capture(plan, writer) {
                disk.cannot_capture(errno);
                writer.capture_nothing();
            }
            sys::thread(writer)?;
            disk.writer = Some(bell);
            Ok(())
        });
        if let Err(errno) = begun {
            if disk.ring.is_some() {
                say(&[
                    b"exit ring: written by PID 1 itself: errno ",
                    Number::new(errno.0).as_bytes(),
                ]);
            }
            if is_logged {
                disk.cannot_capture(errno);
            }
        }
        disk
    }

    fn cannot_capture(&mut self, errno: Errno) {
        say(&[
            b"logs cannot be written for the processes, which do it themselves: errno ",
            Number::new(errno.0).as_bytes(),
        ]);
        self.pipes = Default::default();
    }

    fn capture(&mut self, plan: &Plan<'static>, writer: &mut Writer) -> sys::Result<()> {
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
        Ok(())
    }

    /// Where a process writes to; nothing for one without a log, or when there is no writer.
    pub fn pipes(&self, process: usize) -> Option<&Pipes> {
        self.pipes.get(process)
    }

    /// A process has ended: a line that it began is finished.
    pub fn ended(&self, process: usize) {
        if let Some(writer) = self.writer {
            writer.ended(process);
        }
    }

    /// Puts an end into the ring.
    pub fn record(&mut self, record: &ExitRecord) {
        let Some(ring) = &mut self.ring else { return };
        ring.record(record);
        match self.writer {
            Some(writer) => writer.recorded(),
            None => {
                ring.file().write();
            }
        }
    }

    /// Waits until all of it is on the disk, unless that does not answer.
    pub fn drain(&self) {
        if self.writer.is_some_and(|writer| !writer.drain(DRAIN_MS)) {
            say(&[b"the disk does not answer: the last exits and lines of logs may be lost"]);
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
