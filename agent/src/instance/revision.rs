//! What an instance is made from: the validated manifest together with its image.

use crate::app::App;
use crate::runtime::Image;

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
    pub image: Image,
}
