//! The embedded backend: files that Prometheus and Envoy watch.
//!
//! ```text
//! <directory>/prometheus.json      all instances, see `prometheus`
//! <directory>/eds/<service>.json   one service each, see `eds`
//! ```
//!
//! Promises: each file is replaced by a rename, so that a reader sees the old one or the new one,
//! whole; a caller is answered when its records are in every file; records that arrive while a write
//! is under way go together in the next. A service whose last instance went keeps a file with no
//! endpoints, so that clients see the removal.
//!
//! What is registered after a restart is what the Envoy files say. A file that is truncated, or that
//! somebody else wrote, is set aside under another name and said ([`FileDiscovery::set_aside`]); its
//! registrations are then missing until they are made again.
//!
//! Deliberately without fsync: a reboot ends every instance that these files speak of, and the agent
//! registers only what it finds ready. One agent to a directory; the lock on the agent's state
//! directory sees to that.

mod load;
mod queue;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::{Capabilities, Change, Discovery, DiscoveryError, Outcome, RegistrationRecord};
use crate::config;
use crate::instance::InstanceName;
use queue::Queue;
use writer::{Job, Writer};

const NAME: &str = "file";

/// How long a caller waits for its records to be in place, queueing included.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// A file that was found at start and is not ours, or not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it was.
    pub from: PathBuf,
    /// Where it is now.
    pub to: PathBuf,
    /// Why.
    pub reason: String,
}

/// The file backend.
pub struct FileDiscovery {
    jobs: Queue,
    bound: Duration,
    set_aside: Vec<SetAside>,
}

impl FileDiscovery {
    /// Reads what is registered, brings the files into agreement, and starts the writer. The
    /// directory is made when it does not exist.
    ///
    /// # Errors
    /// [`DiscoveryError::File`] when the directory cannot be made, read or written.
    pub fn open(settings: &config::FileDiscovery) -> Result<Self, DiscoveryError> {
        let (files, set_aside) = load::load(&settings.directory)?;
        for file in &set_aside {
            tracing::warn!(from = %file.from.display(), to = %file.to.display(), reason = file.reason,
                "a discovery file was set aside");
        }
        let mut writer = Writer::new(files);
        writer.settle()?;
        let jobs = Queue::open(writer, &settings.directory)
            .map_err(|source| failed("start the writer of", &settings.directory, source))?;
        Ok(Self {
            jobs,
            bound: settings.propagation_bound,
            set_aside,
        })
    }

    /// The files that were set aside at start.
    pub fn set_aside(&self) -> &[SetAside] {
        &self.set_aside
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, DiscoveryError>>) -> Job,
    ) -> Result<T, DiscoveryError> {
        let (answer, answered) = oneshot::channel();
        let ended = || DiscoveryError::WriterEnded { backend: NAME };
        self.jobs.put(job(answer)).map_err(|_| ended())?;
        let late = DiscoveryError::Deadline {
            backend: NAME,
            after: WRITE_DEADLINE,
        };
        match tokio::time::timeout(WRITE_DEADLINE, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(ended())),
            Err(_) => Err(late),
        }
    }

    async fn write(&self, changes: Vec<Change>) -> Result<Vec<Outcome>, DiscoveryError> {
        self.ask(|answer| Job::Write { changes, answer }).await
    }
}

impl Discovery for FileDiscovery {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            weights: true,
            status: true,
            batch: true,
            compare_and_put: false,
        }
    }

    fn propagation_bound(&self) -> Duration {
        self.bound
    }

    fn register<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        async { self.write(Change::each(batch, Change::Register)?).await }.boxed()
    }

    fn update<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        async { self.write(Change::each(batch, Change::Update)?).await }.boxed()
    }

    fn deregister<'a>(
        &'a self,
        batch: &'a [(InstanceName, u64)],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        self.write(Change::deregister_each(batch)).boxed()
    }

    /// Files do not expire; those that somebody removed are written again.
    fn renew(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        self.ask(|answer| Job::Renew { answer }).boxed()
    }

    fn registered(&self) -> BoxFuture<'_, Result<Vec<RegistrationRecord>, DiscoveryError>> {
        self.ask(|answer| Job::List { answer }).boxed()
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> DiscoveryError {
    DiscoveryError::File {
        operation,
        path: path.to_owned(),
        source,
    }
}
