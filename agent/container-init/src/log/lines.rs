//! Bytes of a process as records: one for a line, more for a line that is too long for one.

use super::time::TIME;

/// Which of its streams a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// As in a record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// The stream that [`as_str`](Self::as_str) names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.as_str() == name)
    }
}

/// Whether a line ends with its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// It does.
    Full,
    /// The next record of the stream goes on with it.
    Partial,
}

/// Bytes before the text of a record.
pub const HEAD: usize = TIME + 10;

/// What stands before the text: time, stream and tag, each with a blank behind it.
pub fn head(time: [u8; TIME], stream: Stream, tag: Tag) -> [u8; HEAD] {
    let mut head = *b"000000000000000000000000000000 stdout F ";
    for (room, byte) in head.iter_mut().zip(time) {
        *room = byte;
    }
    if stream == Stream::Stderr {
        head[TIME + 4..TIME + 7].copy_from_slice(b"err");
    }
    if tag == Tag::Partial {
        head[TIME + 8] = b'P';
    }
    head
}

/// One record's text, without a line break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// As it was written.
    pub text: &'a [u8],
    /// Whether a line break followed.
    pub tag: Tag,
}

/// The parts of what a process wrote. What has no line break yet is left for the next time, as long
/// as it is short.
#[derive(Debug)]
pub struct Parts<'a> {
    bytes: &'a [u8],
    most_left: usize,
}

impl<'a> Parts<'a> {
    /// Of `bytes`, which begin with what was left; more than `most_left` are not left again.
    pub fn new(bytes: &'a [u8], most_left: usize) -> Self {
        Self { bytes, most_left }
    }

    /// After the last part: what is left, at most `most_left` bytes.
    pub fn left(&self) -> &'a [u8] {
        self.bytes
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let (text, tag, rest) = match self.bytes.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let (text, rest) = self.bytes.split_at_checked(at)?;
                (text, Tag::Full, rest.get(1..)?)
            }
            None if self.bytes.len() > self.most_left => (self.bytes, Tag::Partial, &[][..]),
            None => return None,
        };
        self.bytes = rest;
        Some(Part { text, tag })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::rfc3339;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn a_head_says_time_stream_and_tag() {
        let time = rfc3339(1_475_713_029, 669_794_202);
        for (stream, tag, told) in [
            (
                Stream::Stdout,
                Tag::Full,
                &b"2016-10-06T00:17:09.669794202Z stdout F "[..],
            ),
            (
                Stream::Stderr,
                Tag::Partial,
                b"2016-10-06T00:17:09.669794202Z stderr P ",
            ),
        ] {
            assert_eq!(head(time, stream, tag), told);
        }
    }

    #[test]
    fn lines_are_full_short_rests_stay_and_long_ones_are_parts() {
        let split = |bytes: &'static [u8]| {
            let mut parts = Parts::new(bytes, 3);
            let told: Vec<_> = parts.by_ref().map(|part| (part.text, part.tag)).collect();
            (told, parts.left())
        };
        let full = |text: &'static [u8]| (text, Tag::Full);
        assert_eq!(split(b""), (Vec::new(), &b""[..]));
        assert_eq!(split(b"\n"), (Vec::from([full(b"")]), &b""[..]));
        assert_eq!(
            split(b"a\n\nb\r\n"),
            (Vec::from([full(b"a"), full(b""), full(b"b\r")]), &b""[..])
        );
        assert_eq!(split(b"a\nbcd"), (Vec::from([full(b"a")]), &b"bcd"[..]));
        let (parts, left) = split(b"a\nbcde");
        assert_eq!(
            (parts, left),
            (
                Vec::from([full(b"a"), (&b"bcde"[..], Tag::Partial)]),
                &b""[..]
            )
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_added_however_it_is_read(
            written in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            pieces in proptest::collection::vec(1usize..40, 1..20), most_left in 0usize..20,
        ) {
            let (mut told, mut left, mut rest) = (Vec::new(), Vec::new(), &written[..]);
            for piece in pieces.iter().cycle() {
                if rest.is_empty() { break; }
                let (read, unread) = rest.split_at(rest.len().min(*piece));
                rest = unread;
                left.extend_from_slice(read);
                let mut parts = Parts::new(&left, most_left);
                for part in parts.by_ref() {
                    prop_assert!(!part.text.contains(&b'\n'));
                    told.extend_from_slice(part.text);
                    if part.tag == Tag::Full { told.push(b'\n'); }
                }
                prop_assert!(parts.left().len() <= most_left);
                let kept = parts.left().to_vec();
                left = kept;
            }
            told.extend_from_slice(&left);
            prop_assert_eq!(told, written);
        }
    }
}
