//! A cgroup of its own for each process that the plan gives limits, where ours is delegated: below
//! the container's, which is the root of what we see.
//!
//! ```text
//!   version 2    /sys/fs/cgroup/init (we)    /sys/fs/cgroup/p-NAME
//!   version 1    /sys/fs/cgroup/CONTROLLER/p-NAME, we stay where we are
//! ```
//! Made once, before any process of the container runs; a process enters its own before it gives up
//! its rights. Nobody removes them but who removes the container's.

use container_init::decimal;
use container_init::plan::{Limits, Plan, Process};
use core::ffi::CStr;

use super::lines;
use super::path::Path;
use super::say::{Number, say};
use super::sys::{self, Errno, Open};

const ROOT: &[u8] = b"/sys/fs/cgroup/";
/// Begins the name of a process's cgroup, so that it is no file of the kernel's.
pub const PREFIX: &[u8] = b"p-";
/// Controllers of version 1: whose limits there are, and what can freeze.
const CONTROLLERS: [&[u8]; 4] = [b"memory/", b"cpu/", b"pids/", b"freezer/"];
const SIGKILL: u8 = 9;
const SIGCONT: u8 = 18;
/// Longest path: root, controller, a name and the longest file.
const LENGTH: usize = 160;

/// Which hierarchy is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// Which processes have a cgroup of their own.
#[derive(Debug, Clone, Copy)]
pub struct Cgroups {
    version: Version,
    /// Bit n is process n.
    made: u16,
}

impl Cgroups {
    /// Makes what the plan wants; what cannot be made is said.
    pub fn make(plan: &Plan<'_>) -> Self {
        let version = match sys::open(c"/sys/fs/cgroup/cgroup.controllers", Open::Read) {
            Ok(_) => Version::Two,
            Err(_) => Version::One,
        };
        let mut cgroups = Self { version, made: 0 };
        if plan
            .processes
            .iter()
            .all(|process| process.limits.is_none())
        {
            return cgroups;
        }
        if let Err(errno) = cgroups.begin() {
            tell("the container", errno);
            return cgroups;
        }
        for (index, process) in plan.processes.iter().enumerate() {
            let Some(limits) = process.limits else {
                continue;
            };
            match cgroups.make_one(&process, limits) {
                Ok(()) => cgroups.made |= 1 << index,
                Err(errno) => tell(process.name, errno),
            }
        }
        cgroups
    }

    /// Whether this process has one.
    pub fn has(&self, index: usize) -> bool {
        self.made & (1 << index) != 0
    }

    /// Whether the process may run: without a cgroup it would have no limits.
    pub fn suffice(&self, index: usize, process: &Process<'_>) -> bool {
        let nothing = Limits {
            memory_bytes: 0,
            cpu_quota_us: 0,
            pids: 0,
        };
        self.has(index) || process.limits.is_none_or(|limits| limits == nothing)
    }

    /// Moves the calling process into the cgroup of `name`.
    pub fn enter(&self, name: &str) -> sys::Result<()> {
        self.each(name, b"/cgroup.procs", |path| write(path, b"0"))
    }

    /// Sends a signal to all in the cgroup of `name` once; whether there was anybody. What is frozen
    /// is thawed by KILL and by CONT, so that both have their effect.
    pub fn signal(&self, name: &str, signal: u8) -> sys::Result<bool> {
        if matches!(signal, SIGKILL | SIGCONT) {
            self.thaw(name).ok();
        }
        let directory = self.any();
        let members = path(&[directory, PREFIX, name.as_bytes(), b"/cgroup.procs"])?;
        let mut found = false;
        let mut each = |line: &[u8]| {
            // 0 is somebody of another pid namespace.
            if let Some(pid @ 1..) = decimal::parse::<i32>(line) {
                found = true;
                sys::kill(pid, signal).ok();
            }
        };
        lines::each(members.text(), &mut each)?;
        if found && signal == SIGKILL && self.version == Version::Two {
            // Nobody who forks meanwhile escapes it; before Linux 5.14 there is none.
            let kill = path(&[directory, PREFIX, name.as_bytes(), b"/cgroup.kill"])?;
            write(kill.text(), b"1").ok();
        }
        Ok(found)
    }

    fn thaw(&self, name: &str) -> sys::Result<()> {
        let (file, value): ([&[u8]; 4], &[u8]) = match self.version {
            Version::One => (
                [b"freezer/", PREFIX, name.as_bytes(), b"/freezer.state"],
                b"THAWED",
            ),
            Version::Two => ([b"", PREFIX, name.as_bytes(), b"/cgroup.freeze"], b"0"),
        };
        write(path(&file)?.text(), value)
    }

    /// The directory, below the root, of a hierarchy that everybody is in.
    fn any(&self) -> &'static [u8] {
        match self.version {
            Version::One => b"pids/",
            Version::Two => b"",
        }
    }

    /// We make room: in version 2 a cgroup with members has no controllers to give.
    fn begin(&self) -> sys::Result<()> {
        if self.version == Version::One {
            return Ok(());
        }
        make(c"/sys/fs/cgroup/init")?;
        write(c"/sys/fs/cgroup/init/cgroup.procs", b"0")?;
        for controller in [&b"+memory"[..], b"+cpu", b"+pids"] {
            // One that the host does not have: its limit will be refused.
            write(c"/sys/fs/cgroup/cgroup.subtree_control", controller).ok();
        }
        Ok(())
    }

    fn make_one(&self, process: &Process<'_>, limits: Limits) -> sys::Result<()> {
        self.each(process.name, b"", make)?;
        let number = |value: u64| Number::long(value);
        let (memory, quota, period, pids) = (
            number(limits.memory_bytes),
            number(limits.cpu_quota_us.into()),
            number(Limits::CPU_PERIOD_US.into()),
            number(limits.pids.into()),
        );
        let set = |controller: &[u8], file: &[u8], parts: &[&[u8]]| {
            let name = process.name.as_bytes();
            let directory: &[u8] = match self.version {
                Version::One => controller,
                Version::Two => b"",
            };
            let value = Path::<64>::of(parts).ok_or(Errno::ENAMETOOLONG)?;
            write(
                path(&[directory, PREFIX, name, file])?.text(),
                value.text().to_bytes(),
            )
        };
        let one = self.version == Version::One;
        if limits.memory_bytes != 0 {
            let file: &[u8] = if one {
                b"/memory.limit_in_bytes"
            } else {
                b"/memory.max"
            };
            set(b"memory/", file, &[memory.as_bytes()])?;
        }
        if limits.cpu_quota_us != 0 && one {
            set(b"cpu/", b"/cpu.cfs_period_us", &[period.as_bytes()])?;
            set(b"cpu/", b"/cpu.cfs_quota_us", &[quota.as_bytes()])?;
        } else if limits.cpu_quota_us != 0 {
            set(
                b"",
                b"/cpu.max",
                &[quota.as_bytes(), b" ", period.as_bytes()],
            )?;
        }
        if limits.pids != 0 {
            set(b"pids/", b"/pids.max", &[pids.as_bytes()])?;
        }
        Ok(())
    }

    /// Does it in each hierarchy where the process has a cgroup.
    fn each(
        &self,
        name: &str,
        file: &[u8],
        act: impl Fn(&CStr) -> sys::Result<()>,
    ) -> sys::Result<()> {
        let name = name.as_bytes();
        if self.version == Version::Two {
            return act(path(&[PREFIX, name, file])?.text());
        }
        for controller in CONTROLLERS {
            // A controller that is not there cannot limit; setting its limit tells.
            match act(path(&[controller, PREFIX, name, file])?.text()) {
                Err(Errno::ENOENT) => {}
                result => result?,
            }
        }
        Ok(())
    }
}

fn path(parts: &[&[u8]]) -> sys::Result<Path<LENGTH>> {
    let mut all = [&b""[..]; 5];
    all[0] = ROOT;
    for (room, part) in all.iter_mut().skip(1).zip(parts) {
        *room = part;
    }
    Path::of(&all).ok_or(Errno::ENAMETOOLONG)
}

fn make(directory: &CStr) -> sys::Result<()> {
    match sys::make_directory(directory) {
        // We were executed again in the same container.
        Err(Errno::EEXIST) => Ok(()),
        result => result,
    }
}

fn write(file: &CStr, value: &[u8]) -> sys::Result<()> {
    let file = sys::open(file, Open::Write)?;
    sys::pwrite(&file, value, 0).map(drop)
}

fn tell(whose: &str, errno: Errno) {
    say(&[
        whose.as_bytes(),
        b": no cgroup of its own: errno ",
        Number::new(errno.0).as_bytes(),
    ]);
}
