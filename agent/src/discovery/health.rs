//! How a backend is, for status, metrics and alarms.

use std::time::{SystemTime, UNIX_EPOCH};

/// Whether a backend takes writes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It does.
    Serving,
    /// The first attempt is under way.
    Connecting,
    /// It does not answer; what became of the last attempt is in [`Health::error`].
    Away,
    /// It refuses us: user, password or rights.
    Refused,
    /// It serves another agent that is this host.
    Fenced,
}

/// A backend at one moment. Times are Unix milliseconds, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it takes writes.
    pub reach: Reach,
    /// Since when that is so.
    pub since_ms: u64,
    /// Why it does not, with the whole chain.
    pub error: Option<String>,
    /// Failed attempts in a row.
    pub failures: u64,
    /// The member that is spoken to, or was last.
    pub endpoint: Option<String>,
    /// The host's lease, where the backend has one.
    pub lease: Option<LeaseHealth>,
    /// Registrations in place, where the backend counts them.
    pub registered: Option<usize>,
}

/// A lease at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseHealth {
    /// Its id.
    pub id: i64,
    /// Its time to live in seconds.
    pub ttl_seconds: u64,
    /// When it was granted or renewed last.
    pub renewed_ms: u64,
    /// Renewals and grants since the agent began.
    pub renewals: u64,
    /// Leases that were found gone since the agent began.
    pub lost: u64,
}

impl Health {
    /// A backend that cannot be away.
    pub fn serving() -> Self {
        Self {
            reach: Reach::Serving,
            since_ms: 0,
            error: None,
            failures: 0,
            endpoint: None,
            lease: None,
            registered: None,
        }
    }
}

/// The wall clock in Unix milliseconds: for people, never for a decision.
pub(super) fn now_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(wall.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
