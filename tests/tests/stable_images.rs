//! Which images belong on a host: what has covered all instances, what a file names, and what goes
//! when there is too much.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nodeagent::api::v1::{
    AppImages, ImageDocument, ImageList, ImageState, StableEvidence, StableList,
};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
/// Times that an eviction meets a pin.
const ROUNDS: u32 = 20;
const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";

fn image(number: u32) -> Result<Image> {
    Ok(Image::web()?.file("www/version", 0o644, number.to_string()))
}

fn web(version: u32) -> Manifest {
    let script = "echo started >>/www/starts; exec httpd -f -p 8080 -h /www";
    Manifest::new("web", &format!("web:{version}"))
        .with("command", json!(["/bin/sh", "-c", script]))
        .ready_by_page(20)
}

fn stable(host: &TestHost) -> Result<AppImages> {
    host.cli().json(&["image", "stable", "web"])?.document(0)
}

fn images(host: &TestHost) -> Result<Vec<ImageDocument>> {
    let list: ImageList = host.cli().json(&["image", "list"])?.document(0)?;
    Ok(list.images)
}

/// Revisions of the active instances, sorted.
fn revisions(host: &TestHost) -> Result<Vec<String>> {
    let pool = host.cli().pool("web")?;
    let active = pool.instances.iter().filter(|i| i.state == "active");
    let mut revisions: Vec<String> = active.map(|i| i.revision.clone()).collect();
    ensure!(!revisions.is_empty(), "nothing is active: {pool:?}");
    revisions.sort();
    Ok(revisions)
}

#[test]
fn scale_out_uses_what_has_covered_all_instances_until_a_roll_has_ended() -> Result<()> {
    let mut host = TestHost::start_with(CONFIG)?;
    let first = host.push(&image(1)?, "web:1")?;
    let second = host.push(&image(2)?, "web:2")?;
    host.apply(&web(1).armed(1))?;
    assert_eq!(stable(&host)?.stable, None, "nothing was covered yet");
    host.cli().activate("web", 2, "up")?;
    host.assert_exactly("web", 2, 1)?;
    let now = stable(&host)?;
    let evidence = now.stable.context("it has covered two instances")?;
    ensure!(evidence.reference.ends_with(&first.digest), "{evidence:?}");
    assert_eq!(
        (
            evidence.evidence,
            evidence.instances,
            evidence.task_id.as_deref()
        ),
        (StableEvidence::Covered, Some(2), Some("up"))
    );

    // Another image is applied; whatever comes without a word about it is of the first.
    host.apply(&web(2).armed(1))?;
    host.cli().activate("web", 3, "more")?;
    host.assert_exactly("web", 3, 1)?;
    let tried = stable(&host)?;
    ensure!(tried.applied.ends_with(&second.digest), "{tried:?}");
    ensure!(tried.scale_out.ends_with(&first.digest), "{tried:?}");
    let of_first = revisions(&host)?;
    assert_eq!(of_first.first(), of_first.last(), "all of one revision");

    // What is known of it survives the agent, and it is not evicted.
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    assert_eq!(stable(&host)?, tried);
    host.cli().json(&["image", "evict"])?.ok()?;
    let kept = images(&host)?;
    ensure!(
        kept.iter()
            .any(|i| i.reference.ends_with(&first.digest) && i.stable),
        "{kept:?}"
    );

    // One of the new image, because that is asked for; then all, by a roll.
    let canary = ["activate", "web", "--to", "4", "--image", "applied"];
    host.cli().json(&canary)?.ok()?;
    host.assert_exactly("web", 4, 1)?;
    let mixed = revisions(&host)?;
    let of_second = mixed.iter().filter(|r| **r != of_first[0]).count();
    assert_eq!(of_second, 1, "{mixed:?}");
    ensure!(stable(&host)?.scale_out.ends_with(&first.digest));
    let roll = host.cli().roll("web", "50%", "roll")?;
    ensure!(roll.state == "done", "{roll:?}");
    let rolled = stable(&host)?;
    let evidence = rolled.stable.context("the roll has ended")?;
    ensure!(evidence.reference.ends_with(&second.digest), "{evidence:?}");
    assert_eq!(evidence.task_id.as_deref(), Some("roll"));
    assert_eq!(rolled.scale_out, rolled.applied);
    host.cli().activate("web", 5, "last")?;
    let all = revisions(&host)?;
    assert_eq!((all.len(), all.first()), (5, all.last()));
    host.remove_app("web")
}

#[test]
fn what_is_stable_is_set_by_hand_and_wrong_wishes_change_nothing() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    let first = host.push(&image(1)?, "web:1")?;
    host.push(&image(2)?, "web:2")?;
    host.apply(&web(1))?;
    host.cli().activate("web", 1, "up")?;
    host.apply(&web(2))?;
    let before = stable(&host)?;

    let set = ["image", "stable", "web", "--set"];
    let problem = host
        .cli()
        .json(&[&set[..], &["127.0.0.1:5000/other:1"]].concat())?
        .problem(3)?;
    assert_eq!(problem.findings[0].field, "image");
    ensure!(
        problem.findings[0].allowed.contains(&first.digest),
        "{problem:?}"
    );
    let unknown = ["image", "stable", "shop", "--auto"];
    assert_eq!(host.cli().json(&unknown)?.problem(4)?.code, "not_found");
    assert_eq!(stable(&host)?, before, "nothing was changed");

    let said: AppImages = host
        .cli()
        .json(&[&set[..], &["127.0.0.1:5000/web:2"]].concat())?
        .document(0)?;
    assert_eq!(
        said.stable.map(|stable| stable.evidence),
        Some(StableEvidence::ByHand)
    );
    let auto: AppImages = host
        .cli()
        .json(&["image", "stable", "web", "--auto"])?
        .document(0)?;
    let covered = auto.stable.context("the first covers the only instance")?;
    ensure!(covered.reference.ends_with(&first.digest), "{covered:?}");
    let answer = host
        .cli()
        .json(&["activate", "web", "--to", "1", "--image", "newest"])?;
    assert_eq!(answer.code, 2, "{answer}");
    ensure!(answer.stderr.contains("stable or applied"), "{answer}");
    host.remove_app("web")
}

/// Starts the agent with a file of the images that belong on the host, which is returned, and one
/// more setting of images.
fn start_with_listed(host: &mut TestHost, listed: &str, setting: &str) -> Result<PathBuf> {
    let list = host.file("images.list", &format!("{listed}\n"))?;
    let file = list.display();
    let config = format!("version = 1\n[images]\nstable_file = \"{file}\"\n{setting}\n");
    fs::write(host.agent.config().join("40-images.toml"), config)?;
    host.agent.start(&host.ground)?;
    Ok(list)
}

/// So many bytes that do not compress.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    bytes.take(size).collect()
}

#[test]
fn whoever_waits_for_an_image_that_is_brought_already_waits_behind_nobody() -> Result<()> {
    waits_behind_nobody(|_, under_way| under_way)
}

#[test]
fn whoever_waits_for_it_by_another_name_waits_behind_nobody_either() -> Result<()> {
    waits_behind_nobody(|by_tag, _| by_tag)
}

/// `named` chooses between the tag and the name under which the image is brought.
fn waits_behind_nobody(named: fn(String, String) -> String) -> Result<()> {
    let mut host = TestHost::without_agent(CONFIG)?;
    let push = |name: &str, seed: u64, size: usize| -> Result<String> {
        let image = image(1)?.file("www/noise", 0o644, noise(seed, size));
        Ok(host.push(&image, name)?.reference)
    };
    let (brought, other) = (push("brought:1", 1, 2 << 20)?, push("other:1", 2, 8 << 20)?);
    start_with_listed(&mut host, &brought, "bandwidth = \"1Mi\"")?;
    let under_way = |name: &str| -> Result<Option<String>> {
        let list: ImageList = host.cli().json(&["image", "list"])?.document(0)?;
        let found = list
            .pulls
            .into_iter()
            .find(|p| p.reference.contains(name) && !p.layers.is_empty());
        Ok(found.map(|pull| pull.reference))
    };
    let begun = |name: &str| {
        until("a pull to be under way", SOON, || {
            Ok(match under_way(name)? {
                Some(reference) => Look::Seen(reference),
                None => Look::NotYet("it is not".to_owned()),
            })
        })
    };
    let wanted = named(brought, begun("/brought")?);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| host.cli().json(&["image", "pull", &other])?.ok());
        begun("/other")?;
        // Pre-pulls rest as long as somebody waits for another image: this one is none any more.
        host.cli().json(&["image", "pull", &wanted])?.ok()?;
        ensure!(under_way("/other")?.is_some(), "it waited behind the other");
        match other.join() {
            Ok(pulled) => pulled.map(drop),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[test]
fn images_of_the_hosts_file_are_there_before_anybody_asks_and_drift_is_told() -> Result<()> {
    let mut host = TestHost::without_agent(CONFIG)?;
    let base = host.push(&image(1)?, "base:1")?;
    let listed = format!("# the base\n{}", base.reference);
    let list = start_with_listed(&mut host, &listed, "check_interval = \"1s\"")?;
    let look = |what: &str, seen: &dyn Fn(&StableList) -> bool| {
        until(what, SOON, || {
            let list: StableList = host.cli().json(&["image", "stable"])?.document(0)?;
            Ok(match seen(&list) {
                true => Look::Seen(list),
                false => Look::NotYet(format!("{list:?}")),
            })
        })
    };
    let there = look("the listed image to be ready", &|list| {
        list.listed.iter().any(|listed| listed.ready)
    })?;
    let meant = there.listed[0].reference.clone().unwrap_or_default();
    ensure!(meant.ends_with(&base.digest), "{there:?}");
    host.cli().json(&["image", "evict"])?.ok()?;
    let kept = images(&host)?;
    assert_eq!(kept.len(), 1, "what is listed is not evicted");
    ensure!(kept[0].stable && kept[0].state == ImageState::Ready);

    // The name means something else now: told, and nothing else happens.
    let moved = host.push(&image(2)?, "base:1")?;
    let drifted = look("the drift", &|list| {
        list.listed.iter().any(|listed| listed.drift.is_some())
    })?;
    let drift = drifted.listed[0].drift.clone().context("a drift")?;
    assert_eq!(drift.digest, moved.digest);
    assert_eq!(drifted.listed[0].reference.as_ref(), Some(&meant));

    // A line that is no name is told with its place; what was read before holds.
    fs::write(&list, "Base::1\n")?;
    let told = look("the wrong line to be told", &|list| {
        list.unreadable.is_some()
    })?;
    let why = told.unreadable.clone().unwrap_or_default();
    ensure!(why.contains("images.list:1: \"Base::1\""), "{why}");
    assert_eq!(told.listed.len(), 1);
    fs::write(&list, "")?;
    look("an empty list", &|list| {
        list.listed.is_empty() && list.unreadable.is_none()
    })?;
    host.cli().json(&["image", "evict"])?.ok()?;
    assert!(images(&host)?.is_empty(), "nothing keeps it any more");
    Ok(())
}

#[test]
fn the_budget_is_kept_by_what_was_not_used_for_longest_and_never_by_what_is_needed() -> Result<()> {
    let config = format!("{CONFIG}[images]\nmax_size = \"13Mi\"\n");
    let host = TestHost::start_with(&config)?;
    let names = |host: &TestHost| -> Result<Vec<String>> {
        Ok(images(host)?.into_iter().map(|i| i.reference).collect())
    };
    // Each takes 5 MB here, 2 of them as a blob: two of them fit.
    let push = |number: u64| -> Result<String> {
        let image = image(u32::try_from(number)?)?.file("www/noise", 0o644, noise(number, 1 << 20));
        Ok(host.push(&image, &format!("noise:{number}"))?.reference)
    };
    let pinned = push(1)?;
    host.cli()
        .json(&["image", "pull", "--pin", &pinned])?
        .ok()?;
    let mut last = String::new();
    for number in 2..6 {
        last = push(number)?;
        host.cli().json(&["image", "pull", &last])?.ok()?;
    }
    // One beside the pinned one fits.
    let stay = [pinned, last];
    until("the budget to be kept", SOON, || {
        let left = names(&host)?;
        ensure!(stay.iter().all(|name| left.contains(name)), "{left:?}");
        Ok(match left == stay {
            true => Look::Seen(()),
            false => Look::NotYet(format!("{left:?}")),
        })
    })?;
    // Nothing that may go is left: the person on call is told, and the images stay.
    let [_, last] = &stay;
    host.cli().json(&["image", "pin", last])?.ok()?;
    for number in 6..9 {
        let name = push(number)?;
        host.cli().json(&["image", "pull", "--pin", &name])?.ok()?;
    }
    until("the alarm", SOON, || {
        let alarms = host.cli().status()?.alarms;
        let seen = alarms
            .iter()
            .any(|alarm| alarm.code == "images_over_budget");
        Ok(match seen {
            true => Look::Seen(()),
            false => Look::NotYet(format!("{alarms:?}")),
        })
    })?;
    ensure!(images(&host)?.iter().all(|image| image.pinned));
    Ok(())
}

#[test]
fn an_image_that_was_pinned_is_not_evicted_by_what_was_planned_before() -> Result<()> {
    let host = TestHost::start_with(CONFIG)?;
    // What stays, so that planning takes a while.
    for number in 2..12 {
        let name = host.push(&image(number)?, &format!("web:{number}"))?;
        let pull = ["image", "pull", "--pin", &name.reference];
        host.cli().json(&pull)?.ok()?;
    }
    let name = host.push(&image(1)?, "web:1")?.reference;
    let mut pinned = 0;
    for round in 0..ROUNDS {
        host.cli().json(&["image", "pull", &name])?.ok()?;
        let (pin, evict) = std::thread::scope(|scope| {
            let evict = scope.spawn(|| host.cli().json(&["image", "evict"]));
            (host.cli().json(&["image", "pin", &name]), evict.join())
        });
        evict.map_err(|_| anyhow!("it panicked"))??.ok()?;
        // Whichever came first, it says what is so.
        let there = images(&host)?.into_iter().find(|i| i.reference == name);
        if pin?.code == 0 {
            let is_kept = |image: &ImageDocument| image.pinned && image.state == ImageState::Ready;
            ensure!(
                there.as_ref().is_some_and(is_kept),
                "round {round}: {there:?}"
            );
            host.cli().json(&["image", "unpin", &name])?.ok()?;
            pinned += 1;
        } else {
            ensure!(there.is_none(), "round {round}: {there:?}");
        }
    }
    ensure!(pinned > 0, "the evictions always came first");
    Ok(())
}
