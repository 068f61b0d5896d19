//! Brings ends of containers and processes to the pool that owns them.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ended::recorded_end;
use super::executor::exited;
use super::node::{Entry, Pools};
use super::predecessors::Predecessors;
use crate::gate::{Directories, Exit, Notice, NoticeKind};
use crate::instance::{ContainerId, Failure};
use crate::pool::{Event, Message};
use crate::runtime::TaskExit;

/// Runs until `shutdown` or until both sources have ended.
pub(super) async fn run(
    pools: Arc<Pools>,
    directories: Arc<Directories>,
    predecessors: Arc<Predecessors>,
    mut notices: mpsc::UnboundedReceiver<Notice>,
    mut exits: mpsc::Receiver<TaskExit>,
    shutdown: CancellationToken,
) {
    // The last process of a container that ended, told with the container's own end.
    let mut last: HashMap<ContainerId, Exit> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(notice) = notices.recv() => take_notice(&pools, &directories, &mut last, notice).await,
            Some(exit) = exits.recv() => {
                let Ok(container) = exit.id.parse::<ContainerId>() else {
                    continue;
                };
                if predecessors.had(&container, exit.pid) {
                    continue;
                }
                // What the gate has not said, because init ended before its words were read, or
                // because nobody listened, is in the container's own record.
                let said = match last.remove(&container) {
                    Some(exit) => Some(exited(&exit)),
                    None => recorded_end(&directories, &container, exit.code).await,
                };
                let failure = match (said, exit.code) {
                    (Some(said), _) => said,
                    (None, Some(code)) => Failure::new("exited", format!("container {container} ended with code {code}")),
                    // containerd has lost it.
                    (None, None) => {
                        let detail = format!("container {container} ended while containerd was away; nobody knows how");
                        Failure::new("exited", detail)
                    }
                };
                deliver(&pools, &container, failure);
            }
            else => return,
        }
    }
}

async fn take_notice(
    pools: &Pools,
    directories: &Arc<Directories>,
    last: &mut HashMap<ContainerId, Exit>,
    notice: Notice,
) {
    match notice.kind {
        NoticeKind::Exited(exit) if exit.is_app() => {
            deliver(pools, &notice.container, exited(&exit));
        }
        NoticeKind::Exited(exit) => {
            let entry = pools.get(&notice.container.instance.app);
            let essential = |entry: Entry| entry.revision.app.is_essential_agent(&exit.name);
            if entry.is_some_and(essential) {
                last.insert(notice.container, exit);
            }
        }
        // Where nobody essential ended before, it was asked to stop, or the app ended, which says
        // so itself.
        NoticeKind::Stopping(app) => {
            let cause = last.get(&notice.container).or(app.as_ref());
            if let Some(exit) = cause {
                deliver(pools, &notice.container, exited(exit));
            }
        }
        NoticeKind::Stopped => {
            let said = match last.remove(&notice.container) {
                Some(exit) => Some(exited(&exit)),
                None => recorded_end(directories, &notice.container, None).await,
            };
            let failure = said.unwrap_or_else(|| Failure::new("exited", "container-init ended"));
            deliver(pools, &notice.container, failure);
        }
        NoticeKind::LeftBehind { name, pid } => {
            let container = &notice.container;
            tracing::warn!(%container, process = name, pid, "killed, and stuck in the kernel");
        }
        NoticeKind::Connected
        | NoticeKind::Armed
        | NoticeKind::AppStarted { .. }
        | NoticeKind::AppReady { .. }
        | NoticeKind::Disconnected => {}
    }
}

fn deliver(pools: &Pools, container: &ContainerId, failure: Failure) {
    tracing::debug!(%container, %failure, "ended");
    let event = Event::Exited {
        ordinal: container.instance.ordinal,
        create_generation: container.create_generation,
        failure,
    };
    send(pools, container, event);
}

fn send(pools: &Pools, container: &ContainerId, event: Event) {
    if let Some(handle) = pools.handle(&container.instance.app) {
        // A pool that has ended has no instances.
        let _ = handle.messages.send(Message::Happened(event));
    }
}
