//! The coordinator of one blob: gives ranges to connections until nothing is missing.
//!
//! Up to so many connections at a time, each with the next chunk from the front; a source is
//! spoken to by one connection until it is known to send ranges. A connection that brings too
//! little gets a second one beside it with the same ranges; the first to bring them ends the
//! other. What a connection did not bring goes back into the plan.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::{AbortHandle, BoxFuture, abortable};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;

use super::connection::{Connection, End, Event, Ranges, Shared};
use super::content::Hedge;
use super::failure::Failure;
use super::plan::{Plan, common};
use super::retry::{Attempts, Budget, Turn};
use super::source::Source;
use crate::blobs::{BlobsError, Partial};

/// Why a blob did not come.
#[derive(Debug)]
pub(super) enum TransferError {
    /// No source is left; the failure of the last in their order, where one was asked.
    Sources(Option<(usize, Failure)>),
    /// The store failed.
    Store(BlobsError),
}

/// How a transfer is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub connections: usize,
    pub chunk: u64,
}

/// One blob from its sources.
pub(super) struct Transfer<'t> {
    pub shared: Shared<'t>,
    pub sources: &'t [Arc<dyn Source>],
    /// Who is asked beside a connection that brings too little.
    pub hedge: Hedge,
    /// Which of them may be asked.
    pub usable: &'t [bool],
    pub budget: &'t Budget,
    pub limits: Limits,
    /// Bytes that each source sent.
    pub received: &'t [Arc<AtomicU64>],
    pub plan: Mutex<Plan>,
}

/// Whether a source sends the ranges that it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Support {
    Unknown,
    Ranges,
    Whole,
}

/// A connection under way.
struct Holder {
    source: usize,
    ranges: Ranges,
    /// Bytes that were missing of them when it began.
    missing: u64,
    /// Which ranges it shares with another connection, if any: equal for both.
    piece: u64,
    abort: AbortHandle,
}

struct State<'s> {
    attempts: Attempts,
    support: Vec<Support>,
    holders: BTreeMap<u64, Holder>,
    running: FuturesUnordered<BoxFuture<'s, (u64, Option<End>)>>,
    events: mpsc::UnboundedSender<(u64, Event)>,
    next_id: u64,
    last: Option<(usize, Failure)>,
}

/// What to do when no connection can be started.
enum Idle {
    /// Wait for what runs, or until then.
    Until(Option<Instant>),
    /// Nobody is left to ask.
    Over,
}

impl Transfer<'_> {
    /// Brings all that is missing; the partial, of which nobody else has a part any more.
    pub async fn run(self) -> Result<Partial, TransferError> {
        loop {
            let missing = self.shared.partial.missing();
            if missing.is_empty() {
                return self.into_partial().await;
            }
            self.bring(missing).await?;
            // A connection that was ended may still be writing, and may have failed to.
            self.writes_end().await;
        }
    }

    async fn writes_end(&self) {
        // It is never closed.
        drop(
            self.shared
                .writes
                .acquire_many(super::engine::MOST_WRITES)
                .await,
        );
    }

    async fn into_partial(self) -> Result<Partial, TransferError> {
        self.writes_end().await;
        let partial = self.shared.partial;
        match Arc::try_unwrap(partial) {
            Ok(partial) => Ok(partial),
            // No write is under way and no connection runs, so nobody can have it.
            Err(_) => std::future::pending().await,
        }
    }

    async fn bring(&self, missing: Vec<Range<u64>>) -> Result<(), TransferError> {
        let (tell, mut events) = mpsc::unbounded_channel();
        *self.plan() = Plan::new(missing, self.limits.chunk);
        let well = self.sources.iter().map(|source| source.is_well());
        let mut attempts = Attempts::new(well);
        for (source, usable) in self.usable.iter().enumerate() {
            if !usable {
                attempts.put_aside(source);
            }
        }
        let mut state = State {
            attempts,
            support: vec![Support::Unknown; self.sources.len()],
            holders: BTreeMap::new(),
            running: FuturesUnordered::new(),
            events: tell,
            next_id: 0,
            last: None,
        };
        loop {
            let wake = match self.start(&mut state) {
                Idle::Until(_) if self.plan().is_empty() && state.running.is_empty() => {
                    return Ok(());
                }
                Idle::Over if state.running.is_empty() => {
                    return Err(TransferError::Sources(state.last.take()));
                }
                Idle::Until(wake) => wake,
                Idle::Over => None,
            };
            tokio::select! {
                biased;
                Some((id, event)) = events.recv() => self.happened(&mut state, id, event),
                Some((id, end)) = state.running.next(), if !state.running.is_empty() => {
                    self.ended(&mut state, id, end)?;
                }
                () = sleep_until(wake), if wake.is_some() => {}
            }
        }
    }

    /// Starts as many connections as may be.
    fn start<'s>(&'s self, state: &mut State<'s>) -> Idle {
        while !self.plan().is_empty() && state.running.len() < self.limits.connections {
            let source = match state.attempts.turn(Instant::now(), None) {
                Turn::Ask(source) => source,
                Turn::Rest(until) => return Idle::Until(Some(until)),
                Turn::Over => return Idle::Over,
            };
            let busy = state.holders.values().any(|holder| holder.source == source);
            if busy && state.support[source] != Support::Ranges {
                return Idle::Until(None);
            }
            let ranges = match state.support[source] {
                Support::Whole => self.plan().take_all(),
                _ => self.plan().take().into_iter().collect(),
            };
            let piece = state.next_id;
            self.connect(state, source, Arc::new(Mutex::new(ranges)), piece, None);
        }
        Idle::Until(None)
    }

    fn connect<'s>(
        &'s self,
        state: &mut State<'s>,
        source: usize,
        ranges: Ranges,
        piece: u64,
        lane: Option<super::lanes::Lane>,
    ) {
        let id = state.next_id;
        state.next_id += 1;
        let connection = Connection {
            shared: &self.shared,
            plan: &self.plan,
            source: self.sources[source].as_ref(),
            ranges: Arc::clone(&ranges),
            lane,
            received: Arc::clone(&self.received[source]),
        };
        let events = state.events.clone();
        let tell = move |event| {
            // The coordinator is gone only together with this connection.
            events.send((id, event)).unwrap_or_default();
        };
        let (run, abort) = abortable(connection.run(tell));
        let run = run.map(move |ended| (id, ended.ok())).boxed();
        state.running.push(run);
        let missing = bytes(&lock(&ranges));
        let holder = Holder {
            source,
            missing,
            ranges,
            piece,
            abort,
        };
        state.holders.insert(id, holder);
    }

    fn happened<'s>(&'s self, state: &mut State<'s>, id: u64, event: Event) {
        let Some(holder) = state.holders.get(&id) else {
            return;
        };
        let source = holder.source;
        match event {
            Event::Ranges => state.support[source] = Support::Ranges,
            Event::Whole => state.support[source] = Support::Whole,
            Event::Slow => {
                let piece = holder.piece;
                let ranges = Arc::clone(&holder.ranges);
                let alone = state.holders.values().filter(|other| other.piece == piece);
                if alone.count() > 1 {
                    return;
                }
                let urgency = self.shared.joined.urgency();
                let Turn::Ask(other) = state.attempts.turn(Instant::now(), Some(source)) else {
                    return;
                };
                if other == source && self.hedge == Hedge::Others {
                    return;
                }
                let Some(lane) = self.shared.lanes.try_take(urgency) else {
                    return;
                };
                tracing::debug!(slow = ?self.sources[source], beside = ?self.sources[other],
                    digest = %self.shared.blob.digest, "too little comes: another connection beside it");
                let rest = self.missing_of(&ranges);
                let ranges = Arc::new(Mutex::new(rest));
                self.connect(state, other, ranges, piece, Some(lane));
            }
        }
    }

    fn ended(&self, state: &mut State<'_>, id: u64, end: Option<End>) -> Result<(), TransferError> {
        let Some(holder) = state.holders.remove(&id) else {
            return Ok(());
        };
        let source = holder.source;
        let rest = self.missing_of(&holder.ranges);
        match end {
            // The other one was faster.
            None => {}
            Some(End::Store(error)) => return Err(TransferError::Store(error)),
            Some(End::Yielded) => {}
            Some(End::Done) => state.attempts.succeeded(source),
            Some(End::Failed(failure)) => {
                tracing::debug!(source = ?self.sources[source], %failure,
                    digest = %self.shared.blob.digest, "connection failed");
                if bytes(&rest) < holder.missing {
                    state.attempts.succeeded(source);
                }
                let (verdict, now) = (failure.verdict(), Instant::now());
                state
                    .attempts
                    .failed(source, verdict, now, fastrand::f64(), self.budget);
                if state.last.as_ref().is_none_or(|(last, _)| *last <= source) {
                    state.last = Some((source, failure));
                }
            }
        }
        let beside = |other: &&Holder| other.piece == holder.piece;
        if rest.is_empty() {
            for other in state.holders.values().filter(beside) {
                other.abort.abort();
            }
        } else if !state.holders.values().any(|other| beside(&other)) {
            self.plan().give_back(rest);
        }
        Ok(())
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is not there of these ranges.
    fn missing_of(&self, ranges: &Ranges) -> Vec<Range<u64>> {
        common(&lock(ranges), &self.shared.partial.missing())
    }
}

fn bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn lock(ranges: &Ranges) -> MutexGuard<'_, Vec<Range<u64>>> {
    ranges.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn sleep_until(until: Option<Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until.into()).await;
    }
}
