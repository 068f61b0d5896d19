//! Any bytes as a blob, behind the magic of each format.
#![no_main]

use std::io::{Cursor, Read as _};

use imagecache::inflate::Inflate;
use libfuzzer_sys::fuzz_target;

/// Enough to leave every window behind; bombs are what reads the archive counts.
const MOST: u64 = 1 << 20;

/// What stands beside what is read into, and how much of it.
const GUARD: u8 = 0xa5;
const BESIDE: usize = 512;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (format, piece, bytes) = input;
    let magic: &[u8] = match format % 4 {
        0 => b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
        1 => b"\x1f\x8b\x08",
        2 => b"\x28\xb5\x2f\xfd",
        _ => b"",
    };
    let blob = [magic, bytes].concat();
    let Ok(inflate) = Inflate::new(Cursor::new(blob)) else {
        return;
    };
    let mut inflate = inflate.take(MOST);
    // C writes here: nothing beside the piece may change.
    let length = 1 + usize::from(piece) * 257;
    let mut room = vec![GUARD; length + 2 * BESIDE];
    loop {
        let read = inflate.read(&mut room[BESIDE..BESIDE + length]);
        let (before, after) = (&room[..BESIDE], &room[BESIDE + length..]);
        assert!(before.iter().chain(after).all(|byte| *byte == GUARD));
        match read {
            Ok(0) => return,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    // An error stays one, and is no end.
    assert!(inflate.read(&mut room[..length]).is_err());
});
