//! The seam behind the API: what the daemon's core answers.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use container_init::log::Stream;
use tokio::sync::mpsc;

use super::Feed;
use super::exec::{ExecInput, ExecOutput};
use super::v1::{
    AppDocument, AppImages, AppList, ApplyResult, EvictRequest, EvictResult, ExecRequest,
    ExportRequest, ExportResult, ImageDocument, ImageList, ImageRequest, ImportRequest,
    ImportResult, JournalDocument, Problem, ProcessList, StableList, StableRequest, Status, Task,
    TaskList, TaskRequest, TaskState, Trail, Verb, VerifyRequest, VerifyResult,
};
use crate::logs::Since;
use crate::metrics::Page;

/// How a request came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// When its first byte was read: the zero of `startMs`, `elapsedMs` and `answerMs`.
    pub first_byte: Instant,
    /// The caller's W3C `traceparent`, when it sent a well-formed one.
    pub traceparent: Option<String>,
}

/// Whether running instances keep an app from being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// An app with a target above 0, or with instances in service, stays: `app_in_use`.
    WhenUnused,
    /// Its instances are taken out first, without waiting for their drain.
    Forced,
}

/// Which tasks a caller wants listed.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskFilter {
    /// Only those of this app.
    pub app: Option<String>,
    /// Only those in one of these states; every state when empty.
    pub states: Vec<TaskState>,
    /// Only those whose intent was written at most so long ago.
    pub since: Option<Duration>,
    /// The newest so many: 1..=[`TaskFilter::MOST`].
    pub limit: u32,
}

impl TaskFilter {
    /// Most tasks that are listed at once.
    pub const MOST: u32 = 1000;
}

impl Default for TaskFilter {
    fn default() -> Self {
        Self {
            app: None,
            states: Vec::new(),
            since: None,
            limit: 200,
        }
    }
}

/// What a caller wants of a process's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRequest {
    /// Name of the process: `app`, or an in-container agent's.
    pub process: String,
    /// Whether what is written later is told, too.
    pub follow: bool,
    /// Lines from the end; everything when absent.
    pub tail: Option<u64>,
    /// Only lines of this time and later.
    pub since: Option<Since>,
    /// Only one of its streams.
    pub stream: Option<Stream>,
    /// Whether lines begin with their times.
    pub timestamps: bool,
}

impl LogRequest {
    /// All that a process has written, as text.
    pub fn of(process: impl Into<String>) -> Self {
        Self {
            process: process.into(),
            follow: false,
            tail: None,
            since: None,
            stream: None,
            timestamps: false,
        }
    }
}

/// A log that is being read.
#[derive(Debug)]
pub struct Log {
    /// The container whose log it is: `web-0.g7`.
    pub container: String,
    /// What it says, piece by piece. The reading ends when this is dropped.
    pub pieces: mpsc::Receiver<io::Result<Bytes>>,
}

/// A command that runs. It is ended when this is dropped.
#[derive(Debug)]
pub struct ExecSession {
    /// What it is told.
    pub input: mpsc::Sender<ExecInput>,
    /// What it says; the last is its end.
    pub output: mpsc::Receiver<ExecOutput>,
}

/// What the daemon's core answers. Requests arrive read whole, within their limits, and validated
/// field by field (names, ranges, unknown fields); what depends on the state of the host is decided
/// behind this seam. Every answer is quick except [`Host::submit`]'s.
pub trait Host: Send + Sync + 'static {
    /// Takes the request up and returns when the task ended, or when `wait` is over (then with
    /// state `running`). `name` is a valid name of an app, or, of a restart, any name of an
    /// instance. `request.task_id` is present and well-formed. The
    /// server polls the future to its end even when the client goes away.
    ///
    /// Problems: `not_found`, `task_conflict`, `seq_mismatch`, `unknown_epoch`, `no_capacity`,
    /// `not_restartable`, `unavailable`, `journal_full`, `internal`. A task that ends badly is not a problem but a
    /// [`Task`].
    fn submit(
        &self,
        name: &str,
        verb: Verb,
        request: TaskRequest,
        received: Received,
        wait: Duration,
    ) -> impl Future<Output = Result<Task, Problem>> + Send;

    /// Called once for each submission that was answered with a [`Task`], after the last byte of
    /// the answer was handed to the kernel, `after` the request's first byte. Not called when the
    /// client went away. Must not block.
    fn answered(&self, task_id: &str, after: Duration) {
        let _ = (task_id, after);
    }

    /// The task, or `not_found`.
    fn task(&self, id: &str) -> impl Future<Output = Result<Task, Problem>> + Send;

    /// The task's trail, or `not_found`.
    fn trail(&self, id: &str) -> impl Future<Output = Result<Trail, Problem>> + Send;

    /// Those that the filter lets through, newest first.
    fn tasks(&self, filter: TaskFilter) -> impl Future<Output = Result<TaskList, Problem>> + Send;

    /// What is true now.
    fn status(&self) -> impl Future<Output = Result<Status, Problem>> + Send;

    /// The metrics of everything but the server itself.
    fn metrics(&self) -> impl Future<Output = Page> + Send;

    /// What `/v1/events` tells. Empty until somebody reads, then filled by the core.
    fn feed(&self) -> Arc<Feed>;

    /// Begins to read the log of a process in an instance; `request.process` is well-formed.
    /// Problems: `not_found` (no such instance, or no log of such a process), `unavailable`.
    fn log(
        &self,
        instance: &str,
        request: LogRequest,
    ) -> impl Future<Output = Result<Log, Problem>> + Send;

    /// What runs in an instance. Problems: `not_found` (no such instance), `unavailable` (nothing
    /// runs in it, or its container-init does not answer or is older than the question).
    fn processes(
        &self,
        instance: &str,
    ) -> impl Future<Output = Result<ProcessList, Problem>> + Send;

    /// Executes a command in an instance; the request is well-formed. `caller` is named in the log.
    /// Problems: `not_found` (no such instance), `invalid_request` (it cannot be executed),
    /// `unavailable` (the instance runs nothing at the moment, or containerd does not answer).
    fn exec(
        &self,
        instance: &str,
        request: ExecRequest,
        caller: &str,
    ) -> impl Future<Output = Result<ExecSession, Problem>> + Send;

    /// Images that were made ready here, and pulls under way.
    fn images(&self) -> impl Future<Output = Result<ImageList, Problem>> + Send;

    /// Makes an image ready, and pins it where that is asked. Problems: `invalid_request`,
    /// `image_refused`, `unavailable`.
    fn pull_image(
        &self,
        request: ImageRequest,
    ) -> impl Future<Output = Result<ImageDocument, Problem>> + Send;

    /// Pins an image that was made ready, or no longer. Problems: `invalid_request`, `not_found`.
    fn pin_image(
        &self,
        reference: &str,
        pinned: bool,
    ) -> impl Future<Output = Result<ImageDocument, Problem>> + Send;

    /// Hashes blobs again. Problems: `invalid_request`, `not_found`, `internal`.
    fn verify_images(
        &self,
        request: VerifyRequest,
    ) -> impl Future<Output = Result<VerifyResult, Problem>> + Send;

    /// Evicts images that nobody needs. Problems: `unavailable`, `internal`.
    fn evict_images(
        &self,
        request: EvictRequest,
    ) -> impl Future<Output = Result<EvictResult, Problem>> + Send;

    /// Which images belong on this host, and which one scale-out uses.
    fn stable_images(&self) -> impl Future<Output = Result<StableList, Problem>> + Send;

    /// Says which image of an app is stable. Problems: `invalid_request`, `not_found`, `deleting`.
    fn set_stable_image(
        &self,
        request: StableRequest,
    ) -> impl Future<Output = Result<AppImages, Problem>> + Send;

    /// Makes the images of an archive ready. Problems: `invalid_request`, `image_refused`,
    /// `unavailable`, `internal`.
    fn import_images(
        &self,
        request: ImportRequest,
    ) -> impl Future<Output = Result<ImportResult, Problem>> + Send;

    /// Writes images to a file. Problems: `invalid_request`, `not_found`, `image_refused`,
    /// `unavailable`, `internal`.
    fn export_images(
        &self,
        request: ExportRequest,
    ) -> impl Future<Output = Result<ExportResult, Problem>> + Send;

    /// The journal, and whether one before it was lost.
    fn journal(&self) -> impl Future<Output = Result<JournalDocument, Problem>> + Send;

    /// Accepts the loss of the journal: what belongs to no instance is removed, ids of tasks that are
    /// not known are new. Without a loss nothing happens.
    fn accept_journal(&self) -> impl Future<Output = Result<JournalDocument, Problem>> + Send;

    /// Ok once requests can be served; until then `unavailable` with what is awaited.
    fn ready(&self) -> Result<(), Problem>;

    /// Validates the manifest and makes it the app that its `metadata.name` says. Problems:
    /// `invalid_manifest`, `journal_full`, `internal`.
    fn apply(&self, manifest: &str) -> impl Future<Output = Result<ApplyResult, Problem>> + Send;

    /// All apps by name.
    fn apps(&self) -> impl Future<Output = Result<AppList, Problem>> + Send;

    /// The app, or `not_found`.
    fn app(&self, name: &str) -> impl Future<Output = Result<AppDocument, Problem>> + Send;

    /// Deletes the app. Problems: `not_found`, `app_in_use`.
    fn delete_app(
        &self,
        name: &str,
        deletion: Deletion,
    ) -> impl Future<Output = Result<ApplyResult, Problem>> + Send;
}
