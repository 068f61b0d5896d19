//! What a start finds of ours and of others: what belongs to no instance goes, nothing else does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::documents::Pool;
use nodeagent_tests::leaks::{self, Leaks, packet_filter};
use nodeagent_tests::netns::Netns;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, Registry, TestHost};
use serde_json::json;

const SWEPT: Duration = Duration::from_secs(30);

/// A host with an app in service, things of others everywhere, and leftovers of ours.
struct Scene {
    host: TestHost,
    /// All that is there without the leftovers.
    wanted: Leaks,
    /// The app as it was.
    pool: Pool,
    process: Process,
}

impl Scene {
    /// The agent is dead, and its journal has never heard of the leftovers.
    fn set(mode: &str) -> Result<Self> {
        let mut host = TestHost::start_with(&format!(
            "[network]\nmode = \"{mode}\"\nbridge_ports = 3\n[discovery.file]\npropagation_bound = \"100ms\"\n"
        ))?;
        host.push(&Image::web()?, "web:1")?;
        host.apply(&with_host_port("web"))?;
        host.cli().activate("web", 1, "up")?;
        host.wait_for_armed("web", 1)?;
        let pool = host.cli().pool("web")?;
        host.agent.stop()?;
        let process = put_foreign_things(&host)?;
        let wanted = look(&host)?;
        let journal = Journal::save(&host)?;
        // What another start makes is not in the journal that was saved.
        host.agent.start(&host.ground)?;
        host.apply(&with_host_port("shop"))?;
        host.cli().activate("shop", 1, "shop-up")?;
        host.wait_for_armed("shop", 1)?;
        ensure!(
            host.cli().pool("web")? == pool,
            "the start beside things of others changed the pool"
        );
        host.agent.kill()?;
        journal.restore()?;
        leave_halves(&host)?;
        let there = look(&host)?;
        for kind in [
            "containers",
            "tasks",
            "shims",
            "snapshots",
            "netns",
            "links",
            "routes",
            "host ports",
            "cgroups",
            "instance directories",
            "mounts",
            "discovery",
        ] {
            ensure!(
                there.of(kind).len() > wanted.of(kind).len(),
                "no {kind} were left: {there}"
            );
        }
        Ok(Self {
            host,
            wanted,
            pool,
            process,
        })
    }

    /// Exactly the leftovers are gone, and nobody was disturbed.
    fn assert_swept(mut self) -> Result<()> {
        let host = &self.host;
        let swept = until("exactly the leftovers to be gone", SWEPT, || {
            let there = look(host)?;
            Ok(if there == self.wanted {
                Look::Seen(())
            } else {
                Look::NotYet(format!("{there}\ninstead of\n{}", self.wanted))
            })
        });
        swept.with_context(|| host.agent.tail(60))?;
        let rules = packet_filter(&host.ground)?;
        ensure!(rules.contains("table inet others"), "{rules}");
        ensure!(!rules.contains("table inet formerly"), "{rules}");
        ensure!(!secrets(host).exists(), "secrets of nobody are left");
        ensure!(
            self.process.0.try_wait()?.is_none(),
            "a process of others was ended"
        );
        let foreign = Ctr::new(&host.ground, &host.containerd);
        let tasks = host.containerd.tasks(foreign.namespace())?;
        ensure!(tasks.contains_key("ctr-1"), "{tasks:?}");
        let pool = host.wait_for_pool("web", "the same", |pool| {
            pool.active == 1 && pool.armed == 1 && pool.arming == 0
        })?;
        assert_eq!(pool.instances, self.pool.instances);
        Ok(())
    }
}

fn with_host_port(app: &str) -> Manifest {
    let port = json!({ "name": "http", "containerPort": 8080, "hostPort": "auto" });
    Manifest::web(app).armed(1).with("ports", json!([port]))
}

fn look(host: &TestHost) -> Result<Leaks> {
    leaks::look(&host.ground, &host.containerd, &host.agent)
}

fn secrets(host: &TestHost) -> PathBuf {
    host.agent.runtime().join("secrets/mail-3.g9")
}

/// A process of nobody's container.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What looks like ours from one side or another, and is not.
fn put_foreign_things(host: &TestHost) -> Result<Process> {
    let netns = host.ground.netns();
    Netns::create(&host.ground.path("foreign-netns"))?;
    Netns::create(&host.agent.runtime().join("netns/NotAnInstance"))?;
    // In our link group, named like ours, and signed by another agent.
    netns.ip("link add na-01234567 type veth peer name other1")?;
    netns.ip("link set na-01234567 group 7017 up")?;
    let alias = ["link", "set", "na-01234567", "alias"];
    let signed = "nodeagent web-9 @ 0123456789abcdef";
    netns.command("ip", &[&alias[..], &[signed]].concat())?;
    netns.ip("route add 10.88.200.1/32 dev na-01234567")?;
    netns.nft("add table inet others; add map inet others host_ports { type inet_proto . inet_service : ipv4_addr . inet_service; }")?;
    // In a namespace of its own, and in ours without our labels.
    let mut elsewhere = Ctr::new(&host.ground, &host.containerd);
    host.push(&Image::web()?, "other:1")?;
    let image = Registry::reference("other:1");
    elsewhere.pull(&image)?;
    elsewhere.run_detached(&image)?;
    let mut ours = Ctr::new(&host.ground, &host.containerd)
        .within(host.agent.namespace())
        .from(7);
    ours.pull(&image)?;
    ours.run_detached(&image)?;
    ours.run(&["snapshots", "prepare", "snapshot-of-others"])?;
    fs::create_dir(host.agent.state().join("instances/lost+found"))?;
    let sleep = Command::new("sleep").arg("600").spawn().context("sleep")?;
    let process = Process(sleep);
    let pid = process.0.id().to_string();
    let mut joined = 0;
    for cgroup in cgroups(host, "mail-1.g1")? {
        fs::create_dir_all(&cgroup)?;
        // A cpuset of version 1 takes nobody before it has processors.
        joined += usize::from(fs::write(cgroup.join("cgroup.procs"), &pid).is_ok());
    }
    ensure!(joined > 0, "no hierarchy took the process");
    Ok(process)
}

/// Halves of instances, and what a crash leaves alone.
fn leave_halves(host: &TestHost) -> Result<()> {
    Netns::create(&host.agent.runtime().join("netns/mail-2"))?;
    fs::write(host.agent.runtime().join("netns/mail-4"), "")?;
    fs::create_dir_all(host.agent.state().join("instances/mail-2.g5/log"))?;
    fs::create_dir_all(secrets(host))?;
    for cgroup in cgroups(host, "mail-2.g5")? {
        fs::create_dir_all(cgroup)?;
    }
    let ctr = Ctr::new(&host.ground, &host.containerd).within(host.agent.namespace());
    ctr.run(&["snapshots", "prepare", "mail-2.g5"])?;
    ctr.run(&[
        "snapshots",
        "label",
        "mail-2.g5",
        "nodeagent/rootfs=sha256:0",
    ])?;
    // Its process goes on, known to nobody.
    host.containerd
        .forget(host.agent.namespace(), "shop-0.g1")?;
    let netns = host.ground.netns();
    netns.nft("add element inet nodeagent host_ports { tcp . 29999 : 10.88.0.99 . 8080 }")?;
    let ours = netns.nft("list table inet nodeagent")?;
    let comment = ours.lines().find(|line| line.contains("comment"));
    let comment = comment.context("our table says not whose it is")?.trim();
    netns.nft(&format!("add table inet formerly {{ {comment}; }}"))?;
    Ok(())
}

/// The directories of a cgroup of that name, where containers of this host have theirs.
fn cgroups(host: &TestHost, name: &str) -> Result<Vec<PathBuf>> {
    let parent = host.ground.cgroup_parent();
    let parent = parent.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let all = fs::read_dir(root)?.flatten().map(|entry| entry.path());
    let with_ours = all.chain([root.to_owned()]).map(|tree| tree.join(parent));
    let found: Vec<PathBuf> = with_ours.filter(|group| group.is_dir()).collect();
    ensure!(!found.is_empty(), "no cgroup {parent}");
    Ok(found.into_iter().map(|group| group.join(name)).collect())
}

/// The journal's files of one moment.
struct Journal {
    files: Vec<(PathBuf, Vec<u8>)>,
    directory: PathBuf,
}

impl Journal {
    fn save(host: &TestHost) -> Result<Self> {
        let directory = host.agent.state();
        let mut files = Vec::new();
        for file in Self::list(&directory)? {
            let bytes = fs::read(&file)?;
            files.push((file, bytes));
        }
        ensure!(!files.is_empty(), "no journal in {}", directory.display());
        Ok(Self { files, directory })
    }

    fn restore(&self) -> Result<()> {
        for file in Self::list(&self.directory)? {
            fs::remove_file(file)?;
        }
        for (file, bytes) in &self.files {
            fs::write(file, bytes)?;
        }
        Ok(())
    }

    fn list(directory: &Path) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory)?.flatten();
        let journal = entries.filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("journal.db")
        });
        Ok(journal.map(|entry| entry.path()).collect())
    }
}

#[test]
fn a_start_removes_exactly_what_is_ours_and_nobodys() -> Result<()> {
    for mode in ["routed", "bridge"] {
        let mut scene = Scene::set(mode)?;
        scene.host.agent.start(&scene.host.ground)?;
        scene.assert_swept().context(mode)?;
    }
    Ok(())
}

#[test]
fn what_a_silent_containerd_hides_is_swept_when_it_answers() -> Result<()> {
    let mut scene = Scene::set("bridge")?;
    scene.host.containerd.stop()?;
    scene.host.agent.start(&scene.host.ground)?;
    let pool = scene
        .host
        .wait_for_pool("web", "the same without containerd", |pool| {
            pool.active == 1 && pool.armed == 1
        })?;
    assert_eq!(pool.instances, scene.pool.instances);
    let left = fs::read_dir(scene.host.agent.runtime().join("netns"))?.count();
    ensure!(left > 3, "swept without containerd's word");
    scene.host.containerd.start_again(&scene.host.ground)?;
    scene.assert_swept()
}

#[test]
fn a_state_directory_that_is_new_calls_nothing_a_stray_before_containerd_answers() -> Result<()> {
    let mut host = TestHost::start()?;
    host.warm_web(1)?;
    let tasks = host.containerd.tasks(host.agent.namespace())?;
    host.agent.kill()?;
    host.containerd.stop()?;
    for entry in fs::read_dir(host.agent.state())?.flatten() {
        // Volumes and programs of containers that run are not the journal's.
        if entry.file_name() != "instances" && entry.file_name() != "init" {
            let path = entry.path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
    }
    host.agent.start(&host.ground)?;
    ensure!(
        !host.cli().status()?.host.ready,
        "observed without containerd"
    );
    host.containerd.start_again(&host.ground)?;
    until("the loss to be said", SWEPT, || {
        let status = host.cli().run(&["status"])?.ok()?.stdout;
        Ok(if status.contains("ALARM journal_lost") {
            Look::Seen(())
        } else {
            Look::NotYet(status)
        })
    })?;
    assert_eq!(host.containerd.tasks(host.agent.namespace())?, tasks);
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    host.cli().run(&["journal", "accept"])?.ok()?;
    host.assert_nothing_left()
}
