//! A registry that is not there, slow, or wrong: the manifest is refused with the reason, nothing
//! is unpacked, nothing is left, and what was pulled before goes on.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nodeagent_tests::documents::Problem;
use nodeagent_tests::faults::{At, Fault, FaultyRegistry, Rule};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n[images]\nstall_timeout = \"2s\"\npull_timeout = \"20s\"\n";

/// The refusal of a manifest, with this exit code.
fn refused(host: &TestHost, manifest: &Manifest, code: i32) -> Result<Problem> {
    let name = format!("{}-refused.yaml", manifest.app());
    let file = host.file(&name, &manifest.text())?;
    let file = file.to_string_lossy();
    host.cli()
        .json(&["app", "apply", "-f", &file])?
        .problem(code)
}

/// The manifest of the web image by way of the proxy.
fn by_proxy(app: &str, image: &str) -> Manifest {
    Manifest::web(app).with("image", FaultyRegistry::reference(image).into())
}

#[test]
fn an_image_that_does_not_exist_is_named() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    let problem = refused(&host, &Manifest::new("web", "nothing:9"), 3)?;
    assert_eq!(
        (problem.code.as_str(), problem.status),
        ("invalid_manifest", 422)
    );
    assert_eq!(problem.findings.len(), 1, "{problem:?}");
    assert_eq!(problem.findings[0].field, "spec.image");
    assert_eq!(
        problem.findings[0].value.as_deref(),
        Some("127.0.0.1:5000/nothing:9")
    );
    assert_eq!(host.cli().status()?.pools, Vec::new());
    host.assert_nothing_left()
}

#[test]
fn a_registry_that_is_down_is_named_and_the_same_manifest_is_accepted_when_it_is_up() -> Result<()>
{
    let mut host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.registry.stop()?;
    let problem = refused(&host, &Manifest::web("web"), 1)?;
    assert_eq!(
        (problem.code.as_str(), problem.status),
        ("unavailable", 503)
    );
    assert!(
        problem.detail.contains("127.0.0.1:5000"),
        "{}",
        problem.detail
    );
    assert_eq!(host.cli().status()?.pools, Vec::new());

    host.registry.start_again(&host.ground)?;
    host.apply(&Manifest::web("web"))?;
    host.remove_app("web")
}

#[test]
fn a_registry_that_goes_away_is_not_missed_by_what_was_pulled() -> Result<()> {
    let mut host = TestHost::start_with(CONFIG)?;
    host.warm_web(1)?;
    host.registry.stop()?;
    let warm = host.cli().activate("web", 1, "warm")?;
    assert_eq!((warm.state.as_str(), warm.active), ("done", 1));
    host.wait_for_armed("web", 1)?;
    let more = host.cli().activate("web", 3, "more")?;
    assert_eq!((more.state.as_str(), more.active), ("done", 3));
    host.remove_app("web")
}

#[test]
fn a_changed_manifest_whose_image_is_missing_leaves_the_old_one_in_force() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    host.warm_web(1)?;
    let before = host.cli().pool("web")?;
    let reference = nodeagent_tests::Registry::reference("web:2");
    let next = Manifest::web("web")
        .armed(1)
        .with("image", reference.into());
    refused(&host, &next, 3)?;
    assert_eq!(host.cli().pool("web")?, before);
    assert_eq!(host.cli().activate("web", 1, "in")?.state, "done");
    host.remove_app("web")
}

#[test]
fn a_wrong_byte_in_a_layer_is_never_unpacked() -> Result<()> {
    spoilt(Fault::WrongByte(At::Middle), "expected sha256:")
}

#[test]
fn a_layer_that_is_cut_off_is_never_unpacked() -> Result<()> {
    spoilt(Fault::CutOff(At::Middle), "end of file")
}

#[test]
fn a_registry_with_internal_errors_is_quoted() -> Result<()> {
    spoilt(Fault::Status(500, None), "500")
}

#[test]
fn a_registry_that_falls_silent_is_given_up_after_the_stall_timeout() -> Result<()> {
    let start = Instant::now();
    // Whatever is asked for: what comes is kept, and asked for no more.
    spoilt(Fault::Stall(At::Byte(0)), "for 2 s")?;
    ensure!(
        start.elapsed() >= Duration::from_secs(2),
        "given up too early"
    );
    Ok(())
}

/// With `fault` the manifest is refused with `word`; without it the same one works.
fn spoilt(fault: Fault, word: &str) -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    let proxy = FaultyRegistry::start(&host.ground)?;
    proxy.set([Rule::layers(fault)]);
    let manifest = by_proxy("web", "web:1");
    let problem = refused(&host, &manifest, 1)?;
    assert_eq!(
        (problem.code.as_str(), problem.status),
        ("unavailable", 503)
    );
    for part in [word, "127.0.0.1:5001", "layer"] {
        assert!(
            problem.detail.contains(part),
            "{part:?} is missing in: {}",
            problem.detail
        );
    }
    ensure!(proxy.layers_asked_for() > 0, "nothing came past the proxy");
    assert_eq!(host.cli().status()?.pools, Vec::new());
    host.assert_nothing_left()?;

    proxy.set([]);
    host.apply(&manifest)?;
    let task = host.cli().activate("web", 1, "mended")?;
    assert_eq!(task.state, "done");
    host.assert_serves(&task.instances[0])?;
    host.remove_app("web")
}

#[test]
fn a_slow_image_does_not_hold_up_the_other_apps() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    host.warm_web(1)?;
    let proxy = FaultyRegistry::start(&host.ground)?;
    proxy.set([Rule::layers(Fault::Stall(At::Middle))]);
    host.push(&Image::web()?.file("www/other", 0o644, "other"), "other:1")?;
    let slow = thread::scope(|scope| {
        let slow = scope.spawn(|| refused(&host, &by_proxy("slow", "other:1"), 1));
        until("the slow pull", Duration::from_secs(10), || {
            Ok(match proxy.layers_asked_for() {
                0 => Look::NotYet("no request yet".to_owned()),
                _ => Look::Seen(()),
            })
        })?;
        let task = host.cli().activate("web", 1, "meanwhile")?;
        assert_eq!((task.state.as_str(), task.active), ("done", 1));
        ensure!(!slow.is_finished(), "the slow pull was over before");
        slow.join()
            .map_err(|_| anyhow::anyhow!("the slow caller panicked"))?
    })?;
    assert_eq!(slow.code, "unavailable");
    host.remove_app("web")
}
