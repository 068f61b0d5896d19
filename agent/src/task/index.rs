//! Where callers wait for their tasks, and where a repeated task id is recognised.
//!
//! A task is here from the moment it is asked for until its outcome is durable; before and after,
//! the journal knows it. Trails that became whole after their outcome wait here for the next
//! commit: they are worth no fsync of their own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};

use super::{Outcome, Request, TaskId, Trail};
use crate::instance::{AppName, Failure};
use crate::pool::Refusal;

/// How far a task is.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Its intent is not durable yet.
    Pending,
    /// Its intent is durable.
    Running,
    /// It took effect, but its outcome cannot be written now; it is tried again.
    Unwritten(Failure),
    /// Its outcome is durable.
    Ended(Outcome),
    /// It was refused; nothing was changed.
    Refused(Refusal),
}

/// What an id means here.
#[derive(Debug)]
pub enum Joined {
    /// Nobody had it: the caller brings the request to the pool.
    New(watch::Receiver<Progress>),
    /// The same request is under way: the caller waits with the others.
    Same(watch::Receiver<Progress>),
    /// Another request has this id.
    Other {
        /// The app of the other request.
        app: AppName,
    },
}

#[derive(Debug)]
struct Entry {
    app: AppName,
    hash: String,
    progress: watch::Sender<Progress>,
}

/// Tasks under way, by id.
#[derive(Debug)]
pub struct Index {
    entries: Mutex<HashMap<TaskId, Entry>>,
    late: Mutex<BTreeMap<TaskId, Trail>>,
    changes: broadcast::Sender<TaskId>,
}

/// Tasks whose change a listener may be behind; then it reads the list.
const UNHEARD: usize = 256;

impl Default for Index {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            late: Mutex::default(),
            changes: broadcast::Sender::new(UNHEARD),
        }
    }
}

/// Trails kept for the next commit; beyond that the oldest ids lose their last two steps.
const LATE_TRAILS: usize = 256;

impl Index {
    /// Enters a request, or finds what its id stands for. `recorded` is asked, with the id held, only
    /// when nobody is under way with it: a task that ends meanwhile is found in one of the two.
    ///
    /// # Errors
    /// Those of `recorded`.
    pub fn join<E>(
        &self,
        app: &AppName,
        request: &Request,
        recorded: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Option<Joined>, E> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(&request.context.task_id) {
            return Ok(Some(if entry.app == *app && entry.hash == request.hash {
                Joined::Same(entry.progress.subscribe())
            } else {
                Joined::Other {
                    app: entry.app.clone(),
                }
            }));
        }
        if recorded()? {
            return Ok(None);
        }
        let (progress, receiver) = watch::channel(Progress::Pending);
        let entry = Entry {
            app: app.clone(),
            hash: request.hash.clone(),
            progress,
        };
        entries.insert(request.context.task_id.clone(), entry);
        Ok(Some(Joined::New(receiver)))
    }

    /// A task that a restart interrupted goes on.
    pub fn resume(&self, app: &AppName, id: &TaskId, hash: &str) {
        let entry = Entry {
            app: app.clone(),
            hash: hash.to_owned(),
            progress: watch::channel(Progress::Running).0,
        };
        self.entries().insert(id.clone(), entry);
    }

    /// The task's intent is durable.
    pub fn opened(&self, id: &TaskId) {
        if let Some(entry) = self.entries().get(id) {
            entry.progress.send_replace(Progress::Running);
        }
        self.tell(id);
    }

    /// The task's outcome cannot be written now.
    pub fn unwritten(&self, id: &TaskId, failure: Failure) {
        if let Some(entry) = self.entries().get(id) {
            entry.progress.send_replace(Progress::Unwritten(failure));
        }
    }

    /// The task's outcome is durable; from now on the journal answers for it.
    pub fn ended(&self, id: &TaskId, outcome: Outcome) {
        self.leave(id, Progress::Ended(outcome));
        self.tell(id);
    }

    /// The request was refused; its id is free again.
    pub fn refused(&self, id: &TaskId, refusal: Refusal) {
        self.leave(id, Progress::Refused(refusal));
    }

    /// The request did not reach a pool; those who joined it ask again.
    pub fn withdrawn(&self, id: &TaskId) {
        self.entries().remove(id);
    }

    /// The ids of tasks whose intent or outcome became durable, from now on.
    pub fn changes(&self) -> broadcast::Receiver<TaskId> {
        self.changes.subscribe()
    }

    fn tell(&self, id: &TaskId) {
        if self.changes.receiver_count() > 0 {
            // Who stopped listening needs nothing.
            let _ = self.changes.send(id.clone());
        }
    }

    fn leave(&self, id: &TaskId, progress: Progress) {
        if let Some(entry) = self.entries().remove(id) {
            entry.progress.send_replace(progress);
        }
    }

    /// Keeps a trail until the next commit takes it along.
    pub fn keep_trail(&self, id: TaskId, trail: Trail) {
        let mut late = self.late();
        if late.len() >= LATE_TRAILS {
            late.pop_first();
        }
        late.insert(id, trail);
    }

    /// The trail that waits for the next commit, newer than the journal's.
    pub fn late_trail(&self, id: &TaskId) -> Option<Trail> {
        self.late().get(id).cloned()
    }

    /// All trails that wait; the caller commits them.
    pub fn take_late_trails(&self) -> BTreeMap<TaskId, Trail> {
        std::mem::take(&mut *self.late())
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<TaskId, Entry>> {
        // Every change is one call: a panic elsewhere leaves the map whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> MutexGuard<'_, BTreeMap<TaskId, Trail>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
