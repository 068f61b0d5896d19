//! What is here is not fetched: an image that is ready, layers that another version has, and all of it
//! when the registry is gone.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use nodeagent::api::v1::{ImageDocument, ImageList, ImageState};
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::faults::FaultyRegistry;
use nodeagent_tests::image::cached;
use nodeagent_tests::{Image, Manifest, Registry, TestHost};

fn pull(host: &TestHost, reference: &str) -> Result<ImageDocument> {
    host.cli().json(&["image", "pull", reference])?.document(0)
}

/// Names of all snapshots, also those that are being made.
fn snapshots(host: &TestHost) -> Result<BTreeSet<String>> {
    let ctr = Ctr::new(&host.ground, &host.containerd).within(host.agent.namespace());
    let output = ctr.run(&["snapshots", "list"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

#[test]
fn an_image_that_is_ready_is_pulled_again_without_a_request_and_without_an_unpack() -> Result<()> {
    let mut host = TestHost::start()?;
    let proxy = FaultyRegistry::start(&host.ground)?;
    let image = cached::layers(&host.ground.path("image"), 3, 200_000)?;
    image.place(&host.registry, "layers:1")?;
    let reference = FaultyRegistry::reference("layers:1");
    let first = pull(&host, &reference)?;
    let (asked, unpacked) = (proxy.log().len(), snapshots(&host)?);
    assert_eq!(unpacked.len(), 3);
    // The same, by an agent that was started again, and by its digest.
    let again = pull(&host, &reference)?;
    assert_eq!(
        (again.state, &again.receipt),
        (ImageState::Ready, &first.receipt)
    );
    host.agent.stop()?;
    host.agent.start(&host.ground)?;
    assert_eq!(pull(&host, &reference)?.receipt, first.receipt);
    let by_digest = format!("127.0.0.1:5001/layers@{}", first.digest);
    assert_eq!(pull(&host, &by_digest)?.receipt, None);
    assert_eq!(proxy.log().len(), asked, "{:#?}", proxy.log());
    assert_eq!(snapshots(&host)?, unpacked);
    Ok(())
}

#[test]
fn of_a_new_version_only_the_layers_come_that_are_new() -> Result<()> {
    let host = TestHost::start()?;
    let proxy = FaultyRegistry::start(&host.ground)?;
    let image = cached::layers(&host.ground.path("image"), 5, 200_000)?;
    image.place(&host.registry, "layers:1")?;
    let next = cached::next_version(&image, &host.ground.path("next"))?;
    next.place(&host.registry, "layers:2")?;
    pull(&host, &FaultyRegistry::reference("layers:1"))?;
    let before = proxy.log().len();
    let pulled = pull(&host, &FaultyRegistry::reference("layers:2"))?;
    let receipt = pulled.receipt.context("no receipt")?;
    let from: Vec<&str> = receipt
        .layers
        .iter()
        .map(|layer| layer.from.as_str())
        .collect();
    assert_eq!(
        from,
        [
            "unpacked", "unpacked", "unpacked", "unpacked", "unpacked", "registry"
        ]
    );
    let new = next.layers().last().context("no layers")?;
    assert_eq!(receipt.fetched_bytes, new.size);
    let log = proxy.log();
    let blobs = log[before..].iter().filter_map(|past| past.blob.as_deref());
    let blobs = blobs.filter(|digest| next.layers().iter().any(|layer| layer.digest == *digest));
    assert_eq!(blobs.collect::<Vec<&str>>(), [new.digest.as_str()]);
    assert_eq!(snapshots(&host)?.len(), 6);
    Ok(())
}

#[test]
fn what_is_ready_is_run_by_others_with_the_registry_gone() -> Result<()> {
    let mut host = TestHost::start()?;
    let web = host.push(&Image::web()?, "web:1")?;
    pull(&host, &web.reference)?;
    let unpacked = snapshots(&host)?;
    host.registry.stop()?;
    ensure!(
        host.registry.request("GET", "/v2/", &[], &[]).is_err(),
        "the registry answers"
    );
    let mut ctr = Ctr::new(&host.ground, &host.containerd).within(host.agent.namespace());
    let (id, _) = ctr.run_detached(&Registry::reference("web:1"))?;
    assert_eq!(host.containerd.tasks(host.agent.namespace())?.len(), 1);
    let mut with_rootfs = unpacked;
    with_rootfs.insert(id.clone());
    assert_eq!(snapshots(&host)?, with_rootfs);
    // The agent's own verbs need none either.
    assert_eq!(pull(&host, &web.reference)?.state, ImageState::Ready);
    ctr.remove(&id)
}

#[test]
fn an_image_that_somebody_removed_is_brought_back_for_the_next_instance() -> Result<()> {
    let host = TestHost::start()?;
    let web = host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web").armed(0))?;
    // As an operator does it, or the collector of a kubelet whose containerd knows no pins.
    let ctr = Ctr::new(&host.ground, &host.containerd).within(host.agent.namespace());
    let by_digest = format!("127.0.0.1:5000/web@{}", web.digest);
    ctr.run(&["images", "remove", "--sync", &by_digest])?;
    assert_eq!(snapshots(&host)?, BTreeSet::new());
    let task = host.cli().activate("web", 2, "up")?;
    assert_eq!(task.instances.len(), 2);
    for instance in &task.instances {
        host.assert_serves(instance)?;
    }
    host.remove_app("web")
}

#[test]
fn more_containers_than_a_message_of_containerd_may_have_are_seen() -> Result<()> {
    let host = TestHost::start()?;
    let used = host.push(&Image::web()?, "used:1")?.reference;
    let unused = host
        .push(&Image::web()?.file("www/x", 0o644, "x"), "unused:1")?
        .reference;
    pull(&host, &used)?;
    let ctr = Ctr::new(&host.ground, &host.containerd).within(host.agent.namespace());
    // Of all together gRPC takes 4 MiB.
    let environment = format!("LARGE={}", "x".repeat(120_000));
    for number in 0..40 {
        let id = format!("large-{number}");
        ctr.run(&["containers", "create", "--env", &environment, &used, &id])?;
    }
    ensure!(pull(&host, &used)?.in_use);
    ensure!(!pull(&host, &unused)?.in_use);
    let list: ImageList = host.cli().json(&["image", "list"])?.document(0)?;
    let in_use: Vec<(&str, bool)> = list
        .images
        .iter()
        .map(|image| (image.reference.as_str(), image.in_use))
        .collect();
    assert_eq!(in_use, [(unused.as_str(), false), (used.as_str(), true)]);
    for number in 0..40 {
        ctr.run(&["containers", "delete", &format!("large-{number}")])?;
    }
    Ok(())
}
