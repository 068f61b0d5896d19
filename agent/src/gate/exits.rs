//! The exit ring of a container, read by the agent: how processes ended while nobody listened.
//!
//! The file lies where the container can write. It is opened without following anything out of
//! its directory, must be a regular file of one name and of the ring's size at most, and what it
//! says is evidence, never authority: the caller weighs it against what it knows.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use container_init::exits::{FILE_SIZE, records};

use super::status::Exit;
use super::untrusted::{UntrustedError, open_untrusted};
use crate::instance::ContainerId;

/// Name of the ring in the container's log directory; ends [`container_init::paths::EXITS`].
pub(super) const RING: &str = "exits";

/// An exit as container-init recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedExit {
    /// Number of the event that reported it.
    pub seq: u64,
    /// The exit; its name is cut after 24 bytes.
    pub exit: Exit,
}

/// Why an exit ring cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ExitsError {
    /// The directory or the file cannot be opened or read; `NotFound` when there is none.
    #[error("cannot read the exit ring in {}", log.display())]
    Read {
        /// The container's log directory on the host.
        log: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The container has put something else in its place.
    #[error("the exit ring in {} {fault}", log.display())]
    Forged {
        /// The container's log directory on the host.
        log: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
}

/// The exits that the init of `container` recorded in the ring in `log`, oldest first. Records of
/// another create are left out. May block on the disk.
pub fn recorded_exits(
    log: &Path,
    container: &ContainerId,
) -> Result<Vec<RecordedExit>, ExitsError> {
    let file = open_ring(log)?;
    let mut bytes = Vec::with_capacity(FILE_SIZE);
    file.take(FILE_SIZE as u64)
        .read_to_end(&mut bytes)
        .map_err(|source| unreadable(log, source))?;
    let mut exits: Vec<RecordedExit> = records(&bytes)
        .filter(|record| record.create_generation == container.create_generation)
        .map(|record| RecordedExit {
            seq: record.seq,
            exit: Exit {
                name: record.name.as_str().to_owned(),
                pid: record.pid,
                status: record.status,
                oom: record.oom,
                memory: None,
                generation: record.generation,
            },
        })
        .collect();
    exits.sort_by_key(|recorded| recorded.seq);
    Ok(exits)
}

fn open_ring(log: &Path) -> Result<File, ExitsError> {
    let forged = |fault| ExitsError::Forged {
        log: log.to_owned(),
        fault,
    };
    let file = open_untrusted(log, RING).map_err(|error| match error {
        UntrustedError::Open(source) => unreadable(log, source),
        UntrustedError::Forged(fault) => forged(fault),
    })?;
    let length = file.metadata().map_err(|e| unreadable(log, e))?.len();
    if length > FILE_SIZE as u64 {
        return Err(forged("is larger than a ring"));
    }
    Ok(file)
}

fn unreadable(log: &Path, source: io::Error) -> ExitsError {
    ExitsError::Read {
        log: log.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::ExitStatus;
    use container_init::exits::{Cursor, ExitRecord, RECORD_SIZE, ShortName};
    use std::os::unix::fs::symlink;

    fn container() -> ContainerId {
        "web-0.g7".parse().unwrap()
    }

    fn ring_of(records: &[ExitRecord]) -> Vec<u8> {
        let mut file = vec![0; FILE_SIZE];
        let mut cursor = Cursor::after(&file);
        for record in records {
            let at = cursor.advance() as usize;
            file[at..at + RECORD_SIZE].copy_from_slice(&record.encode());
        }
        file
    }

    fn fault(log: &Path) -> String {
        recorded_exits(log, &container()).unwrap_err().to_string()
    }

    #[test]
    fn exits_come_in_order_and_only_of_this_create() {
        let log = tempfile::tempdir().unwrap();
        let record = |seq, create_generation| ExitRecord {
            seq,
            create_generation,
            generation: 9,
            pid: 12,
            status: ExitStatus::Signal(9),
            oom: true,
            name: ShortName::cut("app"),
        };
        std::fs::write(
            log.path().join(RING),
            ring_of(&[record(4, 7), record(3, 7), record(9, 6)]),
        )
        .unwrap();
        let exits = recorded_exits(log.path(), &container()).unwrap();
        assert_eq!(
            exits
                .iter()
                .map(|recorded| recorded.seq)
                .collect::<Vec<_>>(),
            [3, 4]
        );
        let expected = Exit {
            name: "app".into(),
            pid: 12,
            status: ExitStatus::Signal(9),
            oom: true,
            memory: None,
            generation: 9,
        };
        assert_eq!(exits[0].exit, expected);
    }

    #[test]
    fn what_a_container_may_put_in_its_place_is_not_read() {
        let place = |make: &dyn Fn(&Path)| {
            let log = tempfile::tempdir().unwrap();
            make(&log.path().join(RING));
            let text = fault(log.path());
            text.strip_prefix(&format!("the exit ring in {} ", log.path().display()))
                .unwrap_or(&text)
                .to_owned()
        };
        assert_eq!(
            place(&|ring| symlink("/etc/hostname", ring).unwrap()),
            "is a symbolic link"
        );
        assert_eq!(
            place(&|ring| std::fs::create_dir(ring).unwrap()),
            "is not a regular file"
        );
        let fifo = |ring: &Path| {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                ring,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR,
                0,
            )
            .unwrap();
        };
        assert_eq!(place(&fifo), "is not a regular file");
        let linked = |ring: &Path| {
            std::fs::write(ring, ring_of(&[])).unwrap();
            std::fs::hard_link(ring, ring.with_extension("too")).unwrap();
        };
        assert_eq!(place(&linked), "has another name");
        assert_eq!(
            place(&|ring| std::fs::write(ring, vec![0; FILE_SIZE + 1]).unwrap()),
            "is larger than a ring"
        );
    }

    #[test]
    fn a_ring_that_is_not_there_is_named_by_its_directory() {
        let log = tempfile::tempdir().unwrap();
        match recorded_exits(log.path(), &container()).unwrap_err() {
            ExitsError::Read { source, .. } => assert_eq!(source.kind(), io::ErrorKind::NotFound),
            other => panic!("{other:?}"),
        }
    }
}
