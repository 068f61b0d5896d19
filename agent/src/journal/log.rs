//! The write-ahead log as a file. It has its size before commits need it, because a commit that
//! makes a file grow waits for the file system's own journal too (0.5 ms instead of 0.25 ms on ext4);
//! and its content goes into the tables when nobody waits for a commit.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

/// Size of the file that commits find: a thousand pages.
const SIZE: u64 = 4 << 20;
/// The disk keeps at least this much free, else the log grows as it is needed.
const SPARE: u64 = 64 << 20;
/// Rows after which a checkpoint is due; a row changes one or two pages.
const DUE: usize = 500;
/// Pages after which SQLite makes a checkpoint inside a commit, because no quiet moment came.
const OVERDUE_PAGES: i64 = 4000;

/// So long nobody asked for a commit: a quiet moment.
pub(super) const QUIET: Duration = Duration::from_millis(250);

/// The log of one journal.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// Rows written since the last checkpoint.
    rows: usize,
}

impl Log {
    pub(super) fn of(journal: &Path) -> Self {
        let mut path = journal.as_os_str().to_owned();
        path.push("-wal");
        Self {
            path: path.into(),
            rows: 0,
        }
    }

    /// Leaves checkpoints to quiet moments.
    pub(super) fn configure(db: &Connection) -> rusqlite::Result<()> {
        db.pragma_update(None, "wal_autocheckpoint", OVERDUE_PAGES)
    }

    /// Brings the file to its size with zeros, which SQLite takes for the end of the log.
    pub(super) fn extend(&self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).open(&self.path)?;
        let present = file.metadata()?.len();
        let disk = rustix::fs::fstatvfs(&file)?;
        if present >= SIZE || disk.f_bavail * disk.f_frsize < SIZE + SPARE {
            return Ok(());
        }
        append_zeros(&file, SIZE - present).inspect_err(|_| {
            // Only zeros of ours are cut off; nobody else appends while we do.
            let _ = file.set_len(present);
        })
    }

    /// Counts what was committed.
    pub(super) fn written(&mut self, rows: usize) {
        self.rows += rows;
    }

    pub(super) fn is_due(&self) -> bool {
        self.rows >= DUE
    }

    /// Brings the log's content into the tables, so that the next commit begins it anew.
    pub(super) fn checkpoint(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.rows = 0;
        db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    }
}

fn append_zeros(mut file: &File, mut missing: u64) -> io::Result<()> {
    let zeros = [0; 64 * 1024];
    while missing > 0 {
        let part = usize::try_from(missing).map_or(zeros.len(), |all| all.min(zeros.len()));
        file.write_all(zeros.get(..part).unwrap_or_default())?;
        missing -= part as u64;
    }
    file.sync_data()
}
