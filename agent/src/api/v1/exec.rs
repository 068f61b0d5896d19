//! A command in an instance.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is to be executed beside an instance's app, as the app's user and in its environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    /// Program and arguments. A program without a slash is looked up in the `PATH` of the app.
    #[schemars(length(min = 1))]
    pub command: Vec<String>,
    /// Whether it has a standard input; without, it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// Size of its terminal; without, its streams are pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TerminalSize {
    /// Characters of a line.
    #[schemars(range(min = 1))]
    pub columns: u16,
    /// Lines.
    #[schemars(range(min = 1))]
    pub rows: u16,
}

impl ExecRequest {
    /// Most bytes of a command, its arguments with their ends: what the kernel takes as one
    /// argument (`MAX_ARG_STRLEN`).
    pub const LONGEST_COMMAND: usize = 128 * 1024;
}
