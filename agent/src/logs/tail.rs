//! Counting lines from the end of a log.

use container_init::log::{HEAD, Stream};

use super::records::{Selection, record};

/// Bytes before the last line that is wanted in which the beginnings of lines are looked for, whose
/// parts stand between those of the other stream.
const MOST_BEFORE: usize = 1024 * 1024;

/// Finds where the last lines begin. It is shown the log from its end, block by block.
#[derive(Debug)]
pub(super) struct Tail {
    selection: Selection,
    /// Lines that are still wanted.
    wanted: u64,
    /// Lines that were met beyond these.
    beyond: u64,
    /// Bytes that were looked at since the last wanted one.
    looked: usize,
    streams: [Seen; 2],
    /// The first bytes of the line whose beginning was not met yet.
    line: Vec<u8>,
    /// Nothing was met yet, not even a line break.
    is_at_end: bool,
}

/// What was met of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    /// The end of a wanted line, not yet the end of the one before.
    End,
    /// That, too.
    All,
}

impl Tail {
    pub fn new(selection: Selection, lines: u64) -> Self {
        Self {
            selection,
            wanted: lines,
            beyond: 0,
            looked: 0,
            streams: [Seen::Nothing; 2],
            line: Vec::with_capacity(2 * HEAD),
            is_at_end: true,
        }
    }

    /// The bytes before those of the last call. When it has enough, where in them the text begins
    /// that has the wanted lines, after [`Tail::skipped`] others.
    pub fn push(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut rest = bytes;
        while let Some(at) = rest.iter().rposition(|byte| *byte == b'\n') {
            let (before, from) = rest.split_at(at);
            let begin = from.get(1..).unwrap_or_default();
            self.put_before(begin);
            // The break that ends the last line begins none.
            if !(std::mem::take(&mut self.is_at_end) && self.line.is_empty()) {
                self.met();
            }
            self.line.clear();
            self.looked += from.len();
            if self.has_enough() {
                return Some(at + 1);
            }
            rest = before;
        }
        self.put_before(rest);
        None
    }

    /// There is nothing before.
    pub fn finish(&mut self) {
        if !(self.is_at_end && self.line.is_empty()) {
            self.met();
        }
    }

    /// Lines between the place and the wanted ones.
    pub fn skipped(&self) -> u64 {
        self.beyond
    }

    fn put_before(&mut self, bytes: &[u8]) {
        let head = bytes.get(..HEAD.min(bytes.len())).unwrap_or_default();
        self.line.splice(..0, head.iter().copied());
        self.line.truncate(HEAD);
    }

    fn has_enough(&self) -> bool {
        let is_whole = self.streams.iter().all(|seen| *seen != Seen::End);
        self.wanted == 0 && (is_whole || self.looked > MOST_BEFORE)
    }

    /// A line, by its head.
    fn met(&mut self) {
        let Some((head, _)) = record(&self.line) else {
            if self.selection.has_raw() {
                self.count();
            }
            return;
        };
        if !self.selection.has_stream(head.stream) {
            return;
        }
        let [stdout, stderr] = self.streams;
        let seen = match head.stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        // A part is an end only when nothing of its stream came after it.
        if !head.is_full && seen != Seen::Nothing {
            return;
        }
        let seen = match self.selection.has_time(&head.time) && self.count() {
            true => Seen::End,
            false => Seen::All,
        };
        let [stdout, stderr] = &mut self.streams;
        match head.stream {
            Stream::Stdout => *stdout = seen,
            Stream::Stderr => *stderr = seen,
        }
    }

    /// Whether the line is one of the wanted.
    fn count(&mut self) -> bool {
        if self.wanted == 0 {
            self.beyond += 1;
            return false;
        }
        self.wanted -= 1;
        self.looked = 0;
        true
    }
}
