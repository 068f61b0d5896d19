//! Alarms: what somebody should look at, as long as it is so.
//!
//! Owns the list of alarms that stand. Whoever finds a state raises it and clears it when it is
//! over; saying the same again keeps the time at which it began. Shown in `status`, told by
//! `/v1/events`, counted in `nodeagent_alarm`. Deliberately without a history (that is the log's)
//! and without severities: what nobody has to look at is no alarm.
//!
//! ```text
//! absent ── raise ──► standing ── raise, other words ──► standing (since unchanged)
//!    ▲                    │
//!    └────── clear ───────┘
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::instance::AppName;
use crate::pool::read_clocks;

/// What is wrong. A closed set: each is a label value of a metric and a line of
/// `docs/operations/troubleshooting.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmCode {
    /// The instances of an app fail one after another.
    InstancesFail,
    /// The journal was lost or is not readable: a new epoch has begun.
    JournalLost,
    /// A discovery backend does not acknowledge.
    DiscoveryUnreachable,
    /// A discovery backend refuses what is ours: another agent has this host's id, or the
    /// credentials are wrong.
    DiscoveryRefused,
    /// Something of ours was found at start that no instance accounts for, and could not be removed.
    Leak,
    /// Images take more of the disk than the budget allows, and none of them may go.
    ImagesOverBudget,
}

impl AlarmCode {
    /// Every code.
    pub const ALL: [Self; 6] = [
        Self::InstancesFail,
        Self::JournalLost,
        Self::DiscoveryUnreachable,
        Self::DiscoveryRefused,
        Self::Leak,
        Self::ImagesOverBudget,
    ];

    /// As spelt in documents and label values.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InstancesFail => "instances_fail",
            Self::JournalLost => "journal_lost",
            Self::DiscoveryUnreachable => "discovery_unreachable",
            Self::DiscoveryRefused => "discovery_refused",
            Self::Leak => "leak",
            Self::ImagesOverBudget => "images_over_budget",
        }
    }
}

impl fmt::Display for AlarmCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an alarm is about. One alarm of a code stands for each subject.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The host or the agent on it.
    Host,
    /// One app's pool.
    App(AppName),
    /// One discovery backend, by its name in the configuration.
    Backend(String),
}

/// One alarm that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// What is wrong.
    pub code: AlarmCode,
    /// About what.
    pub subject: Subject,
    /// A sentence for the person on call: what is so, and what to do.
    pub detail: String,
    /// Unix milliseconds of wall time at which it was raised.
    pub since_ms: u64,
}

type Standing = BTreeMap<(AlarmCode, Subject), Alarm>;

/// The alarms of this agent. Shared by everybody who may raise one.
#[derive(Debug)]
pub struct Alarms {
    standing: Mutex<Standing>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

impl Default for Alarms {
    fn default() -> Self {
        Self {
            standing: Mutex::default(),
            changes: watch::channel(0).0,
        }
    }
}

impl Alarms {
    /// Raises the alarm, or renews its words. Logged as an error when it is new.
    pub fn raise(&self, code: AlarmCode, subject: Subject, detail: impl Into<String>) {
        let detail = detail.into();
        let mut standing = self.standing();
        match standing.get_mut(&(code, subject.clone())) {
            Some(alarm) if alarm.detail == detail => return,
            Some(alarm) => alarm.detail = detail,
            None => {
                tracing::error!(code = code.as_str(), ?subject, detail, "alarm");
                let alarm = Alarm {
                    code,
                    subject: subject.clone(),
                    detail,
                    since_ms: read_clocks().wall_ms,
                };
                standing.insert((code, subject), alarm);
            }
        }
        drop(standing);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// The alarm's cause is gone. Without one that stands nothing happens.
    pub fn clear(&self, code: AlarmCode, subject: &Subject) {
        let cleared = self.standing().remove(&(code, subject.clone()));
        if cleared.is_some() {
            tracing::info!(code = code.as_str(), ?subject, "alarm is over");
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// [`raise`](Self::raise) or [`clear`](Self::clear), by whether there is something to say.
    pub fn set(&self, code: AlarmCode, subject: Subject, detail: Option<&str>) {
        match detail {
            Some(detail) => self.raise(code, subject, detail),
            None => self.clear(code, &subject),
        }
    }

    /// Every alarm that stands, by code and subject.
    pub fn standing_now(&self) -> Vec<Alarm> {
        self.standing().values().cloned().collect()
    }

    /// Wakes whenever an alarm is raised, changed or cleared.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        // Every change is one call: a panic elsewhere leaves the map whole.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_keeps_its_beginning_until_it_is_cleared() {
        let alarms = Alarms::default();
        let changes = alarms.changes();
        alarms.raise(AlarmCode::Leak, Subject::Host, "one");
        let since = alarms.standing_now()[0].since_ms;
        alarms.raise(AlarmCode::Leak, Subject::Host, "one");
        alarms.raise(AlarmCode::Leak, Subject::Host, "two");
        let now = alarms.standing_now();
        assert_eq!((now.len(), now[0].since_ms), (1, since));
        assert_eq!(now[0].detail, "two");
        // The same words again are no change.
        assert_eq!(*changes.borrow(), 2);
        alarms.clear(AlarmCode::Leak, &Subject::Host);
        alarms.clear(AlarmCode::Leak, &Subject::Host);
        assert_eq!((alarms.standing_now().len(), *changes.borrow()), (0, 3));
    }

    #[test]
    fn one_code_stands_once_for_each_subject() {
        let alarms = Alarms::default();
        for backend in ["etcd", "file", "etcd"] {
            let subject = Subject::Backend(backend.to_owned());
            alarms.raise(AlarmCode::DiscoveryUnreachable, subject, "no answer");
        }
        assert_eq!(alarms.standing_now().len(), 2);
    }

    #[test]
    fn every_code_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            AlarmCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), AlarmCode::ALL.len());
    }
}
