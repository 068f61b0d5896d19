//! Pulls that go wrong and come right: what passes is waited for, what was fetched is not fetched
//! again, and a disk that is full is told as such.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nodeagent::api::v1::VerifyResult;
use nodeagent_tests::faults::{At, Fault, FaultyRegistry, Rule};
use nodeagent_tests::image::cached;
use nodeagent_tests::image::layout::Layout;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Manifest, Registry, TestHost};

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n[images]\nstall_timeout = \"3s\"\npull_timeout = \"60s\"\n";
const SOON: Duration = Duration::from_secs(20);

/// A host with a proxy and an image of three layers, some hundred kilobytes each.
fn furnished() -> Result<(TestHost, FaultyRegistry, Layout)> {
    let host = TestHost::start_with(CONFIG)?;
    let proxy = FaultyRegistry::start(&host.ground)?;
    let image = cached::layers(&host.ground.path("image"), 3, 1_000_000)?;
    image.place(&host.registry, "layers:1")?;
    Ok((host, proxy, image))
}

fn by_proxy() -> Manifest {
    let reference = FaultyRegistry::reference("layers:1");
    Manifest::new("layers", "unused:1").with("image", reference.into())
}

/// The image is pulled in spite of `rules`; returns how long it took.
fn pulled_in_spite_of(rules: Vec<Rule>) -> Result<(Duration, FaultyRegistry, Layout)> {
    let (host, proxy, image) = furnished()?;
    proxy.set(rules);
    let start = Instant::now();
    host.apply(&by_proxy())?;
    let took = start.elapsed();
    let faults = proxy
        .log()
        .iter()
        .filter(|past| past.fault.is_some())
        .count();
    ensure!(faults > 0, "no fault happened");
    host.remove_app("layers")?;
    Ok((took, proxy, image))
}

fn nothing_was_sent_twice(proxy: &FaultyRegistry, image: &Layout) -> Result<()> {
    for layer in image.layers() {
        let twice = proxy.sent_twice(&layer.digest);
        ensure!(
            twice == 0,
            "{twice} bytes of {} twice: {:#?}",
            layer.digest,
            proxy.log()
        );
    }
    Ok(())
}

#[test]
fn a_registry_that_asks_for_patience_is_given_it() -> Result<()> {
    let busy = Fault::Status(429, Some(Duration::from_secs(2)));
    let (took, proxy, image) = pulled_in_spite_of(vec![Rule::layers(busy).times(1)])?;
    ensure!(took >= Duration::from_secs(2), "asked again after {took:?}");
    nothing_was_sent_twice(&proxy, &image)
}

#[test]
fn an_internal_error_that_passes_is_not_the_end() -> Result<()> {
    let rules = vec![
        Rule::manifests(Fault::Status(503, None)).times(1),
        Rule::layers(Fault::Status(500, None)).times(2),
    ];
    let (_, proxy, image) = pulled_in_spite_of(rules)?;
    nothing_was_sent_twice(&proxy, &image)
}

#[test]
fn a_connection_that_is_cut_goes_on_where_it_was_cut() -> Result<()> {
    let cut = Rule::layers(Fault::CutOff(At::Middle)).times(3);
    let (_, proxy, image) = pulled_in_spite_of(vec![cut])?;
    nothing_was_sent_twice(&proxy, &image)
}

#[test]
fn a_pause_shorter_than_the_stall_timeout_is_no_fault() -> Result<()> {
    let pause = Fault::Pause(At::Middle, Duration::from_secs(1));
    let (took, proxy, image) = pulled_in_spite_of(vec![Rule::layers(pause)])?;
    ensure!(
        took >= Duration::from_secs(1),
        "there was no pause: {took:?}"
    );
    nothing_was_sent_twice(&proxy, &image)
}

#[test]
fn a_redirect_to_another_address_is_followed() -> Result<()> {
    let (host, proxy, image) = furnished()?;
    let elsewhere = FaultyRegistry::start_at(&host.ground, 5002, Registry::address())?;
    proxy.set([Rule::layers(Fault::Redirect(elsewhere.listens()))]);
    host.apply(&by_proxy())?;
    assert_eq!(proxy.layer_bytes(), 0);
    assert_eq!(elsewhere.layer_bytes(), image.size());
    ensure!(
        elsewhere.log().iter().all(|past| !past.authorization),
        "a login went along"
    );
    host.remove_app("layers")
}

#[test]
fn a_registry_that_ignores_ranges_is_read_all_the_same() -> Result<()> {
    let rules = vec![
        Rule::layers(Fault::CutOff(At::Middle)).times(1),
        Rule::layers(Fault::RangeIgnored),
    ];
    pulled_in_spite_of(rules).map(drop)
}

#[test]
fn a_wrong_byte_that_comes_once_is_fetched_again() -> Result<()> {
    let (host, proxy, image) = furnished()?;
    let layer = &image.layers()[1].digest;
    proxy.set([Rule::blob(layer, Fault::WrongByte(At::Byte(100_000))).times(1)]);
    // Whether the same registry is believed again in one pull is its choice; the next one is right.
    let file = host.file("layers.yaml", &by_proxy().text())?;
    let file = file.to_string_lossy();
    let first = host.cli().json(&["app", "apply", "-f", &file])?;
    if first.code != 0 {
        let problem = first.problem(1)?;
        ensure!(
            problem.detail.contains("expected sha256:"),
            "{}",
            problem.detail
        );
    }
    host.apply(&by_proxy())?;
    host.remove_app("layers")
}

#[test]
fn a_disk_that_is_full_is_told_and_with_room_the_same_image_comes() -> Result<()> {
    full(6 << 20, 100_000, "size=200m")
}

#[test]
fn a_disk_without_inodes_is_told_and_with_some_the_same_image_comes() -> Result<()> {
    full(200 << 20, 300, "nr_inodes=100k")
}

/// containerd's disk is too small for an image until it is mounted again with `option`.
fn full(bytes: u64, inodes: u32, option: &str) -> Result<()> {
    let host = TestHost::with_small_containerd(CONFIG, bytes, inodes)?;
    let image = nodeagent_tests::image::catalogue::catalogue()
        .into_iter()
        .find(|image| image.name == "the-time-zones-of-this-machine")
        .context("no such image")?;
    let many = image.build(&host.ground.path("many"))?;
    many.place(&host.registry, "many:1")?;
    let large = cached::layers(&host.ground.path("large"), 2, 8 << 20)?;
    large.place(&host.registry, "large:1")?;
    let name = if inodes < 1000 { "many:1" } else { "large:1" };
    let manifest = Manifest::new("layers", name);
    let file = host.file("refused.yaml", &manifest.text())?;
    let file = file.to_string_lossy();
    let refused = host.cli().json(&["app", "apply", "-f", &file])?;
    ensure!(refused.code != 0, "{refused}");
    let problem = refused.problem(refused.code)?;
    let said = problem.detail.to_lowercase();
    ensure!(said.contains("no space left"), "{}", problem.detail);
    assert_eq!(host.cli().status()?.pools, Vec::new());
    host.assert_nothing_left()?;

    let root = host.ground.path("containerd/root");
    let mut mount = Command::new("mount");
    mount.args(["-o", &format!("remount,{option}")]).arg(&root);
    let mounted = mount.output().context("run mount(8)")?;
    ensure!(mounted.status.success(), "{mounted:?}");
    host.apply(&manifest)?;
    host.remove_app("layers")
}

#[test]
fn a_store_that_is_full_is_told_and_with_room_the_same_image_comes() -> Result<()> {
    full_store(3 << 20, 10_000, "size=200m")
}

#[test]
fn a_store_without_inodes_is_told_and_with_some_the_same_image_comes() -> Result<()> {
    // The directories of the store take most of them.
    full_store(200 << 20, 14, "nr_inodes=10k")
}

/// The agent's own store is too small for an image until it is mounted again with `option`.
fn full_store(bytes: u64, inodes: u32, option: &str) -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let store = host.small_disk_of("store", bytes, inodes)?;
    host.agent
        .configure(&format!("{CONFIG}root = {store:?}\n"))?;
    host.agent.start(&host.ground)?;
    let image = cached::layers(&host.ground.path("image"), 6, 3 << 20)?;
    image.place(&host.registry, "large:1")?;
    let reference = Registry::reference("large:1");
    let refused = host.cli().json(&["image", "pull", &reference])?;
    let problem = refused.problem(refused.code)?;
    let said = problem.detail.to_lowercase();
    ensure!(said.contains("no space left"), "{}", problem.detail);
    host.assert_nothing_left()?;

    let mut mount = Command::new("mount");
    mount.args(["-o", &format!("remount,{option}")]).arg(&store);
    let mounted = mount.output().context("run mount(8)")?;
    ensure!(mounted.status.success(), "{mounted:?}");
    host.cli().json(&["image", "pull", &reference])?.ok()?;
    let verified = host.cli().json(&["image", "verify"])?;
    let verified: VerifyResult = verified.document(0)?;
    assert_eq!((verified.right, verified.absent), (6, 0));
    Ok(())
}

#[test]
fn containerd_that_restarts_in_the_middle_spoils_nothing() -> Result<()> {
    let (mut host, proxy, _) = furnished()?;
    proxy.set([Rule::layers(Fault::Pause(
        At::Middle,
        Duration::from_secs(2),
    ))]);
    let file = host.file("layers.yaml", &by_proxy().text())?;
    let cli = host.cli().clone();
    let first = thread::spawn(move || cli.json(&["app", "apply", "-f", &file.to_string_lossy()]));
    asked_for_layers(&proxy, 1)?;
    host.containerd.kill()?;
    host.containerd.start_again(&host.ground)?;
    let first = first
        .join()
        .map_err(|_| anyhow::anyhow!("the caller panicked"))??;
    proxy.set([]);
    if first.code != 0 {
        let problem = first.problem(1)?;
        assert_eq!(problem.code, "unavailable", "{}", problem.detail);
    }
    host.apply(&by_proxy())?;
    // The lease of a pull that was cut short ends by itself, later.
    host.remove_app_only("layers")
}

#[test]
fn an_agent_that_is_killed_in_the_middle_comes_back_and_pulls() -> Result<()> {
    let (mut host, proxy, image) = furnished()?;
    for layers in [0, 1, 3] {
        proxy.set([Rule::layers(Fault::Pause(
            At::Middle,
            Duration::from_secs(5),
        ))]);
        let before = proxy.layers_asked_for();
        let file = host.file("layers.yaml", &by_proxy().text())?;
        let cli = host.cli().clone();
        let first =
            thread::spawn(move || cli.json(&["app", "apply", "-f", &file.to_string_lossy()]));
        asked_for_layers(&proxy, before + layers)?;
        host.agent.kill()?;
        let _ = first.join();
        host.agent.start(&host.ground)?;
    }
    proxy.set([]);
    host.apply(&by_proxy())?;
    for layer in image.layers() {
        let (_, passed) = proxy.passed(&layer.digest);
        ensure!(passed >= layer.size, "{} was never whole", layer.digest);
    }
    // The lease of a pull that was cut short ends by itself, later.
    host.remove_app_only("layers")
}

/// Waits until the proxy has been asked so often; not at all for none.
fn asked_for_layers(proxy: &FaultyRegistry, times: usize) -> Result<()> {
    until("layers to be asked for", SOON, || {
        Ok(match proxy.layers_asked_for() {
            asked if asked >= times => Look::Seen(()),
            asked => Look::NotYet(format!("{asked} of {times}")),
        })
    })
}
