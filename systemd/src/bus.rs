//! The system bus, asked with patience that ends.

use std::future::Future;
use std::time::Duration;

use zbus::Connection;

/// Why the bus, or who was asked over it, did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// An answer that is an error, or no connection.
    #[error("cannot {operation} over D-Bus")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// Why.
        #[source]
        source: Box<zbus::Error>,
    },
    /// No answer in time.
    #[error("no answer over D-Bus within {} s: {operation}", after.as_secs())]
    Deadline {
        /// What was asked for.
        operation: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The connection ended while something was waited for.
    #[error("the connection to D-Bus ended: {operation}")]
    Ended {
        /// What was waited for.
        operation: &'static str,
    },
}

/// One answer within `within`.
pub(crate) async fn ask<T>(
    operation: &'static str,
    within: Duration,
    answer: impl Future<Output = zbus::Result<T>>,
) -> Result<T, BusError> {
    match tokio::time::timeout(within, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(BusError::Refused {
            operation,
            source: Box::new(source),
        }),
        Err(_) => Err(BusError::Deadline {
            operation,
            after: within,
        }),
    }
}

/// A connection to the system bus.
pub(crate) async fn connect(within: Duration) -> Result<Connection, BusError> {
    ask("reach the system bus", within, Connection::system()).await
}
