//! The file, its writer thread and its reader.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::copies::Copies;
use super::log::{Log, QUIET};
use super::loss::{self, Beside, Loss, Watch};
use super::read::{self, Recovered, RevisionRow};
use super::rows::{InstanceRow, StoredTask, TaskQuery, Write};
use super::schema::{self, Version};
use super::write::{self, Unwritable};
use crate::instance::AppName;
use crate::task::{TaskId, Trail};

/// What the journal cannot do, and what is true now.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be opened or read.
    #[error("journal {path} cannot be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The state directory cannot be made.
    #[error("state directory {path} cannot be made")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another agent uses the state directory.
    #[error("state directory {path} is in use by another nodeagent")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The file was made by a newer nodeagent.
    #[error(
        "journal {path} has schema {found}, this nodeagent knows up to {known}: install the newer version again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// What lies beside the journal cannot be read or written.
    #[error("state directory {path} cannot be read or written")]
    Beside {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The journal was found damaged while it was in use; the next start sets it aside.
    #[error("journal {path} is damaged; the next start sets it aside and observes what is here")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// No room on the journal's disk; nothing of the commit is durable, nothing was done.
    #[error("no room on the journal's disk: nothing was written, nothing was done")]
    Full,
    /// A commit failed; nothing of it is durable.
    #[error("journal commit failed")]
    Commit(#[source] rusqlite::Error),
    /// A row could not be spelt.
    #[error("journal row cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// A read failed.
    #[error("journal read failed")]
    Read(#[source] rusqlite::Error),
    /// The writer thread has ended.
    #[error("the journal's writer has ended")]
    Closed,
}

struct Job {
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<(), JournalError>>,
}

/// The journal, open. Dropping it ends the writer after what was accepted.
#[derive(Debug)]
pub struct Journal {
    jobs: mpsc::Sender<Job>,
    reader: Mutex<Connection>,
    watch: Watch,
    path: PathBuf,
    _lock: std::fs::File,
}

/// Largest number of jobs that share one transaction.
const GROUP: usize = 256;
/// How often what is past its time is removed.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// How long a writer waits for a reader that holds the file; both are ours and short.
const BUSY: Duration = Duration::from_secs(5);

impl Journal {
    /// Opens `<state>/journal.db`, creating or migrating it, and reads what it holds. One that is
    /// missing or damaged is set aside; a new one begins the next epoch with the apps that have a
    /// copy. Ended tasks are kept for `keep`.
    ///
    /// # Errors
    /// `Locked`, `Newer`, `Open`, `Beside` and `Directory`, each naming the path.
    pub fn open(state: &Path, keep: Duration) -> Result<(Self, Recovered), JournalError> {
        let directory_error = |source| JournalError::Directory {
            path: state.to_owned(),
            source,
        };
        let beside_error = |source| JournalError::Beside {
            path: state.to_owned(),
            source,
        };
        std::fs::create_dir_all(state).map_err(directory_error)?;
        let lock = lock(state)?;
        let path = state.join("journal.db");
        let open_error = |source| JournalError::Open {
            path: path.clone(),
            source,
        };
        let beside = Beside::of(state);
        let copies = Copies::open(state).map_err(beside_error)?;
        let known = beside.epoch().map_err(beside_error)?.is_some();
        let was_here = known || copies.any().map_err(beside_error)?;
        let opened = match unusable(&path, &beside, was_here).map_err(beside_error)? {
            Some(reason) => Err(reason),
            None => read_whole(&path, was_here)?,
        };
        let (writer, recovered) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                let ended = beside.epoch().map_err(beside_error)?.unwrap_or(1);
                let since_ms = now_ms();
                let set_aside = beside.set_aside(&reason, since_ms).map_err(beside_error)?;
                let loss = Loss {
                    reason,
                    set_aside,
                    since_ms,
                    rebuilt: false,
                };
                let begun = begin_epoch(&path, ended + 1, &loss).map_err(open_error)?;
                beside.set_epoch(ended + 1).map_err(beside_error)?;
                beside.forget_damage().map_err(beside_error)?;
                begun
            }
        };
        let recovered = match &recovered.loss {
            Some(loss) if !loss.rebuilt => {
                let (pools, revisions) = copies.read().map_err(beside_error)?;
                Recovered {
                    pools,
                    revisions,
                    ..recovered
                }
            }
            _ => {
                if let Err(error) = copies.reconcile(&recovered.pools, &recovered.revisions) {
                    tracing::error!(%error, "copies of manifests are behind the journal");
                }
                recovered
            }
        };
        if beside.epoch().map_err(beside_error)? != Some(recovered.epoch) {
            beside.set_epoch(recovered.epoch).map_err(beside_error)?;
        }
        let reader = read_only(&path).map_err(open_error)?;
        let watch = Watch {
            beside,
            found: CancellationToken::new(),
        };
        let (jobs, queue) = mpsc::channel();
        let writer = Writer {
            db: writer,
            log: Log::of(&path),
            keep,
            pruned: None,
            wrote: false,
            copies,
            behind: BTreeSet::new(),
            watch: watch.clone(),
        };
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(directory_error)?;
        check_behind(&path, &watch).map_err(directory_error)?;
        let journal = Self {
            jobs,
            reader: Mutex::new(reader),
            watch,
            path,
            _lock: lock,
        };
        Ok((journal, recovered))
    }

    /// Ends when the journal was found damaged: nothing of it can be trusted from then on.
    pub async fn damaged(&self) -> JournalError {
        self.watch.found.cancelled().await;
        JournalError::Damaged {
            path: self.path.clone(),
        }
    }

    /// Makes `writes` durable in one transaction, together with what others commit at that time.
    /// They are in line when this returns; the future only waits.
    ///
    /// # Errors
    /// `Full` or `Commit`: nothing of it is durable.
    pub fn commit(
        &self,
        writes: Vec<Write>,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let accepted = self.jobs.send(Job { writes, reply });
        async move {
            accepted.map_err(|_| JournalError::Closed)?;
            answer.await.map_err(|_| JournalError::Closed)?
        }
    }

    /// A task by its id.
    ///
    /// # Errors
    /// `Read`.
    pub fn task(&self, id: &TaskId) -> Result<Option<StoredTask>, JournalError> {
        self.read(read::find_task(&self.reader(), id))
    }

    /// The tasks that `query` asks for, newest first.
    ///
    /// # Errors
    /// `Read`.
    pub fn tasks(&self, query: &TaskQuery) -> Result<Vec<StoredTask>, JournalError> {
        self.read(read::newest_tasks(&self.reader(), query))
    }

    /// What a former app of this name left: generations and claims on addresses.
    ///
    /// # Errors
    /// `Read`.
    pub fn left_behind(&self, app: &AppName) -> Result<Vec<InstanceRow>, JournalError> {
        self.read(read::left_behind(&self.reader(), app))
    }

    /// Revisions of an app that the journal still has.
    ///
    /// # Errors
    /// `Read`.
    pub fn revisions(&self, app: &AppName) -> Result<Vec<RevisionRow>, JournalError> {
        let mut revisions = self.read(read::revisions(&self.reader()))?;
        revisions.retain(|row| row.app == *app);
        Ok(revisions)
    }

    /// A task's steps.
    ///
    /// # Errors
    /// `Read`.
    pub fn trail(&self, id: &TaskId) -> Result<Option<Trail>, JournalError> {
        self.read(read::find_trail(&self.reader(), id))
    }

    /// All instances, also those of which only generation and address are left.
    ///
    /// # Errors
    /// `Read`.
    pub fn instances(&self) -> Result<Vec<InstanceRow>, JournalError> {
        self.read(read::instances(&self.reader()))
    }

    fn read<T>(&self, result: rusqlite::Result<T>) -> Result<T, JournalError> {
        result.map_err(|error| {
            self.watch.look(&error);
            JournalError::Read(error)
        })
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        // A reader that panicked left a connection that reads as well as before.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One agent per state directory: flock(2), released by the kernel with the process.
fn lock(state: &Path) -> Result<std::fs::File, JournalError> {
    let error = |source| JournalError::Directory {
        path: state.to_owned(),
        source,
    };
    let file = std::fs::File::create(state.join("lock")).map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(JournalError::Locked {
            path: state.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(error(source)),
    }
}

/// Why the file is not even to be opened; none when it is, or when there never was one.
fn unusable(path: &Path, beside: &Beside, was_here: bool) -> std::io::Result<Option<String>> {
    if let Some(noted) = beside.noted_damage()? {
        return Ok(Some(noted));
    }
    let size = match std::fs::metadata(path) {
        Ok(found) => Some(found.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(match size {
        None if was_here => Some("journal.db is missing".to_owned()),
        // SQLite takes an empty file for a new one.
        Some(0) if was_here => Some("journal.db is empty".to_owned()),
        _ => None,
    })
}

/// What the file holds, or why it is damaged.
fn read_whole(
    path: &Path,
    was_here: bool,
) -> Result<Result<(Connection, Recovered), String>, JournalError> {
    let read = || -> rusqlite::Result<Result<(Connection, Recovered, Version), String>> {
        let mut db = Connection::open(path)?;
        configure(&db)?;
        if let Some(found) = schema::newer(&db)? {
            return Ok(Ok((db, Recovered::default(), Version::Newer(found))));
        }
        if let Some(finding) = loss::check_for_start(&db, was_here)? {
            return Ok(Err(finding));
        }
        schema::migrate(&mut db)?;
        let recovered = read::recover(&db)?;
        Ok(Ok((db, recovered, Version::Current)))
    };
    match read() {
        Ok(Ok((_, _, Version::Newer(found)))) => Err(JournalError::Newer {
            path: path.to_owned(),
            found,
            known: schema::VERSION,
        }),
        Ok(Ok((db, recovered, Version::Current))) => Ok(Ok((db, recovered))),
        Ok(Err(reason)) => Ok(Err(reason)),
        Err(source) => match loss::damage(&source) {
            Some(reason) => Ok(Err(reason)),
            None => Err(JournalError::Open {
                path: path.to_owned(),
                source,
            }),
        },
    }
}

/// A new journal, which knows that the one before was lost.
fn begin_epoch(path: &Path, epoch: u64, loss: &Loss) -> rusqlite::Result<(Connection, Recovered)> {
    let mut db = Connection::open(path)?;
    configure(&db)?;
    schema::migrate(&mut db)?;
    let text = serde_json::to_string(loss)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    let transaction = db.transaction()?;
    write::meta(&transaction, "epoch", &epoch.to_string())?;
    write::meta(&transaction, "loss", &text)?;
    transaction.commit()?;
    let recovered = read::recover(&db)?;
    Ok((db, recovered))
}

fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    Ok(db)
}

/// The whole file is checked once, on a thread of its own: behind the start, which needs little of it.
fn check_behind(path: &Path, watch: &Watch) -> std::io::Result<()> {
    let (path, watch) = (path.to_owned(), watch.clone());
    let check = move || match read_only(&path).and_then(|db| loss::check_all(&db)) {
        Ok(None) => {}
        Ok(Some(finding)) => watch.report(&finding),
        Err(error) => watch.look(&error),
    };
    std::thread::Builder::new()
        .name("journal-check".to_owned())
        .spawn(check)
        .map(drop)
}

fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "full")?;
    // 1 MiB of pages: the journal of a host is small, the agent's memory smaller.
    db.pragma_update(None, "cache_size", -1024)?;
    Log::configure(db)?;
    db.set_prepared_statement_cache_capacity(32);
    Ok(())
}

/// The one that writes.
struct Writer {
    db: Connection,
    log: Log,
    /// How long ended tasks are kept.
    keep: Duration,
    pruned: Option<Instant>,
    /// Something was written since the last prune: an idle agent writes nothing.
    wrote: bool,
    copies: Copies,
    /// Apps whose copy is behind the journal.
    behind: BTreeSet<AppName>,
    watch: Watch,
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<Job>) {
        if let Err(error) = self.log.extend() {
            tracing::warn!(%error, "the journal's log could not be given its size; commits are slower until it has it");
        }
        while let Some(first) = self.next(queue) {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = queue.try_recv()
            {
                group.push(job);
            }
            self.commit(group);
        }
    }

    /// The next job. What can wait is done when none has come for a while. `None` when nobody can
    /// ask any more.
    fn next(&mut self, queue: &mpsc::Receiver<Job>) -> Option<Job> {
        if self.log.is_due() || self.is_prune_due() {
            match queue.recv_timeout(QUIET) {
                Ok(job) => return Some(job),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => self.tidy(),
            }
        }
        queue.recv().ok()
    }

    /// Brings the copies of those apps up to date that were applied or deleted, or are behind.
    fn copy(&mut self, group: &[Job]) {
        for change in group.iter().flat_map(|job| &job.writes) {
            match change {
                Write::Revision(revision, _) => self.behind.insert(revision.app.name.clone()),
                Write::AppGone(app) => self.behind.insert(app.clone()),
                _ => continue,
            };
        }
        let (copies, db) = (&self.copies, &self.db);
        self.behind.retain(|app| match copies.refresh(db, app) {
            Ok(()) => false,
            Err(error) => {
                tracing::error!(%app, %error, "the copy of the manifest is behind the journal");
                true
            }
        });
    }

    fn commit(&mut self, mut group: Vec<Job>) {
        self.wrote = true;
        self.log
            .written(group.iter().map(|job| job.writes.len()).sum());
        match transaction(&mut self.db, &group) {
            Ok(()) => {
                self.copy(&group);
                for job in group {
                    // A caller that is gone does not need the answer.
                    let _ = job.reply.send(Ok(()));
                }
            }
            // One bad job must not take the others with it.
            Err(_) if group.len() > 1 => {
                for job in group {
                    let written = transaction(&mut self.db, std::slice::from_ref(&job));
                    let result = written.map_err(|error| refused(error, &self.watch));
                    self.copy(std::slice::from_ref(&job));
                    let _ = job.reply.send(result);
                }
            }
            Err(error) => {
                if let Some(job) = group.pop() {
                    let _ = job.reply.send(Err(refused(error, &self.watch)));
                }
            }
        }
    }

    fn is_prune_due(&self) -> bool {
        self.wrote && self.pruned.is_none_or(|at| at.elapsed() >= PRUNE_EVERY)
    }

    fn tidy(&mut self) {
        if self.is_prune_due() {
            self.pruned = Some(Instant::now());
            self.wrote = false;
            if let Err(error) = prune(&self.db, self.keep) {
                tracing::warn!(%error, "old tasks could not be removed from the journal");
            }
        }
        if self.log.is_due()
            && let Err(error) = self.log.checkpoint(&self.db)
        {
            tracing::warn!(%error, "the journal's log could not be brought into its tables");
        }
    }
}

/// Removes ended tasks past their time with their trails, revisions that nobody is made from and that are not
/// stable, and
/// all but the newest operations.
fn prune(db: &Connection, keep: Duration) -> rusqlite::Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let before = i64::try_from(now.saturating_sub(keep).as_millis()).unwrap_or(i64::MAX);
    db.execute(
        "DELETE FROM tasks WHERE outcome IS NOT NULL AND created_ms < ?1",
        [before],
    )?;
    db.execute_batch(
        "DELETE FROM trails WHERE task_id NOT IN (SELECT task_id FROM tasks);
         DELETE FROM operations WHERE id < (SELECT MAX(id) FROM operations) - 1000;
         DELETE FROM revisions WHERE NOT EXISTS (SELECT 1 FROM apps WHERE apps.name = revisions.app AND apps.revision = revisions.id)
           AND NOT EXISTS (SELECT 1 FROM instances WHERE instances.app = revisions.app
             AND instances.revision = revisions.id AND instances.released_ms IS NULL)
           AND NOT EXISTS (SELECT 1 FROM stable WHERE stable.app = revisions.app AND stable.revision = revisions.id);",
    )
}

fn transaction(db: &mut Connection, group: &[Job]) -> write::Result<()> {
    let transaction = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for change in group.iter().flat_map(|job| &job.writes) {
        write::write(&transaction, change)?;
    }
    transaction.commit()?;
    Ok(())
}

fn refused(error: Unwritable, watch: &Watch) -> JournalError {
    if let Unwritable::Sql(error) = &error {
        watch.look(error);
    }
    match error {
        Unwritable::Sql(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
            JournalError::Full
        }
        Unwritable::Sql(error) => JournalError::Commit(error),
        Unwritable::Json(error) => JournalError::Encode(error),
    }
}
