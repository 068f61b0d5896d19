//! The images of a host: `/v1/images`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Images of this host by name, and those on their way.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageList {
    /// Images that were made ready, by name.
    pub images: Vec<ImageDocument>,
    /// Pulls under way, by name.
    pub pulls: Vec<PullDocument>,
    /// The look at what lies on the disk that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationDocument>,
}

/// How far a look at what lies on the disk is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerificationDocument {
    /// The image whose unpacked layers are compared; absent while blobs are hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Blobs and unpacked layers that were looked at.
    pub done: u32,
    /// Of so many.
    pub of: u32,
}

/// An image that was made ready on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageDocument {
    /// Full name.
    pub reference: String,
    /// Digest of the manifest for this host.
    pub digest: String,
    /// Whether it can be started from.
    pub state: ImageState,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// Whether an app's revision or a container needs it.
    pub in_use: bool,
    /// Whether it is the stable image of an app, or the host's file of images names it.
    pub stable: bool,
    /// Bytes of its layers, compressed.
    pub bytes: u64,
    /// Layers.
    pub layers: u32,
    /// When it became ready.
    pub ready_at: Timestamp,
    /// When it was last asked for, to the hour.
    pub used_at: Timestamp,
    /// How it came; absent when it was there before anybody pulled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ImageReceipt>,
}

/// How an image came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageReceipt {
    /// Seconds from the request to the image that is ready.
    pub seconds: f64,
    /// Bytes that came over the network.
    pub fetched_bytes: u64,
    /// Layers from the bottom up.
    pub layers: Vec<LayerReceipt>,
}

/// How a layer came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayerReceipt {
    /// Digest of the blob.
    pub digest: String,
    /// Size of the blob in bytes.
    pub bytes: u64,
    /// `registry`, `mirror`, `peer`; `store` when this host had it, `unpacked` when it was unpacked
    /// already, `import`.
    pub from: String,
    /// `host[:port]` that sent most of it; absent when nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// Bytes that came over the network.
    pub fetched_bytes: u64,
    /// Seconds from the first request to the verified blob.
    pub fetch_seconds: f64,
    /// Seconds of extracting and placing, without waiting for others.
    pub unpack_seconds: f64,
}

/// Whether an image can be started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ImageState {
    /// Pulled, verified, unpacked and kept.
    Ready,
    /// Somebody removed it, or a part of it, from containerd: it is pulled when it is needed.
    Incomplete,
}

impl ImageState {
    /// As in the document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Incomplete => "incomplete",
        }
    }
}

/// A pull under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullDocument {
    /// Full name.
    pub reference: String,
    /// Layers from the bottom up; empty until the manifest is here.
    pub layers: Vec<PullLayer>,
}

/// A layer on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullLayer {
    /// Digest of the blob.
    pub digest: String,
    /// Size of the blob in bytes.
    pub bytes: u64,
    /// Bytes of it that are here.
    pub fetched: u64,
    /// How far it is.
    pub stage: LayerStage,
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LayerStage {
    /// Its bytes are not all here.
    Fetching,
    /// Verified; waits for a free place, or is being extracted.
    Extracting,
    /// Extracted; waits for the layers below.
    Extracted,
    /// Unpacked.
    Ready,
}

impl LayerStage {
    /// As in the document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Extracting => "extracting",
            Self::Extracted => "extracted",
            Self::Ready => "ready",
        }
    }
}

/// Names an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageRequest {
    /// The image: `registry/repository:tag` or `@sha256:…`.
    pub reference: String,
    /// With pull: whether it is pinned, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pin: bool,
}

/// What is to be hashed again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerifyRequest {
    /// Only this image; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// What lies on the disk, hashed again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerifyResult {
    /// Blobs that are what their names say.
    pub right: u32,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Blobs that are not in our store: dropped after unpacking, or never pulled by us.
    pub absent: u32,
    /// Blobs that were damaged. They are gone, and are fetched again when they are needed.
    pub damaged: Vec<DamagedBlob>,
    /// Unpacked layers, each compared with its blob.
    pub unpacked: UnpackedResult,
}

/// What was found of unpacked layers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnpackedResult {
    /// Unpacked layers that are what their blobs say: names, owners, modes, times, attributes,
    /// links and content.
    pub right: u32,
    /// Unpacked layers that were not compared, by the reason.
    pub not_compared: Vec<NotCompared>,
    /// Unpacked layers that are damaged.
    pub damaged: Vec<DamagedLayer>,
}

/// Unpacked layers that were not compared for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotCompared {
    /// The reason.
    pub why: WhyNotCompared,
    /// How many.
    pub layers: u32,
    /// With `failed`: what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why an unpacked layer was not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum WhyNotCompared {
    /// Its blob is not in our store: dropped after unpacking, or never pulled by us.
    BlobAbsent,
    /// containerd does not have it unpacked.
    NotUnpacked,
    /// It is not overlayfs's, or its directory is not visible for the agent.
    OutOfSight,
    /// The comparison failed.
    Failed,
}

/// An unpacked layer that is not what its blob says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DamagedLayer {
    /// Its name in containerd: the chain id.
    pub chain_id: String,
    /// Digest of the blob.
    pub layer: String,
    /// The images that have it.
    pub images: Vec<String>,
    /// The first differences, each with its path from the root of the layer: what should be there
    /// comes first, what is there second.
    pub differences: Vec<String>,
    /// Whether there are more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// What became of it.
    pub state: DamagedState,
    /// With `used`: the root file systems that stand on it, where they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by: Vec<String>,
    /// With `gone` and `kept`: why it was not unpacked anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of an unpacked layer that was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DamagedState {
    /// It stays as it is, because it is used.
    Used,
    /// It was unpacked anew, and is right.
    UnpackedAnew,
    /// It is gone, and is unpacked when the image is pulled.
    Gone,
    /// It stays as it is, because making it anew failed.
    Kept,
}

/// A blob that was damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DamagedBlob {
    /// What it should have been.
    pub digest: String,
    /// What it was.
    pub got: String,
    /// The images that have it.
    pub images: Vec<String>,
}

/// How much room is needed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvictRequest {
    /// Bytes to free, at least; everything that may go when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Only say what would be done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// What was evicted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvictResult {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Images that went, or would go, in order.
    pub evicted: Vec<EvictedImage>,
    /// Images that stay, and why.
    pub kept: Vec<KeptImage>,
    /// Bytes that went, or would go.
    pub freed_bytes: u64,
    /// Bytes that are still needed: nothing more may go.
    pub short_bytes: u64,
}

/// An image that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvictedImage {
    /// Full name.
    pub reference: String,
    /// Bytes that went with it and that no other image needs.
    pub freed_bytes: u64,
}

/// An image that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeptImage {
    /// Full name.
    pub reference: String,
    /// `pinned`, `inUse`, `stable`.
    pub why: String,
}
