//! Reading a log: an answer that may have no end.

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;

use super::{Client, ClientError, Connection, segment};
use crate::api::LogRequest;
use crate::logs::Since;

/// A log, piece by piece.
#[derive(Debug)]
pub struct LogStream {
    client: Client,
    body: Incoming,
    _connection: Connection,
}

impl Client {
    /// `GET /v1/instances/{name}/logs`. The deadline of a call is that of the answer's head; the
    /// pieces come whenever there are any.
    pub async fn log(&self, instance: &str, ask: &LogRequest) -> Result<LogStream, ClientError> {
        let mut path = format!(
            "/v1/instances/{}/logs?process={}&follow={}",
            segment(instance),
            segment(&ask.process),
            ask.follow
        );
        if let Some(tail) = ask.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        if let Some(since) = ask.since {
            let since = match since {
                Since::Ago(ago) => ago.as_secs_f64().to_string(),
                Since::At(at) => {
                    DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Nanos, true)
                }
            };
            path.push_str(&format!("&since={since}"));
        }
        if let Some(stream) = ask.stream {
            path.push_str(&format!("&stream={}", stream.as_str()));
        }
        if ask.timestamps {
            path.push_str("&timestamps=true");
        }
        let (response, connection) = self.open(Request::get(path)).await?;
        Ok(LogStream {
            client: self.clone(),
            body: response.into_body(),
            _connection: connection,
        })
    }
}

impl LogStream {
    /// The next piece; none at the end.
    ///
    /// # Errors
    /// `BrokenOff` when the agent went away, or could not read on.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| self.client.broken(source))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}
