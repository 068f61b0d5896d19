//! This host: what ties journal, pools, gate, runtime, network and discovery into one agent.
//!
//! [`daemon`] is the daemon. `node` answers the API, `executor` performs effects, `adopt` observes
//! reality at start (`reboot`: after one), `route` brings exits to their pools. What a pool does is decided in
//! [`crate::pool`], never here.

mod adopt;
mod answers;
mod apps;
mod backends;
mod changes;
mod commands;
mod create;
mod ended;
mod env_files;
mod epoch;
mod etc;
mod exec;
mod executor;
mod failure;
mod images;
mod logging;
mod logs;
mod measure;
mod node;
mod place;
mod predecessors;
mod processes;
mod reboot;
mod rebuild;
mod registrations;
mod restart;
mod route;
mod run;
mod security;
mod sentence;
mod shutdown;
mod sockets;
mod stable;
mod strays;
mod tasks;
mod trusted;
mod upkeep;
mod verified;
mod volumes;
mod watch;
mod watchdog;

pub use executor::Executor;
pub use node::Node;
pub use place::PlaceError;
pub use run::{RunError, daemon, run_with};
pub use sockets::SocketsError;
