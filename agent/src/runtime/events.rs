//! Exits of tasks, as a channel that survives containerd.
//!
//! ```text
//!            live                       stream ends
//! subscribe ──────► list, tell exits ─► follow ──────► back-off ─► subscribe
//! ```
//! `live` is known by an event of our own: gRPC says nothing until the first event flows. Listing
//! after that point finds every exit that the time without a subscription has hidden; a task that
//! was seen and is gone (2.x forgets those that end while it is down) is an exit without a code.
//! An exit may be told more than once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use containerd_client::events::{TaskExit as TaskExitEvent, TaskStart as TaskStartEvent};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::Containerd;
use super::connection::Deadline;
use super::error::{Answer, RuntimeError, Unanswered};
use super::task::{TaskStatus, time};
use crate::instance::ContainerId;

/// Topic of the event that proves a subscription live.
const MARKER: &str = "/nodeagent/subscribed";
const EXIT: &str = "/tasks/exit";
const START: &str = "/tasks/start";

/// Exits that may wait for the reader before reading from containerd pauses.
const QUEUE: usize = 1024;
/// First and longest pause before subscribing again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Pause between two markers.
const MARK_AGAIN: Duration = Duration::from_millis(20);

/// The first process of a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskExit {
    /// Id of the container.
    pub id: String,
    /// The process, as the agent's pid namespace knows it: a container that was made again under
    /// its id has another one.
    pub pid: u32,
    /// Exit code, 128 + signal when a signal ended it; none when containerd lost it.
    pub code: Option<u32>,
    /// When it ended; when its end was noticed, where nobody knows better.
    pub at: SystemTime,
}

impl Containerd {
    /// Follows the exits of our containers from now on, those included that are stopped already.
    /// The following ends when the receiver is dropped.
    pub fn exits(&self) -> mpsc::Receiver<TaskExit> {
        let (exits, receiver) = mpsc::channel(QUEUE);
        let follower = Follower {
            containerd: self.clone(),
            exits,
            alive: BTreeMap::new(),
        };
        // Owned by the receiver: it ends when that is dropped, and never before.
        drop(tokio::spawn(follower.run()));
        receiver
    }
}

/// The receiver is gone, so nobody wants to know.
struct Unwanted;

struct Follower {
    containerd: Containerd,
    exits: mpsc::Sender<TaskExit>,
    /// Containers whose task was seen alive and not seen ending, and its pid.
    alive: BTreeMap<String, u32>,
}

impl Follower {
    async fn run(mut self) {
        let exits = self.exits.clone();
        tokio::select! {
            () = exits.closed() => {}
            () = self.follow_forever() => {}
        }
    }

    async fn follow_forever(&mut self) {
        let (first, longest) = BACK_OFF;
        let mut pause = first;
        loop {
            match self.subscribe().await {
                Ok(stream) => {
                    pause = first;
                    match self.follow(stream).await {
                        Err(Unwanted) => return,
                        Ok(reason) => {
                            tracing::warn!(reason, "containerd's events ended, subscribing again")
                        }
                    }
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(error, "containerd's events cannot be subscribed to yet");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// A stream that is live: what happens from now on is in it.
    async fn subscribe(&self) -> Result<Streaming<Envelope>, RuntimeError> {
        let connection = &self.containerd.connection;
        let namespace = connection.namespace();
        let filters = [EXIT, START, MARKER]
            .map(|topic| format!("namespace=={namespace:?},topic=={topic:?}"))
            .to_vec();
        let mut client = EventsClient::new(connection.channel());
        let subscription = client.subscribe(connection.request(SubscribeRequest { filters }));
        let live = async {
            tokio::select! {
                stream = subscription => Ok(stream?.into_inner()),
                said = self.mark() => Err(said),
            }
        };
        let deadline: Deadline = connection.plain();
        connection
            .answer(deadline, live)
            .await
            .map_err(|said| said.into_error("subscribe to", "events"))
    }

    /// Publishes markers until dropped; returns only when that fails.
    async fn mark(&self) -> tonic::Status {
        let connection = &self.containerd.connection;
        loop {
            let marker = PublishRequest {
                topic: MARKER.to_owned(),
                event: Some(Any {
                    type_url: "google.protobuf.Empty".to_owned(),
                    value: Vec::new(),
                }),
            };
            let mut client = EventsClient::new(connection.channel());
            if let Err(status) = client.publish(connection.request(marker)).await {
                return status;
            }
            tokio::time::sleep(MARK_AGAIN).await;
        }
    }

    /// Tells what the listing shows, then what the stream brings; returns why the stream ended.
    async fn follow(&mut self, mut stream: Streaming<Envelope>) -> Result<String, Unwanted> {
        let listed = match self.containerd.tasks().await {
            Ok(listed) => listed,
            Err(error) => return Ok(error.to_string()),
        };
        let mut lost = std::mem::take(&mut self.alive);
        for (id, task) in listed {
            lost.remove(&id);
            match task.status {
                TaskStatus::Stopped { code } => {
                    let exit = TaskExit {
                        id,
                        pid: task.pid,
                        code: Some(code),
                        at: SystemTime::now(),
                    };
                    self.tell(exit).await?
                }
                _ => self.remember(id, task.pid),
            }
        }
        for (id, pid) in lost {
            let exit = TaskExit {
                id,
                pid,
                code: None,
                at: SystemTime::now(),
            };
            self.tell(exit).await?;
        }
        loop {
            match stream.message().await {
                Ok(Some(envelope)) => self.event(envelope).await?,
                Ok(None) => return Ok("the stream ended".to_owned()),
                Err(status) => return Ok(reason(status, self.containerd.connection.socket())),
            }
        }
    }

    async fn event(&mut self, envelope: Envelope) -> Result<(), Unwanted> {
        let Some(mut event) = envelope.event else {
            return Ok(());
        };
        // containerd writes type urls without the slash that protobuf wants.
        event.type_url.insert(0, '/');
        match envelope.topic.as_str() {
            START => {
                if let Ok(start) = event.to_msg::<TaskStartEvent>() {
                    self.remember(start.container_id, start.pid);
                }
                Ok(())
            }
            EXIT => match event.to_msg::<TaskExitEvent>() {
                // Other ids are processes that were executed beside the first one.
                Ok(exit) if exit.id == exit.container_id => {
                    self.alive.remove(&exit.id);
                    let exit = TaskExit {
                        id: exit.id,
                        pid: exit.pid,
                        code: Some(exit.exit_status),
                        at: time(exit.exited_at),
                    };
                    self.tell(exit).await
                }
                Ok(_) => Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "an exit event of containerd cannot be read");
                    Ok(())
                }
            },
            _ => Ok(()),
        }
    }

    fn remember(&mut self, id: String, pid: u32) {
        if is_ours(&id) {
            self.alive.insert(id, pid);
        }
    }

    async fn tell(&self, exit: TaskExit) -> Result<(), Unwanted> {
        if !is_ours(&exit.id) {
            return Ok(());
        }
        self.exits.send(exit).await.map_err(|_| Unwanted)
    }
}

/// The namespace may be the kubelet's, too; only our ids look like ours.
fn is_ours(id: &str) -> bool {
    id.parse::<ContainerId>().is_ok()
}

fn reason(status: tonic::Status, socket: &Path) -> String {
    match Answer::of(status, socket) {
        Answer::Unavailable(Unanswered::Connection { why }) => why,
        Answer::Other(status) => status.message().to_owned(),
        other => other.into_error("follow", "events").to_string(),
    }
}
