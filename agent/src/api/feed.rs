//! The feed behind `/v1/events`: what is true now, and the last changes, for any number of readers.
//!
//! One writer (the host) publishes; each reader has a [`Subscription`], which is a place in a ring
//! and nothing more: no queue grows for a reader that is slow. The writer works only while somebody
//! reads, so a feed without readers costs nothing.
//!
//! ```text
//!             the writer                                  a reader
//!
//!   asleep ── somebody reads ──► live            begin ── id still in the ring ──► missed ─┐
//!     ▲                           │ publish        │                                       ▼
//!     └── nobody for LINGER ──────┘                └── else: reset ──► whole state ──► synced
//!                                                                                          │
//!                                                          ┌── change ──► event ──► live ◄─┘
//!                                                          └─────────────────────────┘ │
//!                                                           overtaken by the ring ──► over
//! ```
//! An event's id is `<stream>.<number>`: another agent process, or a feed that slept meanwhile, is
//! another ring, and a reader that comes back with an id of it begins with `reset`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use super::v1::{Event, EventKey};

/// Changes that a reader may be behind. At about 500 bytes each, 2 MiB while somebody reads.
const RING: usize = 4096;
/// How long the writer keeps the ring after the last reader went, so that one that reconnects goes
/// on where it was. Looked at when something changes: no timer runs for it.
const LINGER: Duration = Duration::from_secs(60);
/// A reader is handed its events in pieces of about this size.
const PIECE: usize = 32 * 1024;
/// What a reader waits before it reconnects (`retry`), in milliseconds.
const RETRY_MS: u32 = 1000;

/// One published event, spelt.
#[derive(Debug, Clone)]
struct Frame {
    number: u64,
    app: Option<String>,
    /// `event: ...\ndata: ...\n`
    text: Bytes,
}

#[derive(Debug)]
struct Board {
    live: bool,
    /// Number of the newest change.
    number: u64,
    ring: VecDeque<Frame>,
    latest: BTreeMap<EventKey, Frame>,
    deserted: Instant,
}

/// What is true now, and what changed last.
#[derive(Debug)]
pub struct Feed {
    stream: u64,
    board: Mutex<Board>,
    /// Wakes readers; its value means nothing.
    news: watch::Sender<()>,
    readers: watch::Sender<usize>,
}

impl Feed {
    /// A feed that sleeps. `stream` tells this process from others: its start in milliseconds.
    pub fn new(stream: u64) -> Self {
        Self {
            stream,
            board: Mutex::new(Board {
                live: false,
                number: 0,
                ring: VecDeque::new(),
                latest: BTreeMap::new(),
                deserted: Instant::now(),
            }),
            news: watch::channel(()).0,
            readers: watch::channel(0).0,
        }
    }

    /// Returns once somebody reads.
    pub async fn wanted(&self) {
        // The sender lives as long as `self`.
        let _ = self.readers.subscribe().wait_for(|n| *n > 0).await;
    }

    /// The writer's first word: everything that is true now.
    pub fn begin(&self, state: impl IntoIterator<Item = Event>) {
        let mut board = self.board();
        board.latest.clear();
        board.ring.clear();
        let number = board.number;
        for event in state {
            if let (Some(key), Some(frame)) = (event.key(), frame(number, &event)) {
                board.latest.insert(key, frame);
            }
        }
        board.live = true;
        drop(board);
        self.news.send_replace(());
    }

    /// Tells changes, in order.
    pub fn publish(&self, events: impl IntoIterator<Item = Event>) {
        let mut board = self.board();
        let before = board.number;
        for event in events {
            let Some(key) = event.key() else { continue };
            let Some(frame) = frame(board.number + 1, &event) else {
                continue;
            };
            board.number += 1;
            match event.is_last() {
                true => board.latest.remove(&key),
                false => board.latest.insert(key, frame.clone()),
            };
            if board.ring.len() == RING {
                board.ring.pop_front();
            }
            board.ring.push_back(frame);
        }
        let changed = board.number != before;
        drop(board);
        if changed {
            self.news.send_replace(());
        }
    }

    /// Whether nobody has read for long enough to stop.
    pub fn is_deserted(&self) -> bool {
        *self.readers.borrow() == 0 && self.board().deserted.elapsed() >= LINGER
    }

    /// The writer stops: nothing is kept, and ids handed out so far mean nothing any more.
    pub fn end(&self) {
        let mut board = self.board();
        board.live = false;
        board.number += 1;
        board.ring = VecDeque::new();
        board.latest.clear();
    }

    /// Begins to read: where `last_id` left off if that is still known, else with everything. With
    /// `app` only what is about it, and the host's alarms.
    pub fn subscribe(self: &Arc<Self>, last_id: Option<&str>, app: Option<String>) -> Subscription {
        let news = self.news.subscribe();
        self.readers.send_modify(|n| *n += 1);
        Subscription {
            resume: last_id.and_then(|id| self.number_of(id)),
            feed: Arc::clone(self),
            news,
            app,
            place: Place::Begin,
        }
    }

    fn number_of(&self, id: &str) -> Option<u64> {
        let (stream, number) = id.split_once('.')?;
        let same = u64::from_str_radix(stream, 16).ok()? == self.stream;
        number.parse().ok().filter(|_| same)
    }

    fn id(&self, number: u64) -> String {
        format!("{:x}.{number}", self.stream)
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Spelling happens before a change; what panicked left the board whole.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    /// Everything after `number` that the ring still has, or none when something is missing.
    fn since(&self, number: u64) -> Option<impl Iterator<Item = &Frame>> {
        let oldest = self.ring.front().map_or(self.number, |f| f.number - 1);
        (oldest..=self.number).contains(&number).then(|| {
            let skip = usize::try_from(number - oldest).unwrap_or(usize::MAX);
            self.ring.iter().skip(skip)
        })
    }
}

fn frame(number: u64, event: &Event) -> Option<Frame> {
    match event.data() {
        Ok(data) => Some(Frame {
            number,
            app: event.app().map(str::to_owned),
            text: format!("event: {}\ndata: {data}\n", event.name()).into(),
        }),
        Err(error) => {
            tracing::error!(%error, event = event.name(), "event could not be spelt as JSON");
            None
        }
    }
}

#[derive(Debug)]
enum Place {
    Begin,
    /// Spelt pieces that are still to be handed out; then live from that number.
    Told {
        pieces: VecDeque<Bytes>,
        then: u64,
    },
    Live(u64),
    Over,
}

/// One reader's place. Dropping it ends the reading.
#[derive(Debug)]
pub struct Subscription {
    feed: Arc<Feed>,
    news: watch::Receiver<()>,
    app: Option<String>,
    resume: Option<u64>,
    place: Place,
}

impl Subscription {
    /// The next piece of the stream, in the format of server-sent events (WHATWG HTML, 9.2); waits
    /// for one, cancel-safe. None when the reader was overtaken: it has to come again.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.news.borrow_and_update();
            if let Some(piece) = self.take() {
                return Some(piece);
            }
            if matches!(self.place, Place::Over) {
                return None;
            }
            // The feed is held: its sender lives.
            self.news.changed().await.ok()?;
        }
    }

    /// A sign of life with the id from which a reader may go on; it dispatches no event.
    pub fn heartbeat(&self) -> Bytes {
        match self.place {
            Place::Live(number) => format!(": alive\nid: {}\n\n", self.feed.id(number)).into(),
            _ => Bytes::from_static(b": alive\n\n"),
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        if let Place::Told { pieces, then } = &mut self.place {
            match pieces.pop_front() {
                Some(piece) => return Some(piece),
                None => self.place = Place::Live(*then),
            }
        }
        let feed = Arc::clone(&self.feed);
        let board = feed.board();
        match self.place {
            Place::Begin if board.live => {
                let pieces = self.first_pieces(&board);
                let then = board.number;
                self.place = Place::Told { pieces, then };
                drop(board);
                self.take()
            }
            Place::Live(number) => match board.since(number) {
                Some(frames) => {
                    let mut piece = BytesMut::new();
                    let mut last = number;
                    for frame in frames {
                        if piece.len() >= PIECE {
                            break;
                        }
                        last = frame.number;
                        if self.concerns(frame) {
                            self.spell(&mut piece, frame);
                        }
                    }
                    self.place = Place::Live(last);
                    (!piece.is_empty()).then(|| piece.freeze())
                }
                None => {
                    self.place = Place::Over;
                    Some(Bytes::from_static(
                        b": overtaken, this reader is too slow; come again\n\n",
                    ))
                }
            },
            Place::Begin | Place::Told { .. } | Place::Over => None,
        }
    }

    /// What was missed, or everything; then `synced`.
    fn first_pieces(&self, board: &Board) -> VecDeque<Bytes> {
        let mut pieces = VecDeque::new();
        let mut piece = BytesMut::from(format!("retry: {RETRY_MS}\n\n").as_bytes());
        let cut = |piece: &mut BytesMut, pieces: &mut VecDeque<Bytes>| {
            if piece.len() >= PIECE {
                pieces.push_back(piece.split().freeze());
            }
        };
        match self.resume.and_then(|number| board.since(number)) {
            Some(missed) => {
                for frame in missed.filter(|frame| self.concerns(frame)) {
                    self.spell(&mut piece, frame);
                    cut(&mut piece, &mut pieces);
                }
            }
            None => {
                piece.extend_from_slice(b"event: reset\ndata: {}\n\n");
                // Without ids: who is cut off here has not seen everything up to any number.
                for frame in board.latest.values().filter(|frame| self.concerns(frame)) {
                    piece.extend_from_slice(&frame.text);
                    piece.extend_from_slice(b"\n");
                    cut(&mut piece, &mut pieces);
                }
            }
        }
        let id = self.feed.id(board.number);
        piece.extend_from_slice(format!("event: synced\ndata: {{}}\nid: {id}\n\n").as_bytes());
        pieces.push_back(piece.freeze());
        pieces
    }

    fn concerns(&self, frame: &Frame) -> bool {
        match (&self.app, &frame.app) {
            (Some(wanted), Some(app)) => wanted == app,
            _ => true,
        }
    }

    fn spell(&self, piece: &mut BytesMut, frame: &Frame) {
        piece.extend_from_slice(&frame.text);
        piece.extend_from_slice(format!("id: {}\n\n", self.feed.id(frame.number)).as_bytes());
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.board().deserted = Instant::now();
        self.feed.readers.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::api::v1::{AppChange, InstanceChange};

    fn app(name: &str) -> Event {
        Event::App(AppChange {
            app: name.to_owned(),
            pool: None,
        })
    }

    fn instance(app: &str, ordinal: usize) -> Event {
        Event::Instance(InstanceChange {
            app: app.to_owned(),
            name: format!("{app}-{ordinal}"),
            instance: None,
        })
    }

    fn live() -> Arc<Feed> {
        let feed = Arc::new(Feed::new(0xabc));
        feed.begin([]);
        feed
    }

    /// Everything that is there now.
    fn read(reader: &mut Subscription) -> String {
        let mut text = String::new();
        while let Some(Some(piece)) = reader.next().now_or_never() {
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
        text
    }

    fn names(text: &str) -> Vec<&str> {
        let events = text.lines().filter_map(|line| line.strip_prefix("event: "));
        events.collect()
    }

    fn last_id(text: &str) -> &str {
        let (_, after) = text.rsplit_once("\nid: ").unwrap();
        after.trim_end()
    }

    #[test]
    fn a_reader_begins_with_the_whole_state_and_goes_on_with_changes() {
        let feed = Arc::new(Feed::new(0xabc));
        let mut reader = feed.subscribe(None, None);
        assert_eq!(read(&mut reader), "", "the writer has not begun");
        feed.begin([instance("web", 0), app("web")]);
        assert_eq!(
            read(&mut reader),
            "retry: 1000\n\nevent: reset\ndata: {}\n\n\
             event: app\ndata: {\"app\":\"web\"}\n\n\
             event: instance\ndata: {\"app\":\"web\",\"name\":\"web-0\"}\n\n\
             event: synced\ndata: {}\nid: abc.0\n\n"
        );
        feed.publish([instance("web", 1)]);
        assert_eq!(
            read(&mut reader),
            "event: instance\ndata: {\"app\":\"web\",\"name\":\"web-1\"}\nid: abc.1\n\n"
        );
        assert_eq!(reader.heartbeat(), ": alive\nid: abc.1\n\n");
    }

    #[test]
    fn a_reader_that_comes_back_gets_what_it_missed() {
        let feed = live();
        feed.publish([app("a"), app("b"), app("c")]);
        let mut again = feed.subscribe(Some("abc.1"), None);
        let text = read(&mut again);
        assert_eq!(names(&text), ["app", "app", "synced"]);
        assert_eq!(last_id(&text), "abc.3");
        let mut current = feed.subscribe(Some("abc.3"), None);
        assert_eq!(names(&read(&mut current)), ["synced"]);
    }

    #[test]
    fn an_id_of_another_time_begins_with_reset() {
        let feed = live();
        feed.publish([app("a")]);
        for id in ["abd.1", "abc.2", "abc.99", "abc", "", "x.1", "abc.-1"] {
            let mut reader = feed.subscribe(Some(id), None);
            assert_eq!(names(&read(&mut reader))[0], "reset", "{id}");
        }
        feed.end();
        feed.begin([]);
        let mut reader = feed.subscribe(Some("abc.1"), None);
        assert_eq!(names(&read(&mut reader))[0], "reset", "after a sleep");
    }

    #[test]
    fn a_reader_of_one_app_hears_nothing_of_others() {
        let feed = live();
        let mut reader = feed.subscribe(None, Some("web".to_owned()));
        read(&mut reader);
        feed.publish([instance("db", 0)]);
        assert_eq!(read(&mut reader), "");
        // It goes on from there nevertheless.
        assert_eq!(reader.heartbeat(), ": alive\nid: abc.1\n\n");
        feed.publish([instance("web", 0)]);
        assert!(read(&mut reader).contains("web-0"));
    }

    #[test]
    fn a_reader_that_the_ring_overtook_is_ended() {
        let feed = live();
        let mut reader = feed.subscribe(None, None);
        read(&mut reader);
        feed.publish((0..=RING).map(|n| instance("web", n)));
        assert!(read(&mut reader).starts_with(": overtaken"));
        assert_eq!(reader.next().now_or_never(), Some(None));
        assert_eq!(feed.board().ring.len(), RING);
    }

    #[test]
    fn what_is_gone_is_told_and_not_kept() {
        let feed = Arc::new(Feed::new(1));
        feed.begin([]);
        feed.publish((0..100).map(|n| instance("web", n)));
        assert!(feed.board().latest.is_empty());
        feed.end();
        assert!(feed.board().ring.is_empty());
    }

    #[tokio::test]
    async fn the_writer_is_woken_by_the_first_reader_and_sleeps_after_the_last() {
        let feed = Arc::new(Feed::new(1));
        assert!(feed.wanted().now_or_never().is_none());
        let reader = feed.subscribe(None, None);
        feed.wanted().await;
        drop(reader);
        assert!(!feed.is_deserted(), "it lingers");
        feed.board().deserted = Instant::now() - LINGER;
        assert!(feed.is_deserted());
    }

    #[test]
    fn a_large_state_comes_in_pieces() {
        let feed = Arc::new(Feed::new(1));
        feed.begin((0..2000).map(|n| instance("web", n)));
        let mut reader = feed.subscribe(None, None);
        let mut largest = 0;
        let mut events = 0;
        while let Some(Some(piece)) = reader.next().now_or_never() {
            largest = largest.max(piece.len());
            events += names(std::str::from_utf8(&piece).unwrap()).len();
        }
        assert_eq!(events, 2002);
        assert!(largest < PIECE + 1024, "{largest}");
    }
}
