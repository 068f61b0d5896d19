//! From records of the CRI format to what people read: text, chosen by time and stream, the parts of
//! a line joined.
//!
//! A line has the time of its end. What is no record is shown as it is: containers can write into
//! their logs, and those of an older nodeagent are plain text. Memory is one line of each stream, at
//! most [`MOST_HELD`] bytes and a piece.

use container_init::log::{HEAD, Stream, TIME};

/// Bytes of a line that are held until its end comes; a longer one is told in pieces.
const MOST_HELD: usize = 64 * 1024;

/// What is shown of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// Only lines of this time and later, in the log's own spelling.
    pub since: Option<[u8; TIME]>,
    /// Only this stream.
    pub stream: Option<Stream>,
    /// Whether lines begin with their times.
    pub timestamps: bool,
}

impl Selection {
    pub fn has_stream(&self, stream: Stream) -> bool {
        self.stream.is_none_or(|wanted| wanted == stream)
    }

    pub fn has_time(&self, time: &[u8; TIME]) -> bool {
        self.since.is_none_or(|since| *time >= since)
    }

    /// What is no record has no stream, and no time of its own.
    pub fn has_raw(&self) -> bool {
        self.stream.is_none()
    }
}

/// What a line of a log says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub time: [u8; TIME],
    pub stream: Stream,
    pub is_full: bool,
}

/// Head and text of a record; none when the line is no record. The first [`HEAD`] bytes say it.
pub(super) fn record(line: &[u8]) -> Option<(Head, &[u8])> {
    let (head, text) = line.split_at_checked(HEAD)?;
    let (time, rest) = head.split_first_chunk::<TIME>()?;
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
    let head = Head {
        time: *time,
        stream,
        is_full,
    };
    time.iter().zip(shape).all(fits).then_some((head, text))
}

/// Parts of a line that has not ended.
#[derive(Debug, Default)]
struct Held {
    text: Vec<u8>,
    /// Of the last part; none without a part.
    time: Option<[u8; TIME]>,
    /// What is held goes on a line that was begun.
    begun: bool,
}

/// Turns a log into what is shown, piece by piece: any cut gives the same text.
#[derive(Debug)]
pub(super) struct Text {
    selection: Selection,
    /// Lines that are left out before the first that is shown.
    skipped: u64,
    /// A line of the file whose end was not read yet.
    unread: Vec<u8>,
    /// The line that `unread` began was told in pieces, as it is.
    raw: bool,
    held: [Held; 2],
}

impl Text {
    pub fn new(selection: Selection, skipped: u64) -> Self {
        Self {
            selection,
            skipped,
            unread: Vec::new(),
            raw: false,
            held: Default::default(),
        }
    }

    /// What is shown of the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        while let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
            let (end, rest) = bytes.split_at(at);
            bytes = rest.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.raw) {
                self.raw_part(end, &mut out);
                self.raw_end(&mut out);
            } else if self.unread.is_empty() {
                self.line(end, &mut out);
            } else {
                self.unread.extend_from_slice(end);
                let line = std::mem::take(&mut self.unread);
                self.line(&line, &mut out);
            }
        }
        if self.raw {
            self.raw_part(bytes, &mut out);
        } else {
            self.unread.extend_from_slice(bytes);
            // No record is as long.
            if self.unread.len() > MOST_HELD {
                let begun = std::mem::take(&mut self.unread);
                self.raw = true;
                self.raw_part(&begun, &mut out);
            }
        }
        out
    }

    /// What is left when nothing more comes: lines without an end.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for stream in Stream::ALL {
            let held = self.held(stream);
            let Held { text, time, begun } = std::mem::take(held);
            let Some(time) = time else { continue };
            if self.shows(begun, &time) {
                self.begin(begun, &time, &mut out);
                out.extend_from_slice(&text);
            }
        }
        let rest = std::mem::take(&mut self.unread);
        if !rest.is_empty() {
            // It may be the beginning of a record.
            self.raw_part(&rest, &mut out);
        }
        self.raw = false;
        out
    }

    /// What comes next does not follow on what came last: what is left of that, and a line about it.
    pub fn gap(&mut self, about: &str) -> Vec<u8> {
        let is_begun = self.raw || self.held.iter().any(|held| held.begun);
        let mut out = self.finish();
        if out.last().map_or(is_begun, |byte| *byte != b'\n') {
            out.push(b'\n');
        }
        out.extend_from_slice(about.as_bytes());
        out.push(b'\n');
        out
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some((head, text)) = record(line) else {
            self.raw_part(line, out);
            return self.raw_end(out);
        };
        if !self.selection.has_stream(head.stream) {
            return;
        }
        let held = self.held(head.stream);
        held.time = Some(head.time);
        if head.is_full {
            let Held {
                text: begin, begun, ..
            } = std::mem::take(held);
            if self.shows(begun, &head.time) {
                self.begin(begun, &head.time, out);
                out.extend_from_slice(&begin);
                out.extend_from_slice(text);
                out.push(b'\n');
            }
        } else {
            held.text.extend_from_slice(text);
            if held.text.len() > MOST_HELD {
                let begun = held.begun;
                let begin = std::mem::take(&mut held.text);
                if self.skipped == 0 && (begun || self.selection.has_time(&head.time)) {
                    self.begin(begun, &head.time, out);
                    out.extend_from_slice(&begin);
                    self.held(head.stream).begun = true;
                }
            }
        }
    }

    /// Whether the line that ends now is shown; counts it when not.
    fn shows(&mut self, begun: bool, time: &[u8; TIME]) -> bool {
        if begun {
            return true;
        }
        if !self.selection.has_time(time) {
            return false;
        }
        let is_shown = self.skipped == 0;
        self.skipped = self.skipped.saturating_sub(1);
        is_shown
    }

    fn begin(&self, begun: bool, time: &[u8; TIME], out: &mut Vec<u8>) {
        if !begun && self.selection.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
    }

    fn held(&mut self, stream: Stream) -> &mut Held {
        let [stdout, stderr] = &mut self.held;
        match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        }
    }

    fn raw_part(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if self.selection.has_raw() && self.skipped == 0 {
            out.extend_from_slice(text);
        }
    }

    fn raw_end(&mut self, out: &mut Vec<u8>) {
        if !self.selection.has_raw() {
            return;
        }
        match self.skipped {
            0 => out.push(b'\n'),
            _ => self.skipped -= 1,
        }
    }
}

#[cfg(test)]
mod tests;
