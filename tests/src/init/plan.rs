//! Plans of in-container agents and an app, the only place here that knows a plan's fields.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use container_init::plan::{
    Essential, Looks, MAX_PLAN, Plan, Process, ProcessKind, Processes, Restart, RestartPolicy,
    Rewrites, Strings, after_previous,
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
            .enumerate()
            .map(|(index, (name, argv))| {
                let app = index + 1 == names.len();
                let process = Process::plain(name, kind(app), Strings::new(argv));
                Process {
                    env: Strings::new(&[c"PATH=/usr/bin:/bin"]),
                    capabilities: u64::MAX,
                    after: after_previous(index, names.len()),
                    ..match app {
                        true => process,
                        false => Process {
                            essential: Essential::No,
                            restart: self.restart(),
                            ..process
                        },
                    }
                }
            })
            .collect();
        let plan = Plan {
            container_id: "bench-1.g1",
            create_generation: 1,
            ctl_socket: &socket,
            run_dir: &run_dir,
            exits: &exits,
            stop_grace_ms: 10_000,
            signals: Rewrites::none(),
            exit_codes: Rewrites::none(),
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

    fn restart(&self) -> Restart {
        Restart {
            policy: RestartPolicy::Always,
            max: u32::MAX,
            backoff_min_ms: self.backoff_ms,
            backoff_max_ms: self.backoff_ms,
            reset_after_ms: u32::MAX,
        }
    }
}

fn kind(app: bool) -> ProcessKind {
    match app {
        true => ProcessKind::App,
        false => ProcessKind::Agent,
    }
}

fn text(word: &OsStr) -> Result<CString> {
    CString::new(word.as_bytes()).with_context(|| format!("NUL in {}", word.display()))
}
