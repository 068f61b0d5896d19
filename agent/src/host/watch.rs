//! Brings what changes on this host into the feed of `/v1/events`.
//!
//! Works only while somebody reads: then it looks at the pools whenever a driver says that one
//! moved, and tells the difference to what it saw last. Without a reader a driver's word costs one
//! atomic operation, and this task sleeps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::{answers, changes};
use crate::api::v1::{Alarm, Event, Pool, PullChange, PullDocument, TaskState, TaskSummary};
use crate::api::{Feed, TaskFilter};
use crate::images::News;
use crate::pool::Effects;
use crate::task::TaskId;

/// How often it is told how far pulls are.
const PULL_PACE: Duration = Duration::from_millis(500);

/// What the feed's readers were told last.
#[derive(Default)]
struct Told {
    pools: BTreeMap<String, Pool>,
    alarms: Vec<Alarm>,
    /// How far pulls were, by the full name of the image.
    pulls: BTreeMap<String, PullDocument>,
}

/// Runs until `shutdown`.
pub(super) async fn run<E: Effects>(
    node: Arc<Node<E>>,
    feed: Arc<Feed>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = feed.wanted() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = watch(&node, &feed) => {}
        }
        feed.end();
    }
}

/// Until nobody reads any more.
async fn watch<E: Effects>(node: &Node<E>, feed: &Feed) {
    // Everything that may change is listened to before the first look: nothing falls between.
    let mut moves = node.shared.moved.subscribe();
    let mut tasks = node.shared.index.changes();
    let mut alarms = node.shared.alarms.changes();
    let mut observed = node.observed.clone();
    let mut images = node.executor.images.news();
    let mut told = Told::default();
    let mut state = look(node, &mut told);
    state.extend(open_tasks(node).into_iter().map(Event::Task));
    feed.begin(state);
    while !feed.is_deserted() {
        let mut changed: Vec<Event> = Vec::new();
        tokio::select! {
            // Its sender lives as long as the node.
            _ = moves.changed() => {}
            // Its sender lives as long as the agent; observation ends once.
            Ok(()) = observed.changed() => {}
            _ = alarms.changed() => {}
            news = images.recv() => pull_ended(news.as_ref().ok(), &mut told, &mut changed),
            () = tokio::time::sleep(PULL_PACE), if !told.pulls.is_empty() => {}
            task = tasks.recv() => match task {
                Ok(id) => changed.extend(task_event(node, &id)),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let newest = listed(node, &TaskFilter::default());
                    changed.extend(newest.into_iter().map(Event::Task));
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
        }
        while let Ok(news) = images.try_recv() {
            pull_ended(Some(&news), &mut told, &mut changed);
        }
        while let Ok(id) = tasks.try_recv() {
            changed.extend(task_event(node, &id));
        }
        // Instances first: who reads that a task is done has read that its instances are.
        let mut events = look(node, &mut told);
        events.append(&mut changed);
        feed.publish(events);
    }
}

/// What changed since the last look.
fn look<E: Effects>(node: &Node<E>, told: &mut Told) -> Vec<Event> {
    let pools: BTreeMap<String, Pool> = node
        .pools_now()
        .into_iter()
        .map(|pool| (pool.app.clone(), pool))
        .collect();
    let gone = told.pools.keys().filter(|app| !pools.contains_key(*app));
    let mut events: Vec<Event> = gone
        .flat_map(|app| changes::of_pool(told.pools.get(app), None))
        .collect();
    for (app, pool) in &pools {
        events.extend(changes::of_pool(told.pools.get(app), Some(pool)));
    }
    let alarms = answers::alarms(&node.shared.alarms);
    events.extend(changes::of_alarms(&told.alarms, &alarms));
    let mut pulls = std::mem::take(&mut told.pulls);
    for pull in node.executor.images.under_way() {
        let pull = super::images::pull(pull);
        if pulls.get(&pull.reference) != Some(&pull) {
            pulls.insert(pull.reference.clone(), pull.clone());
            events.push(Event::Pull(PullChange {
                pull: Some(pull.clone()),
                ..change_of(pull.reference)
            }));
        }
    }
    *told = Told {
        pools,
        alarms,
        pulls,
    };
    events
}

/// The end of a pull that was told, or that has something to tell; after too many at once, that
/// those which were told are over.
fn pull_ended(news: Option<&News>, told: &mut Told, changed: &mut Vec<Event>) {
    match news {
        Some(News::Began) => {}
        Some(News::Ended(reference, result)) => {
            let was_told = told.pulls.remove(reference).is_some();
            let (receipt, error) = match result {
                Ok(receipt) => (receipt.clone().map(super::images::receipt), None),
                Err(why) => (None, Some(why.clone())),
            };
            if was_told || receipt.is_some() || error.is_some() {
                changed.push(Event::Pull(PullChange {
                    receipt,
                    error,
                    ..change_of(reference.clone())
                }));
            }
        }
        None => {
            let lost = std::mem::take(&mut told.pulls).into_keys();
            changed.extend(lost.map(|reference| Event::Pull(change_of(reference))));
        }
    }
}

/// What is told of a pull; as long as nothing is added, that it is over.
fn change_of(reference: String) -> PullChange {
    PullChange {
        reference,
        pull: None,
        receipt: None,
        error: None,
    }
}

fn task_event<E: Effects>(node: &Node<E>, id: &TaskId) -> Option<Event> {
    match node.journal.task(id) {
        Ok(stored) => stored.map(|stored| Event::Task(node.summary(&stored))),
        Err(error) => {
            tracing::warn!(%error, task_id = id.as_str(), "a task's change is not told: it cannot be read");
            None
        }
    }
}

fn open_tasks<E: Effects>(node: &Node<E>) -> Vec<TaskSummary> {
    let filter = TaskFilter {
        states: vec![TaskState::Running],
        limit: TaskFilter::MOST,
        ..TaskFilter::default()
    };
    listed(node, &filter)
}

fn listed<E: Effects>(node: &Node<E>, filter: &TaskFilter) -> Vec<TaskSummary> {
    match node.list_tasks(filter) {
        Ok(tasks) => tasks,
        Err(problem) => {
            tracing::warn!(%problem, "tasks are not told: they cannot be read");
            Vec::new()
        }
    }
}
