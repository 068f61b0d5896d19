//! The writer: the thread that reads the pipes and writes the logs. Sleeps until a process writes.

use core::ffi::CStr;
use core::sync::atomic::Ordering;

use container_init::log::{HEAD, Part, Parts, Stream, TIME, Tag, head, rfc3339};
use container_init::plan::{Log, MAX_PROCESSES};

use super::Orders;
use super::file::LogFile;
use super::through::Through;
use crate::pid1::sys::{self, Fd, Poll, Work};

/// Bytes that are read at once: the longest line of one record, as in containerd
/// (`max_container_log_line_size`).
const INPUT: usize = 16 * 1024;
/// Bytes of a line without its end that are kept for the next time. More are a record of their own.
const KEPT: usize = 4096;
/// Records of one write.
const OUTPUT: usize = INPUT + KEPT;
/// stdout and stderr.
const STREAMS: usize = 2;

/// Room that costs only what is used of it: a few lines are a page each in `input` and `output`, and
/// lines that come in pieces a page of their stream's.
#[repr(align(4096))]
pub struct Buffers {
    input: [u8; INPUT],
    output: [u8; OUTPUT],
    kept: [[[u8; KEPT]; STREAMS]; MAX_PROCESSES],
}

impl Buffers {
    pub const fn new() -> Self {
        Self {
            input: [0; INPUT],
            output: [0; OUTPUT],
            kept: [[[0; KEPT]; STREAMS]; MAX_PROCESSES],
        }
    }
}

/// How PID 1 and the writer wake each other.
pub struct Events {
    pub wake: Fd,
    pub drained: Fd,
}

impl Events {
    pub fn new() -> sys::Result<Self> {
        Ok(Self {
            wake: sys::event()?,
            drained: sys::event()?,
        })
    }

    /// The same, for the other side.
    pub fn duplicate(&self) -> sys::Result<Self> {
        Ok(Self {
            wake: sys::duplicate(&self.wake)?,
            drained: sys::duplicate(&self.drained)?,
        })
    }
}

/// Reading end of a stream, and what is known of its line.
struct Source {
    pipe: Fd,
    through: Option<Through>,
    /// Bytes that are kept.
    kept: usize,
    /// A partial record was the last.
    open: bool,
}

/// A process whose output is captured.
pub struct Captured {
    file: LogFile,
    sources: [Option<Source>; STREAMS],
    pass_through: bool,
}

impl Captured {
    pub fn new(directory: Fd, name: &'static CStr, log: Log<'_>) -> Self {
        Self {
            file: LogFile::new(directory, name, log),
            sources: [None, None],
            pass_through: log.pass_through,
        }
    }

    /// This is its standard output (0) or standard error (1).
    pub fn read(&mut self, stream: usize, pipe: Fd) {
        let through = self
            .pass_through
            .then(|| Through::new(1 + i32::from(stream != 0)));
        if let Some(source) = self.sources.get_mut(stream) {
            *source = Some(Source {
                pipe,
                through,
                kept: 0,
                open: false,
            });
        }
    }
}

/// All that the thread owns.
pub struct Writer {
    captured: [Option<Captured>; MAX_PROCESSES],
    buffers: &'static mut Buffers,
    orders: &'static Orders,
    events: Events,
}

impl Writer {
    pub fn new(buffers: &'static mut Buffers, orders: &'static Orders, events: Events) -> Self {
        Self {
            captured: [const { None }; MAX_PROCESSES],
            buffers,
            orders,
            events,
        }
    }

    /// Process `index` of the plan.
    pub fn capture(&mut self, index: usize, captured: Captured) {
        if let Some(room) = self.captured.get_mut(index) {
            *room = Some(captured);
        }
    }

    fn sleep(&self, readable: &mut [[bool; STREAMS]; MAX_PROCESSES]) -> bool {
        let mut polls = [Poll::default(); 1 + STREAMS * MAX_PROCESSES];
        let sources = self.captured.iter().flatten();
        let pipes = sources.flat_map(|captured| captured.sources.iter().flatten());
        let wanted = [&self.events.wake]
            .into_iter()
            .chain(pipes.map(|source| &source.pipe));
        let mut count = 0;
        for (room, pipe) in polls.iter_mut().zip(wanted) {
            *room = Poll::readable(pipe);
            count += 1;
        }
        sys::wait(polls.get_mut(..count).unwrap_or_default(), None);
        let mut happened = polls.iter().map(Poll::happened);
        let woken = happened.next().unwrap_or(false);
        for (captured, readable) in self.captured.iter().zip(readable.iter_mut()) {
            for (at, readable) in readable.iter_mut().enumerate() {
                let is_there = captured
                    .as_ref()
                    .is_some_and(|captured| captured.sources.get(at).is_some_and(Option::is_some));
                *readable = is_there && happened.next().unwrap_or(false);
            }
        }
        woken
    }

    /// Obeys PID 1.
    fn obey(&mut self) {
        sys::read(&self.events.wake, &mut [0; 8]).ok();
        let ended = self.orders.ended.swap(0, Ordering::Acquire);
        let drain = self.orders.drain.load(Ordering::Acquire);
        for process in 0..MAX_PROCESSES {
            if drain || ended & (1 << process) != 0 {
                for stream in 0..STREAMS {
                    self.finish(process, stream);
                }
            }
        }
        if drain {
            sys::ring(&self.events.drained);
        }
    }

    /// Writes what a pipe has now, and ends its line. Who writes on does not hold it up.
    fn finish(&mut self, process: usize, stream: usize) {
        let mut left = self.unread(process, stream);
        while left > 0 {
            match self.copy(process, stream) {
                0 => break,
                copied => left = left.saturating_sub(copied),
            }
        }
        self.end_line(process, stream);
    }

    fn unread(&self, process: usize, stream: usize) -> usize {
        let captured = self.captured.get(process).and_then(Option::as_ref);
        let source = captured.and_then(|captured| captured.sources.get(stream)?.as_ref());
        source.map_or(0, |source| sys::unread_bytes(&source.pipe))
    }

    /// Reads once and writes what came; how much that was.
    fn copy(&mut self, process: usize, stream: usize) -> usize {
        self.copied(process, stream).unwrap_or(0)
    }

    fn copied(&mut self, process: usize, stream: usize) -> Option<usize> {
        let captured = self.captured.get_mut(process)?.as_mut()?;
        let source = captured.sources.get_mut(stream)?.as_mut()?;
        let Buffers {
            input,
            output,
            kept,
        } = &mut *self.buffers;
        let kept = kept.get_mut(process)?.get_mut(stream)?;
        let (before, room) = input.split_at_mut_checked(source.kept)?;
        before.copy_from_slice(kept.get(..source.kept)?);
        let length = sys::read(&source.pipe, room).ok()?;
        let time = now();
        if let Some(through) = &mut source.through {
            through.pass(room.get(..length)?);
        }
        let mut parts = Parts::new(input.get(..source.kept + length)?, KEPT);
        let mut records = Records::new(output, named(stream), time);
        for part in parts.by_ref() {
            source.open = part.tag == Tag::Partial;
            if !records.push(part) {
                captured.file.append(records.take(), time);
                records.push(part);
            }
        }
        captured.file.append(records.take(), time);
        let left = parts.left();
        kept.get_mut(..left.len())?.copy_from_slice(left);
        source.kept = left.len();
        Some(length)
    }

    /// A line without an end gets one, so that nobody takes what comes next for the rest of it.
    fn end_line(&mut self, process: usize, stream: usize) -> Option<()> {
        let captured = self.captured.get_mut(process)?.as_mut()?;
        let source = captured.sources.get_mut(stream)?.as_mut()?;
        if source.kept > 0 || source.open {
            let Buffers { output, kept, .. } = &mut *self.buffers;
            let text = kept.get(process)?.get(stream)?.get(..source.kept)?;
            let time = now();
            let mut records = Records::new(output, named(stream), time);
            records.push(Part {
                text,
                tag: Tag::Full,
            });
            captured.file.append(records.take(), time);
            (source.kept, source.open) = (0, false);
        }
        Some(())
    }
}

impl Work for Writer {
    fn work(&mut self) -> ! {
        for captured in self.captured.iter_mut().flatten() {
            captured.file.open();
        }
        let mut readable = [[false; STREAMS]; MAX_PROCESSES];
        loop {
            let woken = self.sleep(&mut readable);
            for (process, streams) in readable.iter().enumerate() {
                for (stream, readable) in streams.iter().enumerate() {
                    if *readable {
                        self.copy(process, stream);
                    }
                }
            }
            if woken {
                self.obey();
            }
        }
    }
}

/// Records of one stream and one time on their way to a file.
struct Records<'b> {
    room: &'b mut [u8; OUTPUT],
    length: usize,
    stream: Stream,
    time: [u8; TIME],
}

impl<'b> Records<'b> {
    fn new(room: &'b mut [u8; OUTPUT], stream: Stream, time: [u8; TIME]) -> Self {
        Self {
            room,
            length: 0,
            stream,
            time,
        }
    }

    /// False when there is no room for it; there is for one of any length.
    fn push(&mut self, part: Part<'_>) -> bool {
        let length = HEAD + part.text.len() + 1;
        let Some(room) = self
            .room
            .get_mut(self.length..)
            .and_then(|room| room.get_mut(..length))
        else {
            return false;
        };
        let (before, text) = room.split_at_mut(HEAD);
        before.copy_from_slice(&head(self.time, self.stream, part.tag));
        if let Some((end, text)) = text.split_last_mut() {
            text.copy_from_slice(part.text);
            *end = b'\n';
        }
        self.length += length;
        true
    }

    /// All of them; there are none after it.
    fn take(&mut self) -> &[u8] {
        let length = core::mem::take(&mut self.length);
        self.room.get(..length).unwrap_or_default()
    }
}

fn named(stream: usize) -> Stream {
    match stream {
        0 => Stream::Stdout,
        _ => Stream::Stderr,
    }
}

fn now() -> [u8; TIME] {
    let moment = sys::wall_clock();
    rfc3339(moment.seconds, moment.nanoseconds)
}
