//! Alarms: what somebody should look at, as long as it is so.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// One alarm that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alarm {
    /// Stable, for programs: `instances_fail`, `journal_lost`, ... (docs/operations/troubleshooting.md).
    pub code: String,
    /// The app that it is about; absent when it is about the host or a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The discovery backend that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// A sentence for the person on call.
    pub detail: String,
    /// Since when it stands.
    pub since: Timestamp,
}
