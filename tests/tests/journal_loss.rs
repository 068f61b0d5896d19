//! The journal is lost or damaged: instances go on serving where they did, each is found once,
//! nothing is removed until the loss is accepted, and then life is normal.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Instance, Pool};
use nodeagent_tests::{Image, Manifest, TestHost, wait};

const READY: Duration = Duration::from_secs(30);

/// The app `web`, which writes down each of its starts: two in service, one at the gate.
fn host() -> Result<TestHost> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let script = "echo started >>/www/starts; exec httpd -f -p 8080 -h /www";
    let web = Manifest::script("web", script).armed(1).ready_by_page(20);
    host.apply(&web)?;
    host.wait_for_armed("web", 1)?;
    host.cli().activate("web", 2, "up")?;
    host.assert_exactly("web", 2, 1)?;
    Ok(host)
}

/// What an instance keeps through the loss.
fn identities(pool: &Pool) -> Vec<(&str, &str, Option<u64>, Option<&str>)> {
    let identity = |i| {
        let Instance {
            name,
            state,
            create_generation,
            address,
            ..
        }: &Instance = i;
        (
            name.as_str(),
            state.as_str(),
            *create_generation,
            address.as_deref(),
        )
    };
    pool.instances.iter().map(identity).collect()
}

/// Stops the agent, does something to the journal's files, and starts it again.
fn spoil(host: &mut TestHost, how: impl FnOnce(&TestHost) -> Result<()>) -> Result<()> {
    host.agent.kill()?;
    how(host)?;
    host.agent.start(&host.ground)?;
    Ok(())
}

fn delete(host: &TestHost) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let file = host.agent.state().join(format!("journal.db{suffix}"));
        if file.exists() {
            fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        }
    }
    Ok(())
}

/// Everything of the main file is garbage from here on.
fn overwrite(host: &TestHost, from: usize) -> Result<()> {
    // All of it is in the main file: what the log still held would mend it.
    let journal = rusqlite::Connection::open(host.agent.journal()).context("open the journal")?;
    journal.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    drop(journal);
    let mut bytes = fs::read(host.agent.journal()).context("read the journal")?;
    ensure!(bytes.len() > from, "a journal of {} bytes", bytes.len());
    bytes[from..].fill(0x5a);
    fs::write(host.agent.journal(), bytes).context("spoil the journal")
}

fn assert_all_goes_on_until_it_is_accepted(host: &mut TestHost, before: &Pool) -> Result<()> {
    let pool = host.assert_exactly("web", 2, 1)?;
    ensure!(
        identities(&pool) == identities(before),
        "{:?} instead of {:?}",
        identities(&pool),
        identities(before)
    );
    ensure!((pool.target, pool.active) == (2, 2), "{pool:?}");
    ensure!(pool.target_seq > before.target_seq, "{pool:?}");
    let status = host.cli().run(&["status"])?.ok()?.stdout;
    ensure!(
        status.contains("journal epoch 2") && status.contains("ALARM journal_lost"),
        "{status}"
    );

    // An id that nobody knows any more is not simply done again.
    let unknown = ["activate", "web", "--to", "2", "--task-id", "up"];
    let problem = host.cli().json(&unknown)?.problem(5)?;
    assert_eq!(problem.code, "unknown_epoch", "{problem:?}");
    let vouched = [&unknown[..], &["--new-epoch"]].concat();
    host.cli().json(&vouched)?.ok()?;

    // One that dies is replaced and kept.
    let victim = before.instances[0].name.clone();
    let id = format!(
        "{victim}.g{}",
        before.instances[0].create_generation.unwrap_or(0)
    );
    let pid = host.containerd.tasks(host.agent.namespace())?[&id];
    let pid = rustix::process::Pid::from_raw(pid.try_into()?).context("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let pool = host.wait_for_pool("web", "a replacement, and the failed one kept", |pool| {
        (pool.active, pool.failed, pool.armed, pool.arming) == (2, 1, 1, 0)
    })?;
    let fresh = pool
        .instances
        .iter()
        .filter_map(|i| i.create_generation)
        .max();
    ensure!(fresh > Some(1_000_000), "generations jump ahead: {pool:?}");
    ensure!(host.containers()?.contains(&id), "{id} was removed");

    // A restart changes nothing of that.
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    host.wait_for_pool("web", "the same", |pool| {
        (pool.active, pool.failed) == (2, 1)
    })?;
    ensure!(host.containers()?.contains(&id), "{id} was removed");

    let accepted = host.cli().run(&["journal", "accept"])?.ok()?.stdout;
    ensure!(accepted.contains("journal epoch 2: sound"), "{accepted}");
    host.assert_exactly("web", 2, 1)?;
    let status = host.cli().run(&["status"])?.ok()?.stdout;
    ensure!(!status.contains("ALARM"), "{status}");
    let task = host.cli().scale("web", 1, "down")?;
    ensure!(task.state == "done", "{task:?}");
    host.assert_exactly("web", 1, 1)?;
    host.remove_app("web")
}

#[test]
fn a_deleted_journal_is_rebuilt_from_what_is_here_and_nothing_goes_before_it_is_accepted()
-> Result<()> {
    let mut host = host()?;
    let before = host.cli().pool("web")?;
    spoil(&mut host, delete)?;
    assert_all_goes_on_until_it_is_accepted(&mut host, &before)
}

#[test]
fn a_garbled_journal_is_set_aside_and_rebuilt() -> Result<()> {
    let mut host = host()?;
    let before = host.cli().pool("web")?;
    spoil(&mut host, |host| overwrite(host, 4096))?;
    let shown = host.cli().run(&["journal", "show"])?.ok()?.stdout;
    ensure!(shown.contains("is kept as"), "{shown}");
    assert_all_goes_on_until_it_is_accepted(&mut host, &before)
}

#[test]
fn what_a_task_left_half_way_is_kept_until_the_loss_is_accepted() -> Result<()> {
    let mut host = host()?;
    // Containers that run and are not in service, and one of an app that nobody knows any more.
    host.agent.kill()?;
    delete(&host)?;
    let copy = host.agent.state().join("apps/web.json");
    let kept = fs::read(&copy).context("read the copy")?;
    fs::remove_file(&copy).context("remove the copy")?;
    host.agent.start(&host.ground)?;
    wait::until("the alarm", READY, || {
        let status = host.cli().run(&["status"])?.ok()?.stdout;
        Ok(match status.contains("ALARM journal_lost") {
            true => wait::Look::Seen(()),
            false => wait::Look::NotYet(status),
        })
    })?;
    let three = host.containers()?;
    assert_eq!(three.len(), 3);
    assert_eq!(host.discovered()?.len(), 2, "clients are served");

    // The manifest comes back: so does the pool, at the next start without a journal.
    host.agent.kill()?;
    delete(&host)?;
    fs::write(&copy, kept).context("write the copy")?;
    host.agent.start(&host.ground)?;
    let pool = host.wait_for_pool("web", "two in service", |pool| pool.active == 2)?;
    assert_eq!(pool.armed, 1);
    assert_eq!(host.containers()?, three);
    host.cli().run(&["journal", "accept"])?.ok()?;
    host.assert_exactly("web", 2, 1)?;
    host.remove_app("web")
}

#[test]
fn a_journal_of_a_newer_nodeagent_is_refused_and_left_alone() -> Result<()> {
    let mut host = host()?;
    host.agent.stop()?;
    let journal = rusqlite::Connection::open(host.agent.journal()).context("open the journal")?;
    let version: i64 = journal.pragma_query_value(None, "user_version", |row| row.get(0))?;
    journal.pragma_update(None, "user_version", 99)?;
    host.agent.launch(&host.ground)?;
    let ended = host.agent.wait_ended(READY)?;
    assert_eq!(ended.code(), Some(3), "no use in starting it again");
    let said = host.agent.tail(5);
    ensure!(said.contains("has schema 99"), "{said}");
    journal.pragma_update(None, "user_version", version)?;
    drop(journal);
    host.agent.start(&host.ground)?;
    host.assert_exactly("web", 2, 1)?;
    host.remove_app("web")
}
