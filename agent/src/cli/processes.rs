//! `nodeagent processes`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use clap::Args;

use super::size::size;
use super::table::{Align, Table, plain};
use super::{Options, Report};
use crate::api::v1::{
    InstanceMemory, Process, ProcessExit, ProcessList, SupervisedProcess, SupervisedState,
};

const EXAMPLES: &str = "\
Examples:
  nodeagent processes web-0
  nodeagent ps web-0 -o json | jq '.processes[] | {program, pssBytes}'
  nodeagent ps web-0 --wide

The processes of the manifest have their name, whether they run or not, and the state that
container-init tells; what they have started hangs below them. CPU% is processor time over the whole
life of a process, in per cent of one core. MEMORY is resident memory with what is shared divided
among those who share it; where that cannot be read, all that is resident, marked with *.";

/// Characters of a command without --wide.
const COMMAND: usize = 40;

/// Show what runs in an instance: its processes as a tree, with state, restarts, cpu and memory
#[derive(Debug, Args)]
#[command(visible_alias = "ps", after_long_help = EXAMPLES)]
pub(super) struct Processes {
    /// Name of the instance, as in status: web-0
    instance: String,
    /// Commands in full
    #[arg(short, long)]
    wide: bool,
}

impl Processes {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        match options.client().processes(&self.instance).await {
            Ok(list) => Report::document(options.output, &list, || text(&list, self.wide)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn text(list: &ProcessList, wide: bool) -> String {
    let mut table = Table::new([
        ("PROCESS", Align::Left),
        ("STATE", Align::Left),
        ("RESTARTS", Align::Right),
        ("LAST EXIT", Align::Left),
        ("PID", Align::Right),
        ("HOST PID", Align::Right),
        ("AGE", Align::Right),
        ("CPU", Align::Right),
        ("CPU%", Align::Right),
        ("MEMORY", Align::Right),
        ("THREADS", Align::Right),
        ("COMMAND", Align::Left),
    ]);
    for branch in branches(list) {
        table.row(branch.cells(wide));
    }
    let mut text = table.without_empty("LAST EXIT").render();
    if list.omitted > 0 {
        let _ = writeln!(text, "and {} more", list.omitted);
    }
    if list.frozen {
        text.push_str(
            "frozen: container-init cannot tell which of them are the manifest's, and how they are\n",
        );
    }
    if let Some(memory) = &list.memory {
        text.push_str(&footer(memory));
    }
    text
}

/// A line of the tree: a process, one of the manifest's, or both in one.
struct Branch<'a> {
    /// `│  ├─ `.
    lines: String,
    process: Option<&'a Process>,
    supervised: Option<&'a SupervisedProcess>,
}

/// The tree's lines from the top. What is of the manifest and does not run hangs where it would.
fn branches(list: &ProcessList) -> Vec<Branch<'_>> {
    let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    let known: BTreeSet<u32> = list.processes.iter().map(|p| p.host_pid).collect();
    let mut roots = Vec::new();
    for process in &list.processes {
        match process.parent_host_pid.filter(|pid| known.contains(pid)) {
            Some(parent) => children.entry(parent).or_default().push(process),
            None => roots.push(process),
        }
    }
    let mut tree = Tree {
        children,
        list,
        told: BTreeSet::new(),
        branches: Vec::new(),
    };
    for root in roots {
        tree.grow(Some(root), None, "", "");
    }
    tree.branches
}

struct Tree<'a> {
    children: BTreeMap<u32, Vec<&'a Process>>,
    list: &'a ProcessList,
    /// Pids on the host that have their line: parents may be read wrong, and end the tree here.
    told: BTreeSet<u32>,
    branches: Vec<Branch<'a>>,
}

impl<'a> Tree<'a> {
    /// A line, and those below it; `lines` is what stands before its own, `below` before its
    /// children's.
    fn grow(
        &mut self,
        process: Option<&'a Process>,
        supervised: Option<&'a SupervisedProcess>,
        lines: &str,
        below: &str,
    ) {
        if process.is_some_and(|process| !self.told.insert(process.host_pid)) {
            return;
        }
        self.branches.push(Branch {
            lines: lines.to_owned(),
            process,
            supervised,
        });
        let Some(process) = process else { return };
        let mut twigs: Vec<(Option<&Process>, Option<&SupervisedProcess>)> = Vec::new();
        let mut others = self.children.remove(&process.host_pid).unwrap_or_default();
        if process.pid == Some(1) {
            for supervised in &self.list.supervised {
                let is_it = |p: &&Process| supervised.pid.is_some() && p.pid == supervised.pid;
                let at = others.iter().position(is_it);
                twigs.push((at.map(|at| others.remove(at)), Some(supervised)));
            }
        }
        twigs.extend(others.into_iter().map(|process| (Some(process), None)));
        let last = twigs.len().saturating_sub(1);
        for (index, (process, supervised)) in twigs.into_iter().enumerate() {
            let (own, under) = match index == last {
                true => ("└─ ", "   "),
                false => ("├─ ", "│  "),
            };
            let (lines, below) = (format!("{below}{own}"), format!("{below}{under}"));
            self.grow(process, supervised, &lines, &below);
        }
    }
}

impl Branch<'_> {
    fn cells(&self, wide: bool) -> [String; 12] {
        let Self {
            lines,
            process,
            supervised,
        } = self;
        let of_process = |cell: &dyn Fn(&Process) -> String| process.map(cell).unwrap_or_default();
        let name = match (supervised, process) {
            (Some(supervised), _) => &supervised.name,
            (None, Some(process)) => process.name.as_ref().unwrap_or(&process.program),
            (None, None) => "",
        };
        let state = match (supervised, process) {
            (Some(supervised), _) => match supervised.state {
                SupervisedState::BackingOff => "backing off",
                state => state.as_str(),
            },
            (None, Some(process)) => process.state.as_str(),
            (None, None) => "",
        };
        let exit = supervised.and_then(|supervised| supervised.last_exit);
        [
            format!("{lines}{name}"),
            state.to_owned(),
            supervised.map_or_else(String::new, |s| s.restarts.to_string()),
            exit.map_or_else(String::new, |exit| match exit {
                ProcessExit::Code(code) => format!("code {code}"),
                ProcessExit::Signal(signal) => format!("signal {signal}"),
            }),
            of_process(&|p| p.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
            of_process(&|p| p.host_pid.to_string()),
            of_process(&|p| time(p.age_ms)),
            of_process(&|p| seconds(p.cpu_ms)),
            of_process(&|p| format!("{:.1}", p.cpu_percent)),
            of_process(&|p| match p.pss_bytes {
                Some(pss) => size(pss),
                None => format!("{}*", size(p.rss_bytes)),
            }),
            of_process(&|p| p.threads.to_string()),
            of_process(&|p| command(&p.command, wide)),
        ]
    }
}

fn command(command: &str, wide: bool) -> String {
    let command = plain(command);
    if wide || command.chars().count() <= COMMAND {
        return command;
    }
    let head: String = command.chars().take(COMMAND - 1).collect();
    format!("{head}…")
}

fn footer(memory: &InstanceMemory) -> String {
    let mut line = format!("memory {}", size(memory.current_bytes));
    if let Some(limit) = memory.limit_bytes {
        let _ = write!(line, " of {}", size(limit));
    }
    if let Some(peak) = memory.peak_bytes {
        let _ = write!(line, ", {} at most", size(peak));
    }
    match memory.oom_kills {
        0 => {}
        1 => line.push_str(", 1 process killed for memory"),
        kills => {
            let _ = write!(line, ", {kills} processes killed for memory");
        }
    }
    line.push('\n');
    line
}

/// `12s`, `3m04s`, `2h05m`, `4d01h`.
fn time(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// With hundredths, which is what the kernel counts.
fn seconds(millis: u64) -> String {
    format!("{}.{:02}s", millis / 1000, millis % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        let times: Vec<String> = [0, 59_999, 184_000, 7_500_000, 349_200_000]
            .map(time)
            .into();
        assert_eq!(times, ["0s", "59s", "3m04s", "2h05m", "4d01h"]);
        assert_eq!(
            (seconds(1239), seconds(50)),
            ("1.23s".into(), "0.05s".into())
        );
        let sizes: Vec<String> = [0, 1536, 1 << 20, 3 << 30].map(size).into();
        assert_eq!(sizes, ["0.0 KiB", "1.5 KiB", "1.0 MiB", "3.0 GiB"]);
    }
}
