//! One log and its older files. The directory can be the container's to write: nothing in it is
//! followed, and only a plain file with one name is written to.

use core::ffi::CStr;

use container_init::log::{Losses, Rotation, Step, Stream, TIME, Tag, head};
use container_init::plan::Log;

use super::super::say::{Number, say};
use super::super::sys::{self, Errno, Fd, Remove};

/// NAME_MAX, a dot, three digits and NUL.
const NAME: usize = 260;

/// A log that is appended to.
pub struct LogFile {
    directory: Fd,
    name: &'static CStr,
    file: Option<Fd>,
    rotation: Rotation,
    losses: Losses,
    /// The last record was cut off: the next one begins on a line of its own.
    torn: bool,
    /// What was said and is still so.
    said: Option<Errno>,
    /// That it cannot be rotated was said.
    stuck: Option<Errno>,
}

impl LogFile {
    /// Of this name in this directory.
    pub fn new(directory: Fd, name: &'static CStr, log: Log<'_>) -> Self {
        Self {
            directory,
            name,
            file: None,
            rotation: Rotation::new(log.max_bytes, log.max_files),
            losses: Losses::default(),
            torn: false,
            said: None,
            stuck: None,
        }
    }

    /// Opens it, so that it is there before anything is written.
    pub fn open(&mut self) {
        match self.opened() {
            Ok(()) => self.said = None,
            Err(errno) => complain(self.name, &mut self.said, b"cannot be opened", errno),
        }
    }

    /// Appends whole records. What cannot be written is counted, and told before the next that can.
    pub fn append(&mut self, records: &[u8], time: [u8; TIME]) {
        if records.is_empty() {
            return;
        }
        if self.file.is_some() && self.rotation.is_due(records.len()) {
            self.rotate();
        }
        if self.file.is_none() {
            self.open();
        }
        if let Err((errno, missing)) = self.write(records, time) {
            self.losses.add(missing, errno.0);
            let what = b"cannot be written: lines are lost";
            complain(self.name, &mut self.said, what, errno);
        } else {
            self.said = None;
        }
    }

    fn opened(&mut self) -> sys::Result<()> {
        let file = sys::open_for_log(&self.directory, self.name)?;
        let facts = sys::facts(&file)?;
        if !facts.is_own_regular {
            return Err(Errno::EACCES);
        }
        self.rotation.opened(facts.size);
        self.file = Some(file);
        Ok(())
    }

    /// How many bytes are missing, on a failure.
    fn write(&mut self, records: &[u8], time: [u8; TIME]) -> Result<(), (Errno, usize)> {
        let all = |errno| (errno, records.len());
        if self.torn {
            self.put(b"\n").map_err(|(errno, _)| all(errno))?;
            self.torn = false;
        }
        if let Some(notice) = self.losses.notice() {
            for part in [
                &head(time, Stream::Stderr, Tag::Full),
                notice.as_bytes(),
                b"\n",
            ] {
                self.put(part).map_err(|(errno, _)| all(errno))?;
            }
            self.losses.told();
        }
        self.put(records)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), (Errno, usize)> {
        let Some(file) = &self.file else {
            return Err((self.said.unwrap_or(Errno::ENOENT), bytes.len()));
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            match sys::write_raw(file.raw(), rest) {
                Ok(written) => {
                    self.rotation.wrote(written);
                    rest = rest.get(written..).unwrap_or_default();
                    self.torn = !rest.is_empty();
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err((errno, rest.len())),
            }
        }
        Ok(())
    }

    fn rotate(&mut self) {
        let (mut from_room, mut to_room) = ([0; NAME], [0; NAME]);
        for step in self.rotation.steps() {
            let done = match step {
                Step::Remove => sys::remove_at(&self.directory, self.name, Remove::File),
                Step::Rename { from, to } => {
                    match (
                        numbered(self.name, from, &mut from_room),
                        numbered(self.name, to, &mut to_room),
                    ) {
                        (Some(from), Some(to)) => sys::rename_at(&self.directory, from, to),
                        _ => Err(Errno::ENAMETOOLONG),
                    }
                }
            };
            match done {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    self.rotation.failed();
                    let what = b"cannot be rotated and is written on";
                    return complain(self.name, &mut self.stuck, what, errno);
                }
            }
        }
        self.stuck = None;
        self.file = None;
    }
}

/// Says it once, until it is over or another reason comes.
fn complain(name: &CStr, said: &mut Option<Errno>, what: &[u8], errno: Errno) {
    if said.replace(errno) != Some(errno) {
        say(&[
            b"log ",
            name.to_bytes(),
            b" ",
            what,
            b": errno ",
            Number::new(errno.0).as_bytes(),
        ]);
    }
}

/// `NAME.number`; the name itself for 0.
fn numbered<'r>(name: &CStr, number: u8, room: &'r mut [u8; NAME]) -> Option<&'r CStr> {
    let digits = Number::new(i32::from(number));
    let suffix = [&b"."[..], digits.as_bytes()];
    let mut length = 0;
    let suffix = suffix.into_iter().filter(|_| number != 0);
    for part in [name.to_bytes()]
        .into_iter()
        .chain(suffix)
        .chain([&b"\0"[..]])
    {
        room.get_mut(length..)?
            .get_mut(..part.len())?
            .copy_from_slice(part);
        length += part.len();
    }
    CStr::from_bytes_with_nul(room.get(..length)?).ok()
}
