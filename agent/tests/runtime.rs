//! Our containerd verbs on a real containerd with a real registry.

#![allow(clippy::unwrap_used, reason = "a panic in a test is the report")]

#[path = "../../imagecache/tests/support/mod.rs"]
#[allow(dead_code, reason = "each test program uses its part of the support")]
mod scripted;
mod support;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;

use imagecache::{Digest, PullError};
use nodeagent::config;
use nodeagent::images::Images;
use nodeagent::instance::ContainerId;
use nodeagent::runtime::{
    Collect, Containerd, ContainerdStore, INSTANCE, Image, Observed, RuntimeError, TaskExit,
    TaskStatus, UserError, resolve_user,
};
use oci_spec::runtime::Spec;
use rustix::process::{Signal, kill_process};
use scripted::{Answer, ScriptedRegistry};
use serde_json::json;
use support::image::{self, Built};
use support::{Host, shims, until};

const WEB: &str = "127.0.0.1:5000/web:1";

/// Runs a scenario on a host of its own. One thread: it alone is in the host's network.
fn on_a_host<F: Future<Output = Host>>(scenario: impl FnOnce(Host) -> F) {
    let host = Host::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    drop(runtime.block_on(scenario(host)));
}

async fn host_with_image(host: &mut Host) -> (Containerd, Image) {
    host.start_registry();
    let scratch = host.path("image");
    image::push(&image::build(&scratch), &scratch, "web:1");
    let containerd = host.connect().await;
    let image = ensure(&containerd, WEB, &host.images()).await.unwrap();
    (containerd, image)
}

fn id(name: &str) -> ContainerId {
    name.parse().unwrap()
}

fn spec(host: &Host, id: &ContainerId, command: &[&str]) -> Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "process": {"terminal": false, "cwd": "/", "args": command, "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"cgroupsPath": format!("{}/{id}", host.cgroup_parent),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]}
    }))
    .unwrap()
}

fn labels(id: &ContainerId) -> BTreeMap<String, String> {
    BTreeMap::from([(INSTANCE.to_owned(), id.instance.to_string())])
}

/// A created task with its container and rootfs.
async fn create(
    host: &Host,
    containerd: &Containerd,
    image: &Image,
    name: &str,
    command: &[&str],
) -> u32 {
    let id = id(name);
    let key = id.instance.to_string();
    containerd.prepare_snapshot(&key, image).await.unwrap();
    let spec = spec(host, &id, command);
    containerd
        .create_container(&id, image, &key, &spec, labels(&id))
        .await
        .unwrap();
    containerd.create_task(&id).await.unwrap()
}

async fn remove(containerd: &Containerd, name: &str) {
    let id = id(name);
    containerd.delete_container(&id).await.unwrap();
    containerd
        .remove_snapshot(&id.instance.to_string())
        .await
        .unwrap();
}

async fn observe(containerd: &Containerd, name: &str) -> Observed {
    let mut listed = containerd.list().await.unwrap();
    listed.retain(|observed| observed.id == name);
    assert_eq!(listed.len(), 1, "containers called {name}");
    listed.remove(0)
}

async fn next_exit(exits: &mut tokio::sync::mpsc::Receiver<TaskExit>, name: &str) -> TaskExit {
    let exit = async {
        loop {
            let exit = exits.recv().await.expect("the following goes on");
            if exit.id == name {
                return exit;
            }
        }
    };
    tokio::time::timeout(support::SOON, exit)
        .await
        .expect("the exit is told")
}

/// Serves `built` as `web:1` and returns the reference.
async fn scripted(built: &Built) -> (ScriptedRegistry, String) {
    let registry = ScriptedRegistry::start().await;
    registry.manifest("web", "1", image::MANIFEST, &built.manifest);
    for blob in built.layers.iter().chain([&built.config]) {
        let answer = Answer::Body("application/octet-stream", blob.clone());
        registry.blob("web", &Digest::of(blob), answer);
    }
    let reference = format!("{}/web:1", registry.address);
    (registry, reference)
}

fn pull_error(error: &RuntimeError) -> &PullError {
    match error {
        RuntimeError::Image { source, .. } => source,
        other => panic!("not about the image: {other:?}"),
    }
}

async fn ensure(
    containerd: &Containerd,
    reference: &str,
    images: &config::Images,
) -> Result<Image, RuntimeError> {
    let images = Images::open(containerd.clone(), images).unwrap();
    images.ensure(reference).await
}

async fn resolve(
    containerd: &Containerd,
    reference: &str,
    images: &config::Images,
) -> Result<String, RuntimeError> {
    let images = Images::open(containerd.clone(), images).unwrap();
    images.resolve(reference).await
}

#[test]
fn containerds_content_store_conforms() {
    on_a_host(async |host| {
        let containerd = host.connect().await;
        let lease = containerd
            .lease("test", Duration::from_secs(60))
            .await
            .unwrap();
        imagecache::conformance::content_store(&ContainerdStore::new(&lease)).await;
        lease.release(Collect::Now).await.unwrap();
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn an_image_is_pulled_once_and_then_needs_no_registry() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        assert_eq!(image.reference, WEB);
        assert_eq!(image.config.entrypoint, ["/bin/httpd"]);
        assert_eq!(image.config.env[0], ("PATH".to_owned(), "/bin".to_owned()));
        assert_eq!(image.config.env[1], ("EMPTY".to_owned(), String::new()));
        assert_eq!(image.config.user.as_deref(), Some("web"));
        assert_eq!(image.config.working_dir.as_deref(), Some("/www"));
        let checked = host.ctr(&["images", "check"]);
        // Unpacked, with its config; its two layers lie in our own store.
        assert!(
            checked.contains("(1/3)") && checked.contains("true"),
            "{checked}"
        );
        assert!(
            host.ctr(&["leases", "ls", "-q"]).is_empty(),
            "the pull's lease is released"
        );

        // containerd collects what nobody refers to; of the image, that is nothing.
        let lease = containerd
            .lease("test", Duration::from_secs(60))
            .await
            .unwrap();
        lease.release(Collect::Now).await.unwrap();
        host.stop_registry();
        assert_eq!(
            ensure(&containerd, WEB, &host.images()).await.unwrap(),
            image
        );
        let by_digest = format!("127.0.0.1:5000/web@{}", image.digest);
        let again = ensure(&containerd, &by_digest, &host.images())
            .await
            .unwrap();
        assert_eq!(
            (again.chain_id, again.reference),
            (image.chain_id, by_digest)
        );
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn those_who_want_one_image_at_once_share_one_pull() {
    on_a_host(async |host| {
        let built = image::build(&host.path("image"));
        let (registry, reference) = scripted(&built).await;
        let containerd = host.connect().await;
        let images = host.images();
        let images = Images::open(containerd, &images).unwrap();
        let pulls = (0..20).map(|_| images.ensure(&reference));
        let pulled = futures_util::future::try_join_all(pulls).await.unwrap();
        assert!(
            pulled
                .iter()
                .all(|image| image.digest == Digest::of(&built.manifest).as_str())
        );
        let asked = registry.asked();
        for needle in ["/manifests/1", "/blobs/"] {
            let count = asked.iter().filter(|path| path.contains(needle)).count();
            assert_eq!(count, if needle == "/blobs/" { 3 } else { 1 }, "{asked:?}");
        }
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn a_tag_that_moved_is_seen_when_it_is_resolved_anew() {
    on_a_host(async |host| {
        let built = image::build(&host.path("image"));
        let (registry, reference) = scripted(&built).await;
        let containerd = host.connect().await;
        let images = host.images();
        let before = ensure(&containerd, &reference, &images).await.unwrap();
        let mut moved = built.manifest.clone();
        moved.push(b' ');
        registry.manifest("web", "1", image::MANIFEST, &moved);
        let digest = Digest::of(&moved);
        assert_eq!(
            ensure(&containerd, &reference, &images).await.unwrap(),
            before
        );
        let resolved = resolve(&containerd, &reference, &images).await.unwrap();
        assert_eq!(resolved, format!("{}/web@{digest}", registry.address));
        let after = ensure(&containerd, &resolved, &images).await.unwrap();
        assert_eq!(
            (after.digest, after.chain_id),
            (digest.to_string(), before.chain_id)
        );
        drop(registry);
        assert_eq!(
            resolve(&containerd, &resolved, &images).await.unwrap(),
            resolved
        );
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn on_a_kubernetes_host_images_are_managed_and_pinned() {
    on_a_host(async |mut host| {
        host.namespace = "k8s.io".to_owned();
        host_with_image(&mut host).await;
        let listed = host.ctr(&["images", "ls"]);
        for label in [
            "io.cri-containerd.image=managed",
            "io.cri-containerd.pinned=pinned",
        ] {
            assert!(listed.contains(label), "{listed}");
        }
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn a_create_that_hangs_is_undone() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        let (mut settings, mut runtime) = (host.settings(), host.runtime());
        settings.timeout = Duration::from_millis(500);
        runtime.binary = Some(host.hanging_runc("web-0.g1"));
        let hanging = Containerd::connect(&settings, &runtime, None)
            .await
            .unwrap();
        let web = id("web-0.g1");
        let spec = spec(&host, &web, &["/bin/sleep", "1000"]);
        containerd.prepare_snapshot("web-0", &image).await.unwrap();
        hanging
            .create_container(&web, &image, "web-0", &spec, labels(&web))
            .await
            .unwrap();
        let (error, left) = tokio::join!(
            hanging.create_task(&web),
            until("the create hangs", async || {
                Some(host.pids_of("web-0.g1")).filter(|pids| !pids.is_empty())
            })
        );
        let error = error.unwrap_err();
        assert_eq!(left.len(), 1);
        assert_eq!(host.pids_of("web-0.g1"), [""; 0], "its cgroup is swept");
        assert!(
            matches!(&error, RuntimeError::Abandoned { undone: true, .. }),
            "{error:?}"
        );
        assert!(error.is_retryable());
        assert!(
            error.to_string().contains("what it left was removed"),
            "{error}"
        );
        until("the shim is gone", async || {
            shims(&host.path("c.sock")).is_empty().then_some(())
        })
        .await;
        containerd.delete_container(&web).await.unwrap();
        // The next generation, on the same rootfs, with a runtime that works.
        create(
            &host,
            &containerd,
            &image,
            "web-0.g2",
            &["/bin/sleep", "1000"],
        )
        .await;
        containerd.start_task(&id("web-0.g2")).await.unwrap();
        remove(&containerd, "web-0.g2").await;
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn a_pull_that_fails_leaves_nothing_behind() {
    on_a_host(async |host| {
        let built = image::build(&host.path("image"));
        let containerd = host.connect().await;
        let mut images = host.images();
        images.stall_timeout = Duration::from_secs(1);

        let (registry, reference) = scripted(&built).await;
        let mut wrong = built.layers[0].clone();
        wrong[100] ^= 1;
        let digest = Digest::of(&built.layers[0]);
        registry.blob(
            "web",
            &digest,
            Answer::Body("application/octet-stream", wrong),
        );
        let error = ensure(&containerd, &reference, &images).await.unwrap_err();
        assert!(
            matches!(pull_error(&error), PullError::WrongDigest { expected, .. } if *expected == digest.as_str()),
            "{error:?}"
        );
        assert!(error.is_retryable());
        assert_eq!(host.leftovers(), [""; 0], "after a wrong digest");

        registry.blob(
            "web",
            &digest,
            Answer::Stall(built.layers[0].clone(), 300_000),
        );
        let error = ensure(&containerd, &reference, &images).await.unwrap_err();
        assert!(
            matches!(pull_error(&error), PullError::Stalled { .. }),
            "{error:?}"
        );
        assert_eq!(host.leftovers(), [""; 0], "after a stall");

        registry.blob(
            "web",
            &digest,
            Answer::Cut(built.layers[0].clone(), 300_000),
        );
        let error = ensure(&containerd, &reference, &images).await.unwrap_err();
        assert!(
            matches!(pull_error(&error), PullError::Unreachable { .. }),
            "{error:?}"
        );
        assert_eq!(host.leftovers(), [""; 0], "after a cut");

        // Right by digest, and no gzip: it is containerd that refuses.
        let noise = b"this is no layer".to_vec();
        let text = String::from_utf8(built.manifest.clone()).unwrap();
        let manifest = text
            .replace(digest.as_str(), Digest::of(&noise).as_str())
            .replace(
                &format!("\"size\":{}", built.layers[0].len()),
                "\"size\":16",
            );
        registry.manifest("web", "noise", image::MANIFEST, manifest.as_bytes());
        registry.blob(
            "web",
            &Digest::of(&noise),
            Answer::Body("application/octet-stream", noise),
        );
        let reference = format!("{}/web:noise", registry.address);
        let error = ensure(&containerd, &reference, &images).await.unwrap_err();
        assert!(
            matches!(pull_error(&error), PullError::Unpack(_)),
            "{error:?}"
        );
        assert_eq!(host.leftovers(), [""; 0], "after a layer that is none");
        host
    });
}

#[test]
fn an_image_that_cannot_be_had_is_explained() {
    on_a_host(async |mut host| {
        host.start_registry();
        let containerd = host.connect().await;
        let error = ensure(&containerd, WEB, &host.images()).await.unwrap_err();
        assert!(
            matches!(pull_error(&error), PullError::NotFound { repository, .. } if repository == "web"),
            "{error:?}"
        );
        assert!(!error.is_retryable());
        host.stop_registry();
        let error = ensure(&containerd, WEB, &host.images()).await.unwrap_err();
        assert!(
            matches!(pull_error(&error), PullError::Unreachable { registry, .. } if registry == "127.0.0.1:5000"),
            "{error:?}"
        );
        assert!(error.is_retryable());
        let error = ensure(&containerd, "Web:1", &host.images())
            .await
            .unwrap_err();
        assert!(
            matches!(pull_error(&error), PullError::Reference(_)),
            "{error:?}"
        );
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn a_container_lives_and_dies_as_ctr_sees_it() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        let mut exits = containerd.exits();
        let web = id("web-0.g1");
        let command = [
            "/bin/sh",
            "-c",
            "trap 'exit 7' TERM; echo ready > /tmp/ready; while :; do sleep 1 & wait; done",
        ];
        let pid = create(&host, &containerd, &image, "web-0.g1", &command).await;
        assert!(
            host.ctr(&["tasks", "ls"])
                .contains(&format!("{pid}    CREATED")),
            "ctr agrees"
        );
        let observed = observe(&containerd, "web-0.g1").await;
        assert_eq!(observed.labels, labels(&web));
        assert_eq!(observed.snapshot_key, "web-0");
        assert_eq!(
            observed.task.map(|task| (task.pid, task.status)),
            Some((pid, TaskStatus::Created))
        );

        // Everything again: nothing changes.
        assert_eq!(
            create(&host, &containerd, &image, "web-0.g1", &command).await,
            pid
        );
        containerd.start_task(&web).await.unwrap();
        containerd.start_task(&web).await.unwrap();
        assert!(
            host.ctr(&["tasks", "ls"])
                .contains(&format!("{pid}    RUNNING")),
            "ctr agrees"
        );
        let upper = host.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
        until("the trap is set", async || {
            let mut dirs = std::fs::read_dir(&upper).unwrap().flatten();
            dirs.any(|dir| dir.path().join("fs/tmp/ready").exists())
                .then_some(())
        })
        .await;

        containerd.kill_task(&web, 15).await.unwrap();
        let exit = next_exit(&mut exits, "web-0.g1").await;
        assert_eq!(exit.code, Some(7));
        let observed = observe(&containerd, "web-0.g1").await;
        assert_eq!(
            observed.task.unwrap().status,
            TaskStatus::Stopped { code: 7 }
        );
        containerd.kill_task(&web, 9).await.unwrap();
        let ended = containerd.delete_task(&web).await.unwrap();
        assert_eq!(ended.map(|ended| ended.code), Some(7));
        assert_eq!(containerd.delete_task(&web).await.unwrap(), None);

        // Its rootfs outlives task and container, with what was written.
        containerd.delete_container(&web).await.unwrap();
        containerd.delete_container(&web).await.unwrap();
        assert_eq!(containerd.list_snapshots().await.unwrap(), ["web-0"]);
        let kept = containerd.prepare_snapshot("web-0", &image).await.unwrap();
        assert_eq!(kept, containerd.rootfs_mounts("web-0").await.unwrap());
        containerd.remove_snapshot("web-0").await.unwrap();
        containerd.remove_snapshot("web-0").await.unwrap();
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn what_runs_is_killed_before_it_is_deleted() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        create(
            &host,
            &containerd,
            &image,
            "web-0.g1",
            &["/bin/sleep", "1000"],
        )
        .await;
        containerd.start_task(&id("web-0.g1")).await.unwrap();
        create(
            &host,
            &containerd,
            &image,
            "web-1.g1",
            &["/bin/sleep", "1000"],
        )
        .await;
        let ended = containerd.delete_task(&id("web-0.g1")).await.unwrap();
        assert_eq!(ended.map(|ended| ended.code), Some(137));
        remove(&containerd, "web-0.g1").await;
        remove(&containerd, "web-1.g1").await;
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn a_dead_shim_hinders_no_deletion() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        let mut exits = containerd.exits();
        create(
            &host,
            &containerd,
            &image,
            "web-0.g1",
            &["/bin/sleep", "1000"],
        )
        .await;
        containerd.start_task(&id("web-0.g1")).await.unwrap();
        let found = shims(&host.path("c.sock"));
        assert_eq!(found.len(), 1);
        kill_process(found[0], Signal::KILL).unwrap();
        containerd.delete_task(&id("web-0.g1")).await.unwrap();
        assert_eq!(next_exit(&mut exits, "web-0.g1").await.code, Some(137));
        remove(&containerd, "web-0.g1").await;
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn a_name_that_is_taken_by_another_thing_is_a_conflict() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        create(
            &host,
            &containerd,
            &image,
            "web-0.g1",
            &["/bin/sleep", "1000"],
        )
        .await;
        let web = id("web-0.g1");
        let other = spec(&host, &web, &["/bin/true"]);
        let error = containerd
            .create_container(&web, &image, "web-0", &other, labels(&web))
            .await;
        assert!(
            matches!(&error, Err(RuntimeError::Conflict { why, .. }) if why.contains("another spec")),
            "{error:?}"
        );
        let mut unknown = image.clone();
        unknown.chain_id = Digest::of(b"nothing").to_string();
        let error = containerd.prepare_snapshot("web-0", &unknown).await;
        assert!(
            matches!(
                &error,
                Err(RuntimeError::Conflict { .. } | RuntimeError::NotFound { .. })
            ),
            "{error:?}"
        );
        let error = containerd.prepare_snapshot("web-9", &unknown).await;
        assert!(
            matches!(&error, Err(RuntimeError::NotFound { object, .. }) if object.contains("unpacked image")),
            "{error:?}"
        );
        let error = containerd.create_task(&id("web-9.g1")).await;
        assert!(
            matches!(&error, Err(RuntimeError::NotFound { .. })),
            "{error:?}"
        );
        remove(&containerd, "web-0.g1").await;
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn containerd_may_go_and_come_back() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        let mut exits = containerd.exits();
        let short = [
            "/bin/sh",
            "-c",
            "trap 'exit 3' TERM; while :; do sleep 1 & wait; done",
        ];
        let pid = create(&host, &containerd, &image, "web-0.g1", &short).await;
        create(
            &host,
            &containerd,
            &image,
            "web-1.g1",
            &["/bin/sleep", "1000"],
        )
        .await;
        for name in ["web-0.g1", "web-1.g1"] {
            containerd.start_task(&id(name)).await.unwrap();
        }

        host.stop_containerd();
        let error = containerd.version().await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Unavailable { .. }),
            "{error:?}"
        );
        assert!(error.is_retryable() && error.source().is_some());
        let error = containerd.list().await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Unavailable { .. }),
            "{error:?}"
        );
        let error = ensure(&containerd, WEB, &host.images()).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Unavailable { .. }),
            "{error:?}"
        );
        let error = containerd.create_task(&id("web-1.g1")).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Unavailable { .. }),
            "{error:?}"
        );
        // It ends while nobody listens: KILL, because that needs no trap to be set.
        kill_process(
            rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
            Signal::KILL,
        )
        .unwrap();

        host.start_containerd();
        let exit = next_exit(&mut exits, "web-0.g1").await;
        let version = containerd.version().await.unwrap();
        let kept = version.starts_with("1.").then_some(137);
        assert_eq!(exit.code, kept, "1.x keeps the code, 2.x forgets the task");
        let alive = observe(&containerd, "web-1.g1").await;
        assert_eq!(alive.task.unwrap().status, TaskStatus::Running);
        // And what happens from now on is heard again.
        containerd.kill_task(&id("web-1.g1"), 9).await.unwrap();
        assert_eq!(next_exit(&mut exits, "web-1.g1").await.code, Some(137));
        remove(&containerd, "web-0.g1").await;
        remove(&containerd, "web-1.g1").await;
        host.assert_nothing_remains();
        host
    });
}

/// Moves a process out of its container's cgroups, into their parent.
fn move_up(parent: &str, name: &str, pid: u32) {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
        let parent = hierarchy
            .unwrap()
            .path()
            .join(parent.trim_start_matches('/'));
        if parent.join(name).is_dir() {
            std::fs::write(parent.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }
}

#[test]
fn a_shim_that_containerd_has_forgotten_ends_with_its_container() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        let sleep = ["/bin/sleep", "1000"];
        let mut pids = Vec::new();
        for name in ["web-0.g1", "web-1.g1", "web-2.g1"] {
            pids.push(create(&host, &containerd, &image, name, &sleep).await);
            containerd.start_task(&id(name)).await.unwrap();
        }
        let socket = host.path("c.sock");
        let count = || shims(&socket).len();
        assert_eq!(count(), 3);
        // As after a deletion whose caller died: no task, and nothing of it but the shim.
        host.stop_containerd();
        let kill = |pid: u32| {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
        };
        kill(pids[0]);
        for name in ["web-0.g1", "web-1.g1", "web-2.g1"] {
            let bundle = format!(
                "state/io.containerd.runtime.v2.task/{}/{name}",
                host.namespace
            );
            let bundle = host.path(&bundle);
            rustix::mount::unmount(bundle.join("rootfs"), rustix::mount::UnmountFlags::DETACH)
                .unwrap();
            std::fs::remove_dir_all(bundle).unwrap();
        }
        host.start_containerd();
        until("a connection to the new containerd", async || {
            containerd.version().await.ok()
        })
        .await;
        assert_eq!(containerd.delete_task(&id("web-0.g1")).await.unwrap(), None);
        assert_eq!(count(), 2, "the forgotten one is there");
        // Processes of its own cgroup go with it, and then nobody needs the shim.
        assert_eq!(containerd.delete_task(&id("web-2.g1")).await.unwrap(), None);
        assert_eq!(count(), 1, "the one with the container's process is there");
        // A shim with a process of another cgroup is somebody's: it may serve a group.
        move_up(&host.cgroup_parent, "web-1.g1", pids[1]);
        assert_eq!(containerd.delete_task(&id("web-1.g1")).await.unwrap(), None);
        assert_eq!(count(), 1, "a shim with another's process was ended");
        kill(pids[1]);
        until("the shim without a process to end", async || {
            containerd.delete_task(&id("web-1.g1")).await.unwrap();
            (count() == 0).then_some(())
        })
        .await;
        remove(&containerd, "web-2.g1").await;
        remove(&containerd, "web-0.g1").await;
        remove(&containerd, "web-1.g1").await;
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn containerd_going_away_inside_a_pull_is_unavailable() {
    on_a_host(async |mut host| {
        let built = image::build(&host.path("image"));
        let (registry, reference) = scripted(&built).await;
        let digest = Digest::of(&built.layers[0]);
        registry.blob(
            "web",
            &digest,
            Answer::Stall(built.layers[0].clone(), 300_000),
        );
        let containerd = host.connect().await;
        let images = host.images();
        let pull = tokio::spawn({
            let (containerd, reference) = (containerd.clone(), reference.clone());
            async move { ensure(&containerd, &reference, &images).await }
        });
        until("the pull waits for its layer", async || {
            registry
                .asked()
                .iter()
                .any(|path| path.ends_with(digest.as_str()))
                .then_some(())
        })
        .await;
        host.stop_containerd();
        // The layer never comes: the stall, or containerd, is found first. Either may be tried again.
        let error = pull.await.unwrap().unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        host.start_containerd();
        registry.blob(
            "web",
            &digest,
            Answer::Body("application/octet-stream", built.layers[0].clone()),
        );
        ensure(&containerd, &reference, &host.images())
            .await
            .unwrap();
        host
    });
}

#[test]
fn users_are_resolved_as_the_image_names_them() {
    on_a_host(async |mut host| {
        let (containerd, image) = host_with_image(&mut host).await;
        let rootfs = containerd.prepare_snapshot("web-0", &image).await.unwrap();
        let web = resolve_user(&rootfs, "web", None).unwrap();
        assert_eq!(
            (web.uid, web.gid),
            (33, 101),
            "the upper layer's passwd counts"
        );
        assert_eq!(
            web.additional_gids,
            [50, 4],
            "groups come from the lower layer"
        );
        assert_eq!(web.home.as_deref(), Some("/www"));
        let gone = resolve_user(&rootfs, "old", None);
        assert!(
            matches!(&gone, Err(UserError::UnknownUser { name }) if name == "old"),
            "{gone:?}"
        );
        containerd.remove_snapshot("web-0").await.unwrap();
        host.assert_nothing_remains();
        host
    });
}

#[test]
fn what_a_runtime_left_in_a_cgroup_goes_with_its_container() {
    on_a_host(async |host| {
        let containerd = host.connect().await;
        let groups = ["pids", "cpuset"]
            .map(|kind| format!("/sys/fs/cgroup/{kind}{}/web-0.g1", host.cgroup_parent));
        for group in &groups {
            std::fs::create_dir_all(group).unwrap();
        }
        let mut left = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let procs = format!("{}/cgroup.procs", groups[0]);
        std::fs::write(procs, left.id().to_string()).unwrap();
        // Reaped at once: a dead child is a member of its group, too.
        let waiting = std::thread::spawn(move || left.wait().unwrap());
        containerd.delete_container(&id("web-0.g1")).await.unwrap();
        assert!(!waiting.join().unwrap().success());
        for group in &groups {
            assert!(!std::path::Path::new(group).exists(), "{group} remains");
        }
        host
    });
}
