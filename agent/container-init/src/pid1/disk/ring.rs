//! The exit ring as a file: preallocated, one record for every end.

use core::ffi::CStr;
use core::mem::MaybeUninit;

use container_init::exits::{Cursor, ExitRecord, FILE_SIZE, Pending};

use crate::pid1::say::{Number, say};
use crate::pid1::sys::{self, Errno, Fd, Open};

/// PID 1's side: where the next record goes.
pub struct Ring {
    file: &'static RingFile,
    cursor: Cursor,
}

/// The open file, and what is on its way to it.
pub struct RingFile {
    file: Fd,
    pending: &'static Pending,
}

impl Ring {
    /// Opens the ring before any process of the container runs, so that none of them can have
    /// put something else in its place. Without it the events still tell.
    pub fn open(
        path: &CStr,
        room: &'static mut MaybeUninit<RingFile>,
        pending: &'static Pending,
    ) -> Option<Self> {
        if path.is_empty() {
            return None;
        }
        match prepare(path) {
            Ok((file, cursor)) => Some(Self {
                file: room.write(RingFile { file, pending }),
                cursor,
            }),
            Err(errno) => {
                say(&[
                    b"exit ring ",
                    path.to_bytes(),
                    b": errno ",
                    Number::new(errno.0).as_bytes(),
                ]);
                None
            }
        }
    }

    /// The file.
    pub fn file(&self) -> &'static RingFile {
        self.file
    }

    /// Leaves a record for the file.
    pub fn record(&mut self, record: &ExitRecord) {
        let offset = self.cursor.advance();
        self.file.pending.put(offset, &record.encode());
    }
}

impl RingFile {
    /// Hands what is pending to the kernel, which keeps it over our end.
    pub fn write(&self) {
        for (offset, record) in self.pending.take() {
            if let Err(errno) = sys::pwrite(&self.file, &record, offset) {
                say(&[
                    b"exit ring: cannot write: errno ",
                    Number::new(errno.0).as_bytes(),
                ]);
            }
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
