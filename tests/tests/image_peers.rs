//! Agents that give one another their layers: real agents, each with its own containerd, on one
//! switch with one real registry.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent::api::v1::{ImageDocument, ImageState};
use nodeagent_tests::authority::Authority;
use nodeagent_tests::http;
use nodeagent_tests::image::cached;
use nodeagent_tests::image::layout::Layout;
use nodeagent_tests::swarm::{Member, Sharing, Swarm};
use nodeagent_tests::wait::{Look, until};

/// Hosts, and an image of three layers in their registry.
fn swarm(count: u8, images: &str) -> Result<(Swarm, Layout, String)> {
    let swarm = Swarm::new(count, Sharing::On, images)?;
    let (image, reference) = offer(&swarm)?;
    Ok((swarm, image, reference))
}

fn offer(swarm: &Swarm) -> Result<(Layout, String)> {
    let image = cached::layers(&swarm.center.path("image"), 3, 1_000_000)?;
    image.place(&swarm.registry, "layers:1")?;
    Ok((image, Swarm::reference("layers:1")))
}

/// Every layer came from that kind of source; who sent them.
fn all_from<'i>(image: &'i ImageDocument, from: &str) -> Result<Vec<&'i str>> {
    assert_eq!(image.state, ImageState::Ready);
    let receipt = image.receipt.as_ref().context("no receipt")?;
    let layers = receipt.layers.iter();
    ensure!(
        layers.clone().all(|layer| layer.from == from),
        "not all from {from}: {receipt:?}"
    );
    Ok(layers.filter_map(|layer| layer.sender.as_deref()).collect())
}

fn by_digest(image: &ImageDocument) -> String {
    format!("{}@{}", image.reference, image.digest)
}

/// Bytes of layers that came to a host from that kind of source, as its metrics say.
fn fetched(host: &Member, from: &str) -> Result<f64> {
    let page = host.agent.metrics()?;
    page.value("nodeagent_image_fetched_bytes_total", &[("from", from)])
        .with_context(|| format!("nothing is said of {from}"))
}

/// Bytes of layers that peers were sent, and uploads that are running, as a host's metrics say.
fn served(host: &Member) -> Result<(f64, f64)> {
    let page = host.agent.metrics()?;
    let value = |name: &str| page.value(name, &[]).with_context(|| name.to_owned());
    Ok((
        value("nodeagent_image_served_bytes_total")?,
        value("nodeagent_image_uploads")?,
    ))
}

fn answers(host: &Member, by: &Member, target: &str) -> Result<u16> {
    Ok(http::get(by.ground.netns(), host.address(), target)?.status)
}

#[test]
fn the_second_host_gets_its_layers_from_the_first() -> Result<()> {
    let (swarm, image, reference) = swarm(2, "")?;
    let [first, second] = swarm.hosts.as_slice() else {
        anyhow::bail!("two hosts are expected");
    };
    all_from(&first.pull(&reference)?, "registry")?;
    let before = swarm.registry_sent()?;
    let pulled = second.pull(&reference)?;
    let senders = all_from(&pulled, "peer")?;
    let expected = first.address().to_string();
    ensure!(
        senders.iter().all(|sender| *sender == expected),
        "{senders:?}"
    );
    let sent = swarm.registry_sent()? - before;
    ensure!(
        sent < image.size() / 10,
        "the registry sent {sent} bytes of an image of {}",
        image.size()
    );
    let size = image.size() as f64;
    let (came, passed_on) = (fetched(first, "registry")?, fetched(second, "peer")?);
    ensure!(came >= size && passed_on >= size, "{came}, {passed_on}");
    for (host, from) in [(first, "peer"), (second, "registry"), (second, "mirror")] {
        assert_eq!(fetched(host, from)?, 0.0, "{from}");
    }
    assert_eq!(served(second)?, (0.0, 0.0));
    let (given, _) = served(first)?;
    ensure!(given >= passed_on, "{given} of {passed_on} bytes");
    until("the uploads to end", Duration::from_secs(10), || {
        Ok(match served(first)? {
            (_, 0.0) => Look::Seen(()),
            (_, running) => Look::NotYet(running.to_string()),
        })
    })
}

#[test]
fn with_the_registry_gone_an_image_by_digest_comes_from_who_has_it() -> Result<()> {
    let (mut swarm, _, reference) = swarm(3, "retries = 2\n")?;
    let pulled = swarm.hosts[0].pull(&reference)?;
    swarm.registry.stop()?;
    for host in &swarm.hosts[1..] {
        all_from(&host.pull(&by_digest(&pulled))?, "peer")?;
    }
    // What a tag names is the registry's to say.
    let refused = swarm.hosts[2].image(&["pull", &Swarm::reference("layers:2")])?;
    assert_eq!(refused.problem(1)?.code, "unavailable");
    Ok(())
}

#[test]
fn who_has_another_token_is_served_nothing_and_pulls_from_the_registry() -> Result<()> {
    let mut swarm = Swarm::prepare(2, Sharing::On, "")?;
    let (image, reference) = offer(&swarm)?;
    let stranger = swarm.hosts[1].ground.path("peers.token");
    fs::write(&stranger, "another-token-than-theirs\n")?;
    for host in &mut swarm.hosts {
        host.agent.start(&host.ground)?;
    }
    let [first, second] = swarm.hosts.as_slice() else {
        anyhow::bail!("two hosts are expected");
    };
    all_from(&first.pull(&reference)?, "registry")?;
    all_from(&second.pull(&reference)?, "registry")?;
    // Without any token.
    let layer = &image.layers()[0].digest;
    for target in ["/v2/".to_owned(), format!("/v2/layers/blobs/{layer}")] {
        assert_eq!(answers(first, second, &target)?, 401, "{target}");
    }
    for host in [first, second] {
        let log = host.agent.tail(1000);
        ensure!(!log.contains("another-token"), "a token is told: {log}");
    }
    Ok(())
}

#[test]
fn hosts_know_each_other_by_certificates_and_a_stranger_gets_nothing() -> Result<()> {
    let mut swarm = Swarm::prepare(3, Sharing::Tls, "")?;
    let (_, reference) = offer(&swarm)?;
    // Signed by another authority, the only one that it trusts.
    let theirs = Authority::create(&swarm.center.path("stranger"))?;
    swarm.hosts[2].pose(&theirs)?;
    for host in &mut swarm.hosts {
        host.agent.start(&host.ground)?;
    }
    let [first, second, stranger] = swarm.hosts.as_slice() else {
        anyhow::bail!("three hosts are expected");
    };
    all_from(&first.pull(&reference)?, "registry")?;
    all_from(&stranger.pull(&reference)?, "registry")?;
    let pulled = second.pull(&reference)?;
    let expected = first.address().to_string();
    let senders = all_from(&pulled, "peer")?;
    ensure!(
        senders.iter().all(|sender| *sender == expected),
        "{senders:?}"
    );
    assert_eq!(served(stranger)?.0, 0.0);
    // Without TLS nobody is answered at all.
    ensure!(
        answers(first, second, "/v2/").is_err(),
        "plain HTTP is answered"
    );
    Ok(())
}

#[test]
fn four_hosts_at_once_ask_the_registry_for_each_layer_about_once() -> Result<()> {
    let (swarm, image, reference) = swarm(4, "")?;
    // So slow that all of them are at it.
    swarm.pace(8)?;
    let before = swarm.registry_sent()?;
    std::thread::scope(|scope| {
        let pulls: Vec<_> = swarm
            .hosts
            .iter()
            .map(|host| scope.spawn(|| host.pull(&reference)))
            .collect();
        for pull in pulls {
            let pulled = pull
                .join()
                .map_err(|_| anyhow::anyhow!("a pull panicked"))??;
            assert_eq!(pulled.state, ImageState::Ready);
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let sent = swarm.registry_sent()? - before;
    // Headers of packets, manifests and configs are in it.
    ensure!(
        sent * 10 <= image.size() * 13,
        "the registry sent {sent} bytes of an image of {}",
        image.size()
    );
    Ok(())
}

#[test]
fn peers_are_off_by_default_and_a_secret_that_cannot_be_read_is_told_at_start() -> Result<()> {
    let mut swarm = Swarm::prepare(1, Sharing::On, "")?;
    let host = &mut swarm.hosts[0];
    fs::write(host.ground.path("peers.token"), "short\n")?;
    let error = format!("{:#}", host.agent.start(&host.ground).unwrap_err());
    ensure!(
        error.contains("images.peers.token_file") && !error.contains("short\n"),
        "{error}"
    );
    let off = Swarm::new(2, Sharing::Off, "")?;
    let refused = http::get(off.hosts[1].ground.netns(), off.hosts[0].address(), "/v2/");
    ensure!(refused.is_err(), "somebody listens: {refused:?}");
    Ok(())
}
