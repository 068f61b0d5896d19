//! Metrics of the agent, in the names and units of Prometheus' conventions.
//!
//! Owns the instruments ([`Metrics`]) and their exposition. What happens on the warm path is an
//! atomic addition at a fixed place: labels are closed sets, and each set has its array. What can be
//! looked up (instances, alarms, containerd, the process) is looked up when somebody asks
//! ([`Facts`]). Cardinality is bounded by the number of apps. Deliberately without a registry,
//! labels made at run time, and pushing.

mod instrument;
mod page;
mod render;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use std::sync::atomic::{AtomicU64, Ordering};

pub use instrument::{BOUNDS_US, Counter, Histogram};
pub use page::{CONTENT_TYPE, Family, Kind, Labels, Page};
pub use render::{Facts, ImageFacts, PoolFacts, ProcessFacts, render};

use crate::instance::EffectKind;
use crate::task::EndState;

/// Whether something did what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It did.
    Ok,
    /// It did not.
    Failed,
}

impl Verdict {
    const ALL: [Self; 2] = [Self::Ok, Self::Failed];

    /// Of an answer.
    pub fn of<T, E>(answer: &Result<T, E>) -> Self {
        match answer {
            Ok(_) => Self::Ok,
            Err(_) => Self::Failed,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
        }
    }
}

const ENDS: [EndState; 4] = [
    EndState::Done,
    EndState::Partial,
    EndState::Failed,
    EndState::Superseded,
];
/// How warm an instance was when it was taken.
const WARMTHS: [&str; 5] = ["frozen", "armed", "staged", "cached", "absent"];

/// The instruments of one agent.
#[derive(Debug, Default)]
pub struct Metrics {
    tasks: [Histogram; ENDS.len()],
    activations: [[Counter; 2]; WARMTHS.len()],
    activation_times: [Histogram; WARMTHS.len()],
    steps: [[Histogram; 2]; EffectKind::ALL.len()],
    commits: [Histogram; 2],
    refills: [Counter; 2],
    backends: Mutex<Vec<Arc<Backend>>>,
}

impl Metrics {
    /// A task's outcome is durable, this long after its first byte.
    pub fn task_ended(&self, end: EndState, elapsed_us: u64) {
        if let Some(end) = ENDS.iter().position(|e| *e == end) {
            self.tasks[end].observe_us(elapsed_us);
        }
    }

    /// A task that wanted an instance in service has ended: whether it is there, how warm it was,
    /// and how long after the request it was registered.
    pub fn activated(&self, from: &str, verdict: Verdict, registered_us: Option<u64>) {
        let Some(from) = WARMTHS.iter().position(|warmth| *warmth == from) else {
            return;
        };
        self.activations[from][verdict as usize].inc();
        if let Some(us) = registered_us {
            self.activation_times[from].observe_us(us);
        }
    }

    /// An effect on an instance has ended.
    pub fn step_ended(&self, kind: EffectKind, verdict: Verdict, took: Duration) {
        if let Some(kind) = EffectKind::ALL.iter().position(|k| *k == kind) {
            self.steps[kind][verdict as usize].observe(took);
        }
    }

    /// A commit of the journal is durable, or was refused.
    pub fn committed(&self, verdict: Verdict, took: Duration) {
        self.commits[verdict as usize].observe(took);
    }

    /// An instance for a warm target is at the gate, or is not.
    pub fn refilled(&self, verdict: Verdict) {
        self.refills[verdict as usize].inc();
    }

    /// The instruments of a discovery backend of this name.
    pub fn backend(&self, name: &str) -> Arc<Backend> {
        let backend = Arc::new(Backend {
            name: name.to_owned(),
            calls: Default::default(),
            records: Counter::default(),
            last_success_ms: AtomicU64::new(0),
        });
        self.backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&backend));
        backend
    }
}

/// What is asked of a discovery backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Put in place.
    Register,
    /// Change.
    Update,
    /// Take out.
    Deregister,
    /// Keep alive.
    Renew,
}

impl Call {
    const ALL: [Self; 4] = [Self::Register, Self::Update, Self::Deregister, Self::Renew];

    fn as_str(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Update => "update",
            Self::Deregister => "deregister",
            Self::Renew => "renew",
        }
    }
}

/// The instruments of one discovery backend.
#[derive(Debug)]
pub struct Backend {
    name: String,
    calls: [[Histogram; 2]; Call::ALL.len()],
    records: Counter,
    /// Unix milliseconds; 0: never.
    last_success_ms: AtomicU64,
}

impl Backend {
    /// A call about that many records has ended.
    pub fn called(&self, call: Call, verdict: Verdict, records: usize, took: Duration) {
        self.calls[call as usize][verdict as usize].observe(took);
        if verdict == Verdict::Ok {
            self.records.add(records as u64);
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            self.last_success_ms.store(now, Ordering::Relaxed);
        }
    }
}
