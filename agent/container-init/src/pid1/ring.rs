//! The exit ring as a file: preallocated, one synchronous record for every end.

use core::ffi::CStr;

use container_init::exits::{Cursor, ExitRecord, FILE_SIZE};

use super::say::{Number, say};
use super::sys::{self, Errno, Fd, Open};

/// The open ring, or nothing when it could not be had: the events still tell.
pub struct Ring {
    file: Option<(Fd, Cursor)>,
}

impl Ring {
    /// Opens the ring before any process of the container runs, so that none of them can have
    /// put something else in its place.
    pub fn open(path: &CStr) -> Self {
        if path.is_empty() {
            return Self { file: None };
        }
        let file = prepare(path).map_err(|errno| {
            say(&[
                b"exit ring ",
                path.to_bytes(),
                b": errno ",
                Number::new(errno.0).as_bytes(),
            ]);
        });
        Self { file: file.ok() }
    }

    /// Writes a record and waits until the disk has it.
    pub fn record(&mut self, record: &ExitRecord) {
        let Some((file, cursor)) = &mut self.file else {
            return;
        };
        let written = sys::pwrite(file, &record.encode(), cursor.advance())
            .and_then(|_| sys::fdatasync(file));
        if let Err(errno) = written {
            say(&[
                b"exit ring: cannot write: errno ",
                Number::new(errno.0).as_bytes(),
            ]);
        }
    }
}

fn prepare(path: &CStr) -> sys::Result<(Fd, Cursor)> {
    let file = sys::open(path, Open::ReadWrite)?;
    let facts = sys::facts(&file)?;
    if !facts.is_own_regular {
        return Err(Errno::EACCES);
    }
    if facts.size < FILE_SIZE as u64 {
        sys::fallocate(&file, FILE_SIZE)?;
    }
    let mut content = [0; FILE_SIZE];
    let length = sys::pread(&file, &mut content, 0)?;
    let cursor = Cursor::after(content.get(..length).unwrap_or_default());
    Ok((file, cursor))
}
