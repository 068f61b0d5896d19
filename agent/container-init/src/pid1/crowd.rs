//! Who belongs to whom among the processes of the container, by /proc.
//!
//! Every process of the plan leads a session. What belongs to an in-container agent is its session;
//! what belongs to the app is all that is not an agent's, by session or by descent, so that nothing
//! of the app escapes by a session of its own. Without a pid namespace of ours only what descends
//! from us is looked at. Without /proc nobody can be told apart, and that is said.

use container_init::decimal;
use container_init::plan::MAX_PROCESSES;
use container_init::procfs::Stat;

use super::path::Path;
use super::say::Number;
use super::sys::{self, Entries, Errno, Fd, Open};

const SIGKILL: u8 = 9;
/// The longest line of descent that is followed.
const GENERATIONS: usize = 64;

/// Whether all processes that we see are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// We are pid 1 of a pid namespace: everything in it is our own.
    Namespace,
    /// We only adopt orphans: strangers are left alone.
    Subreaper,
}

/// Which processes are meant.
#[derive(Clone, Copy)]
pub enum Whose {
    /// The session that this pid made, and no other.
    Session(u32),
    /// All but what belongs to agents with these pids; 0 is nobody's.
    AllButAgents([u32; MAX_PROCESSES]),
    /// All that descends from us.
    Everybody,
}

/// Sends `signal` to all of them once; whether there was any. `ENOENT` where there is no /proc.
pub fn signal(whose: Whose, scope: Scope, signal: u8) -> sys::Result<bool> {
    let alone = matches!(whose, Whose::AllButAgents(agents) if agents.iter().all(|pid| *pid == 0));
    if scope == Scope::Namespace && alone && signal == SIGKILL {
        // Nobody else is there: the kernel finds all of them at once, whatever /proc shows.
        return match sys::kill_anyone(-1, signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => Err(errno),
        };
    }
    let proc = sys::open(c"/proc", Open::Read)?;
    let us = sys::getpid();
    let mut found = false;
    let mut seen_us = false;
    let mut entries = Entries::new();
    while sys::read_entries(&proc, &mut entries, |name| {
        let Some(pid) = decimal::parse::<u32>(name.to_bytes()) else {
            return;
        };
        seen_us |= pid == us;
        if pid != us && is_meant(&proc, pid, whose, scope, us) {
            found |= send(&proc, pid, whose, scope, us, signal);
        }
    })? {}
    // A /proc of another pid namespace, or none at all: it proves nothing.
    if seen_us {
        Ok(found)
    } else {
        Err(Errno::ENOENT)
    }
}

/// Held by a pidfd and looked at again, so that no later process of the same pid is hit; by pid where
/// a kernel or a filter has no pidfds.
fn send(proc: &Fd, pid: u32, whose: Whose, scope: Scope, us: u32, signal: u8) -> bool {
    let sent = match sys::pidfd(pid) {
        Ok(held) if is_meant(proc, pid, whose, scope, us) => sys::kill_held(&held, signal),
        Err(Errno::ESRCH) | Ok(_) => return false,
        Err(_) => sys::kill(pid.cast_signed(), signal),
    };
    sent.is_ok() || signal == SIGKILL
}

fn is_meant(proc: &Fd, pid: u32, whose: Whose, scope: Scope, us: u32) -> bool {
    let Some(stat) = stat(proc, pid).filter(|stat| !stat.has_ended()) else {
        return false;
    };
    let ours = scope == Scope::Namespace || descends(proc, stat, |ancestor| ancestor == us);
    ours && match whose {
        Whose::Session(session) => stat.session == session,
        Whose::Everybody => true,
        Whose::AllButAgents(agents) => {
            let is_agent = |pid: u32| pid != 0 && agents.contains(&pid);
            !is_agent(pid) && !is_agent(stat.session) && !descends(proc, stat, is_agent)
        }
    }
}

/// Whether one of its ancestors is such a process.
fn descends(proc: &Fd, stat: Stat, is_it: impl Fn(u32) -> bool) -> bool {
    let mut parent = stat.parent;
    for _ in 0..GENERATIONS {
        if is_it(parent) {
            return true;
        }
        match self::stat(proc, parent) {
            Some(stat) if stat.parent != 0 => parent = stat.parent,
            _ => return false,
        }
    }
    false
}

fn stat(proc: &Fd, pid: u32) -> Option<Stat> {
    let digits = Number::new(pid.cast_signed());
    let path = Path::<24>::of(&[digits.as_bytes(), b"/stat"])?;
    let file = sys::open_at(proc, path.text()).ok()?;
    let mut line = [0; 512];
    let length = sys::read(&file, &mut line).ok()?;
    Stat::parse(line.get(..length)?)
}
