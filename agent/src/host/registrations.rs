//! At start: what discovery lists of this host, and what of it belongs to nobody.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::node::Pools;
use super::strays::{said, told};
use crate::discovery::{Backends, Discovery, RegistrationRecord};
use crate::instance::InstanceName;

/// How long a backend may take to answer before the pools go on without it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two questions to a backend that does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A pool shows an instance this long after its registration at the latest.
const SNAPSHOTS_LAG: Duration = Duration::from_secs(1);

/// Backends with what each lists.
pub(super) type Records = Vec<(Arc<dyn Discovery>, Vec<RegistrationRecord>)>;

/// What every backend lists.
pub(super) struct Listing {
    /// Those that answered.
    pub heard: Records,
    /// Those that did not answer.
    pub unheard: Vec<Arc<dyn Discovery>>,
}

impl Listing {
    /// Asks all backends at once.
    pub async fn ask(backends: &Backends) -> Self {
        let each = backends.each().map(|(backend, _)| async {
            let answer = tokio::time::timeout(PATIENCE, backend.registered()).await;
            let records = match answer {
                Ok(answer) => told("registrations", answer),
                Err(_) => {
                    tracing::warn!(backend = backend.name(), "cannot be asked yet");
                    None
                }
            };
            (Arc::clone(backend), records)
        });
        let mut listing = Self {
            heard: Vec::new(),
            unheard: Vec::new(),
        };
        for (backend, records) in join_all(each).await {
            match records {
                Some(records) => listing.heard.push((backend, records)),
                None => listing.unheard.push(backend),
            }
        }
        listing
    }

    /// Instances that any backend lists; `None` when one could not be asked.
    pub fn all(&self) -> Option<BTreeSet<InstanceName>> {
        let records = self.heard.iter().flat_map(|(_, records)| records);
        let all = records.map(|record| record.instance.clone()).collect();
        self.unheard.is_empty().then_some(all)
    }

    /// Deregisters what is not known; a backend that does not acknowledge it in time keeps it listed.
    pub async fn sweep(&mut self, known: impl Fn(&InstanceName) -> bool) {
        for (backend, records) in &mut self.heard {
            let (ours, stray): (Vec<_>, Vec<_>) = std::mem::take(records)
                .into_iter()
                .partition(|record| known(&record.instance));
            *records = ours;
            let removal = deregister(backend.as_ref(), stray.iter());
            let removed = tokio::time::timeout(PATIENCE, removal).await;
            if !matches!(removed, Ok(Swept::All)) {
                records.extend(stray);
            }
        }
    }
}

/// Waits until the backend answers, then deregisters the generations that a reboot has `ended`, and
/// what it lists and no pool has.
pub(super) async fn sweep_later(
    backend: Arc<dyn Discovery>,
    ended: Vec<(InstanceName, u64)>,
    pools: Arc<Pools>,
) {
    let records = loop {
        let answer = async {
            backend.deregister(&ended).await?;
            backend.registered().await
        };
        match answer.await {
            Ok(records) => break records,
            Err(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    };
    // What was registered meanwhile is in its pool's snapshot by then.
    tokio::time::sleep(SNAPSHOTS_LAG).await;
    let stray = records.iter().filter(|record| {
        let pool = pools.handle(&record.instance.app);
        let has = |instances: &[crate::pool::InstanceSnapshot]| {
            instances
                .iter()
                .any(|instance| instance.ordinal == record.instance.ordinal)
        };
        !pool.is_some_and(|pool| has(&pool.snapshot.borrow().instances))
    });
    deregister(backend.as_ref(), stray).await;
}

/// Whether a backend took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Swept {
    All,
    NotAcknowledged,
}

/// Deregisters what belongs to no instance.
pub(super) async fn deregister<'a>(
    backend: &dyn Discovery,
    stray: impl Iterator<Item = &'a RegistrationRecord>,
) -> Swept {
    let stray: Vec<_> = stray
        .map(|record| (record.instance.clone(), record.generation))
        .collect();
    if stray.is_empty() {
        return Swept::All;
    }
    tracing::warn!(
        backend = backend.name(),
        count = stray.len(),
        "deregistering what belongs to no instance"
    );
    let removed = backend.deregister(&stray).await;
    match removed.is_ok() {
        true => Swept::All,
        false => {
            said("registration", removed);
            Swept::NotAcknowledged
        }
    }
}
