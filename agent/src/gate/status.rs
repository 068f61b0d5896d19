//! What is known of one container-init, and how its reports change that.
//!
//! [`Status::apply`] is pure: a report in, the news for the pool out. The status holds the last
//! known truth also while init is not connected; a status report of init replaces all of it.

use std::collections::BTreeMap;

use container_init::protocol::{AgentState, EventKind, Refusal, Report, RequestKind};

use crate::instance::ContainerId;
use crate::instance::plan::APP_PROCESS;

pub use container_init::protocol::{ExitStatus, Memory};

/// What is known of a container's init and its app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Init is connected, and everything below is what it said since.
    pub connected: bool,
    /// Version of the protocol that init speaks; 0 before its first hello.
    pub version: u16,
    /// Counts the statuses that init sent: a greater one is an answer to whoever asked meanwhile.
    pub reports: u64,
    /// Generation that init works for: of the create, or of the last start or adopt.
    pub generation: u64,
    /// The app was started at any time in this container.
    pub started: bool,
    /// Every in-container agent passed its gate: the app is held, or was let go.
    pub armed: bool,
    /// Init saw the app of [`Status::generation`] become ready. Never set for an app that the
    /// agent probes.
    pub ready: bool,
    /// Pid of the running app inside the container.
    pub app_pid: Option<u32>,
    /// How the app ended; `None` while it runs again.
    pub app_exit: Option<Exit>,
    /// In-container agents that ended before the app did and do not run again, in that order, each
    /// with its last end.
    pub agents_ended: Vec<Exit>,
    /// A stop is under way.
    pub stopping: bool,
    /// [`NoticeKind::Stopping`] was told.
    pub told_stopping: bool,
    /// An in-container agent ended, and whether it comes again was not said yet.
    pub unsettled: bool,
    /// How the app ended meanwhile: perhaps because of that agent.
    pub held_exit: Option<Exit>,
    /// Nothing of the plan runs any more; init has ended or is about to.
    pub stopped: bool,
    /// The answer to the newest command, when it was a refusal; cleared by the next command.
    pub refused: Option<Refused>,
    /// In-container agents that are ready, in the order in which they became so.
    pub agents_ready: Vec<String>,
    /// Pids of in-container agents inside the container, as far as init said them: never of one that
    /// has ended.
    pub agent_pids: BTreeMap<String, u32>,
    /// The newest kill for memory: the victim's pid, and what its cgroup counted.
    pub out_of_memory: Option<(u32, Memory)>,
}

/// How a process of the plan ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Name from the plan; the app's is [`APP_PROCESS`].
    pub name: String,
    /// Pid inside the container.
    pub pid: u32,
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Killed for memory, as far as init could see.
    pub oom: bool,
    /// What the memory cgroup counted then; `None` where init did not say.
    pub memory: Option<Memory>,
    /// Generation that init worked for.
    pub generation: u64,
}

impl Exit {
    /// Whether it was the app, and not an in-container agent.
    pub fn is_app(&self) -> bool {
        self.name == APP_PROCESS
    }
}

/// A command that had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The command; `None` when init could not read it.
    pub request: Option<RequestKind>,
    /// Why.
    pub code: Refusal,
}

/// News of one container for the pool that owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whose.
    pub container: ContainerId,
    /// What happened.
    pub kind: NoticeKind,
}

/// What happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoticeKind {
    /// Init is connected and its status is known.
    Connected,
    /// Every in-container agent passed its gate.
    Armed,
    /// The app was executed for this generation.
    AppStarted {
        /// Generation of the start.
        generation: u64,
    },
    /// Init saw the app become ready.
    AppReady {
        /// Generation of the start or adopt.
        generation: u64,
    },
    /// A process of the plan ended; an in-container agent may come again.
    Exited(Exit),
    /// Init stops everything: it was asked to, the app ended, or an essential agent did for good.
    /// With the app's end where that came between an agent's and this.
    Stopping(Option<Exit>),
    /// Killed, and still there when init stopped waiting: it is stuck in the kernel.
    LeftBehind {
        /// Name from the plan; empty for another process of the container.
        name: String,
        /// Pid inside the container.
        pid: u32,
    },
    /// Nothing of the plan runs any more.
    Stopped,
    /// The connection ended; init may dial again.
    Disconnected,
}

impl Status {
    /// Takes in a report, in the order of the connection and each event once; says what is news.
    pub(super) fn apply(&mut self, report: &Report<'_>) -> Option<NoticeKind> {
        match report {
            Report::Hello(hello) => {
                self.version = hello.version;
                self.generation = hello.generation;
                self.started = hello.started;
                None
            }
            Report::Status(status) => {
                let mut news = (!self.connected).then_some(NoticeKind::Connected);
                self.unsettled = false;
                let held = self.held_exit.take();
                let first_told = self.connected && status.stopping && !self.told_stopping;
                if held.is_some() || first_told {
                    self.told_stopping = true;
                    news = Some(NoticeKind::Stopping(held.clone()));
                }
                self.connected = true;
                self.generation = status.generation;
                self.started = status.started;
                self.armed = status.armed;
                self.ready = status.app_ready;
                self.stopping = status.stopping;
                self.app_pid = (status.app_pid != 0).then_some(status.app_pid);
                self.app_exit = self.app_exit.take().or(held);
                if self.app_pid.is_some() {
                    self.app_exit = None;
                }
                let ready = status
                    .agents
                    .iter()
                    .filter(|agent| agent.state == AgentState::Ready);
                self.agents_ready = ready.map(|agent| agent.name.to_owned()).collect();
                let ended = |name: &str| {
                    let mut agents = status.agents.iter();
                    agents.all(|agent| agent.name != name || agent.state == AgentState::Ended)
                };
                self.agents_ended.retain(|exit| ended(&exit.name));
                let running = status.agents.iter().filter(|agent| agent.pid != 0);
                self.agent_pids = running.map(|a| (a.name.to_owned(), a.pid)).collect();
                self.reports += 1;
                news
            }
            Report::Refused { request, code } => {
                // The status that says so may come behind it.
                self.stopping |= *code == Refusal::Stopping;
                self.refused = Some(Refused {
                    request: *request,
                    code: *code,
                });
                None
            }
            Report::Event(event) => self.happened(&event.kind),
            // For who asked for it.
            Report::Looked(_) | Report::Processes(_) => None,
        }
    }

    fn happened(&mut self, event: &EventKind<'_>) -> Option<NoticeKind> {
        match *event {
            EventKind::AgentReady { name } => {
                if !self.agents_ready.iter().any(|known| known == name) {
                    self.agents_ready.push(name.to_owned());
                }
                self.agents_ended.retain(|exit| exit.name != name);
                None
            }
            EventKind::Armed => {
                self.armed = true;
                Some(NoticeKind::Armed)
            }
            EventKind::AppStarted { generation, pid } => {
                self.generation = self.generation.max(generation);
                self.started = true;
                self.app_pid = Some(pid);
                self.app_exit = None;
                self.ready = false;
                Some(NoticeKind::AppStarted { generation })
            }
            EventKind::AppReady { generation } => {
                // Ready for an older generation is not ready: an adopt or a start came between.
                if generation >= self.generation {
                    self.generation = generation;
                    self.ready = true;
                }
                Some(NoticeKind::AppReady { generation })
            }
            EventKind::Exited {
                name,
                pid,
                status,
                oom,
                generation,
            } => {
                let memory = self.out_of_memory.filter(|(victim, _)| *victim == pid);
                let exit = Exit {
                    name: name.to_owned(),
                    pid,
                    status,
                    oom,
                    memory: memory.map(|(_, memory)| memory),
                    generation,
                };
                self.ended(exit)
            }
            EventKind::Stopped => {
                self.stopped = true;
                self.app_pid = None;
                self.ready = false;
                self.agents_ready.clear();
                self.agent_pids.clear();
                Some(NoticeKind::Stopped)
            }
            EventKind::Replaced {
                name, generation, ..
            } if name == APP_PROCESS => {
                self.generation = self.generation.max(generation);
                self.app_pid = None;
                self.ready = false;
                None
            }
            EventKind::Replaced { name, .. } => {
                self.agents_ready.retain(|known| known != name);
                self.agent_pids.remove(name);
                None
            }
            EventKind::OutOfMemory { pid, memory, .. } => {
                self.out_of_memory = Some((pid, memory));
                None
            }
            EventKind::LeftBehind { name, pid } => Some(NoticeKind::LeftBehind {
                name: name.to_owned(),
                pid,
            }),
        }
    }

    /// The news of an end; none yet of the app's where an agent's end may be the cause.
    fn ended(&mut self, exit: Exit) -> Option<NoticeKind> {
        if !exit.is_app() {
            self.unsettled = !self.stopping;
            self.agents_ready.retain(|name| *name != exit.name);
            self.agent_pids.remove(&exit.name);
            // What ends after the app was stopped with it.
            if self.app_exit.is_none() && self.held_exit.is_none() {
                self.agents_ended
                    .retain(|earlier| earlier.name != exit.name);
                self.agents_ended.push(exit.clone());
            }
        } else if self.app_pid.is_none_or(|pid| pid == exit.pid) {
            self.app_pid = None;
            self.ready = false;
            if self.unsettled {
                self.held_exit = Some(exit);
                return None;
            }
            self.app_exit = Some(exit.clone());
        }
        Some(NoticeKind::Exited(exit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_init::protocol::{self, AgentStatus, Agents, Event, Hello};

    fn event(status: &mut Status, kind: EventKind<'_>) -> Option<NoticeKind> {
        status.apply(&Report::Event(Event { seq: 1, kind }))
    }

    fn exited(name: &str, pid: u32, generation: u64) -> EventKind<'_> {
        EventKind::Exited {
            name,
            pid,
            status: ExitStatus::Code(3),
            oom: false,
            generation,
        }
    }

    #[test]
    fn who_refuses_because_it_stops_is_stopping() {
        let mut status = Status::default();
        for (code, stopping) in [(Refusal::NotArmed, false), (Refusal::Stopping, true)] {
            let request = Some(RequestKind::Start);
            status.apply(&Report::Refused { request, code });
            assert_eq!(status.stopping, stopping, "{code:?}");
            assert_eq!(status.refused, Some(Refused { request, code }));
        }
    }

    #[test]
    fn an_agent_that_returns_learns_everything_from_hello_and_status() {
        let mut status = Status::default();
        let hello = Hello {
            version: 1,
            container_id: "web-0.g1",
            create_generation: 1,
            generation: 4,
            started: true,
            first_unacked_seq: 9,
        };
        assert_eq!(status.apply(&Report::Hello(hello)), None);
        assert!(status.started && !status.connected);
        let agents = [
            AgentStatus {
                name: "proxy",
                state: AgentState::Ready,
                pid: 7,
            },
            AgentStatus {
                name: "logs",
                state: AgentState::BackingOff,
                pid: 0,
            },
        ];
        let report = Report::Status(protocol::Status {
            generation: 4,
            started: true,
            app_ready: true,
            armed: true,
            stopping: false,
            app_pid: 12,
            agents: Agents::new(&agents),
        });
        assert_eq!(status.apply(&report), Some(NoticeKind::Connected));
        assert_eq!(
            status.apply(&report),
            None,
            "a second status is no second connect"
        );
        let expected = Status {
            connected: true,
            generation: 4,
            started: true,
            armed: true,
            ready: true,
            app_pid: Some(12),
            agents_ready: vec!["proxy".into()],
            agent_pids: BTreeMap::from([("proxy".into(), 7)]),
            version: 1,
            reports: 2,
            ..Status::default()
        };
        assert_eq!(status, expected);
    }

    #[test]
    fn ready_counts_for_the_present_generation_only() {
        let mut status = Status::default();
        event(
            &mut status,
            EventKind::AppStarted {
                generation: 2,
                pid: 10,
            },
        );
        event(&mut status, EventKind::AppReady { generation: 1 });
        assert!(!status.ready);
        event(&mut status, EventKind::AppReady { generation: 2 });
        assert!(status.ready);
        event(
            &mut status,
            EventKind::AppStarted {
                generation: 3,
                pid: 11,
            },
        );
        assert!(!status.ready);
        assert_eq!(status.generation, 3);
    }

    #[test]
    fn only_the_exit_of_the_running_app_ends_it() {
        let mut status = Status::default();
        event(
            &mut status,
            EventKind::AppStarted {
                generation: 2,
                pid: 10,
            },
        );
        event(&mut status, EventKind::AppReady { generation: 2 });
        event(&mut status, EventKind::AgentReady { name: "proxy" });
        event(&mut status, exited("proxy", 7, 2));
        event(&mut status, exited("app", 9, 1));
        assert!(status.ready && status.app_exit.is_none() && status.agents_ready.is_empty());
        assert_eq!(status.agents_ended[0].name, "proxy");
        status.unsettled = false;
        let news = event(&mut status, exited("app", 10, 2));
        assert_eq!(news, status.app_exit.clone().map(NoticeKind::Exited));
        assert_eq!((status.ready, status.app_pid), (false, None));
        assert!(
            status
                .app_exit
                .as_ref()
                .is_some_and(|exit| exit.is_app() && exit.status == ExitStatus::Code(3))
        );
        event(&mut status, exited("logs", 8, 2));
        assert_eq!(status.agents_ended.len(), 1, "it was stopped with the app");
    }

    #[test]
    fn an_agent_that_comes_again_has_not_ended_and_a_stop_is_told_once() {
        let mut status = Status::default();
        let said = |stopping: bool, cache: AgentState, proxy: AgentState| {
            let agents = [("cache", cache), ("proxy", proxy)];
            let agents = agents.map(|(name, state)| AgentStatus {
                name,
                state,
                pid: 7,
            });
            (stopping, agents)
        };
        let tell = |status: &mut Status, (stopping, agents): (bool, [AgentStatus<'_>; 2])| {
            status.apply(&Report::Status(protocol::Status {
                generation: 1,
                started: false,
                app_ready: false,
                armed: true,
                stopping,
                app_pid: 0,
                agents: Agents::new(&agents),
            }))
        };
        let ready = said(false, AgentState::Ready, AgentState::Ready);
        assert_eq!(tell(&mut status, ready), Some(NoticeKind::Connected));
        event(&mut status, exited("cache", 7, 1));
        assert_eq!(status.agents_ended.len(), 1);
        let again = said(false, AgentState::BackingOff, AgentState::Ready);
        assert_eq!(tell(&mut status, again), None);
        assert_eq!(status.agents_ended, []);
        event(&mut status, exited("cache", 8, 1));
        event(&mut status, exited("proxy", 9, 1));
        let over = said(true, AgentState::Ended, AgentState::Ended);
        assert_eq!(tell(&mut status, over), Some(NoticeKind::Stopping(None)));
        assert_eq!(tell(&mut status, over), None);
        assert_eq!(status.agents_ended[0].name, "cache");
    }

    #[test]
    fn the_end_of_the_app_waits_for_what_the_end_of_an_agent_before_it_means() {
        let ended = |status: &mut Status, stopping: bool| {
            status.apply(&Report::Status(protocol::Status {
                generation: 1,
                started: true,
                app_ready: false,
                armed: true,
                stopping,
                app_pid: 0,
                agents: Agents::new(&[]),
            }))
        };
        let mut status = Status::default();
        ended(&mut status, false);
        event(&mut status, exited("proxy", 7, 1));
        assert_eq!(event(&mut status, exited("app", 10, 1)), None);
        event(&mut status, exited("cache", 8, 1));
        assert_eq!(status.app_exit, None);
        let news = ended(&mut status, true);
        let app = status.app_exit.clone();
        assert!(app.as_ref().is_some_and(Exit::is_app));
        assert_eq!(news, Some(NoticeKind::Stopping(app)));
        let names: Vec<&str> = status
            .agents_ended
            .iter()
            .map(|e| e.name.as_str())
            .collect();
        assert_eq!(names, ["proxy"], "the other was stopped with the app");
    }

    #[test]
    fn who_is_replaced_has_not_ended() {
        let mut status = Status::default();
        let agents = [AgentStatus {
            name: "proxy",
            state: AgentState::Ready,
            pid: 7,
        }];
        status.apply(&Report::Status(protocol::Status {
            generation: 4,
            started: true,
            app_ready: true,
            armed: true,
            stopping: false,
            app_pid: 12,
            agents: Agents::new(&agents),
        }));
        let replaced = |name, pid| EventKind::Replaced {
            name,
            pid,
            status: ExitStatus::Signal(15),
            generation: 4,
        };
        assert_eq!(event(&mut status, replaced("proxy", 7)), None);
        assert!(status.agents_ready.is_empty() && status.agent_pids.is_empty());
        assert!(status.ready, "the app does not notice");
        event(&mut status, EventKind::AgentReady { name: "proxy" });
        assert_eq!(status.agents_ready, ["proxy"]);
        assert_eq!(event(&mut status, replaced("app", 12)), None);
        assert_eq!((status.ready, status.app_pid), (false, None));
        assert!(status.agents_ended.is_empty() && status.app_exit.is_none());
    }
}
