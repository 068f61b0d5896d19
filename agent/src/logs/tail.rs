//! Where the last lines begin.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are looked at in one go.
const BLOCK: u64 = 64 * 1024;

/// Where the last `lines` lines before `end` begin. Reads backwards, one block at a time.
pub(super) fn start(file: &File, end: u64, lines: u64) -> io::Result<u64> {
    let mut left = lines;
    if left == 0 {
        return Ok(end);
    }
    let mut block = [0; BLOCK as usize];
    let mut begin = end;
    while begin > 0 {
        let from = begin.saturating_sub(BLOCK);
        let room = usize::try_from(begin - from).unwrap_or(0);
        let bytes = block.get_mut(..room).unwrap_or_default();
        match file.read_exact_at(bytes, from) {
            // It was made shorter meanwhile: what is left is all there is.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            other => other?,
        }
        for (index, _) in bytes
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            let next = from + index as u64 + 1;
            // The break that ends the last line begins none.
            if next == end {
                continue;
            }
            left -= 1;
            if left == 0 {
                return Ok(next);
            }
        }
        begin = from;
    }
    Ok(0)
}
