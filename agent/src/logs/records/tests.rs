use container_init::log::{Tag, head, rfc3339};
use proptest::prelude::*;

use super::super::tail::Tail;
use super::*;

/// One line of a file.
#[derive(Debug, Clone)]
enum Line {
    Record(u64, Stream, Tag, String),
    Raw(String),
}

fn time(second: u64) -> [u8; TIME] {
    rfc3339(1_700_000_000 + second, 5)
}

fn file(lines: &[Line]) -> Vec<u8> {
    let mut file = Vec::new();
    for line in lines {
        match line {
            Line::Record(second, stream, tag, text) => {
                file.extend_from_slice(&head(time(*second), *stream, *tag));
                file.extend_from_slice(text.as_bytes());
            }
            Line::Raw(text) => file.extend_from_slice(text.as_bytes()),
        }
        file.push(b'\n');
    }
    file
}

fn shown(file: &[u8], selection: &Selection, skipped: u64) -> Vec<u8> {
    let mut text = Text::new(selection.clone(), skipped);
    let mut told = text.push(file);
    told.extend(text.finish());
    told
}

fn told(lines: &[Line], selection: Selection) -> String {
    String::from_utf8(shown(&file(lines), &selection, 0)).unwrap()
}

fn out(second: u64, text: &str) -> Line {
    Line::Record(second, Stream::Stdout, Tag::Full, text.to_owned())
}

fn err(second: u64, text: &str) -> Line {
    Line::Record(second, Stream::Stderr, Tag::Full, text.to_owned())
}

fn part(second: u64, stream: Stream, text: &str) -> Line {
    Line::Record(second, stream, Tag::Partial, text.to_owned())
}

fn raw(text: &str) -> Line {
    Line::Raw(text.to_owned())
}

#[test]
fn records_are_read_as_container_init_writes_them_and_nothing_else_is_one() {
    let line = b"2016-10-06T00:17:09.669794202Z stdout F some text";
    let (head, text) = record(line).unwrap();
    assert_eq!((head.stream, head.is_full), (Stream::Stdout, true));
    assert_eq!((&head.time[..], text), (&line[..TIME], &b"some text"[..]));
    let empty = b"2016-10-06T00:17:09.669794202Z stderr P ";
    let (head, text) = record(empty).unwrap();
    assert_eq!(
        (head.stream, head.is_full, text),
        (Stream::Stderr, false, &b""[..])
    );
    for other in [
        "",
        "2016-10-06T00:17:09.669794202Z stderr P",
        "2016-10-06T00:17:09.669794202Z stdlog F text",
        "2016-10-06T00:17:09.669794202Z stdout X text",
        "2016-10-06 00:17:09.669794202Z stdout F text",
        "2016-10-06T00:17:09.669794202+01:00 stdout F text",
        "2016-10-06T00:17:09.6697942Z stdout F text and more of it",
    ] {
        assert_eq!(record(other.as_bytes()), None, "{other}");
    }
}

#[test]
fn the_parts_of_a_line_are_joined_whatever_stands_between_them() {
    let lines = [
        part(1, Stream::Stdout, "one "),
        part(1, Stream::Stderr, "a"),
        raw("plain"),
        err(2, "b"),
        part(2, Stream::Stdout, "two "),
        out(3, "three"),
        out(4, ""),
        part(5, Stream::Stdout, "unfinished"),
    ];
    let all = Selection::default();
    assert_eq!(
        told(&lines, all.clone()),
        "plain\nab\none two three\n\nunfinished"
    );
    let of = |stream| Selection {
        stream: Some(stream),
        ..all.clone()
    };
    assert_eq!(
        told(&lines, of(Stream::Stdout)),
        "one two three\n\nunfinished"
    );
    assert_eq!(told(&lines, of(Stream::Stderr)), "ab\n");
}

#[test]
fn a_line_has_the_time_of_its_end() {
    let lines = [
        out(1, "old"),
        part(1, Stream::Stdout, "begun "),
        out(2, "ended"),
        raw("plain"),
        err(3, "new"),
    ];
    let selection = Selection {
        since: Some(time(2)),
        stream: None,
        timestamps: true,
    };
    assert_eq!(
        told(&lines, selection),
        "2023-11-14T22:13:22.000000005Z begun ended\nplain\n2023-11-14T22:13:23.000000005Z new\n"
    );
}

#[test]
fn a_line_of_any_length_is_told_whole_and_held_in_part() {
    let long = "x".repeat(10_000);
    let mut lines = vec![part(1, Stream::Stdout, &long); 50];
    lines.push(out(1, "end"));
    lines.push(out(2, "next"));
    let (mut text, mut told) = (Text::new(Selection::default(), 0), Vec::new());
    for piece in file(&lines).chunks(7777) {
        told.extend(text.push(piece));
        assert!(text.held[0].text.len() <= MOST_HELD && text.unread.len() <= MOST_HELD);
    }
    assert_eq!(
        told,
        format!("{}end\nnext\n", "x".repeat(500_000)).into_bytes()
    );

    let mut endless = Text::new(Selection::default(), 0);
    let mut length = 0;
    for _ in 0..100 {
        length += endless.push(long.as_bytes()).len();
        assert!(endless.unread.len() <= MOST_HELD);
    }
    length += endless.push(b"y\n").len();
    assert_eq!(length, 1_000_002);
}

#[test]
fn a_gap_begins_on_a_line_of_its_own_and_joins_nothing() {
    let mut text = Text::new(Selection::default(), 0);
    let before = file(&[out(1, "one"), part(1, Stream::Stdout, "begun")]);
    let mut told = text.push(&before);
    told.extend(text.gap("missing"));
    told.extend(text.push(&file(&[out(2, "two")])));
    assert_eq!(told, b"one\nbegun\nmissing\ntwo\n");
}

fn any_stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]
}

fn any_line() -> impl Strategy<Value = Line> {
    let tag = prop_oneof![3 => Just(Tag::Full), 2 => Just(Tag::Partial)];
    // Clocks are set back, too.
    let record = (0..20u64, any_stream(), tag, "[a-z ]{0,6}")
        .prop_map(|(second, stream, tag, text)| Line::Record(second, stream, tag, text));
    prop_oneof![5 => record, 1 => "[a-zA-Z0-9 ]{0,60}".prop_map(Line::Raw)]
}

fn any_selection() -> impl Strategy<Value = Selection> {
    let since = proptest::option::of((0..20u64).prop_map(time));
    (since, proptest::option::of(any_stream()), any::<bool>()).prop_map(
        |(since, stream, timestamps)| Selection {
            since,
            stream,
            timestamps,
        },
    )
}

/// Cuts into pieces of these lengths, again and again.
fn cut<'a>(mut bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at(bytes.len().min(*length));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// The lines that are told one by one: each record and raw line by itself, then what is left.
fn lines_told(file: &[u8], selection: &Selection) -> Vec<Vec<u8>> {
    let mut text = Text::new(selection.clone(), 0);
    let mut told: Vec<Vec<u8>> = file
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| text.push(line))
        .filter(|line| !line.is_empty())
        .collect();
    // What is left are the two streams' lines and at last the file's: told apart by taking one away.
    let rest = text.finish();
    if !rest.is_empty() {
        told.push(rest);
    }
    told
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_text(
        lines in proptest::collection::vec(any_line(), 0..40), selection in any_selection(),
        lengths in proptest::collection::vec(1usize..90, 1..8), unfinished in 0usize..50,
    ) {
        let mut file = file(&lines);
        file.truncate(file.len().saturating_sub(unfinished));
        let whole = shown(&file, &selection, 0);
        let mut text = Text::new(selection, 0);
        let mut told = Vec::new();
        for piece in cut(&file, &lengths) {
            told.extend(text.push(piece));
        }
        told.extend(text.finish());
        prop_assert_eq!(told, whole);
    }

    #[test]
    fn arbitrary_bytes_are_shown_as_they_are_unless_they_are_records(bytes in any::<Vec<u8>>()) {
        prop_assert_eq!(shown(&bytes, &Selection::default(), 0), bytes);
    }

    #[test]
    fn the_last_lines_are_the_last_of_all_lines(
        mut lines in proptest::collection::vec(any_line(), 0..40), selection in any_selection(),
        lengths in proptest::collection::vec(1usize..90, 1..8), wanted in 1u64..12,
    ) {
        // Whatever was begun is finished, so that each line told ends with a break.
        lines.extend([out(19, "end"), err(19, "end")]);
        let file = file(&lines);
        let all = lines_told(&file, &selection);
        let expected = all[all.len().saturating_sub(wanted as usize)..].concat();

        let mut tail = Tail::new(selection.clone(), wanted);
        let (mut end, mut begin) = (file.len(), None);
        for length in lengths.iter().cycle() {
            let from = end.saturating_sub(*length);
            if let Some(at) = tail.push(&file[from..end]) {
                begin = Some(from + at);
                break;
            }
            end = from;
            if end == 0 {
                break;
            }
        }
        let begin = begin.unwrap_or_else(|| {
            tail.finish();
            0
        });
        prop_assert_eq!(shown(&file[begin..], &selection, tail.skipped()), expected);
    }
}
