//! `/v1/events`: who watches sees what is true, and then everything that changes.

use std::time::Duration;

use anyhow::{Context, Result};
use nodeagent_tests::events::{Event, Stream};
use nodeagent_tests::{Image, TestHost};

const WITHIN: Duration = Duration::from_secs(30);

fn synced(event: &Event) -> bool {
    event.name == "synced"
}

fn task_done(id: &str) -> impl Fn(&Event) -> bool {
    move |event| event.name == "task" && event.data["taskId"] == id && event.data["state"] == "done"
}

/// The last that was said about an instance.
fn last_state(events: &[Event], name: &str) -> Option<String> {
    let about = |event: &&Event| event.name == "instance" && event.data["name"] == name;
    let last = events.iter().rev().find(about)?;
    last.data["instance"]["state"].as_str().map(str::to_owned)
}

#[test]
fn a_watcher_sees_the_instances_active_before_the_task_is_done() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(2)?;
    let mut stream = Stream::open(host.agent.socket(), "/v1/events", None)?;
    let first = stream.until("synced", WITHIN, synced)?;
    assert_eq!(first[0].name, "reset");
    for name in ["web-0", "web-1"] {
        assert_eq!(last_state(&first, name).as_deref(), Some("armed"));
    }
    host.cli().activate("web", 2, "peak-7")?;
    let seen = stream.until("the task's end", WITHIN, task_done("peak-7"))?;
    for name in ["web-0", "web-1"] {
        assert_eq!(
            last_state(&seen, name).as_deref(),
            Some("active"),
            "{seen:?}"
        );
    }
    let pool = seen.iter().rev().find(|event| event.name == "app");
    let pool = pool.context("nothing was said about the app")?;
    assert_eq!(pool.data["pool"]["active"], 2, "{pool:?}");
    host.remove_app("web")?;
    stream.until("the app's end", WITHIN, |event| {
        event.name == "app" && event.data["app"] == "web" && event.data["pool"].is_null()
    })?;
    Ok(())
}

#[test]
fn a_watcher_that_reconnects_hears_what_it_missed() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(1)?;
    let mut stream = Stream::open(host.agent.socket(), "/v1/events?app=web", None)?;
    stream.until("synced", WITHIN, synced)?;
    let last_id = stream.last_id.clone().context("no id")?;
    drop(stream);
    host.cli().activate("web", 1, "peak-7")?;
    let mut again = Stream::open(host.agent.socket(), "/v1/events?app=web", Some(&last_id))?;
    let missed = again.until("the task's end", WITHIN, task_done("peak-7"))?;
    assert_ne!(missed[0].name, "reset", "{missed:?}");
    assert_eq!(last_state(&missed, "web-0").as_deref(), Some("active"));
    host.remove_app("web")
}

#[test]
fn a_watcher_of_an_agent_that_was_killed_begins_anew() -> Result<()> {
    let mut host = TestHost::start()?;
    host.warm_web(1)?;
    let mut stream = Stream::open(host.agent.socket(), "/v1/events", None)?;
    stream.until("synced", WITHIN, synced)?;
    let last_id = stream.last_id.clone().context("no id")?;
    host.agent.kill()?;
    assert!(
        stream.next_event().is_err(),
        "the stream outlived its agent"
    );
    host.agent.start(&host.ground)?;
    let mut again = Stream::open(host.agent.socket(), "/v1/events", Some(&last_id))?;
    assert_eq!(again.next_event()?.name, "reset");
    // First as the journal left it, then as it was observed.
    again.until("the armed instance", WITHIN, |event| {
        event.data["instance"]["state"] == "armed"
    })?;
    host.remove_app("web")
}

#[test]
fn a_watcher_is_told_of_pulls_with_their_receipt_or_their_error() -> Result<()> {
    let host = TestHost::start()?;
    let web = host.push(&Image::web()?, "web:1")?;
    let mut stream = Stream::open(host.agent.socket(), "/v1/events", None)?;
    stream.until("synced", WITHIN, synced)?;
    let over = |event: &Event| event.name == "pull" && event.data["pull"].is_null();
    host.cli().json(&["image", "pull", &web.reference])?.ok()?;
    let seen = stream.until("the pull's end", WITHIN, over)?;
    let end = seen.last().context("an end")?;
    assert_eq!(end.data["reference"], web.reference, "{end:?}");
    assert_eq!(end.data["receipt"]["layers"][0]["digest"], web.layer);
    assert!(end.data["error"].is_null());
    // One that is here is no pull, and one that is nowhere ends with the reason.
    host.cli().json(&["image", "pull", &web.reference])?.ok()?;
    let none = web.reference.replace("web:1", "none:1");
    host.cli().json(&["image", "pull", &none])?.problem(3)?;
    let seen = stream.until("the refused pull", WITHIN, over)?;
    let end = seen.last().context("an end")?;
    assert_eq!(end.data["reference"], none, "{seen:?}");
    let why = end.data["error"].as_str().unwrap_or_default();
    assert!(why.contains("has no manifest 1"), "{why}");
    Ok(())
}
