//! A blob from its sources into a [`ContentStore`], from the front to the end: for configs and
//! other small things. Verified on the way; what is not the blob is never committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::failure::Failure;
use super::retry::{Attempts, Budget, Turn};
use super::source::Source;
use crate::error::{PullError, named};
use crate::{Begun, BlobWriter, ContentStore, Descriptor, Digest, Hasher};

/// Where a blob comes from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// In the order in which they are asked.
    pub ordered: Vec<Arc<dyn Source>>,
    /// What the pull may still spend on trying again.
    pub budget: Arc<Budget>,
    /// A connection that brings no byte for this long has failed.
    pub stall_timeout: Duration,
    /// Who is asked beside a connection that brings too little.
    pub hedge: Hedge,
}

/// Who is asked beside a connection that brings too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// Another source; the same one when there is no other: its next connection may be better.
    Anybody,
    /// Another source or nobody: the source is known to serve many, and what is asked twice is sent
    /// twice.
    Others,
}

/// Brings a blob into the store unless it is there. `kind` is for errors: `config`, `layer`.
pub async fn into_content_store<S: ContentStore>(
    sources: &Sources,
    kind: &str,
    blob: &Descriptor,
    store: &S,
) -> Result<(), PullError> {
    let object = named(kind, &blob.digest);
    let mut attempts = Attempts::new(sources.ordered.iter().map(|source| source.is_well()));
    let mut last = None;
    loop {
        let mut writer = match store.begin(blob).await? {
            Begun::Present => return Ok(()),
            Begun::Writer(writer) => writer,
        };
        let mut copy = Copy {
            sources,
            object: &object,
            blob,
            attempts: &mut attempts,
            got: 0,
            hasher: Hasher::default(),
            senders: Vec::new(),
            last: &mut last,
        };
        let failure = match copy.run(&mut writer).await {
            Ok(digest) if digest == blob.digest => return Ok(writer.commit().await?),
            Ok(digest) => Failure::WrongDigest {
                expected: blob.digest.to_string(),
                got: digest.to_string(),
            },
            Err(error) => {
                writer.abort().await;
                return Err(error);
            }
        };
        let senders = std::mem::take(&mut copy.senders);
        writer.abort().await;
        for sender in &senders {
            attempts.put_aside(*sender);
        }
        last = senders.last().map(|sender| (*sender, failure));
    }
}

/// Puts bytes that we hold, and have verified, into the store.
pub(crate) async fn keep<S: ContentStore>(
    store: &S,
    blob: &Descriptor,
    bytes: Bytes,
) -> Result<(), PullError> {
    match store.begin(blob).await? {
        Begun::Present => Ok(()),
        Begun::Writer(mut writer) => match writer.write(bytes).await {
            Ok(()) => Ok(writer.commit().await?),
            Err(error) => {
                writer.abort().await;
                Err(error.into())
            }
        },
    }
}

/// One way through the blob; it goes on where a connection broke.
struct Copy<'c> {
    sources: &'c Sources,
    object: &'c str,
    blob: &'c Descriptor,
    attempts: &'c mut Attempts,
    got: u64,
    hasher: Hasher,
    /// Sources whose bytes are in it.
    senders: Vec<usize>,
    last: &'c mut Option<(usize, Failure)>,
}

/// What ends a connection.
enum End {
    Source(Failure),
    Store(PullError),
}

impl Copy<'_> {
    /// Brings the whole blob; the digest of what came.
    async fn run<W: BlobWriter>(&mut self, writer: &mut W) -> Result<Digest, PullError> {
        loop {
            let asked = match self.attempts.turn(Instant::now(), None) {
                Turn::Ask(asked) => asked,
                Turn::Rest(until) => {
                    tokio::time::sleep_until(until.into()).await;
                    continue;
                }
                Turn::Over => return Err(self.over()),
            };
            let before = self.got;
            let failure = match self.connection(asked, writer).await {
                Ok(()) => return Ok(std::mem::take(&mut self.hasher).finish()),
                Err(End::Store(error)) => return Err(error),
                Err(End::Source(failure)) => failure,
            };
            tracing::debug!(source = ?self.sources.ordered[asked], object = self.object, %failure, "connection failed");
            if self.got > before {
                self.attempts.succeeded(asked);
            }
            let (verdict, now) = (failure.verdict(), Instant::now());
            let budget = &self.sources.budget;
            self.attempts
                .failed(asked, verdict, now, fastrand::f64(), budget);
            if self.last.as_ref().is_none_or(|(last, _)| *last <= asked) {
                *self.last = Some((asked, failure));
            }
        }
    }

    async fn connection<W: BlobWriter>(&mut self, asked: usize, writer: &mut W) -> Result<(), End> {
        let (blob, stall) = (self.blob, self.sources.stall_timeout);
        let source = &self.sources.ordered[asked];
        let opened = source.open(blob, self.got..blob.size).await;
        let mut incoming = opened.map_err(End::Source)?;
        let mut at = incoming.range.start;
        let too_long = |at: u64| {
            End::Source(Failure::WrongSize {
                expected: blob.size,
                got: at,
            })
        };
        loop {
            let next = tokio::time::timeout(stall, incoming.bytes.next()).await;
            let mut bytes = match next.map_err(|_| End::Source(Failure::Stalled(stall)))? {
                Some(bytes) => bytes.map_err(End::Source)?,
                None if self.got == blob.size => return Ok(()),
                None => return Err(too_long(at)),
            };
            let start = at;
            at += bytes.len() as u64;
            if at > blob.size {
                return Err(too_long(at));
            }
            if at <= self.got {
                continue;
            }
            // A source that ignores ranges sends again what is here.
            let known = usize::try_from(self.got.saturating_sub(start)).unwrap_or(usize::MAX);
            let new = bytes.split_off(known.min(bytes.len()));
            if self.senders.last() != Some(&asked) {
                self.senders.push(asked);
            }
            self.got = at;
            self.hasher.update(&new);
            let written = writer.write(new).await;
            written.map_err(|error| End::Store(error.into()))?;
        }
    }

    /// Nobody is left: the error of the last in the order.
    fn over(&mut self) -> PullError {
        match self.last.take() {
            Some((asked, failure)) => {
                let source = &self.sources.ordered[asked];
                failure.of(source.name(), source.repository(), self.object)
            }
            None => PullError::NotHere {
                object: self.object.to_owned(),
            },
        }
    }
}
