//! Tells the service manager that the agent makes progress, while it does.
//!
//! Progress means both: this task gets its turn on the runtime that does all of the agent's work,
//! and the journal's writer takes an empty commit, which writes nothing. An agent that hangs stays
//! silent, and systemd ends and starts it after `WatchdogSec=`; containers do not notice.

use std::sync::Arc;
use std::time::Duration;

use nodeagent_systemd::{Notifier, State};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::journal::Journal;

/// Runs until `shutdown`; `within` is what the manager asked for (`WATCHDOG_USEC`).
pub(super) async fn run(
    within: Duration,
    notifier: Arc<Notifier>,
    journal: Arc<Journal>,
    shutdown: CancellationToken,
) {
    let period = within / 2;
    // Together less than `within`: an answer at the last moment still counts.
    let patience = within / 4;
    let again = within / 16;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep_until(next) => {}
        }
        next = Instant::now() + period;
        if timeout(patience, journal.commit(Vec::new())).await.is_err() {
            tracing::error!(
                patience_ms = patience.as_millis() as u64,
                "the journal does not answer; the service manager restarts the agent unless it does"
            );
            continue;
        }
        // An error is an answer: a full disk is not mended by starting again.
        if let Err(error) = notifier.notify_at_once(&[State::Watchdog]) {
            tracing::warn!(%error, "the service manager was not told that the agent is alive; trying again");
            next = Instant::now() + again;
        }
    }
}
