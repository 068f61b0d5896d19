//! The one task that speaks to etcd: batches in, transactions out, answers after; renewals in between.
//!
//! ```text
//!            open: lease, host, agreement                   renewal fails, deadline,
//!   away ──────────────────────────────────► serving ──┐   overtaken, host key gone,
//!    ▲ ▲  fails: next endpoint, pause          │  ▲    │   watch ended
//!    │ └───────────────────────────────────┐   └──┘    │
//!    └─────────────────────────────────────┴───────────┘
//! ```
//! Writes wait here while etcd is away, as long as their callers do. A deregistration is remembered
//! longer: it is written as soon as etcd is back, and once the lease is surely over it counts as
//! done, because nobody renews what is away.

mod writing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::agree::{Leaving, agree};
use super::backoff::Rotation;
use super::error::EtcdError;
use super::keys::Keys;
use super::lease::Renewals;
use super::session::{Opened, Session, TXN_OPERATIONS};
use crate::chain::chain;
use crate::config;
use crate::discovery::health::now_ms;
use crate::discovery::{
    Change, DiscoveryError, Health, LeaseHealth, Outcome, Reach, RegistrationRecord, Table,
};
use crate::metrics::{self, Call, Verdict};

/// Pause after another session of the same agent took over: two that are one by a copied journal
/// would otherwise take turns as fast as etcd lets them.
const TAKEN_OVER: Duration = Duration::from_secs(1);

type Answer<T> = oneshot::Sender<Result<T, DiscoveryError>>;

/// What the worker is asked for.
pub(super) enum Job {
    Write {
        changes: Vec<Change>,
        answer: Answer<Vec<Outcome>>,
    },
    Renew {
        answer: Answer<()>,
    },
    List {
        answer: Answer<Vec<RegistrationRecord>>,
    },
}

/// A write that waits.
struct Write {
    changes: Vec<Change>,
    answer: Answer<Vec<Outcome>>,
}

/// Owner of the connection.
pub(super) struct Worker {
    settings: config::EtcdDiscovery,
    keys: Keys,
    agent_id: String,
    jobs: mpsc::Receiver<Job>,
    health: watch::Sender<Health>,
    instruments: Arc<metrics::Backend>,
    rotation: Rotation,
    renewals: Renewals,
    /// What etcd has acknowledged.
    table: Table,
    leaving: Leaving,
    waiting: VecDeque<Write>,
    lists: Vec<Answer<Vec<RegistrationRecord>>>,
    session: Option<Session>,
    next_attempt: Instant,
}

impl Worker {
    pub(super) fn new(
        settings: config::EtcdDiscovery,
        keys: Keys,
        agent_id: String,
        jobs: mpsc::Receiver<Job>,
        health: watch::Sender<Health>,
        instruments: Arc<metrics::Backend>,
    ) -> Self {
        let now = Instant::now();
        Self {
            rotation: Rotation::new(settings.endpoints.clone()),
            renewals: Renewals::begun(settings.ttl, now),
            settings,
            keys,
            agent_id,
            jobs,
            health,
            instruments,
            table: Table::default(),
            leaving: Leaving::new(),
            waiting: VecDeque::new(),
            lists: Vec::new(),
            session: None,
            next_attempt: now,
        }
    }

    /// Works until nobody can ask any more.
    pub(super) async fn run(mut self) {
        loop {
            if self.session.is_some() && !self.waiting.is_empty() {
                self.serve().await;
                continue;
            }
            let wake = match &self.session {
                Some(_) => self.renewals.due(),
                None => self.next_attempt,
            };
            tokio::select! {
                biased;
                job = self.jobs.recv() => match job {
                    Some(job) => self.take(job).await,
                    None => return,
                },
                over = over(&mut self.session) => self.lost(&over),
                () = tokio::time::sleep_until(wake) => match &self.session {
                    Some(_) => drop(self.renew().await),
                    None => self.attempt().await,
                },
            }
            while let Ok(job) = self.jobs.try_recv() {
                self.take(job).await;
            }
        }
    }

    async fn take(&mut self, job: Job) {
        match job {
            Job::Write { changes, answer } => {
                self.waiting.push_back(Write { changes, answer });
                if self.session.is_none() {
                    self.wait_without_etcd();
                }
            }
            Job::Renew { answer } => {
                let renewed = match self.session {
                    Some(_) => self.renew().await,
                    None => Err(self.present_error()),
                };
                say(answer, renewed.map_err(DiscoveryError::from));
            }
            Job::List { answer } if self.session.is_some() => say(answer, Ok(self.list())),
            Job::List { answer } => match self.tried() {
                true => say(answer, Err(self.present_error().into())),
                false => self.lists.push(answer),
            },
        }
    }

    fn list(&self) -> Vec<RegistrationRecord> {
        let records = self.table.records();
        records.map(|record| record.as_ref().clone()).collect()
    }

    /// Etcd is away: deregistrations are remembered, those that time has brought about are
    /// answered, and whom nobody waits for any more is let go.
    fn wait_without_etcd(&mut self) {
        let over = self.renewals.surely_over(Instant::now());
        for write in std::mem::take(&mut self.waiting) {
            self.note_leaving(&write.changes);
            if over && write.changes.iter().all(leaves) {
                let outcomes = write.changes.into_iter().map(|change| {
                    change.apply(&mut self.table);
                    Outcome::Lapsed
                });
                say(write.answer, Ok(outcomes.collect()));
            } else if !write.answer.is_closed() {
                self.waiting.push_back(write);
            }
        }
    }

    fn note_leaving(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Deregister(name, generation) = change {
                let highest = self.leaving.entry(name.clone()).or_default();
                *highest = (*highest).max(*generation);
            }
        }
    }

    async fn attempt(&mut self) {
        let endpoint = self.rotation.current().to_owned();
        let opened = Session::open(&self.settings, &self.keys, &self.agent_id, &endpoint).await;
        let opened = match opened {
            Ok(opened) => self.settle(opened).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(()) => {
                self.rotation.succeeded();
                for answer in std::mem::take(&mut self.lists) {
                    say(answer, Ok(self.list()));
                }
            }
            Err(error) => {
                let pause = self.rotation.failed();
                self.failed(&error);
                self.next_attempt = Instant::now() + pause;
            }
        }
    }

    /// Brings etcd into agreement; from then on the session serves.
    async fn settle(&mut self, opened: Opened) -> Result<(), EtcdError> {
        let Opened {
            mut session,
            records,
            found,
            ttl,
            renewed,
        } = opened;
        let (agreed, operations) = agree(&self.table, &self.leaving, records, found);
        for some in operations.chunks(TXN_OPERATIONS) {
            session.write(some).await?;
        }
        self.table = agreed;
        self.leaving.clear();
        self.renewals = Renewals::begun(ttl, renewed);
        let (endpoint, lease) = (session.endpoint().to_owned(), session.lease());
        self.session = Some(session);
        let written = operations.len();
        let registered = self.table.records().count();
        tracing::info!(endpoint, lease = %format_args!("{lease:x}"), registered, written, "etcd serves");
        let now_ms = now_ms();
        self.health.send_modify(|health| {
            let former = health.lease;
            let another = former.is_some_and(|former| former.id != lease);
            health.reach = Reach::Serving;
            health.since_ms = now_ms;
            health.error = None;
            health.failures = 0;
            health.endpoint = Some(endpoint);
            health.lease = Some(LeaseHealth {
                id: lease,
                ttl_seconds: ttl.as_secs(),
                renewed_ms: now_ms,
                renewals: former.map_or(0, |former| former.renewals) + 1,
                lost: former.map_or(0, |former| former.lost) + u64::from(another),
            });
            health.registered = Some(registered);
        });
        Ok(())
    }

    /// Renews the lease and puts right what is not as it should be on it.
    async fn renew(&mut self) -> Result<(), EtcdError> {
        let Some(session) = &mut self.session else {
            return Err(self.present_error());
        };
        let start = Instant::now();
        let renewed = session.renew().await;
        let verdict = Verdict::of(&renewed);
        self.instruments
            .called(Call::Renew, verdict, 0, start.elapsed());
        let attached = match renewed {
            Ok(attached) => attached.into_iter().collect(),
            Err(error) => {
                self.lost(&error);
                return Err(error);
            }
        };
        self.renewals.renewed(Instant::now());
        let renewed_ms = now_ms();
        self.note(|health| {
            if let Some(lease) = &mut health.lease {
                lease.renewed_ms = renewed_ms;
                lease.renewals += 1;
            }
        });
        self.put_right(&attached).await;
        Ok(())
    }

    /// The session is no more.
    fn lost(&mut self, error: &EtcdError) {
        self.session = None;
        let pause = match error {
            EtcdError::Overtaken => TAKEN_OVER,
            error if error.begins_anew() => Duration::ZERO,
            _ => self.rotation.failed(),
        };
        self.next_attempt = Instant::now() + pause;
        self.failed(error);
    }

    fn failed(&mut self, error: &EtcdError) {
        let text = chain(error);
        let reach = error.reach();
        let now_ms = now_ms();
        let news = self.health.borrow().error.as_deref() != Some(&text);
        self.health.send_modify(|health| {
            if health.reach != reach {
                health.reach = reach;
                health.since_ms = now_ms;
            }
            health.failures += 1;
            health.error = Some(text.clone());
        });
        if error.begins_anew() {
            tracing::warn!(error = text, "a new session with etcd begins");
        } else if news && reach != Reach::Away {
            tracing::error!(error = text, "etcd is closed to this agent");
        } else if news {
            tracing::warn!(error = text, "etcd is away; registrations stay as they are");
        }
        for answer in std::mem::take(&mut self.lists) {
            say(answer, Err(error.clone().into()));
        }
        self.wait_without_etcd();
    }

    /// Changes figures of the health: nobody is woken for them.
    fn note(&self, change: impl FnOnce(&mut Health)) {
        self.health.send_if_modified(|health| {
            change(health);
            false
        });
    }

    fn tried(&self) -> bool {
        self.health.borrow().reach != Reach::Connecting
    }

    fn present_error(&self) -> EtcdError {
        let health = self.health.borrow();
        match &health.error {
            Some(said) => EtcdError::Away {
                reach: health.reach,
                said: said.clone(),
            },
            None => EtcdError::NotYet,
        }
    }
}

/// Why the session is over, once it is; without one that is never.
async fn over(session: &mut Option<Session>) -> EtcdError {
    match session {
        Some(session) => session.over().await,
        None => std::future::pending().await,
    }
}

fn leaves(change: &Change) -> bool {
    matches!(change, Change::Deregister(..))
}

/// Answers; a caller that went away reads the outcome by `registered`.
fn say<T>(answer: Answer<T>, result: Result<T, DiscoveryError>) {
    drop(answer.send(result));
}
