//! The delay inhibitor of logind: a shutdown waits, bounded, until the service has drained
//! (org.freedesktop.login1(5), `Inhibit()`, `PrepareForShutdown`).

use std::time::Duration;

use futures_util::StreamExt;
use zbus::{OwnedFd, proxy};

use crate::bus::{BusError, ask, connect};

/// For each answer of logind.
const ANSWERS: Duration = Duration::from_secs(5);

#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;
    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> zbus::Result<u64>;
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

/// A hold on the host's shutdown. Dropped, the shutdown goes on.
#[derive(Debug)]
pub struct Inhibitor {
    shutdowns: PrepareForShutdownStream,
    /// Closed, it releases the hold.
    _hold: OwnedFd,
    longest: Duration,
}

impl Inhibitor {
    /// Takes the hold; `why` is what `systemd-inhibit --list` shows.
    ///
    /// # Errors
    /// [`BusError`]: no D-Bus, no logind, or no answer. The service works without.
    pub async fn take(who: &str, why: &str) -> Result<Self, BusError> {
        let bus = connect(ANSWERS).await?;
        let logind = ask("reach logind", ANSWERS, ManagerProxy::new(&bus)).await?;
        // Listened to before the hold is taken: nothing falls between.
        let signals = logind.receive_prepare_for_shutdown();
        let shutdowns = ask("hear of shutdowns", ANSWERS, signals).await?;
        let hold = logind.inhibit("shutdown", who, why, "delay");
        let hold = ask("hold the shutdown", ANSWERS, hold).await?;
        let longest = ask(
            "ask how long a shutdown may be held",
            ANSWERS,
            logind.inhibit_delay_max(),
        );
        Ok(Self {
            shutdowns,
            _hold: hold,
            longest: Duration::from_micros(longest.await?),
        })
    }

    /// How long logind waits at most (`InhibitDelayMaxSec=` of logind.conf(5), 5 s by default).
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// Waits until the host is to be shut down. An error when the bus is gone.
    pub async fn shutdown(&mut self) -> Result<(), BusError> {
        while let Some(signal) = self.shutdowns.next().await {
            if signal.args().is_ok_and(|arguments| arguments.start) {
                return Ok(());
            }
        }
        Err(BusError::Ended {
            operation: "hear of shutdowns",
        })
    }
}
