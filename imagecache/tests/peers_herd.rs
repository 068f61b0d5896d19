//! Many hosts that want one image: who asks the registry, and what happens when peers fail.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fleet;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fleet::{Host, Impostor, Registry, content, dead_address, descriptor, fleet, fleet_with, peer};
use futures_util::future::{join_all, try_join_all};
use imagecache::Descriptor;
use imagecache::fetch::{FetchOptions, SourceKind};
use imagecache::peers::Trouble;

/// Layers of an image: one large, some small.
fn image() -> Vec<Vec<u8>> {
    let sizes = [4 << 20, 1 << 20, 400_000, 30_000, 512];
    let layer = |(seed, size): (usize, &usize)| content(*size, seed as u8);
    sizes.iter().enumerate().map(layer).collect()
}

fn total(layers: &[Vec<u8>]) -> u64 {
    layers.iter().map(|layer| layer.len() as u64).sum()
}

fn here(host: &Host, blob: &Descriptor) -> bool {
    host.blobs.find(&blob.digest).unwrap().is_some()
}

/// All layers at a time, as a pull does it.
async fn pull(host: &Host, registry: &Arc<Registry>, layers: &[Descriptor]) {
    let bring = layers.iter().map(|layer| host.bring(registry, layer));
    try_join_all(bring).await.unwrap();
    assert!(layers.iter().all(|layer| here(host, layer)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_asks_the_registry_for_each_byte_about_once() {
    let layers = image();
    let blobs: Vec<Descriptor> = layers.iter().map(|layer| descriptor(layer)).collect();
    let hosts = fleet(8).await;
    let registry = Registry::slow(&layers, Duration::from_millis(2));
    let begun = Instant::now();
    join_all(hosts.iter().map(|host| pull(host, &registry, &blobs))).await;
    let herd = begun.elapsed();
    let (sent, image) = (registry.sent(), total(&layers));
    println!("{sent} bytes of {image} from the registry, {herd:?}");
    assert!(
        sent * 10 <= image * 11,
        "{sent} bytes were sent of an image of {image}"
    );
    let sum = |of: &dyn Fn(&Host) -> u64| hosts.iter().map(of).sum::<u64>();
    let by_registry = sum(&|host| host.fetcher.arrived(SourceKind::Registry));
    let by_peers = sum(&|host| host.fetcher.arrived(SourceKind::Peer));
    let served = sum(&|host| host.peers.served().bytes);
    assert!(
        by_registry <= sent && by_peers <= served && by_registry + by_peers >= 8 * image,
        "{by_registry} of {sent} came from the registry, {by_peers} of {served} from peers"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_others_are_at_it_joins_them() {
    let layers = image();
    let blobs: Vec<Descriptor> = layers.iter().map(|layer| descriptor(layer)).collect();
    let hosts = fleet(8).await;
    let registry = Registry::slow(&layers, Duration::from_millis(2));
    let (from, blobs) = (&registry, &blobs);
    let late = |(at, host)| async move {
        tokio::time::sleep(Duration::from_millis(37 * at as u64)).await;
        pull(host, from, blobs).await;
    };
    join_all(hosts.iter().enumerate().map(late)).await;
    assert!(
        registry.sent() * 10 <= total(&layers) * 11,
        "{}",
        registry.sent()
    );
}

#[tokio::test]
async fn with_the_registry_gone_a_peer_that_has_it_is_found() {
    let layers = [content(2 << 20, 1)];
    let hosts = fleet(5).await;
    let blob = hosts[3].put(&layers[0]);
    let registry = Registry::with(&[]);
    registry.gone.store(true, Ordering::Relaxed);
    for host in [0, 1, 2, 4] {
        let fetched = hosts[host].bring(&registry, &blob).await.unwrap();
        assert_eq!(fetched.shares[0].kind, SourceKind::Peer);
        assert_eq!(fetched.shares[0].bytes, blob.size);
    }
}

#[tokio::test]
async fn near_peers_are_asked_first() {
    let mut listeners = Vec::new();
    for _ in 0..4 {
        listeners.push(fleet::listener().await);
    }
    let zones = ["far", "near", "near", "far"];
    let list: Vec<_> = listeners
        .iter()
        .zip(zones)
        .map(|(listener, zone)| imagecache::peers::Peer {
            zone: Some(zone.to_owned()),
            ..peer(&listener.local_addr().unwrap().to_string())
        })
        .collect();
    let start = |listener| Host::start(listener, &list, 16, 0);
    let hosts: Vec<Host> = listeners.into_iter().map(start).collect();
    for seed in 0..8 {
        let bytes = content(1000, seed);
        let blob = descriptor(&bytes);
        let registry = Registry::with(&[bytes]);
        for host in [0, 1, 2, 3] {
            let fetched = hosts[host].bring(&registry, &blob).await.unwrap();
            let from = &fetched.shares[0].name;
            match host {
                0 => assert_eq!(from, "registry.example"),
                1 => assert_eq!(*from, hosts[0].address, "the first of its zone"),
                2 => assert_eq!(*from, hosts[1].address, "the second of its zone"),
                _ => assert_eq!(*from, hosts[0].address, "its own zone"),
            }
        }
    }
}

#[tokio::test]
async fn dead_and_silent_peers_cost_a_small_deadline_once() {
    let silent = Impostor::start(|_| None).await;
    let others = [
        peer(&dead_address().await),
        peer(&dead_address().await),
        peer(&silent.address),
    ];
    let hosts = fleet_with(1, &others).await;
    let layers: Vec<Vec<u8>> = (0..10).map(|seed| content(10_000, seed)).collect();
    let blobs: Vec<Descriptor> = layers.iter().map(|layer| descriptor(layer)).collect();
    let registry = Registry::with(&layers);
    let begun = Instant::now();
    pull(&hosts[0], &registry, &blobs).await;
    // Once as the keeper, once when all are asked: 5 s each.
    assert!(
        begun.elapsed() < Duration::from_secs(14),
        "{:?}",
        begun.elapsed()
    );
    let resting = hosts[0].peers.status();
    assert!(
        resting
            .iter()
            .all(|peer| matches!(peer.rests, Some((Trouble::Away, _)))),
        "{resting:?}"
    );
    let asked = silent.asked().len();
    let more = content(10_000, 77);
    hosts[0]
        .bring(
            &Registry::with(std::slice::from_ref(&more)),
            &descriptor(&more),
        )
        .await
        .unwrap();
    assert_eq!(silent.asked().len(), asked, "it is left alone");
}

#[tokio::test]
async fn a_peer_that_sends_wrong_bytes_is_put_aside_and_reported() {
    let bytes = content(100_000, 1);
    let blob = descriptor(&bytes);
    let wrong = content(100_000, 2);
    let liar = Impostor::start(move |head| {
        let mut answer =
            b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n".to_vec();
        if head.starts_with("GET") {
            answer.extend(&wrong);
        }
        Some(answer)
    })
    .await;
    let hosts = fleet_with(1, &[peer(&liar.address)]).await;
    let registry = Registry::with(&[bytes]);
    let fetched = hosts[0].bring(&registry, &blob).await.unwrap();
    assert_eq!(fetched.shares[0].kind, SourceKind::Registry);
    assert!(here(&hosts[0], &blob));
    let status = hosts[0].peers.status();
    assert!(
        matches!(status[0].rests, Some((Trouble::WrongBytes, left)) if left > Duration::from_secs(500)),
        "{status:?}"
    );
    let asked = liar.asked().len();
    let other = content(50, 3);
    hosts[0]
        .bring(
            &Registry::with(std::slice::from_ref(&other)),
            &descriptor(&other),
        )
        .await
        .unwrap();
    assert_eq!(liar.asked().len(), asked, "it is not asked any more");
}

#[tokio::test]
async fn peers_see_their_token_and_nothing_leads_elsewhere() {
    let elsewhere = Impostor::start(|_| None).await;
    let target = elsewhere.address.clone();
    let leading = Impostor::start(move |_| {
        let head = format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{target}/v2/x/blobs/y\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        Some(head.into_bytes())
    })
    .await;
    let hosts = fleet_with(1, &[peer(&leading.address)]).await;
    for seed in 0..4 {
        let bytes = content(1000, seed);
        let registry = Registry::with(std::slice::from_ref(&bytes));
        hosts[0]
            .bring(&registry, &descriptor(&bytes))
            .await
            .unwrap();
    }
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());
    let asked = leading.asked();
    assert!(!asked.is_empty());
    for head in asked {
        let lines = head
            .lines()
            .filter(|line| line.to_ascii_lowercase().starts_with("authorization"));
        let shown: Vec<&str> = lines.collect();
        assert_eq!(
            shown,
            [format!("authorization: Bearer {}", fleet::TOKEN)],
            "{head}"
        );
        assert!(!head.to_ascii_lowercase().contains("cookie"), "{head}");
    }
}

#[tokio::test]
async fn a_peer_that_dies_in_the_middle_costs_nobody_the_blob() {
    let bytes = content(8 << 20, 1);
    let first = fleet::listener().await;
    let second = fleet::listener().await;
    let list: Vec<_> = [&first, &second]
        .map(|listener| peer(&listener.local_addr().unwrap().to_string()))
        .to_vec();
    // Slow enough to die on the way.
    let mut dying = Host::start(first, &list, 16, 4 << 20);
    let host = Host::start(second, &list, 16, 0);
    let blob = dying.put(&bytes);
    let registry = Registry::with(&[bytes]);
    let bringing = host.bring(&registry, &blob);
    let dying = async {
        let deadline = Instant::now() + Duration::from_secs(10);
        while host.blobs.begun(&blob.digest).unwrap_or(0) < 1 << 20 {
            assert!(Instant::now() < deadline, "nothing comes from the peer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        dying.die().await;
    };
    let (fetched, ()) = tokio::join!(bringing, dying);
    let fetched = fetched.unwrap();
    assert!(here(&host, &blob));
    assert!(fetched.resumed > 0, "what the peer had sent is kept");
    assert!(registry.sent() < blob.size, "{}", registry.sent());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_first_gives_up_the_next_one_goes_to_the_registry() {
    let bytes = content(4 << 20, 1);
    let blob = descriptor(&bytes);
    let hosts = fleet(6).await;
    let registry = Registry::slow(&[bytes], Duration::from_millis(5));
    let begun = async {
        while registry.sent() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        first = hosts[0].bring(&registry, &blob) => panic!("it was to be given up: {first:?}"),
        () = begun => {}
    }
    let others = hosts[1..].iter().map(|host| host.bring(&registry, &blob));
    try_join_all(others).await.unwrap();
    assert!(registry.sent() <= 2 * blob.size, "{}", registry.sent());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_connection_is_waited_for() {
    let layers: Vec<Vec<u8>> = (0..40).map(|seed| content(10_000, seed)).collect();
    let blobs: Vec<Descriptor> = layers.iter().map(|layer| descriptor(layer)).collect();
    let mut hosts = fleet(4).await;
    let options = FetchOptions {
        connections: 1,
        ..FetchOptions::default()
    };
    hosts.iter_mut().for_each(|host| host.fetches(&options));
    // All of it takes longer than a peer without progress is waited for.
    let registry = Registry::slow(&layers, Duration::from_millis(350));
    join_all(hosts.iter().map(|host| pull(host, &registry, &blobs))).await;
    assert_eq!(registry.sent(), total(&layers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_registry_is_not_asked_twice_by_the_first_of_a_herd() {
    let layers: Vec<Vec<u8>> = (0..40).map(|seed| content(10_000, seed)).collect();
    let blobs: Vec<Descriptor> = layers.iter().map(|layer| descriptor(layer)).collect();
    let mut hosts = fleet(4).await;
    let options = FetchOptions {
        hedge_after: Duration::from_millis(50),
        ..FetchOptions::default()
    };
    hosts.iter_mut().for_each(|host| host.fetches(&options));
    // Every connection waits longer for its turn than a hedge does.
    let registry = Registry::slow(&layers, Duration::from_millis(50));
    join_all(hosts.iter().map(|host| pull(host, &registry, &blobs))).await;
    assert_eq!(registry.sent(), total(&layers));
}

#[tokio::test]
async fn a_peer_that_trickles_is_given_up() {
    let bytes = content(8 << 20, 1);
    let listeners = [fleet::listener().await, fleet::listener().await];
    let list = listeners
        .each_ref()
        .map(|listener| peer(&listener.local_addr().unwrap().to_string()));
    let [first, second] = listeners;
    // A tenth of what is the least.
    let slow = Host::start(first, &list, 16, 100_000);
    let host = Host::start(second, &list, 16, 0);
    let blob = slow.put(&bytes);
    let registry = Registry::with(&[bytes]);
    let begun = Instant::now();
    let fetched = host.bring(&registry, &blob).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(fetched.shares[0].kind, SourceKind::Registry);
}

#[tokio::test]
async fn documents_come_from_peers_by_digest() {
    use imagecache::{BlobWriter as _, ContentStore as _};
    let hosts = fleet(3).await;
    let text = br#"{"schemaVersion":2,"manifests":[]}"#;
    let document = descriptor(text);
    if let imagecache::Begun::Writer(mut writer) =
        hosts[2].documents.begin(&document).await.unwrap()
    {
        writer.write(text.to_vec().into()).await.unwrap();
        writer.commit().await.unwrap();
    }
    let found = hosts[0]
        .peers
        .document("library/web", &document.digest)
        .await;
    assert_eq!(found.as_deref(), Some(&text[..]));
    let nothing = hosts[0]
        .peers
        .document("library/web", &descriptor(b"x").digest)
        .await;
    assert_eq!(nothing, None);
}
