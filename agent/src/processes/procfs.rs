//! One process in `/proc` (proc(5)). Everything in there is the kernel's word, but names and
//! arguments are the process's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::time::{ClockId, clock_gettime};

/// Bytes of a command that are told.
const MAX_COMMAND: usize = 4096;
/// The kernel walks a process's page tables to add up its shares: after so long, the rest goes
/// without.
const SHARES_WITHIN: Duration = Duration::from_millis(500);

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Pid on the host.
    pub host_pid: u32,
    /// Pid in the container; `None` for one that is not (yet) in its pid namespace.
    pub pid: Option<u32>,
    /// Parent's pid on the host.
    pub host_parent: u32,
    /// Name of the program, as the kernel cuts it (15 bytes).
    pub name: String,
    /// Program and arguments; the name in brackets where there are none (zombies).
    pub command: String,
    /// What it does.
    pub state: RunState,
    /// Threads.
    pub threads: u32,
    /// Processor time, of user and system.
    pub cpu: Duration,
    /// Since its start.
    pub age: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Resident memory in bytes with what is shared divided among those who share it; `None` where
    /// it cannot be read, or not in time.
    pub proportional: Option<u64>,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Runs or could.
    Running,
    /// Waits for something, and hears signals.
    Sleeping,
    /// Waits for a device, and hears no signals.
    Waiting,
    /// Stopped, by a signal or a tracer.
    Stopped,
    /// Ended, and not yet collected by its parent.
    Zombie,
    /// A letter that this agent does not know.
    Other,
}

impl RunState {
    fn of(letter: &str) -> Self {
        match letter {
            "R" => Self::Running,
            "S" | "I" => Self::Sleeping,
            "D" | "K" | "W" | "P" => Self::Waiting,
            "T" | "t" => Self::Stopped,
            "Z" | "X" | "x" => Self::Zombie,
            _ => Self::Other,
        }
    }
}

/// The processes of these pids that are there, by pid; at most `most`.
pub fn look(pids: &BTreeSet<i32>, most: usize) -> Vec<Process> {
    let until = Instant::now() + SHARES_WITHIN;
    let units = Units::of_this_host();
    let pids = pids.iter().filter_map(|pid| u32::try_from(*pid).ok());
    pids.filter_map(|pid| {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let shares = Instant::now() < until;
        read(&directory, pid, &units, shares)
    })
    .take(most)
    .collect()
}

/// What the numbers of a `stat` are counted in.
struct Units {
    ticks: u64,
    page: u64,
    since_boot: Duration,
}

impl Units {
    fn of_this_host() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Self {
            ticks: clock_ticks_per_second().max(1),
            page: page_size() as u64,
            since_boot: Duration::new(seconds, nanos),
        }
    }

    fn time(&self, ticks: u64) -> Duration {
        Duration::from_millis(ticks.saturating_mul(1000) / self.ticks)
    }
}

/// `None` when it has ended.
fn read(directory: &Path, pid: u32, units: &Units, shares: bool) -> Option<Process> {
    let text = |name: &str| fs::read(directory.join(name)).ok();
    let stat = text("stat")?;
    let stat = String::from_utf8_lossy(&stat);
    let status = text("status")?;
    let proportional = if shares { text("smaps_rollup") } else { None };
    let (name, numbers) = split_stat(&stat)?;
    let at = |index: usize| numbers.get(index).and_then(|n| n.parse::<u64>().ok());
    // Counted from the state, which is field 3 of proc_pid_stat(5).
    let cpu = units.time(at(11)?.saturating_add(at(12)?));
    Some(Process {
        host_pid: pid,
        pid: inner_pid(&String::from_utf8_lossy(&status)),
        host_parent: u32::try_from(at(1)?).ok()?,
        command: command(&text("cmdline").unwrap_or_default(), name),
        name: name.to_owned(),
        state: RunState::of(numbers.first()?),
        threads: u32::try_from(at(17)?).unwrap_or(u32::MAX),
        cpu,
        age: units.since_boot.saturating_sub(units.time(at(19)?)),
        resident: at(21)?.saturating_mul(units.page),
        proportional: proportional.and_then(|text| shared(&String::from_utf8_lossy(&text))),
    })
}

/// The name in a `stat`, which may contain anything, and the fields behind it, from the state on
/// (field 3 of proc_pid_stat(5)).
pub fn split_stat(stat: &str) -> Option<(&str, Vec<&str>)> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    Some((name, rest.split_whitespace().collect()))
}

/// The `NSpid` line of a `status`: the process's numbers from the namespace of this procfs inwards
/// (proc_pid_status(5)).
pub fn nspid(status: &str) -> Option<&str> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))
}

/// The pid one namespace below the agent's, which is the container's.
fn inner_pid(status: &str) -> Option<u32> {
    nspid(status)?.split_whitespace().nth(1)?.parse().ok()
}

fn shared(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn command(cmdline: &[u8], name: &str) -> String {
    let cmdline = cmdline.get(..MAX_COMMAND).unwrap_or(cmdline);
    let words: Vec<_> = cmdline
        .split(|byte| *byte == 0)
        .map(String::from_utf8_lossy)
        .collect();
    match words.join(" ").trim_end() {
        "" => format!("[{name}]"),
        command => command.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_call_itself_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 1000 8192 25 1";
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("stat", stat);
        write("status", "Name:\ta) b (c\nNSpid:\t7\t3\t1\n");
        write("cmdline", "/bin/a\0--x\0\0");
        write(
            "smaps_rollup",
            "00-ff ---p\nRss:  100 kB\nPss:   40 kB\nPss_Dirty: 8 kB\n",
        );
        let units = Units {
            ticks: 100,
            page: 4096,
            since_boot: Duration::from_secs(30),
        };
        let expected = Process {
            host_pid: 7,
            pid: Some(3),
            host_parent: 1,
            name: "a) b (c".to_owned(),
            command: "/bin/a --x".to_owned(),
            state: RunState::Sleeping,
            threads: 3,
            cpu: Duration::from_secs(2),
            age: Duration::from_secs(20),
            resident: 25 * 4096,
            proportional: Some(40 * 1024),
        };
        assert_eq!(read(directory.path(), 7, &units, true), Some(expected));
        write("cmdline", "");
        write("status", "NSpid:\t7\n");
        let bare = read(directory.path(), 7, &units, false).unwrap();
        assert_eq!((bare.pid, bare.command.as_str()), (None, "[a) b (c]"));
        assert_eq!(bare.proportional, None);
        fs::remove_file(directory.path().join("stat")).unwrap();
        assert_eq!(read(directory.path(), 7, &units, true), None);
    }

    #[test]
    fn this_process_is_read_as_it_is() {
        let own = i32::try_from(std::process::id()).unwrap();
        let found = look(&BTreeSet::from([own, i32::MAX]), 10);
        let [process] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert!(process.threads >= 1 && process.resident > 0);
        assert!(process.age < Duration::from_secs(86_400) && process.cpu <= process.age * 64);
        assert!(
            process
                .proportional
                .is_some_and(|pss| pss <= process.resident * 2)
        );
        assert_eq!(look(&BTreeSet::from([own]), 0), []);
    }
}
