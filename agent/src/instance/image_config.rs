//! What an image says about running it, from the OCI image config.

use serde::{Deserialize, Serialize};

/// The part of the OCI image config that a container is made from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, in order.
    pub env: Vec<(String, String)>,
    /// `WorkingDir`.
    pub working_dir: Option<String>,
    /// `User`: `uid`, `name`, `uid:gid` or `name:group`.
    pub user: Option<String>,
    /// `StopSignal`: a name or a number.
    pub stop_signal: Option<String>,
}
