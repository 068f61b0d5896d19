//! Images as files: `/v1/images/import` and `/v1/images/export`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image::ImageDocument;

/// Names an archive of images.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportRequest {
    /// An OCI image layout (a directory or a tar) or a docker-archive: an absolute path on the host
    /// of the agent.
    pub path: String,
    /// Name of the image, for an archive with one image without a full name, or for another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether the images are pinned, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pin: bool,
}

/// Images that came out of an archive.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportResult {
    /// In the order of the archive.
    pub images: Vec<ImageDocument>,
}

/// Names images and the file that they are to be written to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportRequest {
    /// The images, by name.
    pub references: Vec<String>,
    /// The file: an absolute path on the host of the agent.
    pub path: String,
    /// Whether a file of that name is replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overwrite: bool,
}

/// Images that were written to a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportResult {
    /// Full names.
    pub references: Vec<String>,
    /// The file.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
}
