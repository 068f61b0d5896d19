//! Apps as the API shows them: `/v1/apps`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// One line of `GET /v1/apps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppSummary {
    /// `metadata.name` of the manifest.
    pub name: String,
    /// Hash of manifest and image digest that new instances are made from.
    pub revision: String,
    /// Image reference as written.
    pub image: String,
    /// Digest that the reference was resolved to (`sha256:...`); absent until it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// When this manifest was applied.
    pub applied_at: Timestamp,
    /// Warm targets as the manifest says.
    pub warm: WarmTargets,
}

/// `GET /v1/apps/{name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppDocument {
    /// As in [`AppSummary::name`].
    pub name: String,
    /// As in [`AppSummary::revision`].
    pub revision: String,
    /// As in [`AppSummary::image`].
    pub image: String,
    /// As in [`AppSummary::image_digest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// As in [`AppSummary::applied_at`].
    pub applied_at: Timestamp,
    /// As in [`AppSummary::warm`].
    pub warm: WarmTargets,
    /// The manifest as applied, byte for byte.
    pub manifest: String,
}

/// Wanted instances at each warmth, beyond those in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmTargets {
    /// Instances wanted at the gate.
    pub armed: u32,
}

/// `GET /v1/apps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppList {
    /// By name.
    pub apps: Vec<AppSummary>,
}

/// Answer to `PUT /v1/apps` and `DELETE /v1/apps/{name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplyResult {
    /// The app.
    pub name: String,
    /// What changed.
    pub outcome: ApplyOutcome,
    /// Revision that new instances are made from; of a deleted app, its last.
    pub revision: String,
    /// An operator's sentence: what follows from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What an apply or delete changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ApplyOutcome {
    /// The app is new.
    Created,
    /// The manifest differs: a new revision.
    Changed,
    /// The manifest is the one that was there.
    Unchanged,
    /// The app is gone.
    Deleted,
}

impl ApplyOutcome {
    /// As spelt in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}
