//! The exit ring as a file: preallocated, one record for every end, which the disk has before PID 1
//! waits for anything else.

use core::ffi::CStr;

use container_init::exits::{Cursor, ExitRecord, FILE_SIZE};

use super::say::{Number, say};
use super::sys::{self, Errno, Fd, Open};

/// The open ring, or nothing when it could not be had: the events still tell.
pub struct Ring {
    file: Option<(Fd, Cursor)>,
    /// The disk has all that was written.
    synced: bool,
}

impl Ring {
    /// Opens the ring before any process of the container runs, so that none of them can have
    /// put something else in its place.
    pub fn open(path: &CStr) -> Self {
        if path.is_empty() {
            return Self::of(None);
        }
        let file = prepare(path).map_err(|errno| {
            say(&[
                b"exit ring ",
                path.to_bytes(),
                b": errno ",
                Number::new(errno.0).as_bytes(),
            ]);
        });
        Self::of(file.ok())
    }

    fn of(file: Option<(Fd, Cursor)>) -> Self {
        Self { file, synced: true }
    }

    /// Writes a record.
    pub fn record(&mut self, record: &ExitRecord) {
        if let Some((file, cursor)) = &mut self.file {
            self.synced = false;
            told(sys::pwrite(file, &record.encode(), cursor.advance()).map(drop));
        }
    }

    /// Waits until the disk has every record. What an end leads to, above all the signal to the
    /// next one in a stop, need not wait for that.
    pub fn sync(&mut self) {
        if let Some((file, _)) = &self.file
            && !core::mem::replace(&mut self.synced, true)
        {
            told(sys::fdatasync(file));
        }
    }
}

fn told(written: sys::Result<()>) {
    if let Err(errno) = written {
        say(&[
            b"exit ring: cannot write: errno ",
            Number::new(errno.0).as_bytes(),
        ]);
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
