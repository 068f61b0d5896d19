//! From an app to the flat plan that container-init reads: every default written down.
//!
//! Pure but for the caller's user resolution. Command, args and `$(NAME)` references mean what
//! they mean in Kubernetes. Deliberately knows nothing of mounts, the OCI spec or where the plan
//! is kept.

mod command;
mod draft;

use std::ffi::CString;

use container_init::Malformed;
use container_init::paths::{CTL_SOCKET, EXITS, LOG_DIR, RUN_DIR};
use container_init::plan::{
    self, Delivery, Looks, MAX_PLAN, Plan, Process, ProcessKind, Processes, Restart, Rewrites,
    Strings,
};

use crate::app::{
    Agent, App, Essential, Look, NetworkMode, Probe as AppProbe, Protocol, Readiness, User,
    VitalProbe, signal_number,
};
use crate::instance::{ContainerId, ImageConfig};
use draft::{Draft, Probe, View, borrowed, c_string, c_strings, millis};

/// Name of the app's process in plans, events and logs.
pub const APP_PROCESS: &str = "app";

/// `PATH` where neither image nor manifest has one, as Docker and containerd set it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const SIGTERM: u8 = 15;

/// Ids that a process runs with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessIds {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, exactly these.
    pub groups: Vec<u32>,
}

/// Looks a user up in the image's `/etc/passwd` and `/etc/group`; the error is a sentence for
/// people. Asked for names, and for a numeric user without a group: its group is the passwd
/// entry's, 0 where there is none.
pub type ResolveUser<'a> = &'a dyn Fn(&User) -> Result<ProcessIds, String>;

/// Why an app has no plan. All but the first name a field of the manifest or the image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The plan is larger than container-init reads.
    #[error(
        "the plan of {container} is larger than {MAX_PLAN} bytes: env, command and args are too long"
    )]
    TooLarge {
        /// The container.
        container: ContainerId,
    },
    /// Neither manifest nor image says what to run.
    #[error("app {app} has no command, and its image {image} has neither entrypoint nor cmd")]
    NoCommand {
        /// The app.
        app: String,
        /// The image's reference.
        image: String,
    },
    /// A user cannot be resolved.
    #[error("user {user:?} of {process}: {reason}")]
    User {
        /// `app` or the agent's name.
        process: String,
        /// As written.
        user: String,
        /// What is wrong.
        reason: String,
    },
    /// A process would run as root, and the manifest says that none does.
    #[error(
        "{process} runs as root, and the manifest says runAsNonRoot: true; allowed: another user, in the image, spec.user or runAsUser"
    )]
    Root {
        /// `app` or the agent's name.
        process: String,
    },
    /// The image's stop signal is none.
    #[error(
        "the image's StopSignal {value:?} is no signal: a name like SIGTERM or a number 1 to 64 is allowed"
    )]
    StopSignal {
        /// As written.
        value: String,
    },
    /// A string that the kernel would cut off.
    #[error("{what} of {process} has a NUL character: {value:?}")]
    Nul {
        /// `app` or the agent's name.
        process: String,
        /// Which string.
        what: &'static str,
        /// As written.
        value: String,
    },
    /// An agent cannot be probed from outside.
    #[error("agent {agent} has an http probe: none, notify, tcp and exec are allowed for agents")]
    AgentReadiness {
        /// The agent's name.
        agent: String,
    },
    /// container-init would refuse the plan.
    #[error("the plan of {container} is not valid")]
    Invalid {
        /// The container.
        container: ContainerId,
        /// What is wrong.
        #[source]
        source: Malformed,
    },
}

/// What the host adds to app and image.
#[derive(Debug, Clone, Copy)]
pub struct OfHost<'a> {
    /// The environment between the image's and the manifest's: hostname and the like, and what files
    /// of the host say. A later entry wins; the manifest's `env`, `command` and `args` may refer to
    /// them.
    pub basics: &'a [(String, String)],
    /// Of the log of each process.
    pub logs: LogLimits,
}

/// How much is kept of what a process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of a file after which the next begins.
    pub max_bytes: u64,
    /// Files, the one that is written included; not 0.
    pub max_files: u8,
}

/// The plan file of a container.
pub fn compile(
    app: &App,
    image: &ImageConfig,
    id: &ContainerId,
    host: &OfHost<'_>,
    resolve: ResolveUser<'_>,
) -> Result<Vec<u8>, PlanError> {
    let container = Container::of(app, image, host, resolve)?;
    let mut drafts = Vec::with_capacity(app.agents.len() + 1);
    let order = app.start_order();
    for agent in order.iter().filter_map(|index| app.agents.get(*index)) {
        let after = agent.after.iter().filter_map(|other| place(&order, *other));
        drafts.push(Draft {
            after: after.fold(0, |mask, place| mask | 1 << place),
            ..container.agent(agent)?
        });
    }
    drafts.push(container.app()?);
    let looks = container.looks()?;
    let signals: Vec<_> = app.signals.iter().map(draft::rewrite).collect();
    let exit_codes: Vec<_> = app.exit_codes.iter().map(draft::rewrite).collect();
    let (ready, alive) = (borrowed(&looks.readiness), borrowed(&looks.liveness));
    let started = borrowed(&looks.startup);
    let views: Vec<View<'_>> = drafts.iter().map(View::of).collect();
    let processes: Vec<Process<'_>> = drafts
        .iter()
        .zip(&views)
        .map(|(draft, view)| draft.process(view))
        .collect();
    let name = id.to_string();
    encode(
        &Plan {
            container_id: &name,
            create_generation: id.create_generation,
            ctl_socket: CTL_SOCKET,
            run_dir: RUN_DIR,
            exits: EXITS,
            stop_grace_ms: millis(app.termination_grace),
            signals: Rewrites::new(&signals),
            exit_codes: Rewrites::new(&exit_codes),
            processes: Processes::new(&processes),
            looks: Looks {
                readiness: Strings::new(&ready),
                liveness: Strings::new(&alive),
                startup: Strings::new(&started),
            },
        },
        id,
    )
}

/// Where an agent stands in the plan, which has less than 16 of them.
fn place(order: &[usize], agent: usize) -> Option<u32> {
    let place = order.iter().position(|index| *index == agent)?;
    u32::try_from(place).ok().filter(|place| *place < 16)
}

/// The ids that the app runs with.
pub fn app_ids(
    app: &App,
    image: &ImageConfig,
    resolve: ResolveUser<'_>,
) -> Result<ProcessIds, PlanError> {
    let user = app
        .user
        .clone()
        .or_else(|| image.user.as_deref().map(written_user));
    ids(app, user.as_ref(), APP_PROCESS, resolve)
}

fn encode(plan: &Plan<'_>, id: &ContainerId) -> Result<Vec<u8>, PlanError> {
    let mut file = vec![0; MAX_PLAN];
    let length = plan.encode(&mut file).map_err(|_| PlanError::TooLarge {
        container: id.clone(),
    })?;
    file.truncate(length);
    file.shrink_to_fit();
    // Read as init will, so that a plan it refuses is an answer here and not a dead container.
    match Plan::decode(&file) {
        Ok(_) => Ok(file),
        Err(source) => Err(PlanError::Invalid {
            container: id.clone(),
            source,
        }),
    }
}

/// Commands that look at the app, with their strings owned.
struct OwnedLooks {
    readiness: Vec<CString>,
    liveness: Vec<CString>,
    startup: Vec<CString>,
}

/// What all processes of a container share.
struct Container<'a> {
    app: &'a App,
    image: &'a ImageConfig,
    env: Vec<(String, String)>,
    /// What `$(NAME)` can refer to.
    own_env: Vec<(String, String)>,
    cwd: &'a str,
    ids: ProcessIds,
    logs: LogLimits,
    resolve: ResolveUser<'a>,
}

impl<'a> Container<'a> {
    fn of(
        app: &'a App,
        image: &'a ImageConfig,
        host: &OfHost<'_>,
        resolve: ResolveUser<'a>,
    ) -> Result<Self, PlanError> {
        let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
        overlay(&mut env, &image.env);
        let own_env = command::expand_env(host.basics, &app.env);
        overlay(&mut env, &own_env);
        Ok(Self {
            app,
            image,
            env,
            own_env,
            cwd: app
                .working_dir
                .as_deref()
                .or(image.working_dir.as_deref())
                .unwrap_or("/"),
            ids: app_ids(app, image, resolve)?,
            logs: host.logs,
            resolve,
        })
    }

    fn app(&self) -> Result<Draft, PlanError> {
        let argv = command::of(self.app, self.image, &self.own_env).ok_or_else(|| {
            PlanError::NoCommand {
                app: self.app.name.to_string(),
                image: self.app.image.clone(),
            }
        })?;
        let stop_signal = match (self.app.conduct.stop_signal, &self.image.stop_signal) {
            (Some(signal), _) => signal,
            (None, None) => SIGTERM,
            (None, Some(value)) => signal_number(value).ok_or_else(|| PlanError::StopSignal {
                value: value.to_owned(),
            })?,
        };
        let probe = probe(APP_PROCESS, &self.app.readiness, &self.own_env)?;
        let clean: Vec<String> = self.app.cleaned().into_iter().map(str::to_owned).collect();
        Ok(Draft {
            stop_signal,
            kind: ProcessKind::App,
            clean: c_strings(APP_PROCESS, "a path to clean", &clean)?,
            ports: self.listened(),
            // A connection from outside says more than one on loopback: the agent probes the app.
            probe: match probe {
                // Readiness is probed from outside then.
                _ if let Some((command, timing)) = self.app.startup_command() => Probe::Exec {
                    argv: c_strings(
                        APP_PROCESS,
                        "the startup command",
                        &command::expand(command, &self.own_env),
                    )?,
                    timing,
                },
                Some(Probe::Tcp { .. }) | None => Probe::External,
                // The agent asks for each look, and counts.
                Some(Probe::Exec { .. }) if !self.app.is_ready_by_init() => Probe::External,
                // The time of the startup probe comes on top: until then nothing has to be ready.
                Some(Probe::Exec { argv, mut timing }) => {
                    let startup = self.app.startup.as_ref();
                    let more = startup.map_or(0, |startup| {
                        startup
                            .probe
                            .timing
                            .deadline()
                            .as_millis()
                            .div_ceil(timing.period.as_millis().max(1))
                    });
                    timing.failure_threshold = timing
                        .failure_threshold
                        .saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
                    Probe::Exec { argv, timing }
                }
                Some(other) => other,
            },
            nice: self.app.conduct.nice,
            oom_score_adj: self.app.conduct.oom_score_adj,
            delivery: draft::delivery(self.app.conduct.delivery),
            ..self.draft(APP_PROCESS, &argv, &self.env, self.ids.clone())?
        })
    }

    /// The TCP ports that nobody but the app listens on. In the host's network others may.
    fn listened(&self) -> Vec<u16> {
        let tcp = self
            .app
            .ports
            .iter()
            .filter(|p| p.protocol == Protocol::Tcp);
        match self.app.network {
            NetworkMode::Routed => tcp.map(|port| port.container_port).collect(),
            NetworkMode::Host => Vec::new(),
        }
    }

    /// What looks at the app when the agent asks.
    fn looks(&self) -> Result<OwnedLooks, PlanError> {
        let command = |probe: Option<&AppProbe>, what| match probe.map(|probe| &probe.look) {
            Some(Look::Exec { command }) => {
                let argv = command::expand(command, &self.own_env);
                c_strings(APP_PROCESS, what, &argv)
            }
            _ => Ok(Vec::new()),
        };
        let vital = |vital: &'a Option<VitalProbe>| vital.as_ref().map(|vital| &vital.probe);
        let (liveness, startup) = (vital(&self.app.liveness), vital(&self.app.startup));
        Ok(OwnedLooks {
            readiness: command(self.app.steady_readiness(), "the readiness command")?,
            liveness: command(liveness, "the liveness command")?,
            startup: command(startup, "the startup command")?,
        })
    }

    fn agent(&self, agent: &Agent) -> Result<Draft, PlanError> {
        let mut env = self.env.clone();
        overlay(&mut env, &command::expand_env(&[], &agent.env));
        let ids = match &agent.user {
            None => self.ids.clone(),
            some => ids(self.app, some.as_ref(), &agent.name, self.resolve)?,
        };
        let argv = command::expand(&agent.command, &agent.env);
        let probe = probe(&agent.name, &agent.readiness, &agent.env)?;
        Ok(Draft {
            probe: probe.ok_or_else(|| PlanError::AgentReadiness {
                agent: agent.name.clone(),
            })?,
            essential: match agent.essential {
                Essential::Yes => plan::Essential::Yes,
                Essential::No => plan::Essential::No,
            },
            exit_code: agent.exit_code,
            limits: self
                .app
                .divides_cgroup()
                .then(|| draft::limits(agent.resources)),
            restart: draft::restart(&agent.restart),
            cwd: c_string(
                &agent.name,
                "the working directory",
                agent.working_dir.as_deref().unwrap_or(self.cwd),
            )?,
            rlimits: agent.limits(self.app).iter().map(draft::rlimit).collect(),
            nice: agent.conduct.nice,
            oom_score_adj: agent.conduct.oom_score_adj,
            stop_signal: agent.conduct.stop_signal.unwrap_or(SIGTERM),
            stop_grace_ms: agent.termination_grace.map_or(u32::MAX, millis),
            delivery: draft::delivery(agent.conduct.delivery),
            ..self.draft(&agent.name, &argv, &env, ids)?
        })
    }

    /// An essential agent that is ready once started, is never started again and stops by TERM.
    fn draft(
        &self,
        name: &str,
        argv: &[String],
        env: &[(String, String)],
        ids: ProcessIds,
    ) -> Result<Draft, PlanError> {
        let pairs: Vec<String> = env
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        Ok(Draft {
            name: name.to_owned(),
            kind: ProcessKind::Agent,
            argv: c_strings(name, "the command", argv)?,
            env: c_strings(name, "the environment", &pairs)?,
            cwd: c_string(name, "the working directory", self.cwd)?,
            ids,
            capabilities: self.app.security.capabilities.mask(),
            rlimits: self.app.ulimits.iter().map(draft::rlimit).collect(),
            probe: Probe::None,
            essential: plan::Essential::Yes,
            exit_code: None,
            restart: Restart::NEVER,
            nice: None,
            oom_score_adj: None,
            after: 0,
            limits: self.app.divides_cgroup().then(|| draft::limits(None)),
            stop_signal: SIGTERM,
            stop_grace_ms: u32::MAX,
            delivery: Delivery::Process,
            log: c_string(
                name,
                "the log",
                &format!("{}/{name}.log", LOG_DIR.to_string_lossy()),
            )?,
            log_limits: self.logs,
            clean: Vec::new(),
            ports: Vec::new(),
        })
    }
}

/// How init learns that a process is ready; `None` when it cannot (http).
fn probe(
    process: &str,
    readiness: &Readiness,
    env: &[(String, String)],
) -> Result<Option<Probe>, PlanError> {
    Ok(Some(match readiness {
        Readiness::None => Probe::None,
        Readiness::Notify { timeout } => Probe::Notify(*timeout),
        Readiness::NotificationFd { fd, timeout } => Probe::NewlineFd(*fd, *timeout),
        Readiness::Probe(probe) => match &probe.look {
            Look::Tcp { port, .. } => Probe::Tcp {
                port: *port,
                timing: probe.timing,
            },
            Look::Exec { command } => Probe::Exec {
                argv: c_strings(
                    process,
                    "the readiness command",
                    &command::expand(command, env),
                )?,
                timing: probe.timing,
            },
            Look::Http { .. } => return Ok(None),
        },
    }))
}

/// Who a process runs as, with the groups that the manifest adds.
fn ids(
    app: &App,
    user: Option<&User>,
    process: &str,
    resolve: ResolveUser<'_>,
) -> Result<ProcessIds, PlanError> {
    let mut ids = ids_of(user, process, resolve)?;
    if app.security.non_root && ids.uid == 0 {
        return Err(PlanError::Root {
            process: process.to_owned(),
        });
    }
    let more = app.security.supplemental_groups.iter();
    for group in more.chain(&app.security.fs_group) {
        if !ids.groups.contains(group) {
            ids.groups.push(*group);
        }
    }
    Ok(ids)
}

fn ids_of(
    user: Option<&User>,
    process: &str,
    resolve: ResolveUser<'_>,
) -> Result<ProcessIds, PlanError> {
    let Some(user) = user else {
        return Ok(ProcessIds::default());
    };
    let numeric = user
        .group
        .as_ref()
        .and_then(|group| Some((user.user.parse().ok()?, group.parse().ok()?)));
    if let Some((uid, gid)) = numeric {
        return Ok(ProcessIds {
            uid,
            gid,
            groups: Vec::new(),
        });
    }
    resolve(user).map_err(|reason| PlanError::User {
        process: process.to_owned(),
        user: match &user.group {
            Some(group) => format!("{}:{group}", user.user),
            None => user.user.clone(),
        },
        reason,
    })
}

/// `user[:group]` as an image has it.
fn written_user(text: &str) -> User {
    match text.split_once(':') {
        Some((user, group)) if !group.is_empty() => User {
            user: user.to_owned(),
            group: Some(group.to_owned()),
        },
        _ => User {
            user: text.trim_end_matches(':').to_owned(),
            group: None,
        },
    }
}

/// Adds `more` to `env`; a key that is there keeps its place and gets the new value.
fn overlay(env: &mut Vec<(String, String)>, more: &[(String, String)]) {
    for (key, value) in more {
        match env.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => known.clone_from(value),
            None => env.push((key.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests;
