//! Numbered events, which are sent again until they are acked.

use crate::wire::{Reader, Writer};

/// A numbered event. Numbers begin at 1 and have no holes unless events were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its number in this container's life.
    pub seq: u64,
    /// What happened.
    pub kind: EventKind<'a>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind<'a> {
    /// An in-container agent passed its gate.
    AgentReady {
        /// Name from the plan.
        name: &'a str,
    },
    /// Every agent passed its gate; the app is held.
    Armed,
    /// The app was executed.
    AppStarted {
        /// Generation of the start.
        generation: u64,
        /// Pid inside the container.
        pid: u32,
    },
    /// The app said, or showed to a check in the container, that it is ready.
    AppReady {
        /// Generation of the start or adopt.
        generation: u64,
    },
    /// A process of the plan ended. A process that could not be executed ends with 126 or 127.
    Exited {
        /// Name from the plan.
        name: &'a str,
        /// Pid inside the container.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
        /// Killed for memory, as far as init can see; false when it cannot.
        oom: bool,
        /// Generation at that time.
        generation: u64,
    },
    /// Nothing of the plan runs any more; init ends now.
    Stopped,
    /// A process ended because it was asked to be restarted in place; it is executed again, for an
    /// app with a start of its own and for an agent with its readiness.
    Replaced {
        /// Name from the plan.
        name: &'a str,
        /// Pid inside the container.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
        /// Generation of the restart.
        generation: u64,
    },
    /// The kernel killed for memory. Followed by the victim's end when it was a process of the
    /// plan.
    OutOfMemory {
        /// Name of the victim from the plan; empty for another process of the container.
        name: &'a str,
        /// Pid inside the container.
        pid: u32,
        /// What its cgroup counts.
        memory: Memory,
    },
    /// Killed, and still there when init stopped waiting: it is stuck in the kernel.
    LeftBehind {
        /// Name from the plan; empty for another process of the container.
        name: &'a str,
        /// Pid inside the container.
        pid: u32,
    },
}

/// What a memory cgroup counts; 0 for what cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Processes that were killed for memory since the cgroup was made.
    pub kills: u64,
    /// The limit in bytes; `u64::MAX` for none.
    pub limit_bytes: u64,
    /// The most bytes that were in use at a time.
    pub peak_bytes: u64,
}

impl Memory {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.kills);
        w.u64(self.limit_bytes);
        w.u64(self.peak_bytes);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Self {
        Self {
            kills: r.u64("memory kills"),
            limit_bytes: r.u64("memory limit"),
            peak_bytes: r.u64("memory peak"),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl ExitStatus {
    /// As a shell says it: the code, or 128 + signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }

    pub(super) fn encode(self, w: &mut Writer<'_>) {
        let (kind, value) = match self {
            Self::Code(code) => (0, code),
            Self::Signal(signal) => (1, signal),
        };
        w.u8(kind);
        w.u8(value);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Self {
        let is_signal = r.flag("exit status");
        let value = r.u8("exit status");
        match is_signal {
            false => Self::Code(value),
            true => Self::Signal(value),
        }
    }
}

impl<'a> EventKind<'a> {
    /// The first protocol version that has it.
    pub fn since(&self) -> u16 {
        match self {
            Self::Replaced { .. } | Self::OutOfMemory { .. } | Self::LeftBehind { .. } => 2,
            _ => 1,
        }
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::AgentReady { name } => {
                w.u8(1);
                w.text(name);
            }
            Self::Armed => w.u8(2),
            Self::AppStarted { generation, pid } => {
                w.u8(3);
                w.u64(*generation);
                w.u32(*pid);
            }
            Self::AppReady { generation } => {
                w.u8(4);
                w.u64(*generation);
            }
            Self::Exited {
                name,
                pid,
                status,
                oom,
                generation,
            } => {
                w.u8(5);
                w.text(name);
                w.u32(*pid);
                status.encode(w);
                w.flag(*oom);
                w.u64(*generation);
            }
            Self::Stopped => w.u8(6),
            Self::Replaced {
                name,
                pid,
                status,
                generation,
            } => {
                w.u8(7);
                w.text(name);
                w.u32(*pid);
                status.encode(w);
                w.u64(*generation);
            }
            Self::OutOfMemory { name, pid, memory } => {
                w.u8(8);
                w.text(name);
                w.u32(*pid);
                memory.encode(w);
            }
            Self::LeftBehind { name, pid } => {
                w.u8(9);
                w.text(name);
                w.u32(*pid);
            }
        }
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Self {
        match r.u8("event kind") {
            1 => Self::AgentReady {
                name: r.text("name"),
            },
            2 => Self::Armed,
            3 => Self::AppStarted {
                generation: r.u64("generation"),
                pid: r.u32("pid"),
            },
            4 => Self::AppReady {
                generation: r.u64("generation"),
            },
            5 => Self::Exited {
                name: r.text("name"),
                pid: r.u32("pid"),
                status: ExitStatus::decode(r),
                oom: r.flag("oom"),
                generation: r.u64("generation"),
            },
            6 => Self::Stopped,
            7 => Self::Replaced {
                name: r.text("name"),
                pid: r.u32("pid"),
                status: ExitStatus::decode(r),
                generation: r.u64("generation"),
            },
            8 => Self::OutOfMemory {
                name: r.text("name"),
                pid: r.u32("pid"),
                memory: Memory::decode(r),
            },
            9 => Self::LeftBehind {
                name: r.text("name"),
                pid: r.u32("pid"),
            },
            _ => r.known("event kind", None, Self::Armed),
        }
    }
}
