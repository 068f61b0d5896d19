//! The journal: `GET /v1/journal`, `POST /v1/journal/accept`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The agent's journal, and whether one before it was lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JournalDocument {
    /// Counts the journals of this host that were lost, from 1.
    pub epoch: u64,
    /// Whether somebody has to look.
    pub state: JournalState,
    /// What was wrong with the one that was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where its file is now, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<String>,
    /// When it was found lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// Whether a lost journal waits to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum JournalState {
    /// All is in it, or the loss was accepted.
    Sound,
    /// The one before was lost: nothing is removed, and ids of tasks are not known.
    Lost,
}
