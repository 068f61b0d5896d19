//! One connection: brings the bytes of some ranges from one source into the partial blob.
//!
//! ```text
//! lane ─► open ─► receive ─► (bandwidth) ─► write behind ─► … ─► end
//!                   │ no byte for `hedge_after`: says so once, and goes on
//!                   │ no byte for `stall_timeout`: fails
//!                   └ an activation passes: yields
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::arrived::Arrived;
use super::bandwidth::Bandwidth;
use super::failure::Failure;
use super::flight::Joined;
use super::lanes::{Lane, Lanes, Urgency};
use super::plan::Plan;
use super::source::{Incoming, Source};
use crate::Descriptor;
use crate::blobs::{BlobsError, Partial};

/// Bytes gathered before they are written: a write costs a switch to another thread.
const GATHER: usize = 512 << 10;
/// Writes of one connection under way.
const WRITES: usize = 2;
/// A connection that brings fewer bytes per second than this, while it is waited for, is as good
/// as silent: another one is tried beside it.
const SLOW: f64 = 64.0 * 1024.0;

/// What all connections of one blob share.
pub(super) struct Shared<'s> {
    pub blob: &'s Descriptor,
    pub partial: Arc<Partial>,
    pub joined: &'s Joined,
    pub lanes: &'s Arc<Lanes>,
    pub bandwidth: &'s Bandwidth,
    pub arrived: &'s Arrived,
    pub stall_timeout: Duration,
    pub hedge_after: Duration,
    /// One for each write under way; all of them are free when nothing is being written.
    pub writes: Arc<Semaphore>,
}

/// What the coordinator is told while a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The source sends the ranges that it is asked for.
    Ranges,
    /// The source sends the whole blob, whatever it is asked for.
    Whole,
    /// Too little comes.
    Slow,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// It brought what its source had sent of its ranges.
    Done,
    /// An activation passes.
    Yielded,
    /// The source failed.
    Failed(Failure),
    /// The disk did.
    Store(BlobsError),
}

/// The ranges of a connection, in order; the coordinator looks at them.
pub(super) type Ranges = Arc<Mutex<Vec<Range<u64>>>>;

/// One connection.
pub(super) struct Connection<'c> {
    pub shared: &'c Shared<'c>,
    pub source: &'c dyn Source,
    /// What a source that sends the whole blob takes along.
    pub plan: &'c Mutex<Plan>,
    /// In order.
    pub ranges: Ranges,
    /// A lane that the coordinator has taken already.
    pub lane: Option<Lane>,
    /// Bytes that came, wanted or not.
    pub received: Arc<AtomicU64>,
}

impl Connection<'_> {
    /// Runs to its end. Cancelling by drop is safe: what was written stays.
    pub async fn run(mut self, tell: impl Fn(Event)) -> End {
        let _lane = match self.lane.take() {
            Some(lane) => lane,
            None => self.shared.lanes.take(|| self.urgency()).await,
        };
        match self.bring(&tell).await {
            Ok(end) | Err(end) => end,
        }
    }

    fn urgency(&self) -> Urgency {
        self.shared.joined.urgency()
    }

    async fn bring(&self, tell: &impl Fn(Event)) -> Result<End, End> {
        let asked = {
            let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
            match (ranges.first(), ranges.last()) {
                (Some(first), Some(last)) => first.start..last.end,
                _ => return Ok(End::Done),
            }
        };
        let mut incoming = self.open(asked.clone(), tell).await?;
        let sent = incoming.range.clone();
        if sent.start < asked.start || sent.end > asked.end {
            self.take_along();
            tell(Event::Whole);
        } else if sent != (0..self.shared.blob.size) {
            tell(Event::Ranges);
        }
        let mut writer = Writer {
            shared: self.shared,
            under_way: VecDeque::with_capacity(WRITES),
        };
        let mut at = sent.start;
        let mut gathered: Vec<Bytes> = Vec::new();
        let mut length = 0;
        let mut patience = Patience::new(self.shared);
        loop {
            let next = self.next(&mut incoming, &mut patience, tell).await;
            let ended = match next {
                Ok(Some(bytes)) => {
                    let count = bytes.len() as u64;
                    self.received.fetch_add(count, Ordering::Relaxed);
                    self.shared.arrived.add(self.source.kind(), count);
                    self.shared.bandwidth.spend(bytes.len()).await;
                    length += bytes.len();
                    gathered.push(bytes);
                    None
                }
                Ok(None) => Some(End::Done),
                Err(end) => Some(end),
            };
            let come = at + length as u64;
            if come > sent.end {
                return Err(self.wrong_size(come));
            }
            if length >= GATHER || ended.is_some() {
                let pieces = self.wanted(at, &mut gathered);
                at = come;
                length = 0;
                writer.write(pieces).await.map_err(End::Store)?;
            }
            // What a source sends behind our ranges, of which the end is here already.
            let ended = match ended {
                None if length == 0 && sent.end > at && at >= self.last() => Some(End::Done),
                ended => ended,
            };
            if let Some(end) = ended {
                writer.finish().await.map_err(End::Store)?;
                return match end {
                    End::Done if at < sent.end.min(self.last()) => Err(self.wrong_size(at)),
                    end => Ok(end),
                };
            }
        }
    }

    /// Takes everything that nobody brings yet.
    fn take_along(&self) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = plan.take_all();
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.extend(rest);
        ranges.sort_by_key(|range| range.start);
    }

    /// End of the last range.
    fn last(&self) -> u64 {
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.last().map_or(0, |last| last.end)
    }

    fn wrong_size(&self, got: u64) -> End {
        End::Failed(Failure::WrongSize {
            expected: self.shared.blob.size,
            got,
        })
    }

    async fn open(&self, range: Range<u64>, tell: &impl Fn(Event)) -> Result<Incoming, End> {
        let mut opening = self.source.open(self.shared.blob, range);
        let (stall, hedge) = (self.shared.stall_timeout, self.shared.hedge_after);
        let opened = tokio::time::timeout(hedge.min(stall), &mut opening).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(_) => {
                tell(Event::Slow);
                tokio::time::timeout(stall.saturating_sub(hedge), opening)
                    .await
                    .unwrap_or(Err(Failure::Stalled(stall)))
            }
        };
        opened.map_err(End::Failed)
    }

    /// The next bytes; none at the end.
    async fn next(
        &self,
        incoming: &mut Incoming,
        patience: &mut Patience,
        tell: &impl Fn(Event),
    ) -> Result<Option<Bytes>, End> {
        let begun = Instant::now();
        loop {
            let urgency = self.urgency();
            if self.shared.lanes.must_yield(urgency) {
                return Err(End::Yielded);
            }
            let wait = patience.left(begun.elapsed());
            let receive = tokio::time::timeout(wait, incoming.bytes.next());
            let received = if urgency == Urgency::Activation {
                receive.await
            } else {
                tokio::select! {
                    biased;
                    received = receive => received,
                    () = self.shared.lanes.activation() => continue,
                }
            };
            let waited = begun.elapsed();
            match received {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(bytes))) => {
                    if patience.came(bytes.len(), waited) {
                        tell(Event::Slow);
                    }
                    return Ok(Some(bytes));
                }
                Ok(Some(Err(failure))) => return Err(End::Failed(failure)),
                Err(_) if waited >= patience.stall => {
                    return Err(End::Failed(Failure::Stalled(patience.stall)));
                }
                Err(_) => {
                    if patience.nothing_came() {
                        tell(Event::Slow);
                    }
                }
            }
        }
    }

    /// Of the bytes gathered from `at` on, those that this connection is to bring.
    fn wanted(&self, at: u64, gathered: &mut Vec<Bytes>) -> Vec<(u64, Bytes)> {
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = Vec::with_capacity(gathered.len());
        let mut start = at;
        for bytes in gathered.drain(..) {
            let end = start + bytes.len() as u64;
            for range in ranges.iter() {
                let (from, to) = (range.start.max(start), range.end.min(end));
                if from < to {
                    let slice = distance(start, from)..distance(start, to);
                    wanted.push((from, bytes.slice(slice)));
                }
            }
            start = end;
        }
        wanted
    }
}

fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

/// Says when a connection is too slow: counts only the time in which it was waited for.
struct Patience {
    stall: Duration,
    hedge: Duration,
    told: bool,
    /// Of the present window.
    waited: Duration,
    bytes: usize,
}

impl Patience {
    fn new(shared: &Shared<'_>) -> Self {
        Self {
            stall: shared.stall_timeout,
            hedge: shared.hedge_after,
            told: false,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// How long to wait for the next byte, of which there was none for `silent`.
    fn left(&self, silent: Duration) -> Duration {
        let until = match self.told || silent >= self.hedge {
            true => self.stall,
            false => self.stall.min(self.hedge),
        };
        until.saturating_sub(silent)
    }

    /// Some bytes came; whether to tell that they are too few.
    fn came(&mut self, bytes: usize, waited: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.hedge {
            return false;
        }
        let slow = (self.bytes as f64) < SLOW * self.waited.as_secs_f64();
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        slow && !std::mem::replace(&mut self.told, true)
    }

    /// Nothing came for as long as [`Self::left`] said; whether to tell.
    fn nothing_came(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }
}

/// Writes behind: while bytes are received, those before are written, and those before them are
/// hashed (the store hashes in its writes, one at a time).
struct Writer<'w> {
    shared: &'w Shared<'w>,
    under_way: VecDeque<JoinHandle<Result<(), BlobsError>>>,
}

impl Writer<'_> {
    async fn write(&mut self, pieces: Vec<(u64, Bytes)>) -> Result<(), BlobsError> {
        while self.under_way.len() >= WRITES {
            self.finish_one().await?;
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let permit = Arc::clone(&self.shared.writes).acquire_owned().await;
        let partial = Arc::clone(&self.shared.partial);
        let bytes: u64 = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.under_way
            .push_back(tokio::task::spawn_blocking(move || {
                let written = write_all(&partial, &pieces);
                // Whoever has all permits is to be the only one who has the partial.
                drop(partial);
                drop::<Result<OwnedSemaphorePermit, _>>(permit);
                written
            }));
        let done = &self.shared.joined.flight.done;
        done.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), BlobsError> {
        while !self.under_way.is_empty() {
            self.finish_one().await?;
        }
        Ok(())
    }

    async fn finish_one(&mut self) -> Result<(), BlobsError> {
        match self.under_way.pop_front() {
            None => Ok(()),
            Some(write) => match write.await {
                Ok(written) => written,
                // A panic of the store is passed on as what it is.
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime ends, and everything with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

fn write_all(partial: &Partial, pieces: &[(u64, Bytes)]) -> Result<(), BlobsError> {
    for (offset, bytes) in pieces {
        partial.put(*offset, bytes)?;
    }
    partial.hash_on()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> Patience {
        Patience {
            stall: Duration::from_secs(30),
            hedge: Duration::from_secs(3),
            told: false,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    #[test]
    fn silence_is_told_once_and_then_waited_out() {
        let mut patience = patience();
        let second = Duration::from_secs(1);
        assert_eq!(patience.left(Duration::ZERO), 3 * second);
        assert_eq!(patience.left(second), 2 * second);
        assert!(patience.nothing_came());
        assert_eq!(patience.left(3 * second), 27 * second);
        assert!(!patience.nothing_came());
    }

    #[test]
    fn a_trickle_is_told_as_well() {
        let mut patience = patience();
        let second = Duration::from_secs(1);
        assert!(!patience.came(1, second) && !patience.came(1, second));
        assert!(patience.came(1, second));
        assert!(!patience.came(1, 9 * second), "it was told already");
    }

    #[test]
    fn what_is_fast_enough_is_left_alone() {
        let mut patience = patience();
        for _ in 0..100 {
            assert!(!patience.came(1 << 20, Duration::from_secs(1)));
        }
    }
}
