//! Lines of a file of the kernel's, which are short.

use core::ffi::CStr;

use super::sys::{self, Open};

/// Hands every line to `each`; a line longer than the room is cut.
pub fn each(path: &CStr, mut each: impl FnMut(&[u8])) -> sys::Result<()> {
    let file = sys::open(path, Open::Read)?;
    let mut room = [0u8; 4096];
    let mut length = 0;
    loop {
        let more = sys::read(&file, room.get_mut(length..).unwrap_or_default())?;
        length += more;
        let text = room.get(..length).unwrap_or_default();
        let end = match text.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => at + 1,
            None if more == 0 || length == room.len() => length,
            None => continue,
        };
        let whole = text.get(..end).unwrap_or_default();
        whole.split(|byte| *byte == b'\n').for_each(&mut each);
        if more == 0 {
            return Ok(());
        }
        room.copy_within(end..length, 0);
        length -= end;
    }
}
