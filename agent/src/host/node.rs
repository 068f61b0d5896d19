//! The agent as the API sees it: pools by app, answers to every request.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, watch};

use super::answers;
use super::epoch::Epoch;
use super::executor::Executor;
use super::registrations::Listing;
use super::strays;
use crate::api::v1::{
    AppDocument, AppImages, AppList, ApplyResult, EvictRequest, EvictResult, ExecRequest,
    ExportRequest, ExportResult, ImageDocument, ImageList, ImageRequest, ImportRequest,
    ImportResult, JournalDocument, Pool, Problem, ProblemCode, ProcessList, StableList,
    StableRequest, Status, Task, TaskList, TaskRequest, TaskSummary, Trail, Verb, VerifyRequest,
    VerifyResult,
};
use crate::api::{Deletion, ExecSession, Feed, Host, Log, LogRequest, Received, TaskFilter};
use crate::app::HostTerms;
use crate::chain::chain;
use crate::config::Settings;
use crate::gate::{Directories, Gate};
use crate::instance::{AppName, InstanceName, Revision};
use crate::journal::{Journal, StoredTask, Write};
use crate::metrics::{Metrics, Page, render};
use crate::pool::{Effects, Event, InstanceSnapshot, Limits, Message, PoolHandle, Shared};
use crate::task::TaskId;

/// How long `status` waits for containerd's version.
pub(super) const VERSION_DEADLINE: Duration = Duration::from_millis(500);
/// How long a request waits for the first observation.
const OBSERVATION_DEADLINE: Duration = Duration::from_secs(15);

/// A pool and what is applied to it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub handle: PoolHandle,
    pub revision: Arc<Revision>,
    pub applied_ms: u64,
}

/// The pools of this host, by app.
#[derive(Debug, Default)]
pub(super) struct Pools {
    entries: RwLock<BTreeMap<AppName, Entry>>,
}

impl Pools {
    pub fn handle(&self, app: &AppName) -> Option<PoolHandle> {
        self.get(app).map(|entry| entry.handle)
    }

    /// A pool whose driver has ended is of an app that is gone.
    pub fn get(&self, app: &AppName) -> Option<Entry> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries
            .get(app)
            .filter(|entry| !entry.handle.messages.is_closed())
            .cloned()
    }

    pub fn all(&self) -> Vec<Entry> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries
            .values()
            .filter(|entry| !entry.handle.messages.is_closed())
            .cloned()
            .collect()
    }

    pub fn put(&self, entry: Entry) {
        let app = entry.revision.app.name.clone();
        self.entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(app, entry);
    }

    /// Forgets the app, unless it came again meanwhile.
    pub fn remove_ended(&self, app: &AppName) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries
            .get(app)
            .is_some_and(|entry| entry.handle.messages.is_closed())
        {
            entries.remove(app);
        }
    }
}

/// What the host has of boot and start.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub boot_id: String,
    pub started_ms: u64,
}

/// The agent on this host.
pub struct Node<E> {
    pub(super) settings: Arc<Settings>,
    pub(super) identity: Identity,
    pub(super) journal: Arc<Journal>,
    pub(super) executor: Executor,
    pub(super) epoch: Arc<Epoch>,
    pub(super) gate: Gate,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pools: Arc<Pools>,
    pub(super) shared: Arc<Shared<E>>,
    /// What apps have to go by here.
    pub(super) terms: HostTerms,
    /// The pools as the journal left them, shown until reality was observed.
    pub(super) unverified: Vec<Pool>,
    /// True once reality was observed and every pool has its driver.
    pub(super) observed: watch::Receiver<bool>,
    /// One application or deletion at a time; images are pulled before it.
    pub(super) applying: Mutex<()>,
    /// What `/v1/events` tells.
    pub(super) feed: Arc<Feed>,
    /// Where instances write.
    pub(super) directories: Arc<Directories>,
}

impl<E: Effects> Node<E> {
    pub(super) fn limits(settings: &Settings, terms: &HostTerms, epoch: &Epoch) -> Limits {
        Limits {
            floor: epoch.floor(),
            keep_everything: epoch.is_lost(),
            host_address: terms.host_address,
            give_up_after: settings.tasks.give_up_after,
            activation_deadline: settings.tasks.activation_deadline,
            refill: settings.refill.concurrency,
        }
    }

    /// The pool, once the agent has looked around.
    pub(super) async fn entry(&self, app: &AppName) -> Result<Entry, Problem> {
        self.observation().await?;
        self.pools
            .get(app)
            .ok_or_else(|| Problem::not_found("app", app.as_str()))
    }

    /// The instance of this name, as its pool has published it.
    pub(super) async fn instance(
        &self,
        name: &str,
    ) -> Result<(InstanceName, InstanceSnapshot), Problem> {
        let none = || Problem::not_found("instance", name);
        let parsed: InstanceName = name.parse().map_err(|_| none())?;
        self.observation().await?;
        let snapshot = self.snapshot(&parsed.app).ok_or_else(none)?;
        let found = snapshot
            .instances
            .iter()
            .find(|instance| instance.ordinal == parsed.ordinal);
        Ok((parsed, found.ok_or_else(none)?.clone()))
    }

    /// Waits until reality was observed. Without a journal that takes as long as containerd is away.
    pub(super) async fn observation(&self) -> Result<(), Problem> {
        let mut observed = self.observed.clone();
        let waited = observed.wait_for(|observed| *observed);
        match tokio::time::timeout(OBSERVATION_DEADLINE, waited).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => self.ready(),
        }
    }
}

pub(super) fn stopping() -> Problem {
    Problem::new(
        ProblemCode::Unavailable,
        "the agent is stopping; containers go on, ask again when it is back",
    )
}

pub(super) fn app_name(name: &str) -> Result<AppName, Problem> {
    name.parse().map_err(|_| Problem::not_found("app", name))
}

pub(super) fn task_id(id: &str) -> Result<TaskId, Problem> {
    id.parse().map_err(|_| Problem::not_found("task", id))
}

pub(super) fn unreadable(error: &crate::journal::JournalError) -> Problem {
    Problem::new(ProblemCode::Internal, chain(error))
}

impl<E: Effects> Host for Node<E> {
    async fn submit(
        &self,
        name: &str,
        verb: Verb,
        request: TaskRequest,
        received: Received,
        wait: Duration,
    ) -> Result<Task, Problem> {
        self.submit_task(name, verb, request, received, wait).await
    }

    fn answered(&self, id: &str, after: Duration) {
        let Ok(id) = id.parse::<TaskId>() else {
            return;
        };
        for entry in self.pools.all() {
            // Only the pool that knows the task takes notice.
            let _ = entry
                .handle
                .messages
                .send(Message::Answered(id.clone(), after));
        }
    }

    async fn task(&self, id: &str) -> Result<Task, Problem> {
        let id = task_id(id)?;
        let stored = self.journal.task(&id).map_err(|e| unreadable(&e))?;
        let stored = stored.ok_or_else(|| Problem::not_found("task", id.as_str()))?;
        Ok(answers::task(
            &stored,
            self.snapshot(&stored.row.app).as_deref(),
            answers::Replayed::No,
        ))
    }

    async fn trail(&self, id: &str) -> Result<Trail, Problem> {
        let id = task_id(id)?;
        let stored = self.journal.task(&id).map_err(|e| unreadable(&e))?;
        let stored = stored.ok_or_else(|| Problem::not_found("task", id.as_str()))?;
        let trail = match self.shared.index.late_trail(&id) {
            Some(trail) => Some(trail),
            None => self.journal.trail(&id).map_err(|e| unreadable(&e))?,
        };
        Ok(answers::trail(&stored, &trail.unwrap_or_default()))
    }

    async fn tasks(&self, filter: TaskFilter) -> Result<TaskList, Problem> {
        let tasks = self.list_tasks(&filter)?;
        Ok(TaskList { tasks })
    }

    async fn status(&self) -> Result<Status, Problem> {
        let version = tokio::time::timeout(VERSION_DEADLINE, self.executor.runtime.version()).await;
        let version = version.ok().and_then(Result::ok);
        let observed = *self.observed.borrow();
        let look = answers::Look {
            ready: observed,
            containerd: version,
            discovery: self.executor.discovery.health(),
            pools: self.pools_now(),
            alarms: answers::alarms(&self.shared.alarms),
        };
        let epoch = self.epoch.number;
        Ok(answers::status(&self.settings, &self.identity, epoch, look))
    }

    fn ready(&self) -> Result<(), Problem> {
        if *self.observed.borrow() {
            Ok(())
        } else {
            Err(Problem::new(
                ProblemCode::Unavailable,
                "the journal is loaded; instances are being observed (containerd, container-init, network, discovery)",
            ))
        }
    }

    async fn metrics(&self) -> Page {
        render(&self.metrics, &self.facts().await)
    }

    fn feed(&self) -> Arc<Feed> {
        Arc::clone(&self.feed)
    }

    async fn log(&self, instance: &str, request: LogRequest) -> Result<Log, Problem> {
        self.read_log(instance, request).await
    }

    async fn processes(&self, instance: &str) -> Result<ProcessList, Problem> {
        self.processes_of(instance).await
    }

    async fn exec(
        &self,
        instance: &str,
        request: ExecRequest,
        caller: &str,
    ) -> Result<ExecSession, Problem> {
        self.execute(instance, request, caller).await
    }

    async fn images(&self) -> Result<ImageList, Problem> {
        self.list_images().await
    }

    async fn pull_image(&self, request: ImageRequest) -> Result<ImageDocument, Problem> {
        Self::pull_image(self, request).await
    }

    async fn pin_image(&self, reference: &str, pinned: bool) -> Result<ImageDocument, Problem> {
        Self::pin_image(self, reference, pinned).await
    }

    async fn verify_images(&self, request: VerifyRequest) -> Result<VerifyResult, Problem> {
        Self::verify_images(self, request).await
    }

    async fn stable_images(&self) -> Result<StableList, Problem> {
        Self::list_stable(self).await
    }

    async fn set_stable_image(&self, request: StableRequest) -> Result<AppImages, Problem> {
        self.set_stable(request).await
    }

    async fn evict_images(&self, request: EvictRequest) -> Result<EvictResult, Problem> {
        Self::evict_images(self, request).await
    }

    async fn import_images(&self, request: ImportRequest) -> Result<ImportResult, Problem> {
        Self::import_images(self, request).await
    }

    async fn export_images(&self, request: ExportRequest) -> Result<ExportResult, Problem> {
        Self::export_images(self, request).await
    }

    async fn journal(&self) -> Result<JournalDocument, Problem> {
        Ok(answers::journal(&self.epoch))
    }

    async fn accept_journal(&self) -> Result<JournalDocument, Problem> {
        self.observation().await?;
        let _turn = self.applying.lock().await;
        if self.epoch.is_lost() {
            let accepted = self.shared.effects.commit(vec![Write::Accepted]).await;
            accepted.map_err(|failure| answers::unwritten(&failure))?;
            self.epoch.accept(&self.shared.alarms);
            for entry in self.pools.all() {
                // A pool that has ended has nothing to remove.
                let _ = entry
                    .handle
                    .messages
                    .send(Message::Happened(Event::Accepted));
            }
            self.remove_strays().await;
        }
        Ok(answers::journal(&self.epoch))
    }

    async fn apply(&self, manifest: &str) -> Result<ApplyResult, Problem> {
        self.apply_manifest(manifest).await
    }

    async fn apps(&self) -> Result<AppList, Problem> {
        self.observation().await?;
        let apps = self.pools.all().iter().map(answers::app_summary).collect();
        Ok(AppList { apps })
    }

    async fn app(&self, name: &str) -> Result<AppDocument, Problem> {
        let entry = self.entry(&app_name(name)?).await?;
        Ok(answers::app(&entry))
    }

    async fn delete_app(&self, name: &str, deletion: Deletion) -> Result<ApplyResult, Problem> {
        self.delete(name, deletion).await
    }
}

impl<E> Node<E> {
    /// The loss is accepted: what belongs to no instance goes. Without containerd the next start
    /// does it.
    async fn remove_strays(&self) {
        let listed = self.executor.runtime.list().await;
        let Some(containers) = strays::told("containers", listed) else {
            return;
        };
        let heard = Listing::ask(&self.executor.discovery).await.heard;
        strays::sweep(&self.executor, &self.shared.ledger, containers, heard).await;
    }

    /// The pools as they are, or as the journal left them while nobody has looked yet.
    pub(super) fn pools_now(&self) -> Vec<Pool> {
        if !*self.observed.borrow() {
            return self.unverified.clone();
        }
        let pool = |entry: &Entry| answers::pool(&entry.handle.snapshot.borrow());
        self.pools.all().iter().map(pool).collect()
    }

    /// The tasks that the filter lets through, newest first.
    pub(super) fn list_tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskSummary>, Problem> {
        let app = filter.app.as_deref().map(app_name).transpose()?;
        let query = answers::task_query(filter, app, SystemTime::now());
        let stored = self.journal.tasks(&query).map_err(|e| unreadable(&e))?;
        Ok(stored.iter().map(|task| self.summary(task)).collect())
    }

    pub(super) fn summary(&self, task: &StoredTask) -> TaskSummary {
        let snapshot = self.snapshot(&task.row.app);
        (&answers::task(task, snapshot.as_deref(), answers::Replayed::No)).into()
    }

    pub(super) fn snapshot(&self, app: &AppName) -> Option<Arc<crate::pool::Snapshot>> {
        self.pools
            .get(app)
            .map(|entry| entry.handle.snapshot.borrow().clone())
    }
}
