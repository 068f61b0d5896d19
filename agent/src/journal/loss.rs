//! A journal that cannot be used: found out, set aside, and remembered until somebody accepts it.
//!
//! Beside `journal.db` lie three things that outlive it: the number of the epoch (`epoch`), the
//! copies of the applied manifests (`apps/`), and, when damage was found while the journal was in
//! use, a note of it (`journal.damaged`), by which the next start knows.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// A journal that was lost, until it is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// What was wrong.
    pub reason: String,
    /// Where the unusable file is now, when there was one.
    pub set_aside: Option<PathBuf>,
    /// Unix milliseconds.
    pub since_ms: u64,
    /// Whether what was observed is in the present journal.
    pub rebuilt: bool,
}

/// Tables that a start continues from. They are small; the rest is checked behind the start.
const CHECKED_AT_START: [&str; 4] = ["meta", "apps", "revisions", "instances"];

/// Why this error means that the file is damaged; none when it may be read again later.
pub(super) fn damage(error: &rusqlite::Error) -> Option<String> {
    let damaged = match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            let short = failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ;
            // `Unknown` is SQL that does not fit the tables: these are not ours any more.
            let unfit = matches!(
                failure.code,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown
            );
            short || unfit
        }
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::InvalidColumnName(_)
        | rusqlite::Error::QueryReturnedNoRows => true,
        _ => false,
    };
    damaged.then(|| error.to_string())
}

/// SQLite's own check of the tables that a start needs; the first finding, if any.
pub(super) fn check_for_start(db: &Connection, was_here: bool) -> rusqlite::Result<Option<String>> {
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        // All of a young journal is in its write-ahead log.
        return Ok(was_here.then(|| "journal.db has no tables".to_owned()));
    }
    // A journal of an older nodeagent has none.
    let stable = "SELECT count(*) FROM sqlite_schema WHERE name = 'stable'";
    let has_stable: i64 = db.query_row(stable, [], |row| row.get(0))?;
    let newer = ["stable"].into_iter().filter(|_| has_stable > 0);
    for table in CHECKED_AT_START.into_iter().chain(newer) {
        if let Some(finding) = quick_check(db, &format!("PRAGMA quick_check({table})"))? {
            return Ok(Some(finding));
        }
    }
    Ok(None)
}

/// The same for the whole file.
pub(super) fn check_all(db: &Connection) -> rusqlite::Result<Option<String>> {
    quick_check(db, "PRAGMA quick_check(1)")
}

fn quick_check(db: &Connection, pragma: &str) -> rusqlite::Result<Option<String>> {
    let first: String = db.query_row(pragma, [], |row| row.get(0))?;
    Ok((first != "ok").then_some(first))
}

/// The files beside the journal.
#[derive(Debug, Clone)]
pub(super) struct Beside {
    state: PathBuf,
}

impl Beside {
    pub fn of(state: &Path) -> Self {
        Self {
            state: state.to_owned(),
        }
    }

    fn mark(&self) -> PathBuf {
        self.state.join("journal.damaged")
    }

    /// What was found while an agent used the journal.
    pub fn noted_damage(&self) -> io::Result<Option<String>> {
        absent_is_none(fs::read_to_string(self.mark()))
    }

    /// Notes damage for the next start.
    pub fn note_damage(&self, reason: &str) -> io::Result<()> {
        replace(&self.mark(), reason.as_bytes())
    }

    /// The epoch of the last journal that was here; none before the first.
    pub fn epoch(&self) -> io::Result<Option<u64>> {
        let text = absent_is_none(fs::read_to_string(self.state.join("epoch")))?;
        // A file that is not a number was damaged with the journal: the first epoch is over.
        Ok(text.map(|text| text.trim().parse().unwrap_or(1)))
    }

    pub fn set_epoch(&self, epoch: u64) -> io::Result<()> {
        replace(&self.state.join("epoch"), format!("{epoch}\n").as_bytes())
    }

    /// Moves the journal's files to names with this time; the name of the main one, when there was
    /// one. Damage is noted first: a kill half-way leaves no write-ahead log to a new journal.
    pub fn set_aside(&self, reason: &str, at_ms: u64) -> io::Result<Option<PathBuf>> {
        self.note_damage(reason)?;
        let stamp = i64::try_from(at_ms).ok();
        let stamp = stamp.and_then(chrono::DateTime::from_timestamp_millis);
        let stamp = stamp.unwrap_or_default().format("%Y%m%dT%H%M%S%3fZ");
        let aside = |suffix: &str| self.state.join(format!("journal.db{suffix}"));
        let mut moved = None;
        for suffix in ["-shm", "-wal", ""] {
            let to = self.state.join(format!("journal.db.lost-{stamp}{suffix}"));
            match fs::rename(aside(suffix), &to) {
                Ok(()) => moved = Some(to),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        sync_directory(&self.state)?;
        Ok(moved.filter(|path| path.extension().is_some()))
    }

    /// The new journal is whole.
    pub fn forget_damage(&self) -> io::Result<()> {
        absent_is_none(fs::remove_file(self.mark()))?;
        sync_directory(&self.state)
    }
}

/// How damage that is found later ends the agent: the next start sets the journal aside.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    pub beside: Beside,
    pub found: CancellationToken,
}

impl Watch {
    /// Takes notice of an error; one that means damage ends the agent.
    pub fn look(&self, error: &rusqlite::Error) {
        if let Some(reason) = damage(error) {
            self.report(&reason);
        }
    }

    pub fn report(&self, reason: &str) {
        tracing::error!(
            reason,
            "the journal is damaged; the agent ends, the next start sets the journal aside"
        );
        if let Err(error) = self.beside.note_damage(reason) {
            tracing::error!(%error, "the damage cannot be noted; the next start may not see it");
        }
        self.found.cancel();
    }
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file in one step that survives a power cut.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
