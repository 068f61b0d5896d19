//! All backends of a host together: in service is what every required one has acknowledged.
//!
//! A backend that is not required is told and not waited for: a task of its own tries again until
//! the backend has it, or a later change of the same instance has taken its place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;

use super::{Change, Discovery, DiscoveryError, Health, Outcome, RegistrationRecord};
use crate::chain::chain;
use crate::config::Requirement;
use crate::instance::InstanceName;

const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The backends of this host.
pub struct Backends {
    required: Vec<Arc<dyn Discovery>>,
    optional: Vec<Follower>,
}

/// Why an instance is not in service, or not out of it: each required backend that is missing.
#[derive(Debug)]
pub struct Unacknowledged {
    instance: InstanceName,
    generation: u64,
    missing: Vec<(String, Cause)>,
}

#[derive(Debug)]
enum Cause {
    Error(DiscoveryError),
    Fenced(Outcome),
}

impl fmt::Display for Unacknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (backend, cause)) in self.missing.iter().enumerate() {
            let Self {
                instance,
                generation,
                ..
            } = self;
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{backend} ")?;
            match cause {
                Cause::Error(error) => write!(
                    f,
                    "has not acknowledged generation {generation} of {instance}: {}",
                    chain(error)
                )?,
                Cause::Fenced(outcome) => write!(
                    f,
                    "does not take generation {generation} of {instance}: {outcome:?}"
                )?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Unacknowledged {}

impl Unacknowledged {
    /// Whether another generation stands in the way, so that waiting does not help.
    pub fn is_fenced(&self) -> bool {
        let fenced = |(_, cause): &(String, Cause)| matches!(cause, Cause::Fenced(_));
        self.missing.iter().any(fenced)
    }
}

impl Backends {
    /// Needs a tokio runtime when a backend is optional.
    pub fn new(backends: Vec<(Arc<dyn Discovery>, Requirement)>) -> Self {
        let mut all = Self {
            required: Vec::new(),
            optional: Vec::new(),
        };
        for (backend, requirement) in backends {
            match requirement {
                Requirement::Required => all.required.push(backend),
                Requirement::Optional => all.optional.push(Follower::start(backend)),
            }
        }
        all
    }

    /// Registers with all at once; done when the required ones have acknowledged.
    ///
    /// # Errors
    /// [`Unacknowledged`] names each required backend that has not, and why.
    pub async fn register(&self, record: RegistrationRecord) -> Result<(), Unacknowledged> {
        let shared = Arc::new(record.clone());
        for follower in &self.optional {
            follower.follow(Change::Register(Arc::clone(&shared)));
        }
        let batch = [record];
        let each = self.required.iter().map(|backend| async {
            let cause = match backend.register(&batch).await {
                Ok(outcomes) => {
                    let mut refused = outcomes.into_iter().filter(|o| *o != Outcome::Applied);
                    Cause::Fenced(refused.next()?)
                }
                Err(error) => Cause::Error(error),
            };
            Some((backend.name().to_owned(), cause))
        });
        let missing: Vec<_> = join_all(each).await.into_iter().flatten().collect();
        acknowledged(&shared.instance, shared.generation, missing)
    }

    /// Deregisters with all at once, whatever generation is registered.
    ///
    /// # Errors
    /// [`Unacknowledged`] names each required backend that has not acknowledged, and why.
    pub async fn deregister(
        &self,
        instance: &InstanceName,
        generation: u64,
    ) -> Result<(), Unacknowledged> {
        for follower in &self.optional {
            follower.follow(Change::Deregister(instance.clone(), generation));
        }
        let each = self.required.iter().map(|backend| async {
            let error = deregister(backend.as_ref(), instance, generation)
                .await
                .err()?;
            Some((backend.name().to_owned(), Cause::Error(error)))
        });
        let missing: Vec<_> = join_all(each).await.into_iter().flatten().collect();
        acknowledged(instance, generation, missing)
    }

    /// All backends, the required ones first.
    pub fn each(&self) -> impl Iterator<Item = (&Arc<dyn Discovery>, Requirement)> {
        let required = self.required.iter().map(|b| (b, Requirement::Required));
        let optional = self.optional.iter();
        required.chain(optional.map(|f| (&f.backend, Requirement::Optional)))
    }

    /// How each backend is: name, whether it is required, its health.
    pub fn health(&self) -> Vec<(String, Requirement, Health)> {
        let one = |(backend, requirement): (&Arc<dyn Discovery>, Requirement)| {
            (backend.name().to_owned(), requirement, backend.health())
        };
        self.each().map(one).collect()
    }

    /// The longest that clients of any backend may go on using what was removed.
    pub fn propagation_bound(&self) -> Duration {
        let bounds = self.each().map(|(backend, _)| backend.propagation_bound());
        bounds.max().unwrap_or_default()
    }
}

fn acknowledged(
    instance: &InstanceName,
    generation: u64,
    missing: Vec<(String, Cause)>,
) -> Result<(), Unacknowledged> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(Unacknowledged {
        instance: instance.clone(),
        generation,
        missing,
    })
}

/// A newer record than ours is ours as well, from before a crash: nobody else writes it.
async fn deregister(
    backend: &dyn Discovery,
    instance: &InstanceName,
    mut generation: u64,
) -> Result<(), DiscoveryError> {
    loop {
        let outcomes = backend
            .deregister(&[(instance.clone(), generation)])
            .await?;
        let newer = outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Stale { registered } if registered > generation => Some(registered),
            Outcome::Lapsed => {
                tracing::warn!(%instance, generation, backend = backend.name(),
                    "the deregistration was never acknowledged; the registration has lapsed");
                None
            }
            _ => None,
        });
        match newer {
            Some(newer) => generation = newer,
            None => return Ok(()),
        }
    }
}

/// Brings a backend that nobody waits for up to date. It ends with its [`Backends`].
struct Follower {
    backend: Arc<dyn Discovery>,
    pending: Arc<Pending>,
    task: tokio::task::JoinHandle<()>,
}

/// The last change of each instance that the backend has not acknowledged: no more than instances.
#[derive(Default)]
struct Pending {
    changes: Mutex<BTreeMap<InstanceName, Change>>,
    news: Notify,
}

impl Follower {
    fn start(backend: Arc<dyn Discovery>) -> Self {
        let pending = Arc::new(Pending::default());
        let task = tokio::spawn(follow(Arc::clone(&backend), Arc::clone(&pending)));
        Self {
            backend,
            pending,
            task,
        }
    }

    fn follow(&self, change: Change) {
        let changes = self.pending.changes.lock();
        let mut changes = changes.unwrap_or_else(PoisonError::into_inner);
        changes.insert(change.instance().clone(), change);
        self.pending.news.notify_one();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(backend: Arc<dyn Discovery>, pending: Arc<Pending>) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let next = {
            let changes = pending.changes.lock();
            let mut changes = changes.unwrap_or_else(PoisonError::into_inner);
            changes.pop_first()
        };
        let Some((instance, change)) = next else {
            pending.news.notified().await;
            continue;
        };
        let done = match &change {
            Change::Register(record) => {
                backend.register(&[record.as_ref().clone()]).await.map(drop)
            }
            Change::Update(record) => backend.update(&[record.as_ref().clone()]).await.map(drop),
            Change::Deregister(instance, generation) => {
                deregister(backend.as_ref(), instance, *generation).await
            }
        };
        match done {
            Ok(()) => pause = SHORTEST_PAUSE,
            Err(error) => {
                tracing::debug!(backend = backend.name(), %instance, error = chain(&error), "an optional backend is behind");
                let changes = pending.changes.lock();
                changes
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(instance)
                    .or_insert(change);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
