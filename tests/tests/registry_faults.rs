//! A registry that is not there, slow, or wrong: a clear answer, nothing unpacked, nothing left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Pool, Task};
use nodeagent_tests::faults::{Fault, FaultyRegistry};
use nodeagent_tests::{Image, Manifest, TestHost};

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n[images]\nstall_timeout = \"2s\"\npull_timeout = \"20s\"\n[tasks]\nactivation_deadline = \"8s\"\n";

/// The error of the only instance of an activation that has to fail.
fn failing_activation(host: &TestHost, task: &str) -> Result<(String, String)> {
    let answer = host
        .cli()
        .json(&["activate", "web", "--to", "1", "--task-id", task])?;
    let task: Task = answer.document(1)?;
    ensure!(task.state == "failed", "{task:?}");
    let mut errors = task
        .instances
        .into_iter()
        .filter_map(|instance| instance.error);
    let error = errors.next().context("no instance says why")?;
    Ok((error.code, error.detail))
}

/// Waits until the pool says why nothing is armed.
fn alarmed(host: &TestHost) -> Result<Pool> {
    host.wait_for_pool("web", "an alarm", |pool| pool.alarm.is_some())
}

/// What a host has after a pull that failed: nothing.
fn assert_nothing_of_the_image(host: &TestHost) -> Result<()> {
    let containers = host.containers()?;
    assert_eq!(containers, Vec::<String>::new());
    let snapshots = host.containerd.active_snapshots(host.agent.namespace())?;
    assert_eq!(snapshots, Vec::<String>::new());
    Ok(())
}

#[test]
fn an_image_that_does_not_exist_is_named() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    host.apply(&Manifest::new("web", "nothing:9"))?;
    let (code, detail) = failing_activation(&host, "t")?;
    assert_eq!(code, "image_not_found");
    assert!(detail.contains("127.0.0.1:5000/nothing:9"), "{detail}");
    assert_nothing_of_the_image(&host)?;
    host.remove_app("web")
}

#[test]
fn a_registry_that_is_down_is_tried_again_until_it_is_up() -> Result<()> {
    let mut host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.registry.stop()?;
    host.apply(&Manifest::web("web").armed(1))?;
    let (_, detail) = failing_activation(&host, "t")?;
    assert!(detail.contains("127.0.0.1:5000"), "{detail}");
    assert_nothing_of_the_image(&host)?;

    host.registry.start_again(&host.ground)?;
    // The target stayed, so the pool goes on by itself.
    host.wait_for_pool("web", "one active, one armed", |pool| {
        pool.active == 1 && pool.armed == 1
    })?;
    host.remove_app("web")
}

#[test]
fn a_wrong_byte_in_a_layer_is_never_unpacked() -> Result<()> {
    spoilt(Fault::WrongByte, "digest")
}

#[test]
fn a_layer_that_is_cut_off_is_never_unpacked() -> Result<()> {
    spoilt(Fault::CutOff, "web:1")
}

#[test]
fn a_registry_that_falls_silent_is_given_up_after_the_stall_timeout() -> Result<()> {
    spoilt(Fault::Stall, "web:1")
}

#[test]
fn a_registry_with_internal_errors_is_tried_again() -> Result<()> {
    spoilt(Fault::ServerError, "web:1")
}

/// With `fault` an activation fails and says `word`; without it the same pool gets there.
fn spoilt(fault: Fault, word: &str) -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    let proxy = FaultyRegistry::start(&host.ground)?;
    proxy.set(fault);
    let reference = FaultyRegistry::reference("web:1");
    host.apply(&Manifest::web("web").with("image", reference.into()))?;
    let (_, detail) = failing_activation(&host, "spoilt")?;
    assert!(detail.contains(word), "{detail}");
    ensure!(proxy.blobs_asked_for() > 0, "nothing came past the proxy");
    assert_nothing_of_the_image(&host)?;

    proxy.set(Fault::None);
    host.wait_for_pool("web", "one active", |pool| pool.active == 1)?;
    let task = host.cli().activate("web", 1, "mended")?;
    assert_eq!(task.state, "done");
    let page = host.cli().pool("web")?;
    let address = page
        .instances
        .iter()
        .find_map(|instance| instance.address.clone());
    let address = format!("{}:8080", address.context("no address")?).parse()?;
    assert_eq!(
        nodeagent_tests::http::get(host.ground.netns(), address, "/")?.status,
        200
    );
    host.remove_app("web")
}

#[test]
fn a_warm_pool_that_cannot_be_filled_raises_an_alarm_and_drops_it_when_mended() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    host.apply(&Manifest::web("web").armed(1))?;
    let pool = alarmed(&host)?;
    let alarm = pool.alarm.unwrap_or_default();
    assert!(alarm.contains("web:1"), "{alarm}");
    host.push(&Image::web()?, "web:1")?;
    host.wait_for_pool("web", "one armed, no alarm", |pool| {
        pool.armed == 1 && pool.alarm.is_none()
    })?;
    host.remove_app("web")
}

#[test]
fn a_slow_image_does_not_hold_up_the_other_apps() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    host.warm_web(1)?;
    let proxy = FaultyRegistry::start(&host.ground)?;
    proxy.set(Fault::Stall);
    host.push(&Image::web()?.file("www/other", 0o644, "other"), "other:1")?;
    let slow = Manifest::new("slow", "other:1").armed(1);
    host.apply(&slow.with("image", FaultyRegistry::reference("other:1").into()))?;
    nodeagent_tests::wait::until("the slow pull", Duration::from_secs(10), || {
        use nodeagent_tests::wait::Look;
        Ok(match proxy.blobs_asked_for() {
            0 => Look::NotYet("no request yet".to_owned()),
            _ => Look::Seen(()),
        })
    })?;
    let task = host.cli().activate("web", 1, "meanwhile")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 1));
    host.remove_app_only("web")
}
