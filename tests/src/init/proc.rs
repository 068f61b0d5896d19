//! What proc(5) says of processes.

use std::fs;

use anyhow::{Context, Result};

/// A process as its parent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildOf {
    /// Pid, outside.
    pub pid: u32,
    /// Ended and not reaped.
    pub zombie: bool,
}

/// The children of a process, in the order of their start.
pub fn children(parent: u32) -> Result<Vec<ChildOf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // One that has gone meanwhile is nobody's child.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // Field 2 is the name in parentheses and may contain anything (proc_pid_stat(5)).
        let Some((_, after_name)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let [state, ppid, ..] = fields[..] else {
            continue;
        };
        if ppid.parse() == Ok(parent) {
            let started: u64 = fields.get(19).and_then(|t| t.parse().ok()).unwrap_or(0);
            let zombie = state == "Z";
            found.push(((started, pid), ChildOf { pid, zombie }));
        }
    }
    found.sort_by_key(|(order, _)| *order);
    Ok(found.into_iter().map(|(_, child)| child).collect())
}

/// Memory that only this process has, in KiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Private {
    /// As it is in its file.
    pub clean: f64,
    /// Written to.
    pub dirty: f64,
}

impl Private {
    /// Both.
    pub fn all(self) -> f64 {
        self.clean + self.dirty
    }
}

/// Private memory of a process (`smaps_rollup` of proc_pid_smaps(5)).
pub fn private(pid: u32) -> Result<Private> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("no {name} in {file}"))
    };
    Ok(Private {
        clean: field("Private_Clean:")?,
        dirty: field("Private_Dirty:")?,
    })
}
