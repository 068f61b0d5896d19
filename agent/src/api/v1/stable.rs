//! Stable images: `/v1/images/stable`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Which images belong on this host, and which one scale-out uses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StableList {
    /// Apps by name.
    pub apps: Vec<AppImages>,
    /// Images that the file of this host names (`images.stable_file`), in its order.
    pub listed: Vec<ListedImage>,
    /// Why the file could not be read; what it said before holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// The images of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppImages {
    /// Name of the app.
    pub app: String,
    /// As the manifest that was applied last names it.
    pub image: String,
    /// What that meant then, by digest.
    pub applied: String,
    /// What instances are made from now when nothing else is said, by digest.
    pub scale_out: String,
    /// The stable image; absent as long as none has covered all instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<StableImage>,
    /// The name means something else now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
}

/// An app's stable image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StableImage {
    /// The image, by digest.
    pub reference: String,
    /// The revision with it that scale-out uses.
    pub revision: String,
    /// Why it is stable.
    pub evidence: StableEvidence,
    /// Instances that it covered; absent when it was set by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
    /// The task that brought the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

/// Why an image is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StableEvidence {
    /// Every instance of the app's target was active with it.
    Covered,
    /// Somebody set it.
    ByHand,
}

/// A tag that moved since it was resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// What the name means in its registry now.
    pub digest: String,
    /// When that was seen first.
    pub seen_at: Timestamp,
}

/// An image that the file names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedImage {
    /// As the file names it.
    pub image: String,
    /// What that meant when it was resolved, by digest; absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The name means something else now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
}

/// Which image of an app is stable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StableRequest {
    /// Name of the app.
    pub app: String,
    /// An image that an instance of the app, its manifest, or its stable revision has: a name or a
    /// digest. Absent: the one that covers all instances, as if nobody had set any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}
