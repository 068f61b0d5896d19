//! Where things are inside a container (DESIGN section 6). Used by the agent to mount and to
//! write the plan, and by container-init's defaults.

use core::ffi::CStr;

/// Root of everything that nodeagent puts into a container.
pub const ROOT: &CStr = c"/.nodeagent";
/// Read-only directory, per instance: binary, plan and activation file.
pub const BIN_DIR: &CStr = c"/.nodeagent/bin";
/// This program.
pub const INIT: &CStr = c"/.nodeagent/bin/container-init";
/// The plan that container-init reads at start ([`crate::plan`]).
pub const PLAN: &CStr = c"/.nodeagent/bin/plan";
/// The activation's context, written by the agent for frozen starts.
pub const ACTIVATION: &CStr = c"/.nodeagent/bin/activation";
/// Read-only directory with the agent's listening socket.
pub const CTL_DIR: &CStr = c"/.nodeagent/ctl";
/// The socket that container-init dials.
pub const CTL_SOCKET: &CStr = c"/.nodeagent/ctl/gate.sock";
/// Writable directory for logs and the exit ring; untrusted for the agent.
pub const LOG_DIR: &CStr = c"/.nodeagent/log";
/// The exit ring ([`crate::exits`]).
pub const EXITS: &CStr = c"/.nodeagent/log/exits";
/// tmpfs of the container's own: notify sockets.
pub const RUN_DIR: &CStr = c"/.nodeagent/run";
