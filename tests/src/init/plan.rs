//! Plans of in-container agents and an app, the only place here that knows a plan's fields.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use container_init::plan::{
    Essential, Groups, Looks, MAX_PLAN, Output, Plan, Process, ProcessKind, Processes, Readiness,
    Restart, Rlimits, Strings,
};

use crate::cli;

/// A container as nodeagent would run it: agents without gates, then the app.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Commands of the agents, optional ones, which are started again.
    pub agents: Vec<Vec<OsString>>,
    /// Command of the app.
    pub app: Vec<OsString>,
    /// Pause before an agent that ended is started again, in milliseconds.
    pub backoff_ms: u32,
}

impl Planned {
    /// The gate's socket.
    pub fn socket(directory: &Path) -> PathBuf {
        directory.join("gate.sock")
    }

    /// Writes the plan into `directory`; returns what runs it.
    pub fn command(&self, directory: &Path) -> Result<Command> {
        let file = directory.join("plan");
        fs::write(&file, self.encode(directory)?)
            .with_context(|| format!("write {}", file.display()))?;
        let mut command = Command::new(cli::container_init()?);
        command.arg("--plan").arg(file);
        Ok(command)
    }

    fn encode(&self, directory: &Path) -> Result<Vec<u8>> {
        let texts = |words: &[OsString]| -> Result<Vec<CString>> {
            words.iter().map(|word| text(word)).collect()
        };
        let socket = text(Self::socket(directory).as_os_str())?;
        let (run_dir, exits) = (
            text(directory.as_os_str())?,
            text(directory.join("exits").as_os_str())?,
        );
        let commands: Vec<Vec<CString>> = self
            .agents
            .iter()
            .chain([&self.app])
            .map(|words| texts(words))
            .collect::<Result<_>>()?;
        let argvs: Vec<Vec<_>> = commands
            .iter()
            .map(|words| words.iter().map(CString::as_c_str).collect())
            .collect();
        let names: Vec<String> = (1..=self.agents.len())
            .map(|number| format!("agent-{number}"))
            .chain(["app".to_owned()])
            .collect();
        let processes: Vec<Process<'_>> = names
            .iter()
            .zip(&argvs)
            .map(|(name, argv)| Process {
                name,
                kind: match name.as_str() {
                    "app" => ProcessKind::App,
                    _ => ProcessKind::Agent,
                },
                argv: Strings::new(argv),
                env: Strings::new(&[c"PATH=/usr/bin:/bin"]),
                cwd: c"/",
                uid: 0,
                gid: 0,
                groups: Groups::new(&[]),
                capabilities: u64::MAX,
                rlimits: Rlimits::new(&[]),
                readiness: Readiness::None,
                essential: match name.as_str() {
                    "app" => Essential::Yes,
                    _ => Essential::No,
                },
                restart: Restart {
                    backoff_min_ms: self.backoff_ms,
                    backoff_max_ms: self.backoff_ms,
                },
                stop_signal: 15,
                stdout: Output::Inherit,
                stderr: Output::Inherit,
            })
            .collect();
        let plan = Plan {
            container_id: "bench-1.g1",
            create_generation: 1,
            ctl_socket: &socket,
            run_dir: &run_dir,
            exits: &exits,
            stop_grace_ms: 10_000,
            processes: Processes::new(&processes),
            looks: Looks::default(),
        };
        let mut file = vec![0; MAX_PLAN];
        let length = plan
            .encode(&mut file)
            .map_err(|_| anyhow!("the plan is too large"))?;
        file.truncate(length);
        Ok(file)
    }
}

fn text(word: &OsStr) -> Result<CString> {
    CString::new(word.as_bytes()).with_context(|| format!("NUL in {}", word.display()))
}
