//! The host is to be shut down: clients are told first, and the shutdown waits for it.
//!
//! ```text
//! inhibited ── PrepareForShutdown ──► pools rest ──► deregistered ──► propagation bound ──► released
//!                                                                                              │
//!                     ended by SIGTERM ◄── the host stops the agent, then the containers ◄─────┘
//! ```
//! Targets stay: after the boot the pools are restored by them. logind waits at most
//! `InhibitDelayMaxSec=` (logind.conf(5)); what does not fit in is left out with a warning.

use std::sync::Arc;
use std::time::Duration;

use nodeagent_systemd::{BusError, Inhibitor, Notifier, State};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::discovery::{Backends, Discovery};

/// Effects that are under way may take this long to end.
const EFFECTS: Duration = Duration::from_secs(2);
/// One backend's part.
const DEREGISTRATION: Duration = Duration::from_secs(2);
/// Left of logind's patience when the hold is released.
const MARGIN: Duration = Duration::from_millis(500);
/// From the release to SIGTERM.
const STOPPED: Duration = Duration::from_secs(90);

/// What is needed to take this host out of service.
pub(super) struct Departure {
    pub notifier: Arc<Notifier>,
    pub discovery: Arc<Backends>,
    /// Ends the drivers and the API.
    pub shutdown: CancellationToken,
    pub effects: TaskTracker,
}

impl Departure {
    /// Takes the hold and waits. Returns when the host was announced to go down, was drained, and
    /// did not stop the agent within [`STOPPED`]; never where there is nobody to hold a shutdown.
    pub(super) async fn wait(self) {
        let why = "registrations are withdrawn and clients notice first";
        let mut hold = match Inhibitor::take("nodeagent", why).await {
            Ok(hold) => hold,
            Err(error) => return without(&error).await,
        };
        tracing::info!(
            longest_ms = hold.longest().as_millis() as u64,
            "a shutdown waits for the agent"
        );
        if let Err(error) = hold.shutdown().await {
            return without(&error).await;
        }
        let end = Instant::now() + hold.longest().saturating_sub(MARGIN);
        tracing::info!("the host shuts down: withdrawing registrations");
        let sentence = "the host shuts down: registrations are withdrawn, clients notice";
        if let Err(error) = self.notifier.notify_at_once(&[State::Status(sentence)]) {
            tracing::warn!(%error, "the service manager was not told");
        }
        self.drain(end).await;
        drop(hold);
        tracing::info!("the shutdown may go on");
        tokio::time::sleep(STOPPED).await;
    }

    async fn drain(&self, end: Instant) {
        // From here on nobody registers anything.
        self.shutdown.cancel();
        self.effects.close();
        if timeout(EFFECTS, self.effects.wait()).await.is_err() {
            tracing::warn!("effects were still under way when registrations were withdrawn");
        }
        for (backend, _) in self.discovery.each() {
            match timeout(DEREGISTRATION, withdraw(backend.as_ref())).await {
                Ok(Ok(count)) => tracing::info!(backend = backend.name(), count, "withdrawn"),
                Ok(Err(error)) => {
                    tracing::error!(%error, backend = backend.name(), "registrations stay");
                }
                Err(_) => tracing::error!(
                    backend = backend.name(),
                    "registrations stay: no answer in time"
                ),
            }
        }
        let bound = self.discovery.propagation_bound();
        if timeout_at(end, tokio::time::sleep(bound)).await.is_err() {
            tracing::warn!(
                bound_ms = bound.as_millis() as u64,
                "logind waits too short for clients to notice: raise InhibitDelayMaxSec= in logind.conf"
            );
        }
    }
}

async fn withdraw(backend: &dyn Discovery) -> Result<usize, crate::discovery::DiscoveryError> {
    let registered = backend.registered().await?;
    let all: Vec<_> = registered
        .into_iter()
        .map(|record| (record.instance, record.generation))
        .collect();
    backend.deregister(&all).await?;
    Ok(all.len())
}

async fn without(error: &BusError) {
    let error: &dyn std::error::Error = error;
    tracing::warn!(error, "a shutdown of the host does not wait for the agent");
    std::future::pending().await
}
