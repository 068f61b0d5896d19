//! What a pull did: the evidence behind `ready`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fetch::SourceKind;

/// Where a layer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The registry that the reference names.
    Registry,
    /// A mirror of it.
    Mirror,
    /// Another agent.
    Peer,
    /// Our own store had it.
    Store,
    /// It was unpacked already.
    Unpacked,
    /// An archive that was imported.
    Import,
}

impl Origin {
    /// One word, as in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Mirror => "mirror",
            Self::Peer => "peer",
            Self::Store => "store",
            Self::Unpacked => "unpacked",
            Self::Import => "import",
        }
    }
}

impl From<SourceKind> for Origin {
    fn from(kind: SourceKind) -> Self {
        match kind {
            SourceKind::Registry => Self::Registry,
            SourceKind::Mirror => Self::Mirror,
            SourceKind::Peer => Self::Peer,
        }
    }
}

/// A layer of an image that is ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReceipt {
    /// Digest of the blob.
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Name of the unpacked layer.
    pub chain_id: String,
    /// Where it came from.
    pub from: Origin,
    /// `host[:port]` that sent most of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// Bytes that came over the network for it.
    pub fetched_bytes: u64,
    /// Seconds from the first request to the verified blob.
    pub fetch_seconds: f64,
    /// Seconds of extracting and placing, without waiting for others.
    pub unpack_seconds: f64,
}

/// An image that is pulled, verified, unpacked and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Full name.
    pub reference: String,
    /// Digest of what the reference names: an index or the manifest.
    pub target: String,
    /// Digest of the manifest for this host.
    pub digest: String,
    /// Seconds from the request to this receipt.
    pub seconds: f64,
    /// Bytes that came over the network.
    pub fetched_bytes: u64,
    /// Layers from the bottom up.
    pub layers: Vec<LayerReceipt>,
}

impl Receipt {
    pub(crate) fn seconds(duration: Duration) -> f64 {
        // Microseconds are precise enough, and short to read.
        (duration.as_secs_f64() * 1e6).round() / 1e6
    }
}
