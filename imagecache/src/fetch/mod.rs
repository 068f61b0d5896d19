//! Fetching blobs: from whoever has them, in the order in which they are asked, verified.
//!
//! ```text
//! Source (registry, mirror, peer) ── Incoming ──►  ContentStore   content: configs
//!    ▲                                        └──►  Blobs          engine: layers
//!    │ who is next, and when: retry                  flight       one for each digest, a turn
//!                                                    transfer     coordinates its connections
//!                                                    connection   lane, bandwidth, patience
//! ```
//!
//! A blob that is too long, too short or has another sha256 is never committed. Deliberately not
//! here: HTTP (that is [`crate::registry`]'s), and what blobs mean.

mod arrived;
mod bandwidth;
mod connection;
mod content;
mod engine;
mod failure;
mod flight;
mod lanes;
mod options;
mod plan;
mod retry;
mod source;
mod transfer;

pub use content::{Hedge, Sources, into_content_store};
pub use engine::{Fetched, Fetcher, Share, Wanted};
pub use failure::{Failure, Verdict};
pub use lanes::Urgency;
pub use options::{FetchOptions, ProxySettings};
pub use retry::Budget;
pub use source::{Incoming, Source, SourceKind};

pub(crate) use bandwidth::Bandwidth;
pub(crate) use content::keep;
pub(crate) use retry::{Attempts, Turn, retry_after};

use crate::registry::Registry;
use crate::{ContentStore, Descriptor, PullError};

/// Brings a blob of `registry` into the store unless it is there.
pub(crate) async fn blob<S: ContentStore>(
    registry: &Registry,
    kind: &str,
    blob: &Descriptor,
    store: &S,
) -> Result<(), PullError> {
    into_content_store(&registry.sources(), kind, blob, store).await
}
