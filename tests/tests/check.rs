//! `nodeagent check` on a real host, whole and with one thing wrong at a time.

use anyhow::{Context, Result, ensure};
use nodeagent_tests::TestHost;
use rustix::mount::{MountFlags, mount, mount_remount};
use serde_json::Value;

/// The document of `nodeagent check` with the host's own configuration, and its exit code.
fn check(host: &TestHost) -> Result<(Value, i32)> {
    let config = host.agent.config().to_string_lossy().into_owned();
    let answer = host.cli().json(&["check", "--config-dir", &config])?;
    let document = serde_json::from_str(&answer.stdout).with_context(|| answer.to_string())?;
    Ok((document, answer.code))
}

/// `works` and `found` of one check.
fn finding(document: &Value, check: &str) -> Result<(String, String)> {
    let findings = document["findings"].as_array().context("no findings")?;
    let found = findings.iter().find(|f| f["check"] == check);
    let found = found.with_context(|| format!("no {check} in {document}"))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    if text("works") != "full" {
        ensure!(
            !text("means").is_empty() && !text("mend").is_empty(),
            "{check} says neither what it means nor how to mend it: {found}"
        );
    }
    Ok((text("works"), text("found")))
}

#[test]
fn a_whole_host_is_found_whole_with_and_without_an_agent() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    for agent in [false, true] {
        if agent {
            host.agent.start(&host.ground)?;
        }
        let (document, code) = check(&host)?;
        // This machine may lack a filter, forwarding or a clock; nothing that everything needs.
        let wrong: Vec<&Value> = document["findings"]
            .as_array()
            .context("no findings")?
            .iter()
            .filter(|finding| finding["works"] == "not")
            .collect();
        ensure!(wrong.is_empty(), "{wrong:?}");
        ensure!([0, 8].contains(&code), "exit code {code}: {document}");
        for name in [
            "kernel.release",
            "kernel.overlayfs",
            "kernel.veth",
            "cgroups.controllers",
            "containerd.answers",
            "containerd.snapshotter",
            "containerd.shim",
            "containerd.mounts",
            "runtime.binary",
            "container_init.program",
            "disk.state",
            "discovery.file",
        ] {
            let (works, found) = finding(&document, name)?;
            assert_eq!(works, "full", "{name}: {found}");
        }
        let (_, speed) = finding(&document, "disk.speed")?;
        ensure!(speed.starts_with("p50 "), "{speed}");
        let (works, socket) = finding(&document, "agent.socket")?;
        assert_eq!(works, "full");
        assert_eq!(socket.contains("answers"), agent, "{socket}");
    }
    Ok(())
}

#[test]
fn each_wrong_thing_is_named_alone_and_the_rest_is_judged_all_the_same() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let not = |host: &TestHost, name: &str, says: &str| -> Result<()> {
        let (document, code) = check(host)?;
        assert_eq!(code, 1, "{document}");
        let (works, found) = finding(&document, name)?;
        assert_eq!(works, "not", "{found}");
        ensure!(found.contains(says), "{name}: {found}");
        let all = document["findings"].as_array().map_or(0, Vec::len);
        ensure!(all > 20, "only {all} findings");
        Ok(())
    };

    // A state directory on a file system that is mounted read-only.
    let state = host.agent.state();
    std::fs::create_dir_all(&state)?;
    mount(
        "tmpfs",
        &state,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=1m"),
    )?;
    mount_remount(&state, MountFlags::RDONLY, c"")?;
    let read_only = not(&host, "disk.state", "Read-only file system");
    rustix::mount::unmount(&state, rustix::mount::UnmountFlags::empty())?;
    read_only?;

    // A file where the agent's socket belongs.
    std::fs::write(host.agent.socket(), "")?;
    not(&host, "agent.socket", "a file that is no socket")?;
    std::fs::remove_file(host.agent.socket())?;

    let more = host.agent.config().join("30-wrong.toml");
    let with = |text: &str| std::fs::write(&more, format!("version = 1\n{text}"));
    with("[containerd]\nsnapshotter = \"zfs-of-nobody\"\n")?;
    not(
        &host,
        "containerd.snapshotter",
        "zfs-of-nobody is not there",
    )?;
    with("[runtime]\nshim = \"io.containerd.nobody.v9\"\n")?;
    not(&host, "containerd.shim", "io.containerd.nobody.v9")?;
    with("[runtime]\nbinary = \"/nowhere/runc\"\n")?;
    not(&host, "runtime.binary", "/nowhere/runc")?;
    with("[runtime]\ncontainer_init = \"/bin/sh\"\n")?;
    not(&host, "container_init.program", "linked dynamically")?;
    std::fs::remove_file(&more)?;

    host.containerd.stop()?;
    not(&host, "containerd.answers", "nothing on ")?;
    Ok(())
}

#[test]
fn a_containerd_too_old_for_pins_wants_the_kubelets_threshold_to_be_100() -> Result<()> {
    let host = TestHost::without_agent("")?;
    ensure!(
        finding(&check(&host)?.0, "images.kubelet").is_err(),
        "the kubelet is looked for in a namespace of our own"
    );
    let kubelet = host.ground.path("kubelet.yaml");
    let text =
        format!("[containerd]\nnamespace = \"k8s.io\"\n[images]\nkubelet_config = {kubelet:?}\n");
    host.agent.configure(&text)?;
    // 1.6.20 of Debian 12 is too old, 2.x is not.
    let is_old = host.containerd.version()?.starts_with("1.6.20");
    let threshold = |percent: u32| {
        let text = format!("kind: KubeletConfiguration\nimageGCHighThresholdPercent: {percent}\n");
        std::fs::write(&kubelet, text).context("write the kubelet's configuration")
    };
    let look = || finding(&check(&host)?.0, "images.kubelet");
    let wanted = if is_old { "part" } else { "full" };
    let (works, found) = look()?;
    assert_eq!(works, wanted, "{found}");
    assert_eq!(found.contains("No such file"), is_old, "{found}");
    threshold(85)?;
    let (works, found) = look()?;
    assert_eq!(works, wanted, "{found}");
    assert_eq!(
        found.contains("imageGCHighThresholdPercent is 85"),
        is_old,
        "{found}"
    );
    threshold(100)?;
    assert_eq!(look()?.0, "full");
    Ok(())
}
