//! A source whose bytes are counted, for those who wait for this host.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};

use crate::Descriptor;
use crate::fetch::{Failure, Incoming, Source, SourceKind};

/// Another source; what comes of it adds to `activity`.
pub(super) struct Watched {
    pub source: Arc<dyn Source>,
    pub activity: Arc<AtomicU64>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Source for Watched {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn repository(&self) -> &str {
        self.source.repository()
    }

    fn kind(&self) -> SourceKind {
        self.source.kind()
    }

    fn is_well(&self) -> bool {
        self.source.is_well()
    }

    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Incoming, Failure>> {
        async move {
            let incoming = self.source.open(blob, range).await?;
            let activity = Arc::clone(&self.activity);
            let bytes = incoming.bytes.inspect(move |piece| {
                let length = piece.as_ref().map_or(0, Bytes::len);
                activity.fetch_add(length as u64, Ordering::Relaxed);
            });
            Ok(Incoming {
                range: incoming.range,
                bytes: bytes.boxed(),
            })
        }
        .boxed()
    }
}
