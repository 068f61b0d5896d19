//! The agent as a service of real systemd, in a machine of its own (systemd-nspawn) with real
//! containerd and runc in it: tier `test-systemd`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::cli::{container_init, nodeagent};
use nodeagent_tests::documents::{Pool, Status, Task};
use nodeagent_tests::nspawn::Machine;
use nodeagent_tests::registry::Registry;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Ground, Image, Manifest, http};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
/// Where the sources are in the machine.
const SOURCES: &str = "/root/nodeagent";

/// Short waits; clients of the tests reach instances at their own addresses.
const SETTINGS: &str =
    "[discovery.file]\npropagation_bound = \"100ms\"\n[network]\nreachable = true\n";

/// A machine with the agent installed as docs/operations/install.md says.
struct Host {
    // Dropped in this order.
    machine: Machine,
    registry: Registry,
    // What both stand on.
    ground: Ground,
}

impl Host {
    /// A machine with the built files in place, as a checkout has them, and nothing installed.
    fn bare() -> Result<Self> {
        let ground = Ground::new()?;
        let registry = Registry::start(&ground)?;
        let machine = Machine::boot(&ground)?;
        let built = [
            (nodeagent()?, "target/release/nodeagent"),
            (
                container_init()?,
                "target/x86_64-unknown-linux-gnu/init/container-init",
            ),
        ];
        for (file, place) in built {
            machine.install(&file, &format!("{SOURCES}/{place}"), 0o755)?;
        }
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/units");
        for unit in fs::read_dir(&units)?.flatten() {
            let name = unit.file_name();
            let place = format!("{SOURCES}/systemd/units/{}", name.to_string_lossy());
            machine.install(&unit.path(), &place, 0o644)?;
        }
        Ok(Self {
            machine,
            registry,
            ground,
        })
    }

    /// With the agent installed and configured for short waits; not started.
    fn installed() -> Result<Self> {
        let host = Self::bare()?;
        let page = page("install.md")?;
        let install = blocks(&page, "## Install");
        // The last block of the section starts it.
        for block in &install[..install.len() - 1] {
            host.machine.sh(&format!("cd {SOURCES}\n{block}"))?;
        }
        host.configure(SETTINGS)?;
        Ok(host)
    }

    fn configure(&self, text: &str) -> Result<()> {
        let directory = self.machine.path("/etc/nodeagent/config.d");
        fs::create_dir_all(&directory)?;
        fs::write(
            directory.join("50-test.toml"),
            format!("version = 1\n{text}"),
        )?;
        Ok(())
    }

    /// Adds options to the service.
    fn drop_in(&self, text: &str) -> Result<()> {
        let directory = self.machine.path("/etc/systemd/system/nodeagent.service.d");
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("50-test.conf"), text)?;
        self.machine.sh("systemctl daemon-reload").map(drop)
    }

    fn start(&self) -> Result<()> {
        self.sh("systemctl enable --now nodeagent.socket nodeagent.service")
            .map(drop)
    }

    /// A script in the machine; when it fails, the agent's journal is part of the report.
    fn sh(&self, script: &str) -> Result<String> {
        let done = self.machine.sh(script);
        done.with_context(|| self.machine.journal("nodeagent"))
    }

    /// The web app with `armed` warm instances, all there.
    fn warm_web(&self, armed: u32) -> Result<()> {
        Image::web()?.push(&self.registry, "web:1")?;
        let manifest = Manifest::web("web").armed(armed).text();
        fs::write(self.machine.path("/root/web.yaml"), manifest)?;
        self.sh("nodeagent app apply -f /root/web.yaml")?;
        self.wait_for_pool("armed", |pool| pool.armed == armed && pool.arming == 0)
            .map(drop)
    }

    fn activate(&self, to: u32, task: &str) -> Result<Task> {
        let said = self.sh(&format!(
            "nodeagent activate web --to {to} --task-id {task} -o json"
        ))?;
        serde_json::from_str(&said).with_context(|| format!("read {said}"))
    }

    fn wait_for_pool(&self, what: &str, wanted: impl Fn(&Pool) -> bool) -> Result<Pool> {
        let seen = until(&format!("the pool to be {what}"), SOON, || {
            let said = self.machine.run("nodeagent status -o json")?;
            let status: Status = match serde_json::from_str(&said.stdout) {
                Ok(status) => status,
                Err(_) => return Ok(Look::NotYet(said.to_string())),
            };
            let pool = status.pools.iter().find(|pool| pool.app == "web");
            Ok(match pool {
                Some(pool) if wanted(pool) => Look::Seen(pool.clone()),
                _ => Look::NotYet(said.stdout),
            })
        });
        seen.with_context(|| self.machine.journal("nodeagent"))
    }

    fn main_pid(&self) -> Result<u32> {
        let pid = self
            .machine
            .sh("systemctl show -P MainPID nodeagent.service")?;
        pid.parse().with_context(|| format!("a pid, not {pid:?}"))
    }

    /// Every container's first process and when it started: no container was restarted as long as
    /// this stays.
    fn inits(&self) -> Result<String> {
        self.machine
            .sh("for task in $(ctr -n nodeagent tasks list -q | sort); do
                pid=$(ctr -n nodeagent tasks list | awk -v task=$task '$1 == task { print $2 }')
                echo $task $pid $(cut -d ' ' -f 22 /proc/$pid/stat)
            done")
    }
}

fn page(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations");
    let path = path.join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The commands that a page names within a line, and those of its shell blocks; each once.
fn commands(page: &str) -> BTreeSet<String> {
    let programs = ["nodeagent ", "systemctl ", "journalctl "];
    let named = page
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    let named = named.filter(|text| programs.iter().any(|program| text.starts_with(program)));
    let blocks = blocks(page, "");
    let listed = blocks.iter().flat_map(|block| block.lines());
    named.chain(listed).map(str::to_owned).collect()
}

/// The shell blocks of a section (`## Name`), in order; of the whole page when it is empty.
fn blocks(page: &str, section: &str) -> Vec<String> {
    let part = match page.split_once(&format!("{section}\n")) {
        Some((_, rest)) if !section.is_empty() => rest.split("\n## ").next().unwrap_or(rest),
        _ => page,
    };
    let blocks = part.split("```sh\n").skip(1);
    blocks
        .filter_map(|block| Some(block.split_once("```")?.0.to_owned()))
        .collect()
}

#[test]
#[ignore = "boots systemd: make test-systemd"]
fn every_command_of_the_install_page_works_in_its_order() -> Result<()> {
    let host = Host::bare()?;
    let page = page("install.md")?;
    let blocks = blocks(&page, "");
    ensure!(blocks.len() >= 8, "only {} blocks", blocks.len());
    for block in &blocks {
        // Line by line: each has to succeed, and the failing one is named.
        for line in block.lines() {
            host.sh(&format!("cd {SOURCES}\n{line}"))?;
        }
    }
    let left = host.machine.sh(
        "ls -d /usr/bin/nodeagent /usr/lib/nodeagent /var/lib/nodeagent /run/nodeagent /etc/systemd/system/nodeagent* 2>/dev/null || true",
    )?;
    assert_eq!(left, "");
    Ok(())
}

#[test]
#[ignore = "boots systemd: make test-systemd"]
fn every_command_of_the_configuration_and_troubleshooting_pages_works() -> Result<()> {
    let host = Host::installed()?;
    host.start()?;
    host.warm_web(1)?;
    host.activate(1, "first")?;
    let mut count = 0;
    for name in ["configuration.md", "troubleshooting.md"] {
        for command in commands(&page(name)?) {
            if command == "nodeagent run" {
                // It is what the service does.
                continue;
            }
            let command = command
                .replace("APP", "web")
                .replace("TASK", "first")
                .replace("INSTANCE", "web-0");
            // A check says by its code that something works in part only.
            let code = if command == "nodeagent check" {
                "[ $? = 8 ]"
            } else {
                "false"
            };
            let said = host.sh(&format!("{command} || {code}"));
            let said = said.with_context(|| format!("{name}: {command}"))?;
            let quiet = [
                "nodeagent logs web-0",
                "systemctl start nodeagent.socket nodeagent.service",
            ];
            ensure!(
                !said.is_empty() || quiet.contains(&command.as_str()),
                "{name}: {command} says nothing"
            );
            host.wait_for_pool("as before", |pool| pool.active == 1 && pool.armed == 1)?;
            count += 1;
        }
    }
    ensure!(count >= 15, "only {count} commands");
    Ok(())
}

#[test]
#[ignore = "boots systemd: make test-systemd"]
fn a_restart_refuses_no_client_and_disturbs_no_container() -> Result<()> {
    let host = Host::installed()?;
    host.start()?;
    assert_eq!(host.sh("systemctl is-active nodeagent")?, "active");
    // Links and mounts that the agent makes are containerd's to see.
    let namespaces =
        host.sh("readlink /proc/1/ns/mnt /proc/$(systemctl show -P MainPID nodeagent)/ns/mnt")?;
    let namespaces: Vec<&str> = namespaces.lines().collect();
    assert_eq!(namespaces.first(), namespaces.last());
    assert_eq!(
        host.sh("systemctl show -P NFileDescriptorStore nodeagent")?,
        "1"
    );

    host.warm_web(2)?;
    let task = host.activate(1, "first")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 1));
    host.machine.wait(
        "the sentence of systemctl status",
        SOON,
        "systemctl show -P StatusText nodeagent",
        "1 app: 1 active, 2 armed",
    )?;
    let inits = host.inits()?;
    assert_eq!(inits.lines().count(), 3, "{inits}");

    // A client that asks over and over; one refusal ends it. A question that was read before the
    // agent ended may be broken off.
    let asked = host.sh(
        "rm -f /tmp/stop
        ( asked=0
          while [ ! -e /tmp/stop ]; do
              nodeagent status >/tmp/answer 2>&1 || grep -q 'broke off' /tmp/answer || { cat /tmp/answer; exit 1; }
              asked=$((asked + 1))
          done
          echo $asked ) >/tmp/asked & client=$!
        for n in 1 2 3; do systemctl restart nodeagent; done
        systemctl kill --signal=KILL nodeagent
        until [ \"$(systemctl show -P NRestarts nodeagent)\" -ge 1 ] && systemctl is-active --quiet nodeagent; do sleep 0.1; done
        touch /tmp/stop
        wait $client || { cat /tmp/asked; exit 1; }
        cat /tmp/asked",
    )?;
    let asked: u32 = asked.parse().with_context(|| asked.clone())?;
    ensure!(asked > 3, "asked only {asked} times");
    host.wait_for_pool("as before", |pool| pool.active == 1 && pool.armed == 2)?;
    assert_eq!(host.inits()?, inits, "containers and their first processes");

    // Stopped in the middle of a task: the containers stay, the task goes on at the next start.
    let stopped = host.sh(
        "until nodeagent activate web --to 6 --task-id interrupted --timeout 0s >/tmp/out 2>&1 || [ $? = 6 ]; do
            # Not durable yet when the wait ended: asked again, as the answer says.
            grep -q 'is not durable yet' /tmp/out || { cat /tmp/out >&2; exit 1; }
        done
        systemctl stop nodeagent.socket nodeagent.service
        systemctl is-active nodeagent || true",
    )?;
    assert_eq!(stopped, "inactive");
    let still = host.inits()?;
    for init in inits.lines() {
        ensure!(still.contains(init), "{init} is gone:\n{still}");
    }
    host.sh("systemctl start nodeagent.socket nodeagent.service")?;
    host.wait_for_pool("at its target", |pool| pool.active == 6)?;
    let trace = host.sh("nodeagent trace interrupted")?;
    ensure!(trace.contains("done"), "{trace}");

    host.sh("nodeagent deactivate web --to 0 && nodeagent app delete web")?;
    Ok(())
}

#[test]
#[ignore = "boots systemd: make test-systemd"]
fn a_stopped_process_is_found_by_the_watchdog_and_a_refused_configuration_is_not_tried_again()
-> Result<()> {
    let host = Host::installed()?;
    host.drop_in("[Service]\nWatchdogSec=8s\n")?;
    host.start()?;
    let before = host.main_pid()?;
    // Longer than the watchdog waits: an agent that is well is left alone.
    host.sh("sleep 16")?;
    assert_eq!(
        host.main_pid()?,
        before,
        "{}",
        host.machine.journal("nodeagent")
    );

    host.sh(&format!("kill -STOP {before}"))?;
    until("another main process", 2 * SOON, || {
        let now = host.main_pid()?;
        let active = host.machine.run("systemctl is-active nodeagent")?;
        Ok(
            if now != before && now != 0 && active.stdout.trim() == "active" {
                Look::Seen(())
            } else {
                Look::NotYet(format!("pid {now}, {}", active.stdout))
            },
        )
    })?;
    let journal = host.machine.journal("nodeagent");
    ensure!(journal.contains("Watchdog timeout"), "{journal}");
    host.sh("nodeagent status")?;

    host.configure("[network]\nmtu = 1\n")?;
    host.machine.run("systemctl restart nodeagent")?;
    host.machine.wait(
        "the unit to have failed",
        SOON,
        "systemctl is-active nodeagent || true",
        "failed",
    )?;
    assert_eq!(host.sh("systemctl show -P ExecMainStatus nodeagent")?, "3");
    let journal = host.machine.journal("nodeagent");
    ensure!(
        journal.contains("network.mtu: 1 is not allowed"),
        "{journal}"
    );
    Ok(())
}

/// What systemd says of the scope.
const SCOPE: &str = "nodeagent-instances.scope";

#[test]
#[ignore = "boots systemd: make test-systemd"]
fn containers_live_in_a_delegated_scope_that_survives_the_agent() -> Result<()> {
    let host = Host::installed()?;
    host.start()?;
    host.warm_web(2)?;
    let shown = host.sh(&format!(
        "for name in ActiveState Delegate Slice ControlGroup; do systemctl show -P $name {SCOPE}; done"
    ))?;
    assert_eq!(
        shown,
        format!("active\nyes\nsystem.slice\n/system.slice/{SCOPE}")
    );
    // The first processes of the containers with their apps at the gate, the shims and the holder;
    // in the tree that systemd looks at, each in a group of its own.
    let members = host.sh(&format!(
        "cd /sys/fs/cgroup/systemd/system.slice/{SCOPE}
        for group in *.g* holder shims; do echo $group $(wc -l <$group/cgroup.procs); done
        cat cgroup.procs | wc -l"
    ))?;
    assert_eq!(members, "web-0.g1 2\nweb-1.g1 2\nholder 1\nshims 2\n0");
    let holder = format!("cat /sys/fs/cgroup/systemd/system.slice/{SCOPE}/holder/cgroup.procs");
    let (inits, holding) = (host.inits()?, host.sh(&holder)?);

    host.sh("systemctl restart nodeagent")?;
    host.sh("systemctl kill --signal=KILL nodeagent")?;
    host.wait_for_pool("back", |pool| pool.armed == 2 && pool.arming == 0)?;
    host.sh("systemctl stop nodeagent.socket nodeagent.service")?;
    assert_eq!(host.sh(&format!("systemctl is-active {SCOPE}"))?, "active");
    assert_eq!(host.inits()?, inits);
    host.sh("systemctl start nodeagent.socket nodeagent.service")?;
    host.wait_for_pool("back", |pool| pool.armed == 2 && pool.arming == 0)?;
    assert_eq!(host.sh(&holder)?, holding, "a second scope was made");
    host.sh("nodeagent app delete web")?;
    Ok(())
}

#[test]
#[ignore = "boots systemd: make test-systemd"]
fn within_the_sandbox_of_the_unit_every_kind_of_file_is_opened() -> Result<()> {
    let host = Host::installed()?;
    host.configure(&format!(
        "{SETTINGS}[volumes]\nallowed_host_paths = [\"/srv\"]\n[security]\nallowed_env_file_paths = [\"/srv\"]\n"
    ))?;
    host.sh(
        "mkdir -p /srv/share /etc/nodeagent/secrets /etc/nodeagent/seccomp
        echo shared >/srv/share/note
        echo 'FROM_FILE=a file' >/srv/web.env
        (umask 077 && echo secret >/etc/nodeagent/secrets/key)
        echo '{\"defaultAction\": \"SCMP_ACT_ALLOW\"}' >/etc/nodeagent/seccomp/all.json",
    )?;
    host.start()?;
    Image::web()?.push(&host.registry, "web:1")?;
    let script = "{ id -un; cat /share/note /run/secrets/key; echo $FROM_FILE; touch /data/mine && echo mine; } \
                  >/data/index.html 2>&1; cat /data/index.html; exec httpd -f -p 8080 -h /data";
    let manifest = Manifest::script("web", script)
        .armed(1)
        .with("user", json!("web"))
        .with("envFrom", json!([{"envFile": {"path": "/srv/web.env"}}]))
        .with(
            "securityContext",
            json!({
                "fsGroup": 1000,
                "seccompProfile": {"type": "Localhost", "localhostProfile": "all.json"},
            }),
        )
        .with(
            "volumes",
            json!([
                {"name": "share", "hostPath": {"path": "/srv/share", "type": "Directory"}},
                {"name": "data", "instanceDirectory": {}},
            ]),
        )
        .with(
            "volumeMounts",
            json!([
                {"name": "share", "mountPath": "/share", "readOnly": true},
                {"name": "data", "mountPath": "/data"},
            ]),
        )
        .with(
            "secretFiles",
            json!([
                {"name": "key", "source": "/etc/nodeagent/secrets/key", "mode": "0440"},
            ]),
        );
    fs::write(host.machine.path("/root/web.yaml"), manifest.text())?;
    host.sh("nodeagent app apply -f /root/web.yaml")?;
    host.wait_for_pool("armed", |pool| pool.armed == 1)?;
    let task = host.activate(1, "in")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 1));
    let told = "web\nshared\nsecret\na file\nmine";
    assert_eq!(host.sh("nodeagent logs web-0")?, told);
    assert_eq!(host.sh("nodeagent exec web-0 cat /data/index.html")?, told);
    host.sh("nodeagent deactivate web --to 0 && nodeagent app delete web")?;
    Ok(())
}

#[test]
#[ignore = "boots systemd: make test-systemd"]
fn without_d_bus_the_agent_works_and_says_where_containers_are() -> Result<()> {
    let host = Host::installed()?;
    host.sh("systemctl mask --now dbus.socket dbus.service")?;
    host.start()?;
    host.warm_web(1)?;
    let task = host.activate(1, "first")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 1));
    let journal = host.machine.journal("nodeagent");
    ensure!(
        journal.contains("containers live below runtime.cgroup_parent, not in a scope of systemd"),
        "{journal}"
    );
    host.sh("ls -d /sys/fs/cgroup/pids/nodeagent/web-0.g1")?;
    host.sh("nodeagent deactivate web --to 0 && nodeagent app delete web")?;
    Ok(())
}

#[test]
#[ignore = "boots systemd: make test-systemd"]
fn a_shutdown_of_the_host_waits_until_clients_could_notice_and_not_longer() -> Result<()> {
    const BOUND: Duration = Duration::from_secs(3);
    let mut host = Host::installed()?;
    host.configure("[discovery.file]\npropagation_bound = \"3s\"\n[network]\nreachable = true\n")?;
    host.start()?;
    // Taken beside the start, which does not wait for D-Bus.
    until("the shutdown to be held", SOON, || {
        let held = host.sh("systemd-inhibit --list --no-legend --no-pager")?;
        Ok(match held.contains("nodeagent") && held.contains("delay") {
            true => Look::Seen(()),
            false => Look::NotYet(format!("inhibitors: {held:?}")),
        })
    })?;
    Image::web()?.push(&host.registry, "web:1")?;
    let manifest = Manifest::web("web").with("drainSeconds", serde_json::json!(3));
    fs::write(host.machine.path("/root/web.yaml"), manifest.text())?;
    host.sh("nodeagent app apply -f /root/web.yaml")?;
    let task = host.activate(1, "first")?;
    let address = nodeagent_tests::host::address_of(&task.instances[0])?;
    let discovered = host
        .machine
        .path("/run/nodeagent/discovery/prometheus.json");
    let targets = || -> Result<usize> {
        let text = fs::read_to_string(&discovered)?;
        Ok(nodeagent_tests::leaks::targets(&serde_json::from_str(&text)?).len())
    };
    assert_eq!(targets()?, 1);

    host.sh("systemctl poweroff --no-wall")?;
    until("the registration to be withdrawn", SOON, || {
        Ok(match targets()? {
            0 => Look::Seen(()),
            more => Look::NotYet(format!("{more} are registered")),
        })
    })?;
    let withdrawn = std::time::Instant::now();
    // Clients that have not noticed yet are still served.
    let page = http::get(host.ground.netns(), address, "/")?;
    assert_eq!(page.status, 200);
    until("the machine to be off", 2 * SOON, || {
        Ok(if host.machine.ended()? {
            Look::Seen(())
        } else {
            Look::NotYet("it runs".to_owned())
        })
    })?;
    let took = withdrawn.elapsed();
    ensure!(
        took > BOUND - Duration::from_millis(500),
        "off after {took:?}"
    );
    Ok(())
}
