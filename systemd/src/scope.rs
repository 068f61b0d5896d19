//! A transient scope with a delegated cgroup: a place for processes that are not the service's.
//!
//! ```text
//! absent ── StartTransientUnit(holder) ──► job ── JobRemoved: done ──► active, its path known
//!    ▲                                                                     │
//!    └───────────────── the last process in it has ended ◄─────────────────┘
//! ```
//! A scope lives as long as there is a process in it: a tiny one, the holder, is put into it at its
//! start (org.freedesktop.systemd1(5), `StartTransientUnit()`). Whoever asks again finds the scope.

use std::time::Duration;

use futures_util::StreamExt;
use zbus::{Connection, ObjectPath, OwnedObjectPath, Variant, proxy};

use crate::bus::{BusError, ask, connect};

/// For each answer of systemd.
const ANSWERS: Duration = Duration::from_secs(5);
/// From the order to the end of its job.
const JOB: Duration = Duration::from_secs(10);

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// systemd was not reached, refused, or did not answer.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The holder could not be started.
    #[error("the process that keeps scope {scope} alive cannot be started")]
    Holder {
        /// The scope.
        scope: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// systemd's job ended otherwise than `done`.
    #[error("systemd did not start scope {scope}: the job ended as {result:?}")]
    Job {
        /// The scope.
        scope: String,
        /// The job's result (org.freedesktop.systemd1(5), `JobRemoved`).
        result: String,
    },
}

/// What a scope is to be.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// `NAME.scope`.
    pub name: &'a str,
    /// `Description=`.
    pub description: &'a str,
    /// `Before=`: on shutdown these stop first.
    pub before: &'a [&'a str],
    /// `After=`: on shutdown these stop later.
    pub after: &'a [&'a str],
    /// `TimeoutStopUSec=`: on shutdown its processes have this long after SIGTERM.
    pub stop_within: Duration,
}

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: Vec<(&str, Variant<'_>)>,
        auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)>,
    ) -> zbus::Result<OwnedObjectPath>;
    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Scope",
    default_service = "org.freedesktop.systemd1"
)]
trait ScopeUnit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn control_group(&self) -> zbus::Result<String>;
}

impl Scope<'_> {
    /// The cgroup of the scope, which is started when it is not there. Then `holder` is called,
    /// once, and returns the process that is put into it.
    ///
    /// # Errors
    /// [`ScopeError`]; every wait in it has a deadline. A holder that was started is the caller's
    /// to end.
    pub async fn ensure(
        &self,
        holder: impl FnOnce() -> std::io::Result<u32>,
    ) -> Result<String, ScopeError> {
        let bus = connect(ANSWERS).await?;
        let systemd = ask("reach systemd", ANSWERS, ManagerProxy::new(&bus)).await?;
        if let Some(path) = self.active(&bus, &systemd).await {
            return Ok(control_group(&bus, path).await?);
        }
        let operation = "hear of systemd's jobs";
        ask(operation, ANSWERS, systemd.subscribe()).await?;
        let mut ended = ask(operation, ANSWERS, systemd.receive_job_removed()).await?;
        let holder = holder().map_err(|source| ScopeError::Holder {
            scope: self.name.to_owned(),
            source,
        })?;
        let order =
            systemd.start_transient_unit(self.name, "fail", self.properties(holder), Vec::new());
        let job = ask("start a transient scope", ANSWERS, order).await?;
        let wait = async {
            while let Some(signal) = ended.next().await {
                let arguments = signal.args()?;
                if arguments.job.as_str() == job.as_str() {
                    return Ok(Some(arguments.result.to_owned()));
                }
            }
            Ok(None)
        };
        let operation = "wait for the job of a transient scope";
        match ask(operation, JOB, wait).await? {
            Some(result) if result == "done" => {}
            Some(result) => {
                return Err(ScopeError::Job {
                    scope: self.name.to_owned(),
                    result,
                });
            }
            None => return Err(BusError::Ended { operation }.into()),
        }
        let unit = ask("find a scope", ANSWERS, systemd.get_unit(self.name)).await?;
        Ok(control_group(&bus, unit).await?)
    }

    /// Its unit, when it is there and active.
    async fn active(
        &self,
        bus: &Connection,
        systemd: &ManagerProxy<'_>,
    ) -> Option<OwnedObjectPath> {
        // "No such unit" is the usual answer; every other failure comes again with the order.
        let path = ask("find a scope", ANSWERS, systemd.get_unit(self.name)).await;
        let path = path.ok()?;
        let state = async {
            let unit = UnitProxy::builder(bus).path(path.clone()).build().await?;
            unit.active_state().await
        };
        let state = ask("ask for the state of a scope", ANSWERS, state).await;
        state.is_ok_and(|state| state == "active").then_some(path)
    }

    fn properties(&self, holder: u32) -> Vec<(&str, Variant<'_>)> {
        let names = |names: &[&str]| -> Variant<'_> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Variant::from(names)
        };
        let stop = u64::try_from(self.stop_within.as_micros()).unwrap_or(u64::MAX);
        vec![
            ("Description", Variant::from(self.description.to_owned())),
            ("PIDs", Variant::from(vec![holder])),
            // We make cgroups below it, and systemd leaves them alone.
            ("Delegate", Variant::from(true)),
            // The default limit is made for one service, not for all containers of a host.
            ("TasksMax", Variant::from(u64::MAX)),
            ("TimeoutStopUSec", Variant::from(stop)),
            ("Before", names(self.before)),
            ("After", names(self.after)),
        ]
    }
}

async fn control_group(bus: &Connection, path: OwnedObjectPath) -> Result<String, BusError> {
    let group = async {
        let scope = ScopeUnitProxy::builder(bus).path(path).build().await?;
        scope.control_group().await
    };
    ask("ask for the cgroup of a scope", ANSWERS, group).await
}
