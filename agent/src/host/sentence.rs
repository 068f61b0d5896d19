//! The sentence that `systemctl status` shows of the agent (`STATUS=`), renewed when it changes.

use std::sync::Arc;
use std::time::Duration;

use nodeagent_systemd::{Notifier, State};
use tokio_util::sync::CancellationToken;

use super::answers;
use super::node::Node;
use crate::api::v1::Pool;
use crate::pool::Effects;

/// Pause between two sentences: a burst of activations is not a burst of datagrams.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs until `shutdown`; begins once the host was observed.
pub(super) async fn run<E: Effects>(
    node: Arc<Node<E>>,
    notifier: Arc<Notifier>,
    shutdown: CancellationToken,
) {
    // Listened to before the first look: nothing falls between.
    let mut moves = node.shared.moved.subscribe();
    let mut alarms = node.shared.alarms.changes();
    let mut last = String::new();
    loop {
        let pools = node.pools.all();
        let pools = pools
            .iter()
            .map(|entry| answers::pool(&entry.handle.snapshot.borrow()));
        let now = sentence(
            &pools.collect::<Vec<_>>(),
            node.shared.alarms.standing_now().len(),
        );
        if now != last {
            match notifier.notify_at_once(&[State::Status(&now)]) {
                Ok(()) => last = now,
                // Nobody waits for it: it is said with the next change.
                Err(error) => {
                    tracing::debug!(%error, "the service manager was not told what goes on");
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            // Their senders live as long as the node.
            _ = moves.changed() => {}
            _ = alarms.changed() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn sentence(pools: &[Pool], alarms: usize) -> String {
    let sum = |of: fn(&Pool) -> u32| pools.iter().map(of).sum::<u32>();
    let counts = [
        (sum(|pool| pool.active), "active"),
        (sum(|pool| pool.starting), "starting"),
        (sum(|pool| pool.armed), "armed"),
        (sum(|pool| pool.arming), "arming"),
        (sum(|pool| pool.draining), "draining"),
        (sum(|pool| pool.failed), "failed"),
    ];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| format!("{count} {state}"))
        .collect();
    let apps = match pools.len() {
        0 => "no app is applied".to_owned(),
        1 => "1 app".to_owned(),
        many => format!("{many} apps"),
    };
    let instances = match (pools.len(), counts.len()) {
        (0, _) => String::new(),
        (_, 0) => ", no instance".to_owned(),
        _ => format!(": {}", counts.join(", ")),
    };
    let alarms = match alarms {
        0 => String::new(),
        1 => "; 1 alarm, see nodeagent status".to_owned(),
        many => format!("; {many} alarms, see nodeagent status"),
    };
    format!("{apps}{instances}{alarms}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(active: u32, armed: u32, draining: u32) -> Pool {
        let snapshot = crate::pool::Snapshot {
            app: "web".parse().unwrap(),
            revision: "r".to_owned(),
            labels: Default::default(),
            target: active,
            seq: 1,
            warm_armed: armed,
            alarm: None,
            stable: None,
            scale_out: String::new(),
            instances: Vec::new(),
        };
        Pool {
            active,
            armed,
            draining,
            ..answers::pool(&snapshot)
        }
    }

    #[test]
    fn the_sentence_counts_what_there_is_and_leaves_out_what_there_is_not() {
        assert_eq!(sentence(&[], 0), "no app is applied");
        assert_eq!(sentence(&[pool(0, 0, 0)], 0), "1 app, no instance");
        assert_eq!(
            sentence(&[pool(5, 4, 0), pool(1, 0, 2)], 0),
            "2 apps: 6 active, 4 armed, 2 draining"
        );
        assert_eq!(
            sentence(&[pool(5, 0, 0)], 2),
            "1 app: 5 active; 2 alarms, see nodeagent status"
        );
    }
}
