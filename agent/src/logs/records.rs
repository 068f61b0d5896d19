//! From records of the CRI format to what people read: text, chosen by time and stream, the parts of
//! a line joined.
//!
//! What is no record is shown as it is: containers can write into their logs, and those of an older
//! nodeagent are plain text. Memory is one line of each stream, at most [`MOST_HELD`] bytes.

use container_init::log::{HEAD, TIME};

/// Bytes of a line that are held until its end comes; a longer one is told in pieces.
const MOST_HELD: usize = 64 * 1024;

/// One of a process's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What is shown of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only lines of this time and later, in the log's own spelling.
    pub since: Option<[u8; TIME]>,
    /// Only this stream.
    pub stream: Option<Stream>,
    /// Whether lines begin with their times.
    pub timestamps: bool,
}

struct Record<'a> {
    time: &'a [u8],
    stream: Stream,
    is_full: bool,
    text: &'a [u8],
}

/// A record, when the line is one.
fn record(line: &[u8]) -> Option<Record<'_>> {
    let (head, text) = line.split_at_checked(HEAD)?;
    let (time, rest) = head.split_at_checked(TIME)?;
    let shape = b"0000-00-00T00:00:00.000000000Z";
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    };
    let (stream, is_full) = match rest {
        b" stdout F " => (Stream::Stdout, true),
        b" stdout P " => (Stream::Stdout, false),
        b" stderr F " => (Stream::Stderr, true),
        b" stderr P " => (Stream::Stderr, false),
        _ => return None,
    };
    time.iter().zip(shape).all(fits).then_some(Record {
        time,
        stream,
        is_full,
        text,
    })
}

/// Turns a log into what is shown, piece by piece.
#[derive(Debug)]
pub(super) struct Shown {
    selection: Selection,
    /// A line of the file whose end was not read yet.
    unread: Vec<u8>,
    /// The line that `unread` began was told in pieces, as it is.
    raw: bool,
    /// Parts of a line of each stream.
    held: [Vec<u8>; 2],
    /// Whether the last record was new enough: what is no record goes with it.
    is_new: bool,
}

impl Shown {
    pub fn new(selection: Selection) -> Self {
        Self {
            selection,
            unread: Vec::new(),
            raw: false,
            held: Default::default(),
            is_new: true,
        }
    }

    /// What is shown of the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        while let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
            let (end, rest) = bytes.split_at(at);
            bytes = rest.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.raw) {
                self.raw_text(end, &mut out);
                self.raw_text(b"\n", &mut out);
            } else if self.unread.is_empty() {
                self.line(end, &mut out);
            } else {
                self.unread.extend_from_slice(end);
                let line = std::mem::take(&mut self.unread);
                self.line(&line, &mut out);
            }
        }
        if self.raw {
            self.raw_text(bytes, &mut out);
        } else {
            self.unread.extend_from_slice(bytes);
            if self.unread.len() > MOST_HELD {
                let begun = std::mem::take(&mut self.unread);
                self.raw = true;
                self.raw_text(&begun, &mut out);
            }
        }
        out
    }

    /// What is left when nothing more comes: lines without an end.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out: Vec<u8> = self.held.iter_mut().flat_map(std::mem::take).collect();
        let rest = std::mem::take(&mut self.unread);
        self.raw_text(&rest, &mut out);
        out
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = record(line) else {
            self.raw_text(line, out);
            return self.raw_text(b"\n", out);
        };
        let since = self.selection.since;
        self.is_new = since.is_none_or(|since| record.time >= since.as_slice());
        let wanted = self.selection.stream.is_none_or(|stream| stream == record.stream);
        if !self.is_new || !wanted {
            return;
        }
        let [stdout, stderr] = &mut self.held;
        let held = match record.stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        if held.is_empty() && self.selection.timestamps {
            held.extend_from_slice(record.time);
            held.push(b' ');
        }
        held.extend_from_slice(record.text);
        if record.is_full {
            held.push(b'\n');
        }
        if record.is_full || held.len() > MOST_HELD {
            out.append(held);
        }
    }

    /// Of neither stream, and without a time.
    fn raw_text(&self, text: &[u8], out: &mut Vec<u8>) {
        if self.is_new && self.selection.stream.is_none() {
            out.extend_from_slice(text);
        }
    }
}
