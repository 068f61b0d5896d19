//! Answers that go on: the feed as server-sent events (`GET /v1/events`), and logs.
//!
//! A stream takes its next piece from the feed when the last one went out: what a reader does not
//! take is kept nowhere. A reader that takes no byte for [`Limits::write_stall`](super::Limits) is
//! disconnected, one that the ring overtakes is ended.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::api::{Log, Subscription};

/// Silence after which a comment is sent: proxies and readers tell a quiet host from a dead one.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);

struct Stream {
    subscription: Subscription,
    heartbeat: Duration,
    stop: CancellationToken,
    /// One of the streams that may be open at a time.
    _permit: OwnedSemaphorePermit,
}

/// The answer that goes on until the reader leaves or `stop`.
pub(super) fn answer(
    subscription: Subscription,
    heartbeat: Duration,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> Response {
    let stream = Stream {
        subscription,
        heartbeat,
        stop,
        _permit: permit,
    };
    let pieces = unfold(stream, |mut stream| async move {
        let piece = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), stream))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A process's log as it is written, until its end, `stop`, or an error, which breaks the answer
/// off: what was told so far is whole, and the reader knows that more is missing.
pub(super) fn log(log: Log, stop: CancellationToken, permit: OwnedSemaphorePermit) -> Response {
    let container = HeaderValue::try_from(log.container);
    let pieces = unfold(
        (log.pieces, stop, permit),
        |(mut pieces, stop, permit)| async move {
            let piece = stop.run_until_cancelled(pieces.recv()).await??;
            Some((piece, (pieces, stop, permit)))
        },
    );
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(container) = container {
        headers.insert("nodeagent-container", container);
    }
    response
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            () = self.stop.cancelled() => None,
            piece = tokio::time::timeout(self.heartbeat, self.subscription.next()) => match piece {
                Ok(piece) => piece,
                Err(_) => Some(self.subscription.heartbeat()),
            },
        }
    }
}

/// The id with which a reader comes back.
pub(super) fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id")?.to_str().ok()
}
