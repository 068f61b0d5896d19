//! The harness itself: real components come up on a host of their own and leave nothing behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::faults::{At, Fault, FaultyRegistry, Rule};
use nodeagent_tests::image::PAGE;
use nodeagent_tests::{BASE, Containerd, Ground, Image, Registry, http, teardown};

/// What the machine has of the test host `id`.
fn traces_of(id: &str) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    for file in [format!("{BASE}/{id}"), format!("{BASE}/{id}.lock")] {
        traces.extend(Path::new(&file).exists().then_some(file));
    }
    let directory = format!("{BASE}/{id}/");
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&directory) {
            traces.push(format!("process {:?}: {command}", process.file_name()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let ours = mounts.lines().filter(|line| line.contains(&directory));
    traces.extend(ours.map(|line| format!("mount {line}")));
    let groups = Command::new("find")
        .args(["/sys/fs/cgroup", "-maxdepth", "2", "-name"])
        .arg(format!("nodeagent-{id}"))
        .output()?;
    let groups = String::from_utf8_lossy(&groups.stdout).into_owned();
    traces.extend(groups.lines().map(|group| format!("cgroup {group}")));
    for namespace in std::fs::read_dir("/run/containerd/runc")
        .into_iter()
        .flatten()
    {
        let path = namespace?.path();
        if path.to_string_lossy().ends_with(&format!(".{id}")) {
            traces.push(format!("runc {}", path.display()));
        }
    }
    Ok(traces)
}

/// containerd, registry, the web image pushed, pulled and run.
fn furnish(ground: &Ground) -> Result<(Containerd, Registry, String)> {
    let containerd = Containerd::start(ground)?;
    let registry = Registry::start(ground)?;
    let image = Image::web()?.push(&registry, "web:1")?;
    let mut ctr = Ctr::new(ground, &containerd);
    ctr.pull(&image.reference)?;
    ctr.run_detached(&image.reference)?;
    let namespace = ctr.namespace().to_owned();
    Ok((containerd, registry, namespace))
}

#[test]
fn an_image_is_pushed_pulled_run_and_everything_of_it_removed() -> Result<()> {
    let ground = Ground::new()?;
    let id = ground.id().to_owned();
    let (containerd, registry, namespace) = furnish(&ground)?;
    let tasks = containerd.tasks(&namespace)?;
    assert_eq!(tasks.keys().collect::<Vec<_>>(), ["ctr-1"]);
    let snapshots = containerd.active_snapshots(&namespace)?;
    assert_eq!(snapshots, ["ctr-1"]);
    assert_eq!(containerd.leases(&namespace)?, Vec::<String>::new());
    ensure!(
        traces_of(&id)?
            .iter()
            .any(|trace| trace.starts_with("cgroup")),
        "the container is outside the host's cgroup"
    );
    drop((containerd, registry, ground));
    assert_eq!(traces_of(&id)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn containerd_is_the_one_that_was_asked_for() -> Result<()> {
    // Said by those who put another containerd in front of the machine's (make test-peers).
    let wanted = std::env::var("NODEAGENT_TESTS_CONTAINERD").unwrap_or_default();
    let ground = Ground::new()?;
    let version = Containerd::start(&ground)?.version()?;
    ensure!(version.starts_with(&wanted), "{version}, not {wanted}");
    Ok(())
}

#[test]
fn containerd_is_killed_and_started_again_under_its_containers() -> Result<()> {
    let ground = Ground::new()?;
    let (mut containerd, _registry, namespace) = furnish(&ground)?;
    let before = containerd.tasks(&namespace)?;
    containerd.kill()?;
    let silent = containerd.tasks(&namespace).unwrap_err();
    assert_eq!(silent.to_string(), format!("list tasks in {namespace}"));
    containerd.start_again(&ground)?;
    assert_eq!(containerd.tasks(&namespace)?, before);
    containerd.stop()?;
    containerd.start_again(&ground)?;
    assert_eq!(containerd.tasks(&namespace)?, before);
    Ok(())
}

#[test]
fn a_registry_that_was_stopped_still_has_its_images() -> Result<()> {
    let ground = Ground::new()?;
    let mut registry = Registry::start(&ground)?;
    let image = Image::web()?.push(&registry, "web:1")?;
    registry.stop()?;
    let silent = registry.request("GET", "/v2/", &[], &[]).unwrap_err();
    assert_eq!(silent.to_string(), "GET http://127.0.0.1:5000/v2/");
    registry.start_again(&ground)?;
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let manifest = registry.request("GET", "/v2/web/manifests/1", &accept, &[])?;
    assert_eq!(manifest.status, 200);
    assert_eq!(nodeagent_tests::image::digest(&manifest.body), image.digest);
    Ok(())
}

#[test]
fn the_same_image_made_twice_has_the_same_digest() -> Result<()> {
    let ground = Ground::new()?;
    let registry = Registry::start(&ground)?;
    let first = Image::web()?.push(&registry, "web:1")?;
    let again = Image::web()?.push(&registry, "web:2")?;
    assert_eq!(first.digest, again.digest);
    Ok(())
}

#[test]
fn two_hosts_stand_beside_each_other_with_the_same_ports_and_names() -> Result<()> {
    let one = Ground::new()?;
    let other = Ground::new()?;
    let (here, _registry, here_named) = furnish(&one)?;
    let (there, _other_registry, there_named) = furnish(&other)?;
    assert_eq!(here.tasks(&here_named)?.len(), 1);
    assert_eq!(there.tasks(&there_named)?.len(), 1);
    drop(here);
    drop(one);
    assert_eq!(there.tasks(&there_named)?.len(), 1);
    Ok(())
}

#[test]
fn a_page_is_fetched_inside_the_network_of_the_host_only() -> Result<()> {
    let ground = Ground::new()?;
    let www = ground.path("www");
    std::fs::create_dir(&www)?;
    std::fs::write(www.join("index.html"), PAGE)?;
    let mut httpd = Command::new("busybox");
    httpd
        .args(["httpd", "-f", "-p", "127.0.0.1:8089", "-h"])
        .arg(&www);
    let _httpd = nodeagent_tests::process::Process::start(&ground, "httpd", httpd)?;
    let server = "127.0.0.1:8089".parse()?;
    let within = std::time::Duration::from_secs(5);
    let page = nodeagent_tests::wait::until("the page", within, || {
        use nodeagent_tests::wait::Look;
        Ok(match http::get(ground.netns(), server, "/") {
            Ok(page) => Look::Seen(page),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })?;
    assert_eq!((page.status, page.text()), (200, PAGE.to_owned()));
    let elsewhere = Ground::new()?;
    let refused = http::get(elsewhere.netns(), server, "/").unwrap_err();
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    Ok(())
}

#[test]
fn each_fault_of_the_registry_fails_a_pull_and_none_of_them_stays() -> Result<()> {
    let ground = Ground::new()?;
    let containerd = Containerd::start(&ground)?;
    let registry = Registry::start(&ground)?;
    let proxy = FaultyRegistry::start(&ground)?;
    let ctr = Ctr::new(&ground, &containerd);
    // A stall is not here: ctr waits for ever.
    for (name, fault, said) in [
        ("wrong:1", Fault::WrongByte(At::Middle), "digest"),
        ("cut:1", Fault::CutOff(At::Middle), "unexpected EOF"),
        ("error:1", Fault::Status(500, None), "500"),
    ] {
        // containerd goes on with what it has of a blob, so each fault has blobs of its own.
        let image = Image::web()?.file("www/fault", 0o644, name);
        image.runs(&["/bin/sh", name]).push(&registry, name)?;
        proxy.set([Rule::layers(fault)]);
        let reference = FaultyRegistry::reference(name);
        let refused = ctr.pull(&reference).unwrap_err().to_string();
        assert!(refused.contains(said), "{fault:?}: {refused}");
    }
    proxy.set([]);
    ctr.pull(&FaultyRegistry::reference("error:1"))?;
    ensure!(proxy.layers_asked_for() >= 4, "the pulls went elsewhere");
    Ok(())
}

#[test]
fn the_apps_in_c_are_images_that_run() -> Result<()> {
    let ground = Ground::new()?;
    let containerd = Containerd::start(&ground)?;
    let registry = Registry::start(&ground)?;
    let mut ctr = Ctr::new(&ground, &containerd);
    for (name, image) in [
        ("notify:1", Image::notify(ground.directory())?),
        ("hostile:1", Image::hostile(ground.directory())?),
    ] {
        let image = image.push(&registry, name)?;
        ctr.pull(&image.reference)?;
        ctr.run_detached(&image.reference)?;
    }
    assert_eq!(containerd.tasks(ctr.namespace())?.len(), 2);
    Ok(())
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() -> Result<()> {
    let mut run = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "a_run_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()?;
    let output = run.stdout.take().context("the run's output")?;
    let mut lines = BufReader::new(output).lines();
    let id = lines
        .find_map(|line| Some(line.ok()?.rsplit_once("standing ")?.1.to_owned()))
        .context("the run never stood")?;
    run.kill()?;
    run.wait()?;
    ensure!(!traces_of(&id)?.is_empty(), "there was nothing to sweep");

    teardown::sweep_dead_runs(Path::new(BASE));
    assert_eq!(traces_of(&id)?, Vec::<String>::new());
    Ok(())
}

/// Not a test: the run that [`what_a_killed_run_left_is_removed_by_the_next`] kills.
#[test]
#[ignore = "started by another test, and killed by it"]
fn a_run_that_is_killed() -> Result<()> {
    let ground = Ground::new()?;
    let _furniture = furnish(&ground)?;
    println!("standing {}", ground.id());
    // Until it is killed; the other end of stdin closes when the one that would has died itself.
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
