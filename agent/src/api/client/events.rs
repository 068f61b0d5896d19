//! Reading `/v1/events`: a stream that goes on across broken connections.
//!
//! ```text
//!   unconnected ── connect ──► connected ── event ──► connected
//!        ▲  │                      │
//!        │  └── refused: a problem document ──► the end: told
//!        └── end, silence, error ──┘   after `retry`, with the last id; at most `patience`
//! ```
//! Whoever applies every event by its key holds what `status` would say; after a break that was too
//! long the stream begins again with [`Event::Reset`], and the reader forgets what it has.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderValue};
use tokio::time::{Instant, timeout};

use super::{Client, ClientError, Connection, segment};
use crate::api::v1::Event;

/// The server says every 15 s that it lives: after twice that and some the connection is dead.
const SILENCE: Duration = Duration::from_secs(40);
/// Longest line that is an event: a pool's document is a few hundred bytes.
const LONGEST_LINE: usize = 1024 * 1024;

/// The events of one agent, or of one of its apps.
#[derive(Debug)]
pub struct Events {
    client: Client,
    app: Option<String>,
    patience: Duration,
    last_id: Option<String>,
    retry: Duration,
    open: Option<Open>,
    ready: VecDeque<Event>,
}

#[derive(Debug)]
struct Open {
    body: Incoming,
    parser: Parser,
    _connection: Connection,
}

impl Events {
    pub(super) fn new(client: Client, app: Option<String>) -> Self {
        Self {
            client,
            app,
            patience: Duration::from_secs(30),
            last_id: None,
            retry: Duration::from_secs(1),
            open: None,
            ready: VecDeque::new(),
        }
    }

    /// The same, but gives up when no connection comes about for `patience` (30 s by default): an
    /// agent that is restarted is back long before.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The next event; waits as long as nothing changes. Cancel-safe.
    ///
    /// # Errors
    /// `Problem` when the agent refuses, `Foreign` when what comes is no stream of events; the last
    /// failure when no connection came about within the patience.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        let mut lost: Option<Instant> = None;
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let Some(open) = &mut self.open else {
                match self.connect().await {
                    Ok(open) => self.open = Some(open),
                    Err(error) if is_passing(&error) => {
                        let since = *lost.get_or_insert_with(Instant::now);
                        if since.elapsed() + self.retry > self.patience {
                            return Err(error);
                        }
                        tokio::time::sleep(self.retry).await;
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            match timeout(SILENCE, open.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && let Err(what) = open.parser.feed(&data)
                    {
                        return Err(self.client.foreign(hyper::StatusCode::OK, &what));
                    }
                    lost = None;
                    self.ready.extend(open.parser.events.drain(..));
                    self.last_id = open.parser.id.clone().or(self.last_id.take());
                    self.retry = open.parser.retry.unwrap_or(self.retry);
                }
                // Ended, broken or silent.
                Ok(Some(Err(_)) | None) | Err(_) => {
                    self.open = None;
                    lost.get_or_insert_with(Instant::now);
                    tokio::time::sleep(self.retry).await;
                }
            }
        }
    }

    async fn connect(&self) -> Result<Open, ClientError> {
        let path = match &self.app {
            Some(app) => format!("/v1/events?app={}", segment(app)),
            None => "/v1/events".to_owned(),
        };
        let mut builder = Request::get(path).header(ACCEPT, "text/event-stream");
        // An id came as a header's text: it can go as one.
        if let Some(Ok(id)) = self.last_id.as_deref().map(HeaderValue::from_str) {
            builder = builder.header("last-event-id", id);
        }
        let (response, connection) = self.client.open(builder).await?;
        Ok(Open {
            body: response.into_body(),
            parser: Parser::default(),
            _connection: connection,
        })
    }
}

/// Whether another try may go better without anybody doing something.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. }
        | ClientError::BrokenOff { .. }
        | ClientError::Deadline { .. } => true,
        // The agent is stopping, or has too many readers.
        ClientError::Problem(problem) => problem.code == crate::api::v1::ProblemCode::Unavailable,
        ClientError::Foreign { .. }
        | ClientError::Handshake { .. }
        | ClientError::Credentials { .. } => false,
    }
}

/// Server-sent events as they come, in pieces (WHATWG HTML, 9.2.6).
#[derive(Debug, Default)]
struct Parser {
    rest: BytesMut,
    name: String,
    data: String,
    id: Option<String>,
    retry: Option<Duration>,
    events: VecDeque<Event>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            let line = std::str::from_utf8(&line[..end])
                .map_err(|error| format!("an event is not UTF-8 text: {error}"))?;
            self.line(line.strip_suffix('\r').unwrap_or(line))?;
        }
        if self.rest.len() > LONGEST_LINE {
            return Err(format!("a line of more than {LONGEST_LINE} bytes"));
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => self.data.push_str(value),
            "id" => self.id = Some(value.to_owned()),
            "retry" => self.retry = value.parse().ok().map(Duration::from_millis),
            // A comment (no name before the colon), or a field of a later version.
            _ => {}
        }
        if self.data.len() > LONGEST_LINE {
            return Err(format!("an event of more than {LONGEST_LINE} bytes"));
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Result<(), String> {
        let (name, data) = (
            std::mem::take(&mut self.name),
            std::mem::take(&mut self.data),
        );
        if data.is_empty() {
            return Ok(());
        }
        match Event::read(&name, &data) {
            Ok(event) => {
                self.events.extend(event);
                Ok(())
            }
            Err(error) => Err(format!("event {name}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_in_whatever_pieces_they_come() {
        let text = "retry: 250\n\n: alive\nid: a.1\n\nevent: reset\ndata: {}\n\n\
                    event: weather\ndata: {\"rain\":1}\n\n\
                    event: synced\r\ndata: {}\r\nid: a.2\r\n\r\n";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            for piece in text.as_bytes().chunks(size) {
                parser.feed(piece).unwrap();
            }
            assert_eq!(parser.events, [Event::Reset, Event::Synced], "{size}");
            assert_eq!(parser.id.as_deref(), Some("a.2"));
            assert_eq!(parser.retry, Some(Duration::from_millis(250)));
        }
    }

    #[test]
    fn a_line_without_end_is_refused_and_not_kept() {
        let mut parser = Parser::default();
        let said = parser.feed(&vec![b'x'; LONGEST_LINE + 1]).unwrap_err();
        assert!(said.contains("1048576 bytes"), "{said}");
    }
}
