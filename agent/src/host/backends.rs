//! Alarms about discovery backends: raised while one keeps instances out of service or refuses us.
//!
//! ```text
//!             away for BLIP, required                 serves
//!   serves ───────────────────────────► unreachable ─────────► serves
//!      └────────────────────────────► refused ──────────────────▲
//!             refuses, or is another's
//! ```
//! An alarm stands until the backend serves again: members that fail in different ways, one after
//! another, are one alarm. A backend that is not required keeps nobody out of service; that it
//! cannot be reached is no alarm, that it refuses is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::alarm::{AlarmCode, Alarms, Subject};
use crate::config::Requirement;
use crate::discovery::{Backends, Health, Reach};

/// A new leader or a restarted member is there again after a second or two: nobody has to look.
const BLIP: Duration = Duration::from_secs(5);

/// Follows every backend that can be away, until `shutdown`.
pub(super) fn watch(backends: &Backends, alarms: &Arc<Alarms>, shutdown: &CancellationToken) {
    for (backend, requirement) in backends.each() {
        let Some(health) = backend.health_changes() else {
            continue;
        };
        let follower = Follower::new(backend.name(), requirement, alarms);
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            shutdown.run_until_cancelled(follower.run(health)).await;
        });
    }
}

struct Follower {
    name: String,
    requirement: Requirement,
    alarms: Arc<Alarms>,
    /// The alarm that stands.
    stands: Option<AlarmCode>,
    /// When it served last, or began, if it does not serve.
    lost: Option<Instant>,
}

impl Follower {
    fn new(name: &str, requirement: Requirement, alarms: &Arc<Alarms>) -> Self {
        Self {
            name: name.to_owned(),
            requirement,
            alarms: Arc::clone(alarms),
            stands: None,
            lost: None,
        }
    }

    /// Ends with the backend.
    async fn run(mut self, mut health: watch::Receiver<Health>) {
        loop {
            let now = health.borrow_and_update().clone();
            let due = self.look(&now, Instant::now());
            let changed = match due {
                Some(due) => match tokio::time::timeout_at(due, health.changed()).await {
                    Ok(changed) => changed,
                    Err(_) => continue,
                },
                None => health.changed().await,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Raises or clears; returns when to look again even if nothing changes.
    fn look(&mut self, health: &Health, now: Instant) -> Option<Instant> {
        if health.reach == Reach::Serving {
            self.lost = None;
            if let Some(code) = self.stands.take() {
                self.alarms.clear(code, &self.subject());
            }
            return None;
        }
        let lost = *self.lost.get_or_insert(now);
        let wanted = wanted(self.requirement, health.reach, now - lost);
        if let Some(code) = wanted.filter(|code| self.stands.is_none_or(|stands| stands < *code)) {
            if let Some(stands) = self.stands.replace(code) {
                self.alarms.clear(stands, &self.subject());
            }
            let sentence = sentence(&self.name, code, health);
            self.alarms.raise(code, self.subject(), sentence);
        }
        let due = lost + BLIP;
        (self.requirement == Requirement::Required && now < due).then_some(due)
    }

    fn subject(&self) -> Subject {
        Subject::Backend(self.name.clone())
    }
}

/// The alarm for a backend that does not serve. A refusal outranks an absence.
fn wanted(requirement: Requirement, reach: Reach, lost_for: Duration) -> Option<AlarmCode> {
    match reach {
        Reach::Fenced | Reach::Refused => Some(AlarmCode::DiscoveryRefused),
        Reach::Away if requirement == Requirement::Required && lost_for >= BLIP => {
            Some(AlarmCode::DiscoveryUnreachable)
        }
        Reach::Away | Reach::Connecting | Reach::Serving => None,
    }
}

fn sentence(name: &str, code: AlarmCode, health: &Health) -> String {
    let said = health.error.as_deref().unwrap_or("no attempt has ended");
    match code {
        AlarmCode::DiscoveryRefused => format!("{name} is closed to this agent: {said}"),
        _ => format!(
            "{name} does not acknowledge: {said}. Instances and registrations stay as they are; new ones are not in service until it is back"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);
    const UNREACHABLE: [AlarmCode; 1] = [AlarmCode::DiscoveryUnreachable];
    const REFUSED: [AlarmCode; 1] = [AlarmCode::DiscoveryRefused];

    struct Followed {
        follower: Follower,
        now: Instant,
    }

    impl Followed {
        fn new(requirement: Requirement) -> Self {
            let follower = Follower::new("etcd", requirement, &Arc::default());
            let now = Instant::now();
            let mut new = Self { follower, now };
            new.after(Reach::Connecting, Duration::ZERO);
            new
        }

        /// What stands once the backend has been so for that long: looked at when it changes, and
        /// when the follower wants to look again.
        fn after(&mut self, reach: Reach, wait: Duration) -> Vec<AlarmCode> {
            let health = Health {
                reach,
                error: Some("cannot connect".into()),
                ..Health::serving()
            };
            let due = self.follower.look(&health, self.now);
            self.now += wait;
            if let Some(due) = due.filter(|due| *due <= self.now) {
                assert_eq!(self.follower.look(&health, due), None, "one more look");
            }
            let standing = self.follower.alarms.standing_now();
            standing.into_iter().map(|alarm| alarm.code).collect()
        }
    }

    #[test]
    fn a_blip_is_no_alarm_and_an_absence_is_one_until_it_serves() {
        let mut etcd = Followed::new(Requirement::Required);
        assert_eq!(etcd.after(Reach::Away, BLIP - MOMENT), []);
        assert_eq!(etcd.after(Reach::Serving, BLIP), []);
        assert_eq!(etcd.after(Reach::Away, BLIP - MOMENT), []);
        // Another failed attempt does not begin the absence anew.
        assert_eq!(etcd.after(Reach::Away, MOMENT), UNREACHABLE);
        assert_eq!(etcd.after(Reach::Serving, MOMENT), []);
    }

    #[test]
    fn a_refusal_is_an_alarm_at_once_and_outranks_an_absence() {
        let mut etcd = Followed::new(Requirement::Required);
        assert_eq!(etcd.after(Reach::Refused, MOMENT), REFUSED);
        assert_eq!(etcd.after(Reach::Away, 2 * BLIP), REFUSED);
        assert_eq!(etcd.after(Reach::Serving, MOMENT), []);
        assert_eq!(etcd.after(Reach::Away, 2 * BLIP), UNREACHABLE);
        assert_eq!(etcd.after(Reach::Fenced, MOMENT), REFUSED);
    }

    #[test]
    fn an_optional_backend_may_be_away_and_may_not_refuse() {
        let mut etcd = Followed::new(Requirement::Optional);
        assert_eq!(etcd.after(Reach::Away, 2 * BLIP), []);
        assert_eq!(etcd.after(Reach::Refused, MOMENT), REFUSED);
    }
}
