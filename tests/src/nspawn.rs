//! A machine with real systemd as PID 1: systemd-nspawn, on an overlay of the root that
//! `tests/peers/systemd-root` made.
//!
//! It has the network namespace of its [`Ground`], so that the ground's registry is its registry,
//! and lives in the ground's cgroup in every hierarchy, which is the root of what it sees: with the
//! ground it goes, also after a killed run. This kernel has cgroup v1 beside v2 ("hybrid"), and so
//! has the machine.

use std::ffi::CString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};

use crate::cli::Answer;
use crate::ground::Ground;
use crate::process::Process;
use crate::wait::{Look, until};

const BOOTS: Duration = Duration::from_secs(60);
/// A command in the machine that takes longer is ended (timeout(1), exit 124).
const COMMAND: Duration = Duration::from_secs(60);

/// Moves itself into the cgroup $1 of every hierarchy, then becomes the rest of its arguments.
const INTO_CGROUP: &str = r#"
group=$1; shift
for hierarchy in /sys/fs/cgroup/*/; do
    mkdir -p "$hierarchy$group"
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$hierarchy$group/$file" ] || cat "$hierarchy$file" >"$hierarchy$group/$file"
    done
    echo $$ >"$hierarchy$group/cgroup.procs"
done
exec "$@"
"#;

/// What systemd-nspawn mounts read-only, and runc has to write to.
const WRITABLE_CGROUPS: &str = r#"
mount | awk '$5 == "cgroup" { print $3 }' | while read -r point; do
    mount -o remount,bind,rw "$point"
done
"#;

/// A running machine. Dropped, it is killed.
#[derive(Debug)]
pub struct Machine {
    leader: u32,
    root: PathBuf,
    process: Process,
}

impl Machine {
    /// Boots one and waits until systemd has started everything.
    pub fn boot(ground: &Ground) -> Result<Self> {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/systemd-root");
        let made = Command::new(&made)
            .output()
            .with_context(|| format!("run {}", made.display()))?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let base = String::from_utf8(made.stdout).context("the root's path")?;
        let directory = overlay(ground, base.trim())?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-euc", INTO_CGROUP, "into-cgroup"])
            .arg(ground.cgroup_parent().trim_start_matches('/'))
            .args(["systemd-nspawn", "--quiet", "--boot", "--console=pipe"])
            .arg("--directory")
            .arg(&directory)
            .arg(format!("--machine=nodeagent-{}", ground.id()))
            // No machined and no unit outside: this machine has none.
            .args(["--register=no", "--keep-unit"])
            .arg(format!(
                "--network-namespace-path={}",
                ground.netns().file().display()
            ))
            // What containerd and runc need beyond a container's usual share.
            .args(["--capability=all", "--system-call-filter=@keyring bpf"])
            // Snapshots are overlays, which need something else than an overlay below them.
            .args(["--tmpfs=/var/lib/containerd", "--tmpfs=/tmp"])
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "0");
        let mut process = Process::start(ground, "machine", command)?;
        let leader = until("the machine's PID 1", BOOTS, || {
            if let Some(status) = process.ended()? {
                bail!("systemd-nspawn ended ({status}):\n{}", process.tail(20));
            }
            Ok(match leader(process.pid()) {
                Some(pid) => Look::Seen(pid),
                None => Look::NotYet("no init below systemd-nspawn".to_owned()),
            })
        })?;
        let machine = Self {
            leader,
            root: PathBuf::from(format!("/proc/{leader}/root")),
            process,
        };
        until("systemd to have started", BOOTS, || {
            let said = machine.run("systemctl is-system-running")?;
            Ok(match said.stdout.trim() {
                "running" => Look::Seen(()),
                other => Look::NotYet(format!("it is {other:?} {}", said.stderr)),
            })
        })
        .with_context(|| machine.failed_units())?;
        machine.sh(WRITABLE_CGROUPS)?;
        Ok(machine)
    }

    /// Runs a script by `sh -eu` in the machine, outside of every unit, as root.
    pub fn run(&self, script: &str) -> Result<Answer> {
        let output = Command::new("timeout")
            .args(["--kill-after=5", &COMMAND.as_secs().to_string()])
            .args(["nsenter", "--target", &self.leader.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["--root", "--wd", "--", "/bin/sh", "-euc", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .output()
            .context("run nsenter(1)")?;
        Ok(Answer {
            command: script.to_owned(),
            code: output
                .status
                .code()
                .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The same; it has to succeed. Returns what it printed, without the last newline.
    pub fn sh(&self, script: &str) -> Result<String> {
        let said = self.run(script)?.ok()?.stdout;
        Ok(said.trim_end().to_owned())
    }

    /// Runs the script again and again until it prints `wanted`.
    pub fn wait(&self, what: &str, within: Duration, script: &str, wanted: &str) -> Result<()> {
        until(what, within, || {
            let said = self.run(script)?;
            Ok(if said.stdout.trim_end() == wanted {
                Look::Seen(())
            } else {
                Look::NotYet(said.to_string())
            })
        })
    }

    /// Copies a file of this machine into that one.
    pub fn install(&self, file: &Path, to: &str, mode: u32) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let place = self.path(to);
        if let Some(directory) = place.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        // A program that runs cannot be written; its name can be given to another file.
        let fresh = place.with_extension("fresh");
        fs::copy(file, &fresh)
            .with_context(|| format!("copy {} to {}", file.display(), fresh.display()))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))
            .with_context(|| format!("set the mode of {}", fresh.display()))?;
        fs::rename(&fresh, &place).with_context(|| format!("rename to {}", place.display()))
    }

    /// Where an absolute path of the machine is from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The journal of a unit, for the report of a failure.
    pub fn journal(&self, unit: &str) -> String {
        let script = format!("journalctl --no-pager --lines=60 --unit={unit}");
        match self.run(&script) {
            Ok(said) => said.stdout,
            Err(error) => format!("{error:#}"),
        }
    }

    /// Whether the machine has ended by itself (after `systemctl poweroff`).
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_some())
    }

    fn failed_units(&self) -> String {
        let said = self.run("systemctl --failed --no-legend --plain; systemctl list-jobs");
        said.map_or_else(|error| format!("{error:#}"), |said| said.stdout)
    }
}

/// The root that machines share, with what this one writes above it, in memory.
fn overlay(ground: &Ground, base: &str) -> Result<PathBuf> {
    let memory = ground.path("machine");
    fs::create_dir(&memory).with_context(|| format!("create {}", memory.display()))?;
    let flags = MountFlags::empty();
    mount("tmpfs", &memory, "tmpfs", flags, Some(c"mode=0755,size=1g"))
        .with_context(|| format!("mount a tmpfs at {}", memory.display()))?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| memory.join(name));
    for directory in [&upper, &work, &root] {
        fs::create_dir(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let options = format!(
        "lowerdir={base},upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    let options = CString::new(options).context("options of a mount")?;
    mount("overlay", &root, "overlay", flags, Some(options.as_c_str()))
        .with_context(|| format!("mount an overlay at {}", root.display()))?;
    Ok(root)
}

/// The init of the container whose systemd-nspawn is `pid`.
fn leader(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .find(|child: &u32| {
            let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            let is = |line: &str| line == "Name:\tsystemd";
            let init = |line: &str| line.starts_with("NSpid:") && line.ends_with("\t1");
            status.lines().any(is) && status.lines().any(init)
        })
}
