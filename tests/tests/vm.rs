//! In the virtual machine: cgroup version 2, crun, systemd as PID 1, reboots and power cuts.
//!
//! Not part of `cargo test`: `make test-vm` makes the machine's disk and runs these.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Instance, Pool, Status, Task};
use nodeagent_tests::vm::Said;
use nodeagent_tests::{Manifest, Vm};

/// How long a pool may take until it is as wanted, emulated and from a boot on.
const SETTLES: Duration = Duration::from_secs(180);

/// The agent of the host inside; no network but its own, so clients are inside as well.
const CONFIG: &str = r#"version = 1
[host]
id = "vm"
[network]
reachable = true
host_address = "192.0.2.1"
[discovery.file]
propagation_bound = "100ms"
"#;

fn guest() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vm-guest"))
}

/// A machine on which the agent is installed and runs as its unit says, with one app that writes
/// down each of its starts and has `armed` containers at the gate.
fn installed(armed: u32) -> Result<Vm> {
    let script = "echo started >>/www/starts; exec httpd -f -p 8080 -h /www";
    let manifest = Manifest::script("web", script)
        .armed(armed)
        .ready_by_page(60);
    let mut vm = Vm::boot(guest(), |payload| {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/units");
        for unit in ["nodeagent.service", "nodeagent.socket"] {
            let text = std::fs::read_to_string(units.join(unit));
            payload.file(unit, &text.with_context(|| format!("read {unit}"))?)?;
        }
        payload.file("config.toml", CONFIG)?;
        payload.file("web.yaml", &manifest.text())
    })?;
    vm.sh("cd /opt/payload
        install -D nodeagent /usr/bin/nodeagent
        install -D container-init /usr/lib/nodeagent/container-init
        install -D -m 644 config.toml /etc/nodeagent/config.d/10-host.toml
        install -m 644 nodeagent.service nodeagent.socket /etc/systemd/system/
        # Into the console's file, which is outside and survives.
        mkdir -p /etc/systemd/system/nodeagent.service.d
        printf '[Service]\\nStandardError=journal+console\\n' >/etc/systemd/system/nodeagent.service.d/tests.conf
        systemctl daemon-reload
        systemctl enable --now nodeagent.socket nodeagent.service
        nodeagent app apply -f web.yaml
        # What is installed is on the disk; what the agent keeps is the agent's to get there.
        sync -f /usr/bin/nodeagent")
        .with_context(|| vm.console(40))?;
    wait_for_pool(&mut vm, 0, armed)?;
    Ok(vm)
}

/// Waits until `active` are in service and `armed` at the gate, and nothing is on its way.
fn wait_for_pool(vm: &mut Vm, active: u32, armed: u32) -> Result<Pool> {
    let parse = |text: &str| -> Option<Pool> {
        let status: Status = serde_json::from_str(text).ok()?;
        status.pools.into_iter().find(|pool| pool.app == "web")
    };
    let what = format!("{active} active and {armed} armed");
    let text = vm.until(&what, SETTLES, "nodeagent status -o json", |text| {
        parse(text).is_some_and(|pool| {
            (pool.active, pool.armed) == (active, armed)
                && pool.arming + pool.starting + pool.draining + pool.failed == 0
        })
    });
    let text = text.with_context(|| vm.console(40))?;
    parse(&text).context("the pool is gone again")
}

fn task(said: &Said) -> Result<Task> {
    serde_json::from_str(&said.stdout)
        .with_context(|| format!("{:?}: {}{}", said.code, said.stdout, said.stderr))
}

fn activate(to: u32, id: &str) -> Vec<String> {
    words_of("activate", to, id)
}

fn words_of(verb: &str, to: u32, id: &str) -> Vec<String> {
    let to = to.to_string();
    let words = [
        "nodeagent",
        verb,
        "web",
        "--to",
        &to,
        "--task-id",
        id,
        "-o",
        "json",
    ];
    words.map(str::to_owned).to_vec()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn activated(vm: &mut Vm, to: u32, id: &str) -> Result<Task> {
    let said = vm.ask(&words(&activate(to, id)))?;
    let task = task(&said)?;
    ensure!(
        (task.state.as_str(), task.active) == ("done", to),
        "{task:?}"
    );
    Ok(task)
}

fn in_service(pool: &Pool) -> BTreeMap<String, String> {
    let active = pool.instances.iter().filter(|i| i.state == "active");
    let named = |instance: &Instance| {
        let address = instance.address.clone().unwrap_or_default();
        (instance.name.clone(), address)
    };
    active.map(named).collect()
}

/// How often the app at each address has been started on its rootfs.
fn starts(vm: &mut Vm, pool: &Pool) -> Result<Vec<usize>> {
    let addresses = in_service(pool).into_values();
    addresses
        .map(|address| {
            let url = format!("http://{address}:8080/starts");
            let page = vm.run(&["busybox", "wget", "-q", "-O", "-", &url])?;
            Ok(page.lines().count())
        })
        .collect()
}

/// Fails unless discovery offers what is in service, and the host has one of everything for each
/// of `count` instances.
fn assert_exactly(vm: &mut Vm, pool: &Pool, count: usize) -> Result<()> {
    let file = vm.run(&["cat", "/run/nodeagent/discovery/prometheus.json"])?;
    let document = serde_json::from_str(&file).context("parse the discovery file")?;
    let mut found = nodeagent_tests::leaks::targets(&document);
    found.sort();
    let mut wanted: Vec<String> = in_service(pool)
        .into_values()
        .map(|address| format!("{address}:8080"))
        .collect();
    wanted.sort();
    ensure!(found == wanted, "clients find {found:?}, not {wanted:?}");
    let count = count.to_string();
    let script = "ctr -n nodeagent containers ls -q | wc -l
        ctr -n nodeagent tasks ls -q | wc -l
        ctr -n nodeagent snapshots ls | grep -c Active || true
        ls /run/nodeagent/netns | wc -l
        ls /var/lib/nodeagent/instances | wc -l
        ip -o link show type veth | wc -l
        pgrep -c -f '[c]ontainerd-shim.* -namespace nodeagent ' || true";
    vm.until("one of each for each instance", SETTLES, script, |text| {
        text.lines().count() == 7 && text.lines().all(|line| line.trim() == count)
    })?;
    Ok(())
}

#[test]
#[ignore = "needs the virtual machine: make test-vm"]
fn on_cgroup_2_the_main_job_is_done_with_runc_and_with_crun() -> Result<()> {
    let mut vm = Vm::boot(guest(), |payload| {
        payload.scenarios(&["main_job", "app_faults", "agents"])
    })?;
    let kind = vm.run(&["stat", "-f", "-c", "%T", "/sys/fs/cgroup"])?;
    assert_eq!(kind.trim(), "cgroup2fs");
    for runtime in ["/usr/bin/runc", "/usr/bin/crun"] {
        let runtime = format!("NODEAGENT_TESTS_RUNTIME={runtime}");
        for (scenarios, chosen) in [
            ("/opt/payload/main_job", ""),
            ("/opt/payload/app_faults", "memory"),
            ("/opt/payload/agents", "limits_of_its_own"),
        ] {
            let said = vm.run(&[
                "env",
                "NODEAGENT_BIN=/opt/payload/nodeagent",
                "NODEAGENT_CONTAINER_INIT=/opt/payload/container-init",
                &runtime,
                scenarios,
                "--test-threads=2",
                chosen,
            ]);
            let said = said.with_context(|| runtime.clone())?;
            ensure!(!said.contains("running 0 tests"), "{said}");
            println!("{runtime} {scenarios}: {}", said.trim());
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs the virtual machine: make test-vm"]
fn a_hundred_thousand_orphans_at_once_are_reaped() -> Result<()> {
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/container-init/tests/crowd.c");
    let mut vm = Vm::boot(guest(), |payload| {
        let crowd = std::env::temp_dir().join(format!("crowd-{}", std::process::id()));
        let built = Command::new("cc")
            .args(["-static", "-O1", "-o"])
            .args([&crowd, &source])
            .status()
            .context("run cc")?;
        ensure!(built.success(), "cc: {built}");
        let added = payload.program(&crowd, "crowd");
        std::fs::remove_file(&crowd).context("remove the program that was built")?;
        added
    })?;
    // More tasks than a machine of this size is made for.
    vm.sh("echo 200000 >/proc/sys/kernel/threads-max; echo 300000 >/proc/sys/kernel/pid_max")?;
    let script = "/opt/payload/crowd 100000 || exit 8
        made=$(cut -d' ' -f1 /proc/uptime)
        while [ $(ls -d /proc/[0-9]* 2>/dev/null | wc -l) -gt 5 ]; do sleep 0.05; done
        echo reaped between $made and $(cut -d' ' -f1 /proc/uptime)
        exit 7";
    let said = vm.sh(&format!(
        "unshare --pid --fork --mount-proc /opt/payload/container-init -- sh -c '{}' && code=0 || code=$?; echo code $code",
        script.replace('\'', "'\\''")
    ))?;
    println!("{said}");
    ensure!(said.lines().any(|line| line == "code 7"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs the virtual machine: make test-vm"]
fn under_systemd_the_agent_comes_and_goes_and_containers_stay_in_their_limits() -> Result<()> {
    let mut vm = installed(1)?;
    let task = activated(&mut vm, 1, "in")?;
    assert_eq!(task.instances[0].from, "armed");
    let pool = wait_for_pool(&mut vm, 1, 1)?;
    assert_exactly(&mut vm, &pool, 2)?;
    // The manifest's limits, where the kernel keeps them.
    let limits = vm.sh(
        "for pid in $(ctr -n nodeagent tasks ls | awk 'NR > 1 { print $2 }'); do
            group=/sys/fs/cgroup$(sed s/^0::// /proc/$pid/cgroup)
            cat $group/memory.max $group/pids.max
        done",
    )?;
    let limits: Vec<&str> = limits.lines().collect();
    assert_eq!(limits, ["67108864", "32", "67108864", "32"]);

    let tasks = "ctr -n nodeagent tasks ls | sort";
    let before = vm.sh(tasks)?;
    for change in [
        "systemctl restart nodeagent",
        "systemctl stop nodeagent.socket nodeagent.service; systemctl start nodeagent.socket nodeagent.service",
        "systemctl kill -s KILL nodeagent.service",
    ] {
        vm.sh(change)?;
        let pool = wait_for_pool(&mut vm, 1, 1).with_context(|| change.to_owned())?;
        assert_eq!(vm.sh(tasks)?, before, "{change}");
        assert_eq!(starts(&mut vm, &pool)?, [1], "{change}");
        assert_exactly(&mut vm, &pool, 2)?;
    }
    vm.run(&["nodeagent", "deactivate", "web", "--to", "0"])?;
    let pool = wait_for_pool(&mut vm, 0, 1)?;
    assert_exactly(&mut vm, &pool, 1)?;
    vm.run(&["nodeagent", "app", "delete", "web"])?;
    let left = vm.sh("ls /var/lib/nodeagent/instances /run/nodeagent/netns; ctr -n nodeagent c ls -q; ip -o link show type veth")?;
    let left: Vec<&str> = left
        .lines()
        .filter(|line| !line.ends_with(':') && !line.is_empty())
        .collect();
    assert_eq!(left, [""; 0]);
    Ok(())
}

#[test]
#[ignore = "needs the virtual machine: make test-vm"]
fn after_a_reboot_all_is_back_with_name_address_and_rootfs() -> Result<()> {
    let mut vm = installed(1)?;
    activated(&mut vm, 2, "in")?;
    let before = wait_for_pool(&mut vm, 2, 1)?;
    for (boots, how) in [
        (1, ["reboot", "-f"].as_slice()),
        (2, &["systemctl", "reboot"]),
    ] {
        vm.reboot(how)?;
        let pool = wait_for_pool(&mut vm, 2, 1).with_context(|| how.join(" "))?;
        assert_eq!(in_service(&pool), in_service(&before), "{how:?}");
        assert_eq!(
            starts(&mut vm, &pool)?,
            [1 + boots; 2],
            "one start a boot on the same rootfs"
        );
        assert_exactly(&mut vm, &pool, 3)?;
        let again = vm.ask(&words(&activate(2, "in")))?;
        ensure!(task(&again)?.replayed, "done twice");
    }
    Ok(())
}

#[test]
#[ignore = "needs the virtual machine: make test-vm"]
fn a_clock_that_is_set_by_hours_disturbs_nobody() -> Result<()> {
    let mut vm = installed(1)?;
    activated(&mut vm, 1, "before")?;
    let before = wait_for_pool(&mut vm, 1, 1)?;
    let tasks = "ctr -n nodeagent tasks ls | sort";
    let running = vm.sh(tasks)?;
    for (number, (step, then)) in [
        ("+1 hour", "true"),
        ("-2 hours", "systemctl restart nodeagent"),
        ("+1 day", "systemctl kill -s KILL nodeagent.service"),
    ]
    .into_iter()
    .enumerate()
    {
        // In the middle of a task.
        let id = format!("task-{number}");
        let verb = words_of("scale", 2, &id);
        let order = vm.begin(&words(&verb))?;
        vm.sh(&format!("date -s '{step}'; {then}"))?;
        let said = vm.answer(order, SETTLES)?.context("no answer")?;
        // Whoever was answered by nobody asks again.
        let said = match said.code {
            Some(0) => said,
            _ => vm.ask(&words(&verb))?,
        };
        let done = task(&said).with_context(|| vm.console(40))?;
        assert_eq!(
            (done.state.as_str(), done.active),
            ("done", 2),
            "{step}: {done:?}"
        );
        let pool = wait_for_pool(&mut vm, 2, 1).with_context(|| step.to_owned())?;
        assert_exactly(&mut vm, &pool, 3)?;
        vm.run(&words(&words_of("scale", 1, &format!("back-{number}"))))?;
        let pool = wait_for_pool(&mut vm, 1, 1).with_context(|| step.to_owned())?;
        assert_exactly(&mut vm, &pool, 2)?;
        assert_eq!(in_service(&pool), in_service(&before), "{step}");
        assert_eq!(starts(&mut vm, &pool)?, [1], "{step}");
    }
    // Those in service from the first to the last.
    let kept = vm.sh(tasks)?;
    let kept = running.lines().filter(|line| kept.contains(line)).count();
    ensure!(kept >= 2, "{running} became {kept}");
    Ok(())
}

/// Milliseconds after the request until the power is cut, and the target that is asked for, up and
/// down; the first waits for the answer. The seed is printed; `NODEAGENT_TESTS_SEED` repeats it.
fn cuts() -> Result<Vec<(u64, u32)>> {
    let seed = match std::env::var("NODEAGENT_TESTS_SEED") {
        Ok(seed) => seed.parse().context("NODEAGENT_TESTS_SEED is a number")?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("NODEAGENT_TESTS_SEED={seed}");
    // splitmix64
    let mut state: u64 = seed;
    let mut next = |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    };
    let mut cuts = vec![(60_000, 1)];
    let mut to = 1;
    for _ in 0..5 {
        // Another target than the one before, of 0 to 4: a warm one is there at once, cold ones
        // take two seconds.
        to = (to + 1 + next(4)) % 5;
        cuts.push((next(2500), u32::try_from(to)?));
    }
    Ok(cuts)
}

#[test]
#[ignore = "needs the virtual machine: make test-vm"]
fn what_was_acknowledged_is_there_after_every_power_cut() -> Result<()> {
    let mut vm = installed(1)?;
    for (number, (after, to)) in cuts()?.into_iter().enumerate() {
        let id = format!("cut-{number}");
        let verb = words_of("scale", to, &id);
        let order = vm.begin(&words(&verb))?;
        let acknowledged = vm.answer(order, Duration::from_millis(after))?;
        vm.power_cut()?;
        vm.power_on()?;
        let again = vm.ask(&words(&verb)).with_context(|| id.clone())?;
        let again = task(&again).with_context(|| vm.console(40))?;
        println!(
            "{id}: --to {to}, cut {} the answer; {again:?}",
            if acknowledged.is_some() {
                "after"
            } else {
                "before"
            }
        );
        if let Some(said) = acknowledged {
            let said = task(&said)?;
            ensure!(said.state == "done", "{said:?}");
            ensure!(
                again.replayed,
                "{said:?} was acknowledged, and is unknown: {again:?}"
            );
            assert_eq!(again.instances, said.instances);
        }
        assert_eq!((again.state.as_str(), again.target), ("done", to));
        let pool = wait_for_pool(&mut vm, to, 1).with_context(|| id.clone())?;
        assert_exactly(&mut vm, &pool, to as usize + 1)?;
    }
    Ok(())
}
