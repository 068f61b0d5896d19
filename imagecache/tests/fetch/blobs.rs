//! Blobs from registries that are right, slow, and wrong, into the store.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::server::{Fault, Reply, Request, Server};
use imagecache::blobs::{Begun, Blobs};
use imagecache::fetch::{FetchOptions, Fetched, Fetcher, SourceKind, Sources, Urgency};
use imagecache::registry::Registries;
use imagecache::{Descriptor, Digest, PullError, Retry};

const CHUNK: u64 = 256 << 10;

/// A store, a fetcher, and what they are told.
struct Scene {
    directory: tempfile::TempDir,
    blobs: Blobs,
    options: FetchOptions,
    bytes: Arc<Vec<u8>>,
}

impl Scene {
    /// With a blob of so many chunks.
    fn new(chunks: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bytes = (0..chunks * CHUNK / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes());
        Self {
            blobs: Blobs::open(&directory.path().join("store")).unwrap(),
            directory,
            bytes: Arc::new(bytes.collect()),
            options: FetchOptions {
                chunk: CHUNK,
                stall_timeout: Duration::from_secs(5),
                hedge_after: Duration::from_secs(4),
                ..FetchOptions::default()
            },
        }
    }

    fn blob(&self) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            digest: Digest::of(&self.bytes),
            size: self.bytes.len() as u64,
        }
    }

    /// Sources by `hosts.toml`: all but the last are mirrors of the last.
    fn sources(&self, servers: &[&Server]) -> Sources {
        let (registry, mirrors) = servers.split_last().unwrap();
        let hosts = self.directory.path().join("hosts");
        let own = hosts.join(&registry.address);
        std::fs::create_dir_all(&own).unwrap();
        let text: String = mirrors
            .iter()
            .map(|mirror| format!("[host.\"http://{}\"]\n", mirror.address))
            .collect();
        std::fs::write(own.join("hosts.toml"), text).unwrap();
        let options = FetchOptions {
            hosts_dir: Some(hosts),
            ..self.options.clone()
        };
        let reference = format!("{}/team/web:1", registry.address).parse().unwrap();
        Registries::new(&options)
            .open(&reference)
            .unwrap()
            .sources()
    }

    async fn fetch(&self, servers: &[&Server]) -> Result<Fetched, PullError> {
        let fetcher = Fetcher::new(&self.options);
        self.fetch_by(&fetcher, &self.sources(servers)).await
    }

    async fn fetch_by(&self, fetcher: &Fetcher, from: &Sources) -> Result<Fetched, PullError> {
        let (blob, urgency) = (self.blob(), Urgency::PrePull);
        let fetch = fetcher.blob(from, "layer", &blob, &self.blobs, urgency);
        let bounded = tokio::time::timeout(Duration::from_secs(60), fetch).await;
        bounded.expect("the fetch does not end")
    }

    /// What lies in the store is the blob.
    fn assert_right(&self, fetched: &Fetched) {
        let there = std::fs::read(&fetched.blob.path).unwrap();
        assert!(there == *self.bytes, "other bytes are in the store");
    }

    fn assert_nothing_visible(&self) {
        assert_eq!(self.blobs.list().unwrap(), []);
    }
}

/// A registry whose blob is answered by `answer`, which is given how often a blob was asked for.
async fn registry(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Server {
    let asked = AtomicUsize::new(0);
    Server::start(move |request| answer(request, asked.fetch_add(1, Ordering::SeqCst))).await
}

async fn right(scene: &Scene) -> Server {
    let bytes = Arc::clone(&scene.bytes);
    registry(move |request, _| Reply::ranged(request, &bytes)).await
}

fn sent(fetched: &Fetched, server: &Server) -> u64 {
    let shares = fetched.shares.iter();
    shares
        .filter(|share| share.name == server.address)
        .map(|share| share.bytes)
        .sum()
}

#[tokio::test]
async fn a_large_blob_comes_in_ranges_side_by_side() {
    let scene = Scene::new(9);
    let server = right(&scene).await;
    let fetched = scene.fetch(&[&server]).await.unwrap();
    scene.assert_right(&fetched);
    let asked = server.asked();
    assert_eq!(asked.len(), 9);
    let path = format!("/v2/team/web/blobs/{}", scene.blob().digest);
    assert!(
        asked.iter().all(|request| request.path == path),
        "{asked:?}"
    );
    let mut ranges: Vec<_> = asked.iter().map(|r| r.range().unwrap()).collect();
    ranges.sort_unstable();
    assert_eq!(ranges[1], (CHUNK as usize, 2 * CHUNK as usize - 1));
    assert_eq!(fetched.shares.len(), 1);
    assert_eq!(fetched.shares[0].kind, SourceKind::Registry);
    assert_eq!(fetched.shares[0].bytes, scene.blob().size);
    assert_eq!(fetched.resumed, 0);
}

#[tokio::test]
async fn a_small_blob_is_asked_for_without_a_range() {
    let scene = Scene::new(1);
    let server = right(&scene).await;
    scene.assert_right(&scene.fetch(&[&server]).await.unwrap());
    let asked = server.asked();
    assert_eq!((asked.len(), asked[0].header("range")), (1, None));
    assert_eq!(asked[0].header("accept-encoding"), Some("identity"));
    assert_eq!(asked[0].header("authorization"), None);
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_asked_for() {
    let scene = Scene::new(2);
    let server = right(&scene).await;
    scene.fetch(&[&server]).await.unwrap();
    let before = server.asked().len();
    let again = scene.fetch(&[&server]).await.unwrap();
    assert_eq!(server.asked().len(), before);
    assert_eq!((again.shares.len(), again.resumed), (0, scene.blob().size));
}

#[tokio::test]
async fn a_blob_that_was_begun_goes_on_where_it_stopped() {
    let scene = Scene::new(16);
    let Begun::Partial(partial) = scene.blobs.begin(&scene.blob()).unwrap() else {
        panic!("it is there")
    };
    let (from, to) = (4 * CHUNK as usize, 12 * CHUNK as usize);
    partial
        .write_at(from as u64, &scene.bytes[from..to])
        .unwrap();
    drop(partial);
    let server = right(&scene).await;
    let fetched = scene.fetch(&[&server]).await.unwrap();
    scene.assert_right(&fetched);
    assert_eq!(fetched.resumed, 8 * CHUNK);
    assert_eq!(sent(&fetched, &server), 8 * CHUNK);
}

#[tokio::test]
async fn a_registry_without_ranges_is_read_once_from_the_front() {
    for fault in [Fault::None, Fault::Chunked] {
        let scene = Scene::new(8);
        let bytes = Arc::clone(&scene.bytes);
        let server = registry(move |_, _| Reply::body(bytes.to_vec()).fault(fault)).await;
        let fetched = scene.fetch(&[&server]).await.unwrap();
        scene.assert_right(&fetched);
        assert_eq!(server.asked().len(), 1, "{fault:?}");
        assert_eq!(sent(&fetched, &server), scene.blob().size);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_goes_on_where_it_broke() {
    let scene = Scene::new(8);
    let bytes = Arc::clone(&scene.bytes);
    let server = registry(move |request, count| {
        let reply = Reply::ranged(request, &bytes);
        match count {
            2 => reply.fault(Fault::Cut(CHUNK as usize / 2)),
            _ => reply,
        }
    })
    .await;
    let fetched = scene.fetch(&[&server]).await.unwrap();
    scene.assert_right(&fetched);
    assert_eq!(
        sent(&fetched, &server),
        scene.blob().size,
        "nothing came twice"
    );
    let halves = server
        .asked()
        .iter()
        .filter(|request| {
            let (first, _) = request.range().unwrap();
            !(first as u64).is_multiple_of(CHUNK)
        })
        .count();
    assert_eq!(halves, 1);
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_retry_after_is_honoured() {
    for status in [429, 500, 503] {
        let scene = Scene::new(1);
        let bytes = Arc::clone(&scene.bytes);
        let server = registry(move |request, count| match count {
            0 => Reply::status(status).header("retry-after", "1"),
            _ => Reply::ranged(request, &bytes),
        })
        .await;
        let start = Instant::now();
        scene.assert_right(&scene.fetch(&[&server]).await.unwrap());
        assert!(start.elapsed() >= Duration::from_secs(1), "{status}");
        assert_eq!(server.asked().len(), 2, "{status}");
    }
}

#[tokio::test]
async fn what_does_not_pass_is_given_up_within_bounds() {
    let scene = Scene::new(4);
    let server = registry(|_, _| Reply::status(503)).await;
    let error = scene.fetch(&[&server]).await.unwrap_err();
    let PullError::Registry {
        retry,
        source,
        object,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(*retry, Retry::Later);
    assert!(source.to_string().contains("503"), "{source}");
    assert!(object.starts_with("layer sha256:"), "{object}");
    assert!(server.asked().len() <= 4, "{}", server.asked().len());
    scene.assert_nothing_visible();
}

#[tokio::test]
async fn the_budget_of_a_pull_bounds_what_is_tried_again() {
    let mut scene = Scene::new(8);
    scene.options.retries = 2;
    let bytes = Arc::clone(&scene.bytes);
    // Each connection brings something, so that no failures are in a row.
    let server = registry(move |request, _| {
        Reply::ranged(request, &bytes).fault(Fault::Cut(CHUNK as usize / 4))
    })
    .await;
    let error = scene.fetch(&[&server]).await.unwrap_err();
    assert!(matches!(&error, PullError::Unreachable { .. }), "{error:?}");
    assert!(server.asked().len() <= 7, "{}", server.asked().len());
}

#[tokio::test]
async fn a_registry_that_has_no_such_blob_is_asked_once() {
    let scene = Scene::new(4);
    let server = registry(|_, _| Reply::status(404)).await;
    let error = scene.fetch(&[&server]).await.unwrap_err();
    assert!(
        matches!(&error, PullError::NotFound { repository, .. } if repository == "team/web"),
        "{error:?}"
    );
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_for_what_it_has_not() {
    let scene = Scene::new(4);
    let (empty, registry) = (
        registry(|_, _| Reply::status(404)).await,
        right(&scene).await,
    );
    let fetched = scene.fetch(&[&empty, &registry]).await.unwrap();
    scene.assert_right(&fetched);
    assert_eq!(empty.asked().len(), 1);
    assert_eq!(
        empty.asked()[0].query,
        format!("ns={}", registry.address.replace(':', "%3A"))
    );
    assert_eq!(registry.asked()[0].query, "");

    let scene = Scene::new(4);
    let mirror = right(&scene).await;
    let fetched = scene.fetch(&[&mirror, &registry]).await.unwrap();
    assert_eq!(sent(&fetched, &mirror), scene.blob().size);
    assert_eq!(fetched.shares[0].kind, SourceKind::Mirror);
}

#[tokio::test]
async fn a_mirror_that_is_down_costs_little() {
    let scene = Scene::new(4);
    let mut gone = Server::start(|_| Reply::status(500)).await;
    gone.stop().await;
    let registry = right(&scene).await;
    let start = Instant::now();
    let fetched = scene.fetch(&[&gone, &registry]).await.unwrap();
    scene.assert_right(&fetched);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn wrong_bytes_are_never_committed_and_fetched_from_another() {
    let scene = Scene::new(4);
    let mut wrong = scene.bytes.to_vec();
    wrong[700_000] ^= 1;
    let wrong = Arc::new(wrong);
    let spoilt = Arc::clone(&wrong);
    let mirror = registry(move |request, _| Reply::ranged(request, &spoilt)).await;
    let origin = right(&scene).await;
    let fetched = scene.fetch(&[&mirror, &origin]).await.unwrap();
    scene.assert_right(&fetched);
    assert_eq!(sent(&fetched, &origin), scene.blob().size);

    let scene = Scene::new(4);
    let error = scene.fetch(&[&mirror]).await.unwrap_err();
    let got = Digest::of(&wrong);
    assert!(
        matches!(&error, PullError::WrongDigest { registry, expected, got: came, .. }
            if *registry == mirror.address && *expected == scene.blob().digest.as_str()
                && *came == got.as_str()),
        "{error:?}"
    );
    scene.assert_nothing_visible();
}

#[tokio::test]
async fn wrong_bytes_of_one_among_several_are_found() {
    let scene = Scene::new(8);
    let mut wrong = scene.bytes.to_vec();
    wrong[100] ^= 1;
    let wrong = Arc::new(wrong);
    // The mirror sends the first chunk wrong, and has nothing more.
    let mirror = registry(move |request, count| match count {
        0 => Reply::ranged(request, &wrong),
        _ => Reply::status(404),
    })
    .await;
    let origin = right(&scene).await;
    let fetched = scene.fetch(&[&mirror, &origin]).await.unwrap();
    scene.assert_right(&fetched);
}

#[tokio::test]
async fn wrong_bytes_of_a_former_pull_are_nobodys_fault() {
    let scene = Scene::new(8);
    let Begun::Partial(partial) = scene.blobs.begin(&scene.blob()).unwrap() else {
        panic!("it is there")
    };
    partial.write_at(0, &vec![7; 4 * CHUNK as usize]).unwrap();
    drop(partial);
    let server = right(&scene).await;
    let fetched = scene.fetch(&[&server]).await.unwrap();
    scene.assert_right(&fetched);
}

#[tokio::test]
async fn wrong_sizes_are_told() {
    let scene = Scene::new(2);
    let size = scene.blob().size;
    let longer = scene.bytes.iter().copied().chain([0]).collect::<Vec<u8>>();
    let shorter = scene.bytes[..1000].to_vec();
    for (body, fault, got) in [
        (&longer, Fault::None, size + 1),
        (&shorter, Fault::None, 1000),
        (&shorter, Fault::Chunked, 1000),
    ] {
        let body = body.clone();
        let server = registry(move |_, _| Reply::body(body.clone()).fault(fault)).await;
        let error = scene.fetch(&[&server]).await.unwrap_err();
        assert!(
            matches!(&error, PullError::WrongSize { expected, got: came, .. }
                if *expected == size && *came == got),
            "{fault:?}: {error:?}"
        );
        scene.assert_nothing_visible();
        scene.blobs.give_up(&scene.blob()).unwrap();
    }
    let server = registry(move |_, _| Reply::body(longer.clone()).fault(Fault::Chunked)).await;
    let error = scene.fetch(&[&server]).await.unwrap_err();
    assert!(
        matches!(&error, PullError::WrongSize { expected, got, .. } if got > expected),
        "{error:?}"
    );
    scene.assert_nothing_visible();
}

#[tokio::test]
async fn ranges_that_were_not_asked_for_are_refused() {
    let scene = Scene::new(4);
    for range in ["bytes 5-10/20", "bytes 0-99/100", "nonsense"] {
        let server = registry(move |_, _| Reply {
            status: 206,
            ..Reply::body(vec![0; 100]).header("content-range", range)
        })
        .await;
        let error = scene.fetch(&[&server]).await.unwrap_err();
        assert!(
            matches!(
                &error,
                PullError::WrongSize { .. } | PullError::Malformed { .. }
            ),
            "{range}: {error:?}"
        );
    }
    scene.assert_nothing_visible();
}

#[tokio::test]
async fn a_connection_that_falls_silent_gets_another_beside_it() {
    let mut scene = Scene::new(8);
    scene.options.hedge_after = Duration::from_millis(200);
    scene.options.stall_timeout = Duration::from_secs(30);
    for silence in [Fault::Stall(1000), Fault::Silence] {
        let bytes = Arc::clone(&scene.bytes);
        let server = registry(move |request, count| {
            let reply = Reply::ranged(request, &bytes);
            match count {
                1 => reply.fault(silence),
                _ => reply,
            }
        })
        .await;
        let start = Instant::now();
        let fetched = scene.fetch(&[&server]).await.unwrap();
        scene.assert_right(&fetched);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        scene.blobs.remove(&scene.blob().digest).unwrap();
    }
}

#[tokio::test]
async fn the_next_source_steps_in_for_one_that_falls_silent() {
    let mut scene = Scene::new(4);
    scene.options.hedge_after = Duration::from_millis(200);
    scene.options.stall_timeout = Duration::from_secs(30);
    let bytes = Arc::clone(&scene.bytes);
    let mirror =
        registry(move |request, _| Reply::ranged(request, &bytes).fault(Fault::Stall(10))).await;
    let origin = right(&scene).await;
    let fetched = scene.fetch(&[&mirror, &origin]).await.unwrap();
    scene.assert_right(&fetched);
    assert!(sent(&fetched, &origin) >= scene.blob().size - 100);
}

#[tokio::test]
async fn a_trickle_is_no_progress() {
    let mut scene = Scene::new(1);
    scene.options.hedge_after = Duration::from_millis(300);
    scene.options.stall_timeout = Duration::from_secs(30);
    let bytes = Arc::clone(&scene.bytes);
    let server = registry(move |request, count| {
        let reply = Reply::ranged(request, &bytes);
        match count {
            0 => reply.fault(Fault::Trickle(10, Duration::from_millis(20))),
            _ => reply,
        }
    })
    .await;
    let start = Instant::now();
    scene.assert_right(&scene.fetch(&[&server]).await.unwrap());
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn a_registry_that_stays_silent_is_given_up() {
    let mut scene = Scene::new(2);
    scene.options.hedge_after = Duration::from_millis(100);
    scene.options.stall_timeout = Duration::from_millis(300);
    let bytes = Arc::clone(&scene.bytes);
    let server =
        registry(move |request, _| Reply::ranged(request, &bytes).fault(Fault::Stall(10))).await;
    let error = scene.fetch(&[&server]).await.unwrap_err();
    assert!(
        matches!(&error, PullError::Stalled { stalled, .. } if *stalled == scene.options.stall_timeout),
        "{error:?}"
    );
    scene.assert_nothing_visible();
}

#[tokio::test]
async fn the_same_blob_wanted_by_many_is_fetched_once() {
    let scene = Scene::new(6);
    let server = right(&scene).await;
    let fetcher = Fetcher::new(&scene.options);
    let sources = scene.sources(&[&server]);
    let fetches = (0..8).map(|_| scene.fetch_by(&fetcher, &sources));
    for fetched in futures_util::future::join_all(fetches).await {
        scene.assert_right(&fetched.unwrap());
    }
    assert_eq!(server.asked().len(), 6);
}

#[tokio::test]
async fn a_blob_that_another_process_writes_is_waited_for() {
    let scene = Scene::new(1);
    let Begun::Partial(partial) = scene.blobs.begin(&scene.blob()).unwrap() else {
        panic!("it is there")
    };
    let server = right(&scene).await;
    let sources = scene.sources(&[&server]);
    let fetcher = Fetcher::new(&scene.options);
    let fetch = scene.fetch_by(&fetcher, &sources);
    let other = async {
        tokio::task::yield_now().await;
        partial.write_at(0, &scene.bytes).unwrap();
        partial.commit().unwrap();
    };
    let (fetched, ()) = tokio::join!(fetch, other);
    let fetched = fetched.unwrap();
    scene.assert_right(&fetched);
    assert_eq!((fetched.shares.len(), server.asked().len()), (0, 0));
}

#[tokio::test]
async fn a_fetch_that_is_given_up_leaves_what_it_brought() {
    let scene = Scene::new(16);
    let bytes = Arc::clone(&scene.bytes);
    let server = registry(move |request, _| {
        let reply = Reply::ranged(request, &bytes);
        // By where they are: connections overtake one another.
        match request.range() {
            Some((first, _)) if first as u64 >= 8 * CHUNK => reply.fault(Fault::Silence),
            _ => reply,
        }
    })
    .await;
    let sources = scene.sources(&[&server]);
    let fetcher = Fetcher::new(&scene.options);
    tokio::select! {
        _ = scene.fetch_by(&fetcher, &sources) => panic!("it cannot end"),
        () = async {
            server.until_asked(12).await;
            // What was answered is on its way to the disk.
            while fetcher.progress(&scene.blob().digest) < Some(8 * CHUNK) {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    assert_eq!(fetcher.progress(&scene.blob().digest), None);
    let server = right(&scene).await;
    let fetched = scene.fetch(&[&server]).await.unwrap();
    scene.assert_right(&fetched);
    // Whole pieces of 1 MiB that were there are not asked for again.
    assert_eq!(fetched.resumed, 8 * CHUNK);
    assert_eq!(sent(&fetched, &server), 8 * CHUNK);
}

#[tokio::test]
async fn an_activation_passes_before_a_pre_pull() {
    let mut scene = Scene::new(64);
    scene.options.connections = 4;
    // Slow enough that it cannot be done before the activation comes.
    scene.options.bandwidth = 8 << 20;
    let order: Arc<Mutex<Vec<&str>>> = Arc::default();
    let server = right(&scene).await;
    let sources = scene.sources(&[&server]);
    let fetcher = Fetcher::new(&scene.options);
    let urgent = Scene::new(7);
    let origin = right(&urgent).await;
    let direct = urgent.sources(&[&origin]);
    let pre_pull = async {
        let fetched = scene.fetch_by(&fetcher, &sources).await.unwrap();
        scene.assert_right(&fetched);
        order.lock().unwrap().push("pre-pull");
    };
    let activation = async {
        server.until_asked(3).await;
        let blob = urgent.blob();
        let before = fetcher.progress(&scene.blob().digest).unwrap();
        let fetched = fetcher
            .blob(&direct, "layer", &blob, &urgent.blobs, Urgency::Activation)
            .await
            .unwrap();
        urgent.assert_right(&fetched);
        let after = fetcher.progress(&scene.blob().digest).unwrap();
        // What was gathered already is written; nothing more is asked for.
        assert!(
            after - before <= 4 * (CHUNK + (1 << 20)),
            "{before} {after}"
        );
        order.lock().unwrap().push("activation");
    };
    tokio::join!(pre_pull, activation);
    assert_eq!(*order.lock().unwrap(), ["activation", "pre-pull"]);
}

#[tokio::test]
async fn an_activation_that_wants_what_a_pre_pull_fetches_makes_it_urgent() {
    let mut scene = Scene::new(16);
    scene.options.bandwidth = 8 << 20;
    let server = right(&scene).await;
    let sources = scene.sources(&[&server]);
    let fetcher = Fetcher::new(&scene.options);
    let activation = async {
        server.until_asked(1).await;
        let blob = scene.blob();
        fetcher
            .blob(&sources, "layer", &blob, &scene.blobs, Urgency::Activation)
            .await
    };
    let (pre_pull, activation) = tokio::join!(scene.fetch_by(&fetcher, &sources), activation);
    scene.assert_right(&pre_pull.unwrap());
    assert_eq!(activation.unwrap().shares, [], "it was fetched once");
}

#[tokio::test]
async fn what_an_activation_waits_for_goes_before_other_pre_pulls() {
    let mut first = Scene::new(48);
    // Slow enough that the first cannot be done before somebody wants the second.
    first.options.bandwidth = 8 << 20;
    let second = Scene::new(7);
    let (first_server, second_server) = (right(&first).await, right(&second).await);
    let (first_sources, second_sources) = (
        first.sources(&[&first_server]),
        second.sources(&[&second_server]),
    );
    let fetcher = Fetcher::new(&first.options);
    let order: Arc<Mutex<Vec<&str>>> = Arc::default();
    let done = |name| order.lock().unwrap().push(name);
    let bring_first = async {
        let fetched = first.fetch_by(&fetcher, &first_sources).await.unwrap();
        first.assert_right(&fetched);
        done("first");
    };
    let bring_second = async {
        first_server.until_asked(3).await;
        let wanted = fetcher.want([&second.blob().digest]);
        let before = fetcher.progress(&first.blob().digest).unwrap();
        // A pre-pull as well, begun when it is wanted already.
        let fetched = second.fetch_by(&fetcher, &second_sources).await.unwrap();
        second.assert_right(&fetched);
        let after = fetcher.progress(&first.blob().digest).unwrap();
        // What was gathered already is written; nothing more is asked for.
        assert!(
            after - before <= 4 * (CHUNK + (1 << 20)),
            "{before} {after}"
        );
        done("second");
        drop(wanted);
    };
    tokio::join!(bring_first, bring_second);
    assert_eq!(*order.lock().unwrap(), ["second", "first"]);
}

#[tokio::test]
async fn the_bandwidth_is_limited_for_all_together() {
    let mut scene = Scene::new(8);
    scene.options.bandwidth = 2 << 20;
    let server = right(&scene).await;
    let start = Instant::now();
    scene.assert_right(&scene.fetch(&[&server]).await.unwrap());
    // 2 MiB at 2 MiB/s, of which a tenth of a second comes at once.
    assert!(
        start.elapsed() >= Duration::from_millis(800),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_redirect_is_followed_and_takes_no_credentials_along() {
    let scene = Scene::new(4);
    let cdn = right(&scene).await;
    let location = format!("http://{}/elsewhere?signature=1", cdn.address);
    let origin = registry(move |request, _| match request.header("authorization") {
        None => Reply::status(401).header("www-authenticate", "Basic realm=\"r\""),
        Some(_) => Reply::status(307).header("location", location.clone()),
    })
    .await;
    let mut scene = scene;
    let file = scene.directory.path().join("config.json");
    let text = format!(
        "{{\"auths\": {{\"{}\": {{\"auth\": \"am9lOnMzY3JldA==\"}}}}}}",
        origin.address
    );
    std::fs::write(&file, text).unwrap();
    scene.options.auth_file = Some(file);
    let fetched = scene.fetch(&[&origin]).await.unwrap();
    scene.assert_right(&fetched);
    let abroad = cdn.asked();
    assert_eq!(abroad.len(), 4);
    for request in abroad {
        assert_eq!(request.header("authorization"), None);
        assert_eq!(request.query, "signature=1");
        assert!(request.range().is_some());
    }
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let scene = Scene::new(1);
    let server =
        registry(|request, _| Reply::status(302).header("location", request.path.clone())).await;
    let error = scene.fetch(&[&server]).await.unwrap_err();
    let PullError::Registry { source, retry, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(
        source.to_string().contains("more than 5 redirects"),
        "{source}"
    );
    assert_eq!((*retry, server.asked().len()), (Retry::Never, 6));
}
