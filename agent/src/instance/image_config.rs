//! What an image says about running it, as far as the plan needs it.

/// The `config` of an OCI image (image-spec, config.md), read and split, with nothing decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint`; empty when absent.
    pub entrypoint: Vec<String>,
    /// `Cmd`; empty when absent.
    pub cmd: Vec<String>,
    /// `Env`, split at the first `=`, in order.
    pub env: Vec<(String, String)>,
    /// `WorkingDir`, when not empty.
    pub working_dir: Option<String>,
    /// `User` as written (`user[:group]`), when not empty.
    pub user: Option<String>,
    /// `StopSignal` as written (`SIGTERM` or `15`), when not empty.
    pub stop_signal: Option<String>,
}
