//! What the processes write, from their pipes into their logs.

use core::ffi::CStr;

use container_init::log::{HEAD, Part, Parts, Stream, TIME, Tag, head, rfc3339};
use container_init::plan::{Log, MAX_PROCESSES};

use super::file::LogFile;
use super::through::Through;
use crate::pid1::sys::{self, Fd};

/// Bytes that are read at once: the longest line of one record, as in containerd
/// (`max_container_log_line_size`).
const INPUT: usize = 16 * 1024;
/// Bytes of a line without its end that are kept for the next time. More are a record of their own.
const KEPT: usize = 4096;
/// Records of one write.
const OUTPUT: usize = INPUT + KEPT;
/// stdout and stderr.
pub const STREAMS: usize = 2;

/// Room that costs only what is used of it: a few lines are a page each in `input` and `output`, and
/// lines that come in pieces a page of their stream's.
#[repr(align(4096))]
pub struct Buffers {
    pub shared: Shared,
    pub kept: [Kept; MAX_PROCESSES],
}

/// Room for one read at a time, whoever's.
pub struct Shared {
    input: [u8; INPUT],
    output: [u8; OUTPUT],
}

/// What is kept of the lines of one process.
pub type Kept = [[u8; KEPT]; STREAMS];

impl Buffers {
    pub const fn new() -> Self {
        Self {
            shared: Shared {
                input: [0; INPUT],
                output: [0; OUTPUT],
            },
            kept: [[[0; KEPT]; STREAMS]; MAX_PROCESSES],
        }
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
    /// Opens its log, so that it is there before anything is written.
    pub fn open(&mut self) {
        self.file.open();
    }

    /// What there is to read.
    pub fn pipes(&self) -> [Option<&Fd>; STREAMS] {
        self.sources
            .each_ref()
            .map(|source| source.as_ref().map(|source| &source.pipe))
    }

    /// Reads once and writes what came.
    pub fn copy(&mut self, stream: usize, shared: &mut Shared, kept: &mut Kept) {
        self.copied(stream, shared, kept);
    }

    /// Writes what the pipes have now, and ends their lines. Who writes on does not hold it up.
    pub fn finish(&mut self, shared: &mut Shared, kept: &mut Kept) {
        for stream in 0..STREAMS {
            let pipe = self.pipes().get(stream).copied().flatten();
            let mut left = pipe.map_or(0, sys::unread_bytes);
            while let (1.., Some(copied)) = (left, self.copied(stream, shared, kept)) {
                left = left.saturating_sub(copied);
            }
            self.end_line(stream, shared, kept);
        }
    }

    /// How much it was; nothing when nothing came.
    fn copied(&mut self, stream: usize, shared: &mut Shared, kept: &mut Kept) -> Option<usize> {
        let Shared { input, output } = shared;
        let source = self.sources.get_mut(stream)?.as_mut()?;
        let kept = kept.get_mut(stream)?;
        let (before, room) = input.split_at_mut_checked(source.kept)?;
        before.copy_from_slice(kept.get(..source.kept)?);
        let length = sys::read(&source.pipe, room)
            .ok()
            .filter(|read| *read > 0)?;
        let time = now();
        if let Some(through) = &mut source.through {
            through.pass(room.get(..length)?);
        }
        let mut parts = Parts::new(input.get(..source.kept + length)?, KEPT);
        let mut records = Records::new(output, named(stream), time);
        for part in parts.by_ref() {
            source.open = part.tag == Tag::Partial;
            if !records.push(part) {
                self.file.append(records.take(), time);
                records.push(part);
            }
        }
        self.file.append(records.take(), time);
        let left = parts.left();
        kept.get_mut(..left.len())?.copy_from_slice(left);
        source.kept = left.len();
        Some(length)
    }

    /// A line without an end gets one, so that nobody takes what comes next for the rest of it.
    fn end_line(&mut self, stream: usize, shared: &mut Shared, kept: &Kept) -> Option<()> {
        let source = self.sources.get_mut(stream)?.as_mut()?;
        if source.kept > 0 || source.open {
            let text = kept.get(stream)?.get(..source.kept)?;
            let time = now();
            let mut records = Records::new(&mut shared.output, named(stream), time);
            records.push(Part {
                text,
                tag: Tag::Full,
            });
            self.file.append(records.take(), time);
            (source.kept, source.open) = (0, false);
        }
        Some(())
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
