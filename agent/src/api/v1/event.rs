//! Events: what changes on this host, as it changes. `GET /v1/events`.
//!
//! Events are levels, not edges: each carries the whole of what is true now about one thing, and
//! what lasted for less than a turn of the agent may never be told. A reader that applies events to
//! a map by [`Event::key`] holds what `GET /v1/status` would say.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alarm, ImageReceipt, Instance, Pool, PullDocument, TaskSummary};

/// One event. On the wire its name is the field `event` of the server-sent event, and its document
/// the field `data`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The whole state follows: forget what you have. `data` is `{}`.
    Reset,
    /// Everything that was true when the stream began was told. `data` is `{}`.
    Synced,
    /// An app is new, changed or gone, or its pool moved.
    App(AppChange),
    /// An instance is new, changed or gone.
    Instance(InstanceChange),
    /// A task began or ended.
    Task(TaskSummary),
    /// An alarm was raised, changed or cleared.
    Alarm(AlarmChange),
    /// A pull began, went on or ended.
    Pull(PullChange),
}

/// Document of the event `app`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppChange {
    /// The app.
    pub app: String,
    /// Its pool, with an empty list of instances: those have events of their own. Absent when the
    /// app was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
}

/// Document of the event `instance`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceChange {
    /// The app whose instance it is.
    pub app: String,
    /// `<app>-<ordinal>`.
    pub name: String,
    /// The instance as it is now; absent when nothing of it is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
}

/// Document of the event `alarm`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlarmChange {
    /// Whether it stands; false: it was cleared.
    pub standing: bool,
    /// The alarm, as it stands or stood last.
    pub alarm: Alarm,
}

/// Document of the event `pull`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullChange {
    /// Full name of the image.
    pub reference: String,
    /// How far it is; absent when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullDocument>,
    /// How the image came, when the pull ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ImageReceipt>,
    /// Why it ended without the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Event {
    /// The name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Synced => "synced",
            Self::App(_) => "app",
            Self::Instance(_) => "instance",
            Self::Task(_) => "task",
            Self::Alarm(_) => "alarm",
            Self::Pull(_) => "pull",
        }
    }

    /// The app that it is about; none for the host's alarms, pulls, [`Event::Reset`] and
    /// [`Event::Synced`].
    pub fn app(&self) -> Option<&str> {
        match self {
            Self::Reset | Self::Synced | Self::Pull(_) => None,
            Self::App(change) => Some(&change.app),
            Self::Instance(change) => Some(&change.app),
            Self::Task(task) => Some(&task.app),
            Self::Alarm(change) => change.alarm.app.as_deref(),
        }
    }

    /// The thing that it is about: a later event of the same key replaces this one. None for
    /// [`Event::Reset`] and [`Event::Synced`].
    pub fn key(&self) -> Option<EventKey> {
        match self {
            Self::Reset | Self::Synced => None,
            Self::App(change) => Some(EventKey::App(change.app.clone())),
            Self::Instance(change) => Some(EventKey::Instance(
                change.app.clone(),
                ordinal(&change.name),
            )),
            Self::Task(task) => Some(EventKey::Task(task.task_id.clone())),
            Self::Alarm(AlarmChange { alarm, .. }) => Some(EventKey::Alarm(
                alarm.code.clone(),
                alarm.app.clone(),
                alarm.backend.clone(),
            )),
            Self::Pull(change) => Some(EventKey::Pull(change.reference.clone())),
        }
    }

    /// Whether the thing is gone: nothing needs to be kept about it. An ended task is.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Reset | Self::Synced => false,
            Self::App(change) => change.pool.is_none(),
            Self::Instance(change) => change.instance.is_none(),
            Self::Task(task) => task.finished_at.is_some(),
            Self::Alarm(change) => !change.standing,
            Self::Pull(change) => change.pull.is_none(),
        }
    }

    /// The `data` of the server-sent event: one line of JSON.
    ///
    /// # Errors
    /// None in practice: documents are plain values.
    pub fn data(&self) -> Result<String, serde_json::Error> {
        match self {
            Self::Reset | Self::Synced => Ok("{}".to_owned()),
            Self::App(document) => serde_json::to_string(document),
            Self::Instance(document) => serde_json::to_string(document),
            Self::Task(document) => serde_json::to_string(document),
            Self::Alarm(document) => serde_json::to_string(document),
            Self::Pull(document) => serde_json::to_string(document),
        }
    }

    /// Reads an event back; none for a name that this version does not know.
    ///
    /// # Errors
    /// `data` is not the document that belongs to the name.
    pub fn read(name: &str, data: &str) -> Result<Option<Self>, serde_json::Error> {
        Ok(Some(match name {
            "reset" => Self::Reset,
            "synced" => Self::Synced,
            "app" => Self::App(serde_json::from_str(data)?),
            "instance" => Self::Instance(serde_json::from_str(data)?),
            "task" => Self::Task(serde_json::from_str(data)?),
            "alarm" => Self::Alarm(serde_json::from_str(data)?),
            "pull" => Self::Pull(serde_json::from_str(data)?),
            _ => return Ok(None),
        }))
    }
}

/// What an event is about. Ordered as a stream begins: apps, instances, tasks, alarms,
/// pulls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKey {
    /// The app's name.
    App(String),
    /// The app's name and the instance's ordinal.
    Instance(String, u32),
    /// The task's id.
    Task(String),
    /// Code, app and backend of the alarm.
    Alarm(String, Option<String>, Option<String>),
    /// Full name of the image.
    Pull(String),
}

/// `3` of `web-3`: instances are listed by number, not by text.
fn ordinal(name: &str) -> u32 {
    let number = name.rsplit_once('-').map(|(_, number)| number);
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(name: &str) -> Event {
        Event::Instance(InstanceChange {
            app: "web".to_owned(),
            name: name.to_owned(),
            instance: None,
        })
    }

    #[test]
    fn an_event_passes_the_wire_unchanged_and_on_one_line() {
        let alarm = Alarm {
            code: "leak".to_owned(),
            app: None,
            backend: None,
            detail: "two\nlines".to_owned(),
            since: "2026-11-22T13:31:55.042Z".parse().unwrap(),
        };
        let alarm = Event::Alarm(AlarmChange {
            standing: true,
            alarm,
        });
        for event in [alarm, gone("web-3"), Event::Reset, Event::Synced] {
            let data = event.data().unwrap();
            assert!(!data.contains('\n'), "{data}");
            assert_eq!(Event::read(event.name(), &data).unwrap(), Some(event));
        }
    }

    #[test]
    fn a_name_of_a_later_version_is_no_error_and_wrong_data_is() {
        assert_eq!(Event::read("weather", "{}").unwrap(), None);
        assert!(Event::read("instance", "{}").is_err());
    }

    #[test]
    fn instances_are_ordered_by_number() {
        assert!(gone("web-9").key() < gone("web-10").key());
    }
}
