//! What an instance is made from: the validated manifest together with its image.

use serde::{Deserialize, Serialize};

use super::ImageConfig;
use crate::app::App;

/// An app's manifest and image at one point in time; instances carry the revision they were made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    /// Short hash of manifest and image digest.
    pub id: String,
    /// The manifest, validated.
    pub app: App,
    /// The manifest as applied, for the journal and `app show`.
    pub manifest: String,
    /// The image, present and unpacked on this host when the revision was made.
    pub image: RevisionImage,
}

/// The image of a revision, resolved once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevisionImage {
    /// Name of the image record in containerd.
    pub reference: String,
    /// Digest of the image manifest.
    pub digest: String,
    /// Digest of the image config blob.
    pub config_digest: String,
    /// Chain id of the topmost layer: the parent of every instance's snapshot.
    pub chain_id: String,
    /// What the image says about running it.
    pub config: ImageConfig,
}
