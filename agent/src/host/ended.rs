//! How a container ended while nobody watched: its own exit ring is the evidence.
//!
//! containerd 2.x forgets a task that ended while it was down, and the agent may have been away
//! itself. What the ring says comes from inside the container: it explains an end that is certain,
//! it never decides whether there was one.

use std::io::ErrorKind;
use std::sync::Arc;

use super::executor::{blocking, exited};
use crate::chain::chain;
use crate::gate::{Directories, ExitsError, recorded_exits};
use crate::instance::{ContainerId, Failure};

/// The last end that the container recorded: of its app, where it recorded one, else of the last
/// in-container agent. `None` when it recorded nothing that can be read.
pub(super) async fn recorded_end(
    directories: &Arc<Directories>,
    container: &ContainerId,
) -> Option<Failure> {
    let log = directories.of(container).log;
    let id = container.clone();
    let recorded = blocking(move || recorded_exits(&log, &id)).await.ok()?;
    let exits = recorded
        .inspect_err(|error| {
            if !matches!(error, ExitsError::Read { source, .. } if source.kind() == ErrorKind::NotFound) {
                tracing::warn!(%container, error = chain(error), "its exit ring cannot be read");
            }
        })
        .ok()?;
    let of_app = exits.iter().rev().find(|recorded| recorded.exit.is_app());
    let last = of_app.or(exits.last())?;
    let how = exited(&last.exit);
    Some(Failure::new(
        how.code,
        format!("{} while nobody watched", how.detail),
    ))
}
