//! One suite for every discovery backend, and what the files look like.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nodeagent::config;
use nodeagent::discovery::{
    Discovery, DiscoveryError, EtcdDiscovery, FileDiscovery, MemoryDiscovery, Outcome, Reach,
    RegistrationRecord,
};
use nodeagent::instance::InstanceName;
use nodeagent::metrics::Metrics;
use serde_json::Value;

mod support;

use support::etcd::{ENDPOINT, Etcd};

const BOUND: Duration = Duration::from_secs(5);

fn web(ordinal: u32) -> InstanceName {
    InstanceName::new("web".parse().unwrap(), ordinal)
}

fn record(ordinal: u32, generation: u64) -> RegistrationRecord {
    let third = u8::try_from(ordinal / 200).unwrap();
    let fourth = u8::try_from(ordinal % 200 + 1).unwrap();
    RegistrationRecord {
        service: "web".into(),
        instance: web(ordinal),
        host_id: "host-a".into(),
        fleet: "default".into(),
        hostname: format!("web-{ordinal}"),
        address: Ipv4Addr::new(10, 88, third, fourth).into(),
        port: 8080,
        weight: 100,
        generation,
        metadata: BTreeMap::from([("task_id".into(), "peak-7".into())]),
    }
}

fn settings(directory: &Path) -> config::FileDiscovery {
    config::FileDiscovery {
        requirement: config::Requirement::Required,
        directory: directory.to_owned(),
        propagation_bound: BOUND,
    }
}

fn open(directory: &Path) -> FileDiscovery {
    FileDiscovery::open(&settings(directory)).unwrap()
}

async fn register(backend: &dyn Discovery, record: RegistrationRecord) -> Outcome {
    backend.register(&[record]).await.unwrap()[0]
}

async fn deregister(backend: &dyn Discovery, ordinal: u32, generation: u64) -> Outcome {
    backend
        .deregister(&[(web(ordinal), generation)])
        .await
        .unwrap()[0]
}

/// What every backend promises.
async fn conformance(backend: &dyn Discovery) {
    assert_eq!(backend.propagation_bound(), BOUND);
    assert_eq!(backend.registered().await.unwrap(), []);

    // A registration is there with all that it says, and again changes nothing.
    assert_eq!(register(backend, record(0, 3)).await, Outcome::Applied);
    assert_eq!(register(backend, record(0, 3)).await, Outcome::Applied);
    assert_eq!(backend.registered().await.unwrap(), [record(0, 3)]);

    // A late write of an older generation never wins; a newer one does.
    assert_eq!(
        register(backend, record(0, 2)).await,
        Outcome::Stale { registered: 3 }
    );
    assert_eq!(backend.registered().await.unwrap(), [record(0, 3)]);
    assert_eq!(register(backend, record(0, 4)).await, Outcome::Applied);

    // An update changes what is registered, and only that.
    let lighter = RegistrationRecord {
        weight: 15,
        ..record(0, 4)
    };
    let absent = record(9, 1);
    let old = RegistrationRecord {
        weight: 1,
        ..record(0, 3)
    };
    let outcomes = backend
        .update(&[lighter.clone(), absent, old])
        .await
        .unwrap();
    let expected = [
        Outcome::Applied,
        Outcome::NotRegistered,
        Outcome::Stale { registered: 4 },
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(backend.registered().await.unwrap(), [lighter]);

    // Draining is weight 0, and comes back as it went.
    let draining = RegistrationRecord {
        weight: 0,
        ..record(0, 4)
    };
    assert_eq!(
        backend
            .update(std::slice::from_ref(&draining))
            .await
            .unwrap(),
        [Outcome::Applied]
    );
    assert_eq!(backend.registered().await.unwrap(), [draining]);

    // A deregistration of an older generation is ignored.
    assert_eq!(
        deregister(backend, 0, 3).await,
        Outcome::Stale { registered: 4 }
    );
    assert_eq!(backend.registered().await.unwrap().len(), 1);

    // What was deregistered never comes back: no register, update or renewal of it.
    assert_eq!(deregister(backend, 0, 4).await, Outcome::Applied);
    assert_eq!(deregister(backend, 0, 4).await, Outcome::NotRegistered);
    assert_eq!(
        register(backend, record(0, 4)).await,
        Outcome::Gone { deregistered: 4 }
    );
    assert_eq!(
        backend.update(&[record(0, 4)]).await.unwrap(),
        [Outcome::Gone { deregistered: 4 }]
    );
    backend.renew().await.unwrap();
    assert_eq!(backend.registered().await.unwrap(), []);
    assert_eq!(register(backend, record(0, 5)).await, Outcome::Applied);

    // A deregistration that overtakes its registration wins.
    assert_eq!(deregister(backend, 1, 7).await, Outcome::NotRegistered);
    assert_eq!(
        register(backend, record(1, 7)).await,
        Outcome::Gone { deregistered: 7 }
    );

    // A batch has an outcome for each record, in order, and the list is ordered by instance.
    let batch = [record(3, 1), record(0, 4), record(2, 1)];
    let outcomes = backend.register(&batch).await.unwrap();
    assert_eq!(
        outcomes,
        [
            Outcome::Applied,
            Outcome::Stale { registered: 5 },
            Outcome::Applied
        ]
    );
    let listed = backend.registered().await.unwrap();
    let names: Vec<_> = listed.iter().map(|r| r.instance.to_string()).collect();
    assert_eq!(names, ["web-0", "web-2", "web-3"]);

    // A record that cannot be expressed changes nothing, nor does its batch.
    let bad = RegistrationRecord {
        service: "../etc".into(),
        ..record(4, 1)
    };
    let refused = backend.register(&[record(5, 1), bad]).await.unwrap_err();
    assert!(matches!(refused, DiscoveryError::Invalid(_)), "{refused:?}");
    assert_eq!(
        refused.to_string(),
        "the registration of web-4 has service \"../etc\"; allowed is 1 to 200 characters a-z, A-Z, \
         0-9, '.', '_' and '-', not beginning with '.'"
    );
    assert!(!refused.is_retryable());
    let bad = RegistrationRecord {
        port: 0,
        ..record(4, 1)
    };
    let refused = backend.register(&[bad]).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the registration of web-4 has port \"0\"; allowed is 1 to 65535"
    );
    assert_eq!(backend.registered().await.unwrap().len(), 3);

    // Many callers at once each get their own outcome.
    let records: Vec<_> = (10..60).map(|n| [record(n, 1)]).collect();
    let answers = join_all(records.iter().map(|one| backend.register(one))).await;
    assert!(
        answers
            .into_iter()
            .all(|answer| answer.unwrap() == [Outcome::Applied])
    );
    assert_eq!(backend.registered().await.unwrap().len(), 53);
    let all: Vec<_> = (0..60).map(|n| (web(n), 9)).collect();
    backend.deregister(&all).await.unwrap();
    assert_eq!(backend.registered().await.unwrap(), []);
}

#[tokio::test]
async fn the_memory_twin_conforms() {
    conformance(&MemoryDiscovery::new(BOUND)).await;
}

#[tokio::test]
async fn the_file_backend_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conformance(&open(directory.path())).await;
}

fn etcd(agent_id: &str) -> EtcdDiscovery {
    let settings = config::EtcdDiscovery {
        requirement: config::Requirement::Required,
        endpoints: vec![ENDPOINT.into()],
        prefix: "/nodeagent".into(),
        ttl: Duration::from_secs(60),
        dial_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(5),
        propagation_bound: BOUND,
        user: None,
        tls: None,
    };
    let host = config::Host {
        id: "host-a".into(),
        fleet: "default".into(),
    };
    let instruments = Metrics::default().backend("etcd");
    EtcdDiscovery::open(&settings, &host, agent_id, instruments)
}

#[tokio::test]
#[ignore = "needs a built peer: make test-peers"]
async fn the_etcd_backend_conforms() {
    let _etcd = Etcd::start();
    conformance(&etcd("one")).await;
}

#[tokio::test]
#[ignore = "needs a built peer: make test-peers"]
async fn registrations_in_etcd_outlive_the_agent_with_all_that_they_say() {
    let _etcd = Etcd::start();
    let mut odd = record(1, 12);
    odd.metadata
        .insert("größe".into(), "ü \"quoted\" \u{1}".into());
    let before: Vec<_> = (2..202).map(|n| record(n, u64::from(n))).collect();
    let before = [vec![record(0, 7), odd], before].concat();
    let backend = etcd("one");
    let outcomes = backend.register(&before).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Applied));
    drop(backend);
    let backend = etcd("one");
    assert_eq!(backend.registered().await.unwrap(), before);
    assert_eq!(
        register(&backend, record(0, 6)).await,
        Outcome::Stale { registered: 7 }
    );
    let lease = backend.health().lease.unwrap();
    assert_eq!((lease.ttl_seconds, lease.lost), (60, 0));
}

#[tokio::test]
#[ignore = "needs a built peer: make test-peers"]
async fn a_second_agent_with_the_same_host_id_is_kept_out_and_says_whose_it_is() {
    let _etcd = Etcd::start();
    let first = etcd("one");
    register(&first, record(0, 7)).await;
    let second = etcd("two");
    let error = second.register(&[record(0, 8)]).await.unwrap_err();
    let said = error.to_string();
    assert!(
        said.starts_with(
            "host id \"host-a\" of fleet \"default\" belongs to another agent, one, as long as"
        ),
        "{said}"
    );
    assert!(error.is_retryable());
    assert_eq!(second.health().reach, Reach::Fenced);
    first.renew().await.unwrap();
    assert_eq!(first.registered().await.unwrap(), [record(0, 7)]);
}

/// Compares with a file under `tests/golden`; `UPDATE_GOLDEN=1` writes it instead.
fn assert_golden(actual: &Path, golden: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(golden);
    let actual = fs::read_to_string(actual).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &actual).unwrap();
    }
    assert_eq!(
        actual,
        fs::read_to_string(&golden).unwrap(),
        "{}",
        golden.display()
    );
}

fn names_below(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_files_are_those_that_prometheus_and_envoy_read() {
    let directory = tempfile::tempdir().unwrap();
    let backend = open(directory.path());
    let mut odd = record(1, 12);
    odd.metadata
        .insert("example.com/lane".into(), "blue \"1\"\n".into());
    odd.metadata
        .insert("instance".into(), "not the instance".into());
    let draining = RegistrationRecord {
        weight: 0,
        ..record(2, 3)
    };
    let six = RegistrationRecord {
        service: "web.v6".into(),
        address: "2001:db8::7".parse().unwrap(),
        ..record(3, 1)
    };
    backend
        .register(&[record(0, 7), odd, draining, six])
        .await
        .unwrap();
    backend.deregister(&[(web(3), 1)]).await.unwrap();
    let six = RegistrationRecord {
        service: "web6".into(),
        ..record(3, 2)
    };
    let six = RegistrationRecord {
        address: "2001:db8::7".parse().unwrap(),
        ..six
    };
    backend.register(&[six]).await.unwrap();

    let eds = directory.path().join("eds");
    assert_eq!(names_below(directory.path()), ["eds", "prometheus.json"]);
    assert_eq!(names_below(&eds), ["web.json", "web.v6.json", "web6.json"]);
    assert_golden(&directory.path().join("prometheus.json"), "prometheus.json");
    assert_golden(&eds.join("web.json"), "eds/web.json");
    assert_golden(&eds.join("web.v6.json"), "eds/web.v6.json");
    assert_golden(&eds.join("web6.json"), "eds/web6.json");
    let mode = fs::metadata(eds.join("web.json")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o644, "others read these files");
}

#[tokio::test]
async fn registrations_outlive_the_agent_with_all_that_they_say() {
    let directory = tempfile::tempdir().unwrap();
    let mut odd = record(1, 12);
    odd.metadata
        .insert("größe".into(), "ü \"quoted\" \u{1}".into());
    let other = RegistrationRecord {
        service: "api".into(),
        weight: 0,
        ..record(2, u64::MAX)
    };
    let before = [record(0, 7), odd, other];
    open(directory.path()).register(&before).await.unwrap();
    let after = open(directory.path());
    assert_eq!(after.set_aside(), []);
    assert_eq!(after.registered().await.unwrap(), before);
    assert_eq!(
        register(&after, record(0, 6)).await,
        Outcome::Stale { registered: 7 }
    );
}

#[tokio::test]
async fn a_start_without_changes_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path())
        .register(&[record(0, 1)])
        .await
        .unwrap();
    let inodes = || {
        [
            directory.path().join("prometheus.json"),
            directory.path().join("eds/web.json"),
        ]
        .map(|path| fs::metadata(path).unwrap().ino())
    };
    let before = inodes();
    let backend = open(directory.path());
    assert_eq!(register(&backend, record(0, 1)).await, Outcome::Applied);
    backend.renew().await.unwrap();
    assert_eq!(inodes(), before);
    register(&backend, record(0, 2)).await;
    assert!(
        inodes().iter().zip(before).all(|(now, then)| *now != then),
        "replaced, not rewritten"
    );
}

#[tokio::test]
async fn a_service_that_became_empty_keeps_a_file_without_endpoints() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("eds/web.json");
    let backend = open(directory.path());
    register(&backend, record(0, 1)).await;
    deregister(&backend, 0, 1).await;
    for _ in 0..2 {
        let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(file["resources"][0]["cluster_name"], "web");
        assert_eq!(file["resources"][0]["endpoints"], Value::Array(vec![]));
        open(directory.path());
    }
    let targets = fs::read_to_string(directory.path().join("prometheus.json")).unwrap();
    assert_eq!(targets, "[\n]\n");
}

#[tokio::test]
async fn files_that_are_not_ours_or_not_whole_are_set_aside_and_said() {
    let directory = tempfile::tempdir().unwrap();
    let eds = directory.path().join("eds");
    let other = RegistrationRecord {
        service: "api".into(),
        ..record(1, 1)
    };
    open(directory.path())
        .register(&[record(0, 7), other])
        .await
        .unwrap();

    let whole = fs::read(eds.join("web.json")).unwrap();
    fs::write(eds.join("web.json"), &whole[..whole.len() / 2]).unwrap();
    fs::write(
        eds.join("foreign.json"),
        br#"{"version_info":"1","resources":[]}"#,
    )
    .unwrap();
    let misplaced = fs::read(eds.join("api.json")).unwrap();
    fs::write(eds.join("copy.json"), misplaced).unwrap();
    fs::write(directory.path().join("prometheus.json"), b"").unwrap();
    fs::write(eds.join(".web.json.tmp"), b"cut off").unwrap();
    fs::write(eds.join("notes.txt"), b"mine").unwrap();

    let backend = open(directory.path());
    let said: Vec<_> = backend
        .set_aside()
        .iter()
        .map(|file| {
            let from = file
                .from
                .strip_prefix(directory.path())
                .unwrap()
                .display()
                .to_string();
            (
                from,
                file.to.display().to_string().ends_with(".set-aside-1"),
                file.reason.clone(),
            )
        })
        .collect();
    assert_eq!(
        said[0],
        (
            "eds/copy.json".into(),
            true,
            "it speaks of cluster \"api\" instead of \"copy\"".into()
        )
    );
    assert_eq!(
        said[1],
        (
            "eds/foreign.json".into(),
            true,
            "it has 0 resources instead of one".into()
        )
    );
    assert_eq!(said[2].0, "eds/web.json");
    assert!(
        said[2]
            .2
            .starts_with("it is not a discovery response of ours: EOF"),
        "{}",
        said[2].2
    );
    assert_eq!(said[3].0, "prometheus.json");
    assert_eq!(said.len(), 4);
    assert_eq!(
        fs::read(eds.join("web.json.set-aside-1")).unwrap(),
        &whole[..whole.len() / 2],
        "the evidence is kept"
    );
    assert!(!eds.join(".web.json.tmp").exists());
    assert!(eds.join("notes.txt").exists());

    // What is left is right, and the lost registration can be made again.
    let listed = backend.registered().await.unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|r| r.service.as_str())
            .collect::<Vec<_>>(),
        ["api"]
    );
    register(&backend, record(0, 7)).await;
    let second = open(directory.path());
    assert_eq!(second.set_aside(), []);
    assert_eq!(second.registered().await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_instance_in_two_files_counts_with_its_higher_generation() {
    let directory = tempfile::tempdir().unwrap();
    let eds = directory.path().join("eds");
    let backend = open(directory.path());
    let old = RegistrationRecord {
        service: "old".into(),
        ..record(0, 1)
    };
    register(&backend, old).await;
    let cut_off = fs::read(eds.join("old.json")).unwrap();
    register(&backend, record(0, 2)).await;
    drop(backend);
    // The move from one service to the other was cut off between the two renames.
    fs::write(eds.join("old.json"), cut_off).unwrap();
    let backend = open(directory.path());
    assert_eq!(backend.registered().await.unwrap(), [record(0, 2)]);
    assert!(
        fs::read_to_string(eds.join("old.json"))
            .unwrap()
            .ends_with("\"endpoints\":[]}]}\n")
    );
}

#[tokio::test]
async fn a_renewal_puts_back_what_somebody_removed() {
    let directory = tempfile::tempdir().unwrap();
    let backend = open(directory.path());
    register(&backend, record(0, 1)).await;
    for file in ["eds/web.json", "prometheus.json"] {
        fs::remove_file(directory.path().join(file)).unwrap();
        backend.renew().await.unwrap();
        assert!(directory.path().join(file).exists(), "{file}");
    }
    drop(backend);
    assert_eq!(
        open(directory.path()).registered().await.unwrap(),
        [record(0, 1)]
    );
}

#[tokio::test]
async fn a_write_that_fails_is_not_acknowledged_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let eds = directory.path().join("eds");
    let backend = open(directory.path());
    register(&backend, record(0, 1)).await;
    // Root is not stopped by permissions: the directory is moved away.
    fs::rename(&eds, directory.path().join("moved")).unwrap();
    let error = backend.register(&[record(1, 1)]).await.unwrap_err();
    let DiscoveryError::File {
        operation: "write",
        path,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(*path, eds.join(".web.json.tmp"));
    assert!(error.is_retryable());
    assert_eq!(
        error.to_string(),
        format!("cannot write {}", path.display())
    );
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("No such file")
    );
    assert!(backend.deregister(&[(web(0), 1)]).await.is_err());
    fs::rename(directory.path().join("moved"), &eds).unwrap();
    assert_eq!(backend.registered().await.unwrap(), [record(0, 1)]);
    assert_eq!(register(&backend, record(1, 1)).await, Outcome::Applied);
    assert_eq!(deregister(&backend, 0, 1).await, Outcome::Applied);
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    let Err(error) = FileDiscovery::open(&settings(&file)) else {
        panic!("it was opened")
    };
    let expected = format!("cannot make the directory {}", file.join("eds").display());
    assert_eq!(error.to_string(), expected);
}

/// A reader sees the file of before or the file of after, never a part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_never_sees_a_part_of_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let backend = open(directory.path());
    register(&backend, record(0, 1)).await;
    let paths: [PathBuf; 2] = [
        directory.path().join("eds/web.json"),
        directory.path().join("prometheus.json"),
    ];
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        let mut read = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            for path in &paths {
                serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
                read += 1;
            }
        }
        read
    });
    for n in 1..100 {
        register(&backend, record(n, 1)).await;
    }
    drop(stop);
    assert!(reader.join().unwrap() > 0);
}

#[tokio::test]
async fn two_hundred_registrations_one_by_one_cost_well_below_a_millisecond_each() {
    // Where the agent has them: a file system in memory.
    let shm = Path::new("/dev/shm");
    let directory = if shm.is_dir() {
        tempfile::tempdir_in(shm).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    };
    let backend = open(directory.path());
    let (beside, file) = (
        directory.path().join(".file"),
        directory.path().join("file"),
    );
    let (mut times, mut replacing) = (Vec::new(), Vec::new());
    for n in 0..200 {
        let one = [record(n, 1)];
        let begun = Instant::now();
        backend.register(&one).await.unwrap();
        times.push(begun.elapsed());
        let begun = Instant::now();
        fs::write(&beside, [b'x'; 16 << 10]).unwrap();
        fs::rename(&beside, &file).unwrap();
        replacing.push(begun.elapsed());
    }
    times.sort();
    replacing.sort();
    let batch: Vec<_> = (200..400).map(|n| record(n, 1)).collect();
    let begun = Instant::now();
    backend.register(&batch).await.unwrap();
    let together = begun.elapsed();
    println!(
        "one by one: p50 {:?}, p99 {:?}; 200 together {together:?}; to replace a file: p50 {:?}",
        times[100], times[198], replacing[100]
    );
    // The aim is 0.3 ms with optimisation; this fails for a change of kind, not on a busy machine,
    // where a file takes longer as well.
    let bound = replacing[100] * 200;
    assert!(times[100] < bound, "{:?}, {bound:?}", times[100]);
}
