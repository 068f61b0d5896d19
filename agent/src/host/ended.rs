//! How a container ended that nobody heard of: its own exit ring is the evidence.
//!
//! containerd 2.x forgets a task that ended while it was down, and the agent may have been away
//! itself. What the ring says comes from inside the container: it explains an end that is certain,
//! it never decides whether there was one.

use std::io::ErrorKind;
use std::sync::Arc;

use super::executor::{blocking, exited};
use crate::chain::chain;
use crate::gate::{Directories, Exit, ExitsError, recorded_exits};
use crate::instance::{ContainerId, Failure};

/// How the container ended by its own record, where that agrees with `code`, the code of its init
/// as containerd told it. Init ends as the process ended that it ended for: its code finds the
/// record. Without a code, or with 0, which says nothing about the app: the last end of the app, else
/// of the last in-container agent. `None` when nothing that fits can be read.
pub(super) async fn recorded_end(
    directories: &Arc<Directories>,
    container: &ContainerId,
    code: Option<u32>,
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
    let exits: Vec<Exit> = exits.into_iter().map(|recorded| recorded.exit).collect();
    fitting(&exits, code).map(exited)
}

/// The record that explains an end with `code`; `exits` are oldest first.
fn fitting(exits: &[Exit], code: Option<u32>) -> Option<&Exit> {
    let code = code.filter(|code| *code != 0);
    let fits = |exit: &&Exit| code.is_none_or(|code| u32::from(exit.status.shell_code()) == code);
    let of_app = exits.iter().rev().filter(fits).find(|exit| exit.is_app());
    of_app.or_else(|| exits.iter().rev().find(fits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::ExitStatus;

    fn exit(name: &str, status: ExitStatus) -> Exit {
        Exit {
            name: name.to_owned(),
            pid: 7,
            status,
            oom: false,
            memory: None,
            generation: 1,
        }
    }

    #[test]
    fn the_record_that_fits_the_code_explains_the_end() {
        let sidecar = exit("sidecar", ExitStatus::Code(9));
        let helper = exit("helper", ExitStatus::Signal(9));
        let exits = [sidecar, helper];
        let name = |code| fitting(&exits, code).map(|exit| exit.name.as_str());
        assert_eq!(name(Some(9)), Some("sidecar"));
        assert_eq!(name(Some(137)), Some("helper"));
        assert_eq!(name(Some(1)), None);
        // It says nothing: the newest record does.
        assert_eq!(name(Some(0)), Some("helper"));
        assert_eq!(name(None), Some("helper"));
    }
}
