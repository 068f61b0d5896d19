//! A process in a container that means harm: it gets nowhere, and its neighbours do not notice.

use anyhow::{Context, Result, ensure};
use nodeagent_tests::{Image, Manifest, TestHost};

#[test]
fn a_hostile_container_neither_speaks_for_init_nor_replaces_what_the_agent_trusts() -> Result<()> {
    let mut host = TestHost::start()?;
    host.warm_web(1)?;
    let directory = host.ground.directory().to_owned();
    host.push(&Image::hostile(&directory)?, "hostile:1")?;
    let hostile = Manifest::new("hostile", "hostile:1")
        .armed(1)
        .ready_by_page(10);
    host.apply(&hostile)?;
    host.wait_for_armed("hostile", 1)?;
    let passwd = std::fs::read("/etc/passwd").context("read /etc/passwd")?;

    let task = host.cli().activate("hostile", 1, "attack")?;
    let page = host.fetch(&task.instances[0])?.text();
    let expected = [
        "noise",
        "emptiness",
        "unlink the socket",
        "replace container-init",
        "replace the plan",
        "rename bin",
        "remount",
    ];
    for attempt in expected {
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("{attempt}: ")));
        let line = line.with_context(|| format!("no word of {attempt:?} in {page}"))?;
        ensure!(!line.ends_with("achieved"), "{line}\n{page}");
    }

    // The agent goes on, with its neighbours and with the hostile one.
    let neighbour = host.cli().activate("web", 1, "neighbour")?;
    assert_eq!((neighbour.state.as_str(), neighbour.active), ("done", 1));
    host.assert_serves(&neighbour.instances[0])?;
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    host.wait_for_pool("hostile", "one active", |pool| pool.active == 1)?;
    host.remove_app_only("hostile")?;
    host.remove_app("web")?;
    assert_eq!(
        std::fs::read("/etc/passwd")?,
        passwd,
        "the machine's own file was changed"
    );
    Ok(())
}
