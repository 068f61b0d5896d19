//! The files of one log: `NAME` is written, `NAME.1` is the newest of those that were, `NAME.2` the
//! one before it. They move while they are looked at.
//!
//! A file is known by its inode, which nobody else can have while we hold it open. Rotation moves
//! the oldest file first and a file only ever to the next number, so a look from the written file
//! on misses none. Who is next to a file counts when a second look, after that one was opened, says
//! the same.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, open, statat};

use crate::gate::{UntrustedError, open_untrusted};

/// Most files that a log can have, the one that is written included.
pub const MOST_FILES: u8 = 100;

/// Numbers without a file after which no other is looked for: one is between two moves of a
/// rotation, and one is left where a move failed.
const MOST_MISSING: u8 = 4;
/// Looks at files that move, and the pause between two.
const LOOKS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

/// The files of one log.
#[derive(Debug, Clone)]
pub(super) struct Files {
    directory: PathBuf,
    name: String,
}

/// A file as a look found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    /// 0 is the written one.
    number: u8,
    id: Id,
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// What comes after a file.
#[derive(Debug)]
pub(super) enum Newer {
    /// Nothing yet: it is the newest, of so many bytes.
    None { length: u64 },
    /// This one.
    File(File),
    /// It has no name any more: what came after it may have gone, too. The oldest that is there.
    Unknown(Option<File>),
    /// The directory is gone, and the instance with it.
    Gone,
}

impl Files {
    pub fn new(directory: &Path, name: String) -> Self {
        Self {
            directory: directory.to_owned(),
            name,
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The newest file: the written one, but for the moment, or the full disk, that keeps it from
    /// being made.
    pub fn newest(&self) -> Result<File, UntrustedError> {
        match open_untrusted(&self.directory, &self.name) {
            Err(UntrustedError::Open(error)) if error.kind() == io::ErrorKind::NotFound => {
                let found = self.steady(|links| links.first().copied());
                let found = found.map_err(UntrustedError::Open)?;
                found.ok_or(UntrustedError::Open(error))
            }
            opened => opened,
        }
    }

    /// The oldest file that was written to at `since` or later.
    pub fn oldest(&self, since: Option<SystemTime>) -> io::Result<Option<File>> {
        let mut found = self.steady(|links| links.last().copied())?;
        while let (Some(file), Some(since)) = (&found, since) {
            if file.metadata()?.modified()? >= since {
                break;
            }
            found = match self.newer(file)? {
                Newer::File(newer) | Newer::Unknown(Some(newer)) => Some(newer),
                Newer::None { .. } | Newer::Unknown(None) | Newer::Gone => None,
            };
        }
        Ok(found)
    }

    /// The file before this one; none when it is the oldest or has no name any more.
    pub fn older(&self, file: &File) -> io::Result<Option<File>> {
        let ours = Id::of(&file.metadata()?);
        self.steady(|links| {
            let at = links.iter().rposition(|link| link.id == ours)?;
            links.get(at + 1).copied()
        })
    }

    /// The file after this one.
    pub fn newer(&self, file: &File) -> io::Result<Newer> {
        let ours = Id::of(&file.metadata()?);
        let place = |links: &[Link]| links.iter().position(|link| link.id == ours);
        let next = |links: &[Link]| links.get(place(links)?.checked_sub(1)?).copied();
        for _ in 0..LOOKS {
            let links = self.links()?;
            match (place(&links), next(&links)) {
                (Some(_), None) => {
                    let length = file.metadata()?.len();
                    return Ok(Newer::None { length });
                }
                (Some(_), Some(link)) => {
                    let opened = self.open(link)?;
                    let second = next(&self.links()?).map(|link| link.id);
                    if let (Some(file), true) = (opened, second == Some(link.id)) {
                        return Ok(Newer::File(file));
                    }
                }
                (None, _) if links.is_empty() && !self.directory.try_exists()? => {
                    return Ok(Newer::Gone);
                }
                (None, _) => {
                    let oldest = self.steady(|links| links.last().copied())?;
                    return Ok(Newer::Unknown(oldest));
                }
            }
            sleep(PAUSE);
        }
        Err(restless())
    }

    /// Whether the file has a name still.
    pub fn has(&self, file: &File) -> io::Result<bool> {
        let ours = Id::of(&file.metadata()?);
        Ok(self.links()?.iter().any(|link| link.id == ours))
    }

    /// The file that two looks say is the one, opened between them.
    fn steady(&self, choose: impl Fn(&[Link]) -> Option<Link>) -> io::Result<Option<File>> {
        for _ in 0..LOOKS {
            let Some(link) = choose(&self.links()?) else {
                return Ok(None);
            };
            let opened = self.open(link)?;
            let second = choose(&self.links()?).map(|link| link.id);
            if let (Some(file), true) = (opened, second == Some(link.id)) {
                return Ok(Some(file));
            }
            sleep(PAUSE);
        }
        Err(restless())
    }

    /// What is there, the newest first, each file where it was seen last.
    fn links(&self) -> io::Result<Vec<Link>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match open(&self.directory, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
            opened => opened?,
        };
        let mut links: Vec<Link> = Vec::new();
        let mut missing = 0;
        for number in 0..MOST_FILES {
            let Ok(stat) = statat(&directory, self.named(number), AtFlags::SYMLINK_NOFOLLOW) else {
                missing += 1;
                if missing > MOST_MISSING {
                    break;
                }
                continue;
            };
            missing = 0;
            // What else a container puts there is no file of the log.
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1
            {
                let id = Id {
                    device: stat.st_dev,
                    inode: stat.st_ino,
                };
                links.retain(|link| link.id != id);
                links.push(Link { number, id });
            }
        }
        Ok(links)
    }

    /// None when it has moved, or is something else by now.
    fn open(&self, link: Link) -> io::Result<Option<File>> {
        match open_untrusted(&self.directory, &self.named(link.number)) {
            Ok(file) => Ok((Id::of(&file.metadata()?) == link.id).then_some(file)),
            Err(UntrustedError::Open(error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(error)
            }
            Err(_) => Ok(None),
        }
    }

    fn named(&self, number: u8) -> String {
        match number {
            0 => self.name.clone(),
            number => format!("{}.{number}", self.name),
        }
    }
}

fn restless() -> io::Error {
    io::Error::other("the files of the log move faster than they can be opened")
}

/// Whether both are one file.
pub(super) fn are_one(one: &File, other: &File) -> io::Result<bool> {
    Ok(Id::of(&one.metadata()?) == Id::of(&other.metadata()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use super::*;

    fn text(file: Option<File>) -> Option<String> {
        let mut text = String::new();
        file?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    fn log(files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let files = Files::new(directory.path(), "app.log".to_owned());
        (directory, files)
    }

    #[test]
    fn files_follow_each_other_from_the_oldest_to_the_written_one() {
        let (_directory, files) = log(&[
            ("app.log", "4"),
            ("app.log.1", "3"),
            // A move failed once: there is no second.
            ("app.log.3", "1"),
            ("app.log.300", "not ours"),
            ("app.log.x", "not ours"),
        ]);
        let mut told = Vec::new();
        let mut at = files.oldest(None).unwrap();
        while let Some(file) = at {
            told.push(text(file.try_clone().ok()).unwrap());
            at = match files.newer(&file).unwrap() {
                Newer::File(newer) => Some(newer),
                Newer::None { length: 1 } => None,
                other => panic!("{other:?}"),
            };
        }
        assert_eq!(told, ["1", "3", "4"]);

        let newest = files.newest().unwrap();
        let third = files.older(&newest).unwrap().unwrap();
        let first = files.older(&third).unwrap().unwrap();
        assert!(files.older(&first).unwrap().is_none());
        assert_eq!(text(Some(first)).as_deref(), Some("1"));
    }

    #[test]
    fn a_file_is_found_where_it_moved_to_and_one_without_a_name_is_told() {
        let (directory, files) = log(&[("app.log", "2"), ("app.log.1", "1")]);
        let path = |name: &str| directory.path().join(name);
        let ours = files.newest().unwrap();
        fs::rename(path("app.log.1"), path("app.log.2")).unwrap();
        fs::rename(path("app.log"), path("app.log.1")).unwrap();
        // The disk is full: no other was begun.
        assert!(matches!(
            files.newer(&ours).unwrap(),
            Newer::None { length: 1 }
        ));
        assert_eq!(text(files.newest().ok()).as_deref(), Some("2"));
        fs::write(path("app.log"), "3").unwrap();
        let Newer::File(newer) = files.newer(&ours).unwrap() else {
            panic!("it has one after it");
        };
        assert_eq!(text(Some(newer)).as_deref(), Some("3"));
        fs::remove_file(path("app.log.1")).unwrap();
        let Newer::Unknown(oldest) = files.newer(&ours).unwrap() else {
            panic!("it has no name");
        };
        assert_eq!(text(oldest).as_deref(), Some("1"));
        fs::remove_dir_all(directory.path()).unwrap();
        assert!(matches!(files.newer(&ours).unwrap(), Newer::Gone));
    }

    #[test]
    fn what_else_a_container_puts_there_is_no_file_of_the_log() {
        let (directory, files) = log(&[("app.log", "2"), ("app.log.3", "1"), ("other", "x")]);
        let path = |name: &str| directory.path().join(name);
        std::os::unix::fs::symlink("/etc/passwd", path("app.log.1")).unwrap();
        fs::hard_link(path("other"), path("app.log.2")).unwrap();
        let newest = files.newest().unwrap();
        assert_eq!(text(files.older(&newest).unwrap()).as_deref(), Some("1"));
    }
}
