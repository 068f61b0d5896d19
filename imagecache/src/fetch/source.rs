//! Where bytes come from: the seam between the engine and registries, mirrors, peers.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::failure::Failure;
use crate::Descriptor;

/// What kind of thing sent a blob; receipts say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// The registry that the reference names.
    Registry,
    /// A mirror of `hosts.toml`.
    Mirror,
    /// Another agent.
    Peer,
}

impl SourceKind {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Registry, Self::Mirror, Self::Peer];

    /// One word, for receipts and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Mirror => "mirror",
            Self::Peer => "peer",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that may have blobs.
pub trait Source: Send + Sync + fmt::Debug {
    /// `host[:port]`.
    fn name(&self) -> &str;

    /// The repository that it is asked for; errors name it.
    fn repository(&self) -> &str;

    /// What kind of thing it is.
    fn kind(&self) -> SourceKind;

    /// Whether it was in order when it was last asked, by whomever. Those that were not are asked
    /// after the others.
    fn is_well(&self) -> bool {
        true
    }

    /// Asks for some bytes of a blob, which has to be answered within the stall timeout. The
    /// answer may begin before `range` and end behind it ([`Incoming::range`] says so), so that a
    /// source may ignore what it is asked for and send the whole.
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Incoming, Failure>>;
}

/// Bytes of a blob on their way. Dropped, no more of them are wanted.
pub struct Incoming {
    /// Which bytes of the blob come.
    pub range: Range<u64>,
    /// They, in order.
    pub bytes: BoxStream<'static, Result<Bytes, Failure>>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}
