//! What the service manager gave to this process at its start.

use std::time::Duration;

use crate::notify::{Notifier, NotifyError};
use crate::passed::{self, Passed, PassedError};

/// Microseconds within which the manager wants to hear `WATCHDOG=1` (sd_watchdog_enabled(3)).
const WATCHDOG: &str = "WATCHDOG_USEC";
/// The process that is meant by it.
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// What the service manager gave to this process; of no manager, nothing.
#[derive(Debug)]
pub struct Service {
    /// The way back to it.
    pub notifier: Notifier,
    /// Descriptors, those of socket units first.
    pub passed: Vec<Passed>,
    /// Within this it wants to hear that the service is alive; [`None`] when it does not ask.
    pub watchdog: Option<Duration>,
}

/// Why what the manager gave cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The way back to it.
    #[error(transparent)]
    Notify(#[from] NotifyError),
    /// What it passed.
    #[error(transparent)]
    Passed(#[from] PassedError),
}

impl Service {
    /// What the environment says. Call it before any thread is started.
    ///
    /// # Errors
    /// [`ServiceError`]: somebody set variables that no service manager sets so.
    pub fn from_environment() -> Result<Self, ServiceError> {
        let usec = std::env::var(WATCHDOG).ok();
        let pid = std::env::var(WATCHDOG_PID).ok();
        Ok(Self {
            notifier: Notifier::from_environment()?,
            passed: passed::take()?,
            watchdog: watchdog(std::process::id(), usec.as_deref(), pid.as_deref()),
        })
    }

    /// Of no manager.
    pub fn alone() -> Self {
        Self {
            notifier: Notifier::to_nobody(),
            passed: Vec::new(),
            watchdog: None,
        }
    }
}

fn watchdog(own: u32, usec: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    let other = pid.is_some_and(|pid| pid.parse() != Ok(own));
    let usec = usec?.parse().ok().filter(|usec| *usec > 0 && !other)?;
    Some(Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_the_process_it_names() {
        let ten = Some(Duration::from_secs(10));
        assert_eq!(watchdog(7, Some("10000000"), Some("7")), ten);
        assert_eq!(watchdog(7, Some("10000000"), None), ten);
        for (usec, pid) in [
            (Some("10000000"), Some("8")),
            (Some("0"), None),
            (Some("soon"), None),
            (None, Some("7")),
        ] {
            assert_eq!(watchdog(7, usec, pid), None, "{usec:?} {pid:?}");
        }
    }
}
