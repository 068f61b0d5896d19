//! Large blobs into [`Blobs`]: whole, verified, by as many connections as help.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::arrived::Arrived;
use super::bandwidth::Bandwidth;
use super::connection::Shared;
use super::content::Sources;
use super::failure::Failure;
use super::flight::{Flights, Joined};
use super::lanes::{Lanes, Passing, Urgency};
use super::options::FetchOptions;
use super::plan::Plan;
use super::source::SourceKind;
use super::transfer::{Limits, Transfer, TransferError};
use crate::blobs::{Begun, Blob, Blobs, BlobsError, CommitError, Partial};
use crate::error::{PullError, named};
use crate::{Descriptor, Digest};

/// Writes of one blob at a time: more than its connections can have.
pub(super) const MOST_WRITES: u32 = 1024;

/// How often a blob that another process fetches is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// A blob, and how it came here.
#[derive(Debug)]
pub struct Fetched {
    /// Whole and verified.
    pub blob: Blob,
    /// What each source sent, in the order of the sources, without those that sent nothing. Empty
    /// when the blob was present, or another pull brought it.
    pub shares: Vec<Share>,
    /// Bytes that were here already, of a pull that did not end; all of them when it was present.
    pub resumed: u64,
    /// From asking for it to having it.
    pub elapsed: Duration,
}

/// What one source sent of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What kind of source.
    pub kind: SourceKind,
    /// `host[:port]`.
    pub name: String,
    /// Bytes that came, also those that were not needed in the end.
    pub bytes: u64,
}

/// Fetches blobs for all pulls of the process: they share its connections, its bandwidth, and what
/// is under way.
#[derive(Clone)]
pub struct Fetcher(Arc<Inner>);

struct Inner {
    options: FetchOptions,
    lanes: Arc<Lanes>,
    bandwidth: Bandwidth,
    arrived: Arrived,
    flights: Flights,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

/// Blobs that an activation waits for: as long as it lives, they go before those of pre-pulls.
#[derive(Debug)]
pub struct Wanted {
    _joined: Vec<Joined>,
    _passing: Passing,
}

/// What happened to one way through the blob.
enum Round {
    Fetched(Blob),
    /// All bytes are there, and they are not the blob: what they are.
    Mismatch {
        got: Digest,
        resumed: u64,
    },
    /// The sources failed.
    Failed(Option<(usize, Failure)>),
}

impl Fetcher {
    /// Nothing is under way yet.
    pub fn new(options: &FetchOptions) -> Self {
        Self(Arc::new(Inner {
            lanes: Lanes::new(options.connections),
            bandwidth: Bandwidth::new(options.bandwidth),
            arrived: Arrived::default(),
            flights: Flights::default(),
            options: options.clone(),
        }))
    }

    /// Connections at a time of all pulls.
    pub(crate) fn connections(&self) -> usize {
        self.0.options.connections.max(1)
    }

    /// Bytes that are here of a blob that is being fetched now.
    pub fn progress(&self, digest: &Digest) -> Option<u64> {
        self.0.flights.done(digest)
    }

    /// Bytes that sources of this kind sent of blobs since the start, also those that were not
    /// needed in the end.
    pub fn arrived(&self, kind: SourceKind) -> u64 {
        self.0.arrived.of(kind)
    }

    /// Says that an activation waits for these blobs, whoever fetches them now or later. None when
    /// there are none: nobody makes way for nothing.
    pub fn want<'d>(&self, blobs: impl IntoIterator<Item = &'d Digest>) -> Option<Wanted> {
        let join = |digest| self.0.flights.join(digest, Urgency::Activation);
        // In this order: what becomes urgent does not make way for itself.
        let joined: Vec<Joined> = blobs.into_iter().map(join).collect();
        if joined.is_empty() {
            return None;
        }
        let passing = self.0.lanes.pass();
        // Whoever fetches one of them now may be a pre-pull that waits for activations to end.
        self.0.lanes.look_again();
        Some(Wanted {
            _joined: joined,
            _passing: passing,
        })
    }

    /// Brings a blob into the store unless it is there. Whoever wants the same one meanwhile waits
    /// for this one, also in another process. Returns when it is whole and verified. Has no
    /// deadline of its own: the pull's, by drop; what was written stays for the next one.
    pub async fn blob(
        &self,
        sources: &Sources,
        kind: &str,
        blob: &Descriptor,
        into: &Blobs,
        urgency: Urgency,
    ) -> Result<Fetched, PullError> {
        let asked = Instant::now();
        // What is there hinders no pre-pull.
        let (store, digest) = (into.clone(), blob.digest.clone());
        if let Some(blob) = blocking(move || store.find(&digest)).await? {
            return Ok(Fetched {
                resumed: blob.size,
                blob,
                shares: Vec::new(),
                elapsed: asked.elapsed(),
            });
        }
        let _wanted = match urgency {
            Urgency::Activation => self.want([&blob.digest]),
            Urgency::PrePull => None,
        };
        let joined = self.0.flights.join(&blob.digest, urgency);
        let _turn = joined.flight.turn.lock().await;
        let mut job = Job {
            fetcher: &self.0,
            sources,
            object: named(kind, &blob.digest),
            blob,
            into,
            joined: &joined,
            usable: vec![true; sources.ordered.len()],
            received: sources.ordered.iter().map(|_| Arc::default()).collect(),
            resumed: 0,
        };
        let blob = job.run().await?;
        let sent = sources.ordered.iter().zip(&job.received);
        let shares = sent.map(|(source, received)| Share {
            kind: source.kind(),
            name: source.name().to_owned(),
            bytes: received.load(Ordering::Relaxed),
        });
        Ok(Fetched {
            blob,
            shares: shares.filter(|share| share.bytes > 0).collect(),
            resumed: job.resumed,
            elapsed: asked.elapsed(),
        })
    }
}

/// One blob that is ours to fetch.
struct Job<'j> {
    fetcher: &'j Inner,
    sources: &'j Sources,
    object: String,
    blob: &'j Descriptor,
    into: &'j Blobs,
    joined: &'j Joined,
    /// Sources that were not found to send wrong bytes.
    usable: Vec<bool>,
    received: Vec<Arc<AtomicU64>>,
    resumed: u64,
}

impl Job<'_> {
    /// One way after the other through the blob, until it is right. Who sent wrong bytes is not
    /// asked again; when it is not known who did, sources are asked one at a time.
    async fn run(&mut self) -> Result<Blob, PullError> {
        let mut one_at_a_time = false;
        let mut last = None;
        // Each way ends it, or takes a source out of it, or begins a new kind of way.
        for _ in 0..2 * self.usable.len() + 3 {
            let mut asked = self.usable.clone();
            if one_at_a_time && let Some(first) = asked.iter().position(|usable| *usable) {
                asked[first + 1..].fill(false);
            }
            let before: Vec<u64> = self.received();
            match self.round(&asked).await? {
                Round::Fetched(blob) => return Ok(blob),
                Round::Failed(failure) => {
                    // A mismatch before says more than that nobody else has it.
                    last = failure.or(last);
                    if !one_at_a_time {
                        break;
                    }
                    self.put_aside(&asked);
                }
                Round::Mismatch { got, resumed } => {
                    let after = self.received();
                    let sent: Vec<bool> = before.iter().zip(&after).map(|(b, a)| b < a).collect();
                    let senders = sent.iter().filter(|sent| **sent).count();
                    let sender = sent.iter().rposition(|sent| *sent).unwrap_or(0);
                    tracing::warn!(digest = %self.blob.digest, %got, resumed, senders,
                        source = ?self.sources.ordered.get(sender), "wrong bytes came: nothing of them is kept");
                    let failure = Failure::WrongDigest {
                        expected: self.blob.digest.to_string(),
                        got: got.to_string(),
                    };
                    last = Some((sender, failure));
                    match (resumed, senders) {
                        (0, 0 | 1) => self.put_aside(&sent),
                        // What was here before may be what was wrong.
                        (1.., 0 | 1) => {}
                        _ => one_at_a_time = true,
                    }
                }
            }
        }
        Err(self.error(last))
    }

    fn received(&self) -> Vec<u64> {
        let received = self.received.iter();
        received
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .collect()
    }

    fn put_aside(&mut self, which: &[bool]) {
        for (usable, aside) in self.usable.iter_mut().zip(which) {
            *usable &= !aside;
        }
    }

    fn error(&self, last: Option<(usize, Failure)>) -> PullError {
        let sources = &self.sources.ordered;
        let (source, failure) = match last {
            Some((source, failure)) => (sources.get(source), failure),
            None => (sources.last(), Failure::NotFound),
        };
        match source {
            Some(source) => failure.of(source.name(), source.repository(), &self.object),
            None => PullError::NotHere {
                object: self.object.clone(),
            },
        }
    }

    async fn round(&mut self, asked: &[bool]) -> Result<Round, PullError> {
        let partial = match self.begin().await? {
            Begun::Partial(partial) => partial,
            Begun::Present(blob) => {
                self.done(blob.size);
                if self.received().iter().sum::<u64>() == 0 {
                    self.resumed = blob.size;
                }
                return Ok(Round::Fetched(blob));
            }
            // `begin` waits for others.
            Begun::Busy => return Ok(Round::Failed(None)),
        };
        self.resumed = partial.resumed();
        self.done(partial.resumed());
        let options = &self.fetcher.options;
        let transfer = Transfer {
            shared: Shared {
                blob: self.blob,
                partial: Arc::new(*partial),
                joined: self.joined,
                lanes: &self.fetcher.lanes,
                bandwidth: &self.fetcher.bandwidth,
                arrived: &self.fetcher.arrived,
                stall_timeout: options.stall_timeout,
                hedge_after: options.hedge_after,
                writes: Arc::new(Semaphore::new(MOST_WRITES as usize)),
            },
            sources: &self.sources.ordered,
            hedge: self.sources.hedge,
            usable: asked,
            budget: &self.sources.budget,
            limits: Limits {
                connections: options.connections_per_blob.max(1),
                chunk: options.chunk,
            },
            received: &self.received,
            plan: Mutex::new(Plan::new(Vec::new(), options.chunk)),
        };
        let partial = match transfer.run().await {
            Ok(partial) => partial,
            Err(TransferError::Store(error)) => return Err(error.into()),
            Err(TransferError::Sources(failure)) => return Ok(Round::Failed(failure)),
        };
        match commit(partial).await {
            Ok(blob) => Ok(Round::Fetched(blob)),
            Err(CommitError::Mismatch { got, resumed, .. }) => Ok(Round::Mismatch { got, resumed }),
            Err(CommitError::Store(error)) => Err(error.into()),
            // The transfer does not end before.
            Err(CommitError::Incomplete { .. }) => Ok(Round::Failed(None)),
        }
    }

    fn done(&self, bytes: u64) {
        self.joined.flight.done.store(bytes, Ordering::Relaxed);
    }

    /// Waits as long as another process writes the blob.
    async fn begin(&self) -> Result<Begun, BlobsError> {
        loop {
            let (into, blob) = (self.into.clone(), self.blob.clone());
            match blocking(move || into.begin(&blob)).await? {
                Begun::Busy => tokio::time::sleep(LOOK).await,
                begun => return Ok(begun),
            }
        }
    }
}

async fn commit(partial: Partial) -> Result<Blob, CommitError> {
    blocking(move || partial.commit()).await
}

/// Runs what blocks where it does no harm.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends, and everything with it.
        Err(_) => std::future::pending().await,
    }
}
