//! A virtual machine: Debian 12 with systemd as PID 1 and cgroup version 2, for what this machine
//! cannot show or must not suffer: reboots and power cuts.
//!
//! qemu emulates (no KVM). The disk is a layer over the one that `tests/peers/vm-image` makes, so
//! each machine begins fresh. A power cut is SIGKILL of qemu: what the guest has not flushed is
//! lost with the guest's memory, and with qemu's own tables of what was written where; what it has
//! flushed is there. Commands are run inside by the `vm-guest` over a virtio port; there is no
//! network to the outside. What the console shows is in `console.log` of the host's directory.

mod control;
mod payload;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::ground::Ground;
use crate::process::{Process, tail};
use control::Control;

pub use control::{Order, Said};
pub use payload::Payload;

/// Where the payload is mounted inside.
pub const PAYLOAD: &str = "/opt/payload";

/// From power on until commands are run, on a machine that emulates and is busy.
const BOOTS: Duration = Duration::from_secs(240);
/// How long one question may go unanswered while a machine boots.
const ASKED_AGAIN: Duration = Duration::from_secs(3);
/// Between two looks inside: each is a process, which costs an emulated machine much.
const LOOKS_AGAIN: Duration = Duration::from_millis(250);
/// How long a command may take that has no deadline of its own.
const RUNS: Duration = Duration::from_secs(300);
/// How long a machine may take to switch itself off.
const SWITCHES_OFF: Duration = Duration::from_secs(180);

/// `no_timer_check`: where the host is busy an emulated timer looks broken to the check.
const KERNEL: &str =
    "console=ttyS0 panic=1 quiet systemd.show_status=0 mitigations=off no_timer_check";

/// A machine. Dropped, it loses its power and its disk.
#[derive(Debug)]
pub struct Vm {
    // Fields are dropped in this order: the machine before the ground that it stands on.
    process: Option<Process>,
    control: Option<Control>,
    boot_id: String,
    disk: PathBuf,
    payload: PathBuf,
    image: PathBuf,
    ground: Ground,
}

impl Vm {
    /// A machine that has booted; `fill` adds to the payload what the test needs inside.
    pub fn boot(guest: &Path, fill: impl FnOnce(&Payload) -> Result<()>) -> Result<Self> {
        let ground = Ground::new()?;
        let image = crate::peers::cache().join("vm");
        let payload = Payload::new(&ground, guest)?;
        fill(&payload)?;
        let payload = payload.disk()?;
        let disk = ground.path("disk.qcow2");
        let base = image.join("root.img");
        ensure!(
            base.exists(),
            "{} is missing; run `make test-vm`, or tests/peers/vm-image",
            base.display()
        );
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&base, &disk])
            .output()
            .context("run qemu-img")?;
        ensure!(
            made.status.success(),
            "make {}: {}",
            disk.display(),
            String::from_utf8_lossy(&made.stderr)
        );
        let mut vm = Self {
            process: None,
            control: None,
            boot_id: String::new(),
            disk,
            payload,
            image,
            ground,
        };
        vm.power_on()?;
        Ok(vm)
    }

    /// Switches the machine on and waits until it runs commands.
    pub fn power_on(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the machine runs already");
        let port = self.ground.path("port");
        let drive = |file: &Path, more: &str| {
            format!("file={},if=virtio,cache=writeback,{more}", file.display())
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", "2048", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-nic", "none"])
            .arg("-kernel")
            .arg(self.image.join("kernel"))
            .arg("-initrd")
            .arg(self.image.join("initrd"))
            .args(["-append", KERNEL])
            .args(["-drive", &drive(&self.disk, "format=qcow2")])
            .args(["-drive", &drive(&self.payload, "format=raw,readonly=on")])
            .args(["-device", "virtio-serial", "-chardev"])
            .arg(format!(
                "socket,id=port,path={},server=on,wait=off",
                port.display()
            ))
            .args([
                "-device",
                "virtserialport,chardev=port,name=nodeagent-tests",
            ])
            .arg("-chardev")
            .arg(format!(
                "file,id=console,path={},append=on",
                self.ground.path("console.log").display()
            ))
            .args(["-serial", "chardev:console"]);
        // What a machine that lost its power left: one may listen there only once.
        let _ = std::fs::remove_file(&port);
        self.process = Some(Process::start(&self.ground, "qemu", qemu)?);
        self.wait_booted()
    }

    /// Cuts the power.
    pub fn power_cut(&mut self) -> Result<()> {
        self.control = None;
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Runs the command that reboots (`reboot`, `reboot -f`) and waits for the next boot.
    pub fn reboot(&mut self, words: &[&str]) -> Result<()> {
        self.begin(words)?;
        self.wait_booted()
    }

    /// Switches it off in order.
    pub fn power_off(&mut self) -> Result<()> {
        self.begin(&["systemctl", "poweroff"])?;
        self.control = None;
        if let Some(process) = &mut self.process {
            crate::wait::until("the machine to switch itself off", SWITCHES_OFF, || {
                Ok(match process.ended()? {
                    Some(_) => crate::wait::Look::Seen(()),
                    None => crate::wait::Look::NotYet("it runs".to_owned()),
                })
            })?;
        }
        self.process = None;
        Ok(())
    }

    /// Runs a command inside that has to succeed; its output.
    pub fn run(&mut self, words: &[&str]) -> Result<String> {
        self.ask(words)?
            .ok()
            .with_context(|| format!("inside: {}", words.join(" ")))
    }

    /// Runs a script of `sh` inside that has to succeed; its output.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        self.run(&["/bin/sh", "-euc", script])
    }

    /// Runs a command inside.
    pub fn ask(&mut self, words: &[&str]) -> Result<Said> {
        let id = self.begin(words)?;
        let said = self.answer(id, RUNS)?;
        said.with_context(|| format!("{} did not end within {RUNS:?}", words.join(" ")))
    }

    /// Begins a command inside; its number for [`answer`](Self::answer).
    pub fn begin(&mut self, words: &[&str]) -> Result<u64> {
        self.control
            .as_mut()
            .context("the machine is off")?
            .send(words)
    }

    /// How the command `id` ended, if it ends in time.
    pub fn answer(&mut self, id: u64, within: Duration) -> Result<Option<Said>> {
        let control = self.control.as_mut().context("the machine is off")?;
        control.answer(id, within)
    }

    /// Looks inside, by a script whose output `wanted` judges, until it is as wanted.
    pub fn until(
        &mut self,
        what: &str,
        within: Duration,
        script: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let begin = Instant::now();
        loop {
            let said = self.ask(&["/bin/sh", "-c", script])?;
            if said.code == Some(0) && wanted(&said.stdout) {
                return Ok(said.stdout);
            }
            ensure!(
                begin.elapsed() < within,
                "waited {within:?} for {what}; at the end: {}{}",
                said.stdout,
                said.stderr
            );
            std::thread::sleep(LOOKS_AGAIN);
        }
    }

    /// What the console showed last.
    pub fn console(&self, lines: usize) -> String {
        tail(&self.ground.path("console.log"), lines)
    }

    fn wait_booted(&mut self) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < BOOTS {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                bail!(
                    "qemu ended ({status}): {}{}",
                    process.tail(20),
                    self.console(20)
                );
            }
            if let Some(boot_id) = self.asked_for_boot_id()
                && boot_id != self.boot_id
            {
                self.boot_id = boot_id;
                return Ok(());
            }
        }
        bail!(
            "the machine did not boot within {BOOTS:?}:\n{}",
            self.console(40)
        )
    }

    /// The boot id, when something inside answers in time.
    fn asked_for_boot_id(&mut self) -> Option<String> {
        if self.control.is_none() {
            std::thread::sleep(Duration::from_millis(50));
            self.control = Control::connect(&self.ground.path("port")).ok();
        }
        let control = self.control.as_mut()?;
        let asked = control.send(&["cat", "/proc/sys/kernel/random/boot_id"]);
        match asked.and_then(|id| control.answer(id, ASKED_AGAIN)) {
            Ok(said) => Some(said?.stdout.trim().to_owned()),
            Err(_) => {
                // The port went away with the boot.
                self.control = None;
                None
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the console:\n{}", self.console(60));
        }
    }
}
