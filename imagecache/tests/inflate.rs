//! Blobs as the machine's own gzip and zstd make them, whole, damaged and hostile.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::fs::File;
use std::io::{self, Cursor, Read, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use imagecache::Digest;
use imagecache::archive::{Bounds, Reader};
use imagecache::inflate::{Format, Hashing, Inflate, InflateError, open};
use imagecache::layer::{LayerError, Limits, Marks, apply};
use proptest::prelude::*;

/// What the program makes of `input`.
fn piped(program: &str, options: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(options.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program} {options}");
    output.stdout
}

fn gzip(input: &[u8]) -> Vec<u8> {
    piped("gzip", "-n -6", input)
}

fn zstd(input: &[u8]) -> Vec<u8> {
    piped("zstd", "-q -3", input)
}

/// Text that repeats itself near and far, noise, and zeros: every kind of DEFLATE block.
fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut content = Vec::with_capacity(length + 1024);
    while content.len() < length {
        match next() % 4 {
            0 => content.extend((0..next() % 900).map(|_| next().to_le_bytes()[0])),
            1 => content.resize(content.len() + (next() % 700) as usize, 0),
            2 if content.len() > 40_000 => {
                let back = content.len() - (next() % 40_000) as usize;
                let end = content.len().min(back + (next() % 2000) as usize);
                content.extend_from_within(back..end);
            }
            _ => content.extend_from_slice(format!("line {} of a file\n", next() % 500).as_bytes()),
        }
    }
    content.truncate(length);
    content
}

fn inflated(blob: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    Inflate::new(Cursor::new(blob))?.read_to_end(&mut out)?;
    Ok(out)
}

/// The typed error inside of what a read gave.
fn refused(blob: &[u8]) -> InflateError {
    let error = inflated(blob).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let inner = error.into_inner().unwrap();
    *inner.downcast::<InflateError>().unwrap()
}

#[test]
fn a_file_comes_out_as_it_went_in_with_its_digest() {
    let place = tempfile::tempdir().unwrap();
    let content = content(3_000_000);
    let mut blobs = vec![("plain".to_owned(), Format::Plain, content.clone())];
    for level in [1, 6, 9] {
        let blob = piped("gzip", &format!("-{level}"), &content);
        blobs.push((format!("gzip -{level}"), Format::Gzip, blob));
    }
    for options in ["-1", "-3", "-19", "--long=25", "-3 --no-check"] {
        let blob = piped("zstd", &format!("-q {options}"), &content);
        blobs.push((format!("zstd {options}"), Format::Zstd, blob));
    }
    for (name, format, blob) in blobs {
        let path = place.path().join("blob");
        std::fs::write(&path, &blob).unwrap();
        let inflate = open(File::open(&path).unwrap()).unwrap();
        assert_eq!(inflate.format(), format, "{name}");
        let mut hashing = Hashing::new(inflate).unwrap();
        let mut out = Vec::new();
        hashing.read_to_end(&mut out).unwrap();
        assert!(out == content, "{name}: {} bytes", out.len());
        assert_eq!(hashing.finish().unwrap(), Digest::of(&content), "{name}");
    }
}

#[test]
fn the_digest_is_of_everything_also_when_the_reader_stops_early() {
    let content = content(2_000_000);
    for read in [0, 1, 700_000, 2_000_000] {
        let mut hashing = Hashing::new(Cursor::new(&content)).unwrap();
        let mut some = vec![0; read];
        hashing.read_exact(&mut some).unwrap();
        assert!(some == content[..read]);
        assert_eq!(hashing.finish().unwrap(), Digest::of(&content), "{read}");
    }
    let nothing = Hashing::new(io::empty()).unwrap();
    assert_eq!(nothing.finish().unwrap(), Digest::of(b""));
}

#[test]
fn a_digest_of_what_could_not_be_read_is_never_given() {
    let content = content(2_000_000);
    let blob = gzip(&content);
    let inflate = Inflate::new(Cursor::new(&blob[..blob.len() / 2])).unwrap();
    let mut hashing = Hashing::new(inflate).unwrap();
    let mut out = Vec::new();
    // As often as one likes: an error is no end.
    for _ in 0..20 {
        let error = hashing.read_to_end(&mut out).unwrap_err();
        assert!(error.to_string().contains("in the middle"), "{error}");
    }
    let error = hashing.finish().unwrap_err();
    assert!(error.to_string().contains("in the middle"), "{error}");
}

#[test]
fn pieces_of_any_size_can_be_read() {
    let content = content(200_000);
    for blob in [gzip(&content), zstd(&content), content.clone()] {
        for size in [1, 7, 511, 40_000, 70_000] {
            let mut inflate = Inflate::new(Cursor::new(&blob)).unwrap();
            let mut out = Vec::new();
            let mut piece = vec![0; size];
            loop {
                match inflate.read(&mut piece).unwrap() {
                    0 => break,
                    read => out.extend_from_slice(&piece[..read]),
                }
            }
            assert!(out == content, "pieces of {size}");
        }
    }
}

/// A reader that gives a byte at a time, and is interrupted before each.
struct Slow<'a>(&'a [u8], bool);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = buffer.len().min(1);
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn a_blob_that_comes_byte_by_byte_is_the_same() {
    let content = content(50_000);
    let mut with_fields = member_with_fields(&content);
    with_fields.extend(gzip(&content));
    let twice = [content.clone(), content.clone()].concat();
    for (blob, expected) in [(with_fields, twice), (zstd(&content), content)] {
        let mut hashing = Hashing::new(Inflate::new(Slow(&blob, true)).unwrap()).unwrap();
        let mut out = Vec::new();
        hashing.read_to_end(&mut out).unwrap();
        assert!(out == expected);
    }
}

#[test]
fn members_and_frames_follow_one_another() {
    let (first, second) = (content(150_000), content(70_000));
    let whole = [first.clone(), second.clone()].concat();
    let members = [gzip(&first), gzip(b""), gzip(&second)].concat();
    assert!(inflated(&members).unwrap() == whole);
    // As eStargz has them: a member for each file.
    let many: Vec<u8> = first.chunks(500).flat_map(gzip).collect();
    assert!(inflated(&many).unwrap() == first);

    let skipped = |length: u32| {
        let mut frame = vec![0x5a, 0x2a, 0x4d, 0x18];
        frame.extend(length.to_le_bytes());
        frame.resize(8 + length as usize, 0xee);
        frame
    };
    let frames = [
        skipped(4),
        zstd(&first),
        skipped(100_000),
        zstd(&second),
        skipped(0),
    ];
    assert!(inflated(&frames.concat()).unwrap() == whole);
}

/// A member with all fields a header can have.
fn member_with_fields(content: &[u8]) -> Vec<u8> {
    let plain = gzip(content);
    let mut header = plain[..10].to_vec();
    header[3] = 0b1_1111;
    header.extend([5, 0]);
    header.extend(b"extra");
    header.extend(b"a name\0");
    header.extend("a comment ".repeat(9000).as_bytes());
    header.push(0);
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&header);
    header.extend(&checksum.finalize().to_le_bytes()[..2]);
    header.extend(&plain[10..]);
    header
}

#[test]
fn every_field_of_a_gzip_header_is_understood() {
    let content = content(100_000);
    let mut blob = member_with_fields(&content);
    assert!(inflated(&blob).unwrap() == content);
    blob[10] = 4;
    assert_eq!(
        refused(&blob).to_string(),
        "the gzip stream is damaged before byte 90027: the checksum of its header is wrong"
    );
    let mut blob = gzip(&content);
    blob[3] = 0x20;
    assert_eq!(
        refused(&blob).to_string(),
        "the gzip stream is damaged before byte 10: its header has flags that are reserved"
    );
}

#[test]
fn only_zeros_may_follow_the_last_member() {
    let content = content(10_000);
    let mut blob = gzip(&content);
    let end = blob.len();
    blob.resize(end + 300_000, 0);
    assert!(inflated(&blob).unwrap() == content);
    blob.push(1);
    let is_trailing = InflateError::Trailing { at: end as u64 };
    assert_eq!(refused(&blob), is_trailing);
    for garbage in [&b"x"[..], b"\x1f\x8b\x09.........", b"\0\x1f\x8b\x08"] {
        let blob = [&gzip(&content), garbage].concat();
        assert_eq!(refused(&blob), is_trailing, "{garbage:?}");
    }
    assert_eq!(
        is_trailing.to_string(),
        format!(
            "the gzip stream ends at byte {end}, and what follows is neither another member nor zeros"
        )
    );
    let blob = [&zstd(&content)[..], b"rubbish"].concat();
    assert_eq!(
        refused(&blob).to_string(),
        format!(
            "the zstd stream is damaged before byte {}: Unknown frame descriptor",
            blob.len() - 7
        )
    );
}

#[test]
fn every_truncation_is_refused() {
    let content = content(5_000);
    let fields = {
        let plain = gzip(&content);
        let mut blob = plain[..10].to_vec();
        blob[3] = 0b1_1100;
        blob.extend(b"\x03\0abcname\0comment\0");
        blob.extend(&plain[10..]);
        blob
    };
    for (blob, magic) in [(gzip(&content), 3), (fields, 3), (zstd(&content), 4)] {
        assert!(inflated(&blob).unwrap() == content);
        for length in magic..blob.len() {
            let error = refused(&blob[..length]);
            assert!(
                matches!(error, InflateError::Truncated { at, .. } if at == length as u64),
                "{length} of {}: {error}",
                blob.len()
            );
        }
        // Less than the magic is an archive of its own, that ends in its first header.
        assert_eq!(inflated(&blob[..2]).unwrap(), &blob[..2]);
    }
    let two = [gzip(&content), gzip(&content)].concat();
    let error = refused(&two[..two.len() / 2 + 5]);
    assert_eq!(
        error.to_string(),
        format!(
            "the gzip stream ends after {} bytes, in the middle of a header",
            two.len() / 2 + 5
        )
    );
}

#[test]
fn a_wrong_checksum_or_length_is_refused() {
    let content = content(100_000);
    let whole = gzip(&content);
    for from_the_end in [1, 4, 5, 8] {
        let mut blob = whole.clone();
        let at = blob.len() - from_the_end;
        blob[at] ^= 1;
        let error = refused(&blob);
        assert!(
            error
                .to_string()
                .ends_with("checksum or length are not those of the data"),
            "{error}"
        );
    }
    let mut blob = zstd(&content);
    *blob.last_mut().unwrap() ^= 1;
    let error = refused(&blob);
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn what_was_found_wrong_stays_wrong() {
    let content = content(100_000);
    for mut blob in [gzip(&content), zstd(&content)] {
        let middle = blob.len() / 2;
        blob[middle..middle + 200].fill(0xff);
        let mut inflate = Inflate::new(Cursor::new(&blob)).unwrap();
        let mut out = Vec::new();
        let first = inflate.read_to_end(&mut out).unwrap_err().to_string();
        for _ in 0..3 {
            let again = inflate.read(&mut [0; 100_000]).unwrap_err();
            assert_eq!(again.to_string(), first);
        }
    }
}

#[test]
fn a_window_that_no_host_should_allocate_is_refused() {
    let refusal = "a frame wants a window of more than 32 MiB";
    for exponent in 0..=31_u8 {
        // RFC 8878, section 3.1.1.1.2: 1 KiB and up to 2 TiB; then one block of no bytes.
        let header = [0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 1, 0, 0];
        match inflated(&header) {
            Ok(out) => assert!(out.is_empty() && exponent <= 15, "{exponent}"),
            Err(error) => assert!(
                error.to_string().contains(refusal) && exponent > 15,
                "{exponent}: {error}"
            ),
        }
    }
    let content = content(100_000);
    let long = piped("zstd", "-q --long=26", &content);
    assert!(refused(&long).to_string().ends_with(refusal));
}

#[test]
fn a_bomb_does_not_go_off() {
    let place = tempfile::tempdir().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("bomb").unwrap();
    header.set_size(256 << 20);
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.resize(512 + (256 << 20), 0);
    for blob in [piped("gzip", "-1", &archive), zstd(&archive)] {
        assert!(blob.len() < 2 << 20);
        let limits = Limits {
            bytes: 1 << 20,
            ..Limits::default()
        };
        let root = File::open(place.path()).unwrap();
        let hashing = Hashing::new(Inflate::new(Cursor::new(&blob)).unwrap()).unwrap();
        let mut reader = Reader::new(hashing, Bounds::default());
        let refused = apply(&mut reader, root.as_fd(), Marks::Remove, &limits, 1).unwrap_err();
        assert!(
            matches!(&refused, LayerError::TooLarge { what: "bytes", allowed, .. } if *allowed == 1 << 20),
            "{refused}"
        );
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}

/// Reads to the end or the error, at most so much.
fn survives(blob: &[u8]) {
    if let Ok(inflate) = Inflate::new(Cursor::new(blob)) {
        let mut some = Vec::new();
        // What it says is its own affair here: that it says something is what is asked for.
        let said = inflate.take(4 << 20).read_to_end(&mut some);
        drop(said);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn flipped_bits_are_survived_and_never_give_other_content(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..4),
        is_gzip: bool,
    ) {
        let content = content(3_000);
        let mut blob = if is_gzip { gzip(&content) } else { zstd(&content) };
        let start = if is_gzip { 10 } else { 6 };
        for (at, bit) in flips {
            let at = start + at.index(blob.len() - start);
            blob[at] ^= 1 << bit;
        }
        if let Ok(out) = inflated(&blob) {
            prop_assert!(out == content);
        }
    }

    #[test]
    fn any_bytes_behind_a_magic_are_survived(
        magic in prop::sample::select(vec![
            &b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..],
            b"\x1f\x8b\x08",
            b"\x28\xb5\x2f\xfd",
            b"\x50\x2a\x4d\x18",
            b"",
        ]),
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
    ) {
        survives(&[magic, &bytes].concat());
    }
}
