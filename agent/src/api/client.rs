//! The client: one call, one connection, one deadline.
//!
//! Used by the CLI and by tests. Tells an agent that cannot be reached from one that refuses, and
//! both from an answer that did not come in time. Deliberately without retries: whoever repeats a
//! submission repeats its task id.

mod events;
mod exec;
mod log;
mod tls;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

pub use events::Events;
pub use exec::{ExecReader, ExecWriter};
pub use log::LogStream;
pub use tls::{Credentials, Remote};

use super::v1::{
    AppDocument, AppImages, AppList, ApplyResult, EvictRequest, EvictResult, ExportRequest,
    ExportResult, ImageDocument, ImageList, ImageRequest, ImportRequest, ImportResult,
    JournalDocument, Problem, ProcessList, StableList, StableRequest, Status, Task, TaskList,
    TaskRequest, Trail, Verb, VerifyRequest, VerifyResult,
};
use super::{Deletion, TaskFilter};

/// Why a call brought no document.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there; nothing was sent.
    #[error("no agent answers on {agent}")]
    Unreachable {
        /// Where.
        agent: Address,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke before the answer was whole; whether the request took effect is open.
    #[error("the agent on {agent} broke off before it answered")]
    BrokenOff {
        /// Where.
        agent: Address,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The certificates of the two sides do not satisfy each other; nothing was done.
    #[error("no connection to the agent on {agent}: {what}")]
    Handshake {
        /// Where.
        agent: Address,
        /// What is wrong.
        what: String,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The caller's own certificate, key or authorities cannot be used; nothing was sent.
    #[error("{file}: {why}")]
    Credentials {
        /// Which of the files, and the option that names it.
        file: String,
        /// Why.
        why: String,
    },
    /// No whole answer before the deadline; whether the request took effect is open.
    #[error("the agent on {agent} did not answer within {} s", deadline.as_secs_f64())]
    Deadline {
        /// Where.
        agent: Address,
        /// The deadline of the call.
        deadline: Duration,
    },
    /// The agent refused or failed, and says why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The answer is none of this API: another program, or another version.
    #[error("the answer of {agent} ({status}) is not understood: {what}")]
    Foreign {
        /// Where.
        agent: Address,
        /// HTTP status of the answer.
        status: StatusCode,
        /// What is wrong with it.
        what: String,
    },
}

/// Where an agent is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Its unix socket.
    Socket(PathBuf),
    /// Its port: `https://host:port`.
    Server(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Server(url) => f.write_str(url),
        }
    }
}

/// Calls one agent.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    deadline: Duration,
}

#[derive(Debug, Clone)]
enum Agent {
    Socket(PathBuf),
    Remote(Remote, Credentials),
}

/// Deadline of a call; a submission's is its wait more.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer: a status of thousands of instances is about 2 MiB.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;

impl Client {
    /// A client of the agent on `socket`, with a deadline of 10 s for each call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            agent: Agent::Socket(socket.into()),
            deadline: DEADLINE,
        }
    }

    /// A client of the agent behind a port. The files are read at each call: a renewed certificate
    /// is used from then on.
    pub fn remote(remote: Remote, credentials: Credentials) -> Self {
        Self {
            agent: Agent::Remote(remote, credentials),
            deadline: DEADLINE,
        }
    }

    /// The same with another deadline.
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Where it calls.
    pub fn address(&self) -> Address {
        match &self.agent {
            Agent::Socket(path) => Address::Socket(path.clone()),
            Agent::Remote(remote, _) => Address::Server(remote.to_string()),
        }
    }

    /// Submits a task and waits for its end, at most `wait`; then its state is `running`. `name` is
    /// the app's, or that of the instance that is restarted.
    /// `traceparent` (W3C) makes it part of the caller's trace.
    pub async fn submit(
        &self,
        name: &str,
        verb: Verb,
        request: &TaskRequest,
        wait: Duration,
        traceparent: Option<&str>,
    ) -> Result<Task, ClientError> {
        let of = match verb {
            Verb::Restart => "instances",
            Verb::Activate | Verb::Deactivate | Verb::Scale | Verb::Roll => "apps",
        };
        let (name, seconds) = (segment(name), wait.as_secs_f64());
        let path = format!("/v1/{of}/{name}/{verb}?wait={seconds}");
        // A request is numbers and strings: its JSON always exists.
        let body = serde_json::to_vec(request).unwrap_or_default();
        let mut builder = Request::post(path).header(CONTENT_TYPE, "application/json");
        // What cannot even be a header is left out, as the server ignores what is malformed.
        if let Some(Ok(traceparent)) = traceparent.map(HeaderValue::from_str) {
            builder = builder.header("traceparent", traceparent);
        }
        self.call(builder, body.into(), self.deadline + wait).await
    }

    /// `GET /v1/tasks/{id}`.
    pub async fn task(&self, id: &str) -> Result<Task, ClientError> {
        self.get(&format!("/v1/tasks/{}", segment(id))).await
    }

    /// `GET /v1/tasks/{id}/trail`.
    pub async fn trail(&self, id: &str) -> Result<Trail, ClientError> {
        self.get(&format!("/v1/tasks/{}/trail", segment(id))).await
    }

    /// `GET /v1/tasks`.
    pub async fn tasks(&self, filter: &TaskFilter) -> Result<TaskList, ClientError> {
        let mut path = format!("/v1/tasks?limit={}", filter.limit);
        if let Some(app) = &filter.app {
            path.push_str(&format!("&app={}", segment(app)));
        }
        if !filter.states.is_empty() {
            let states: Vec<&str> = filter.states.iter().map(|s| s.as_str()).collect();
            path.push_str(&format!("&state={}", states.join(",")));
        }
        if let Some(since) = filter.since {
            path.push_str(&format!("&since={}", since.as_secs_f64()));
        }
        self.get(&path).await
    }

    /// `GET /v1/status`.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/instances/{name}/processes`.
    pub async fn processes(&self, instance: &str) -> Result<ProcessList, ClientError> {
        let path = format!("/v1/instances/{}/processes", segment(instance));
        self.get(&path).await
    }

    /// `GET /v1/journal`.
    pub async fn journal(&self) -> Result<JournalDocument, ClientError> {
        self.get("/v1/journal").await
    }

    /// `POST /v1/journal/accept`.
    pub async fn accept_journal(&self) -> Result<JournalDocument, ClientError> {
        let builder = Request::post("/v1/journal/accept");
        self.call(builder, Bytes::new(), self.deadline).await
    }

    /// `GET /v1/images`.
    pub async fn images(&self) -> Result<ImageList, ClientError> {
        self.get("/v1/images").await
    }

    /// `POST /v1/images/pull`.
    pub async fn pull_image(&self, request: &ImageRequest) -> Result<ImageDocument, ClientError> {
        self.ask("/v1/images/pull", request).await
    }

    /// `POST /v1/images/pin`.
    pub async fn pin_image(&self, request: &ImageRequest) -> Result<ImageDocument, ClientError> {
        self.ask("/v1/images/pin", request).await
    }

    /// `POST /v1/images/unpin`.
    pub async fn unpin_image(&self, request: &ImageRequest) -> Result<ImageDocument, ClientError> {
        self.ask("/v1/images/unpin", request).await
    }

    /// `POST /v1/images/verify`.
    pub async fn verify_images(
        &self,
        request: &VerifyRequest,
    ) -> Result<VerifyResult, ClientError> {
        self.ask("/v1/images/verify", request).await
    }

    /// `GET /v1/images/stable`.
    pub async fn stable_images(&self) -> Result<StableList, ClientError> {
        self.get("/v1/images/stable").await
    }

    /// `POST /v1/images/stable`.
    pub async fn set_stable_image(
        &self,
        request: &StableRequest,
    ) -> Result<AppImages, ClientError> {
        self.ask("/v1/images/stable", request).await
    }

    /// `POST /v1/images/evict`.
    pub async fn evict_images(&self, request: &EvictRequest) -> Result<EvictResult, ClientError> {
        self.ask("/v1/images/evict", request).await
    }

    /// `POST /v1/images/import`.
    pub async fn import_images(
        &self,
        request: &ImportRequest,
    ) -> Result<ImportResult, ClientError> {
        self.ask("/v1/images/import", request).await
    }

    /// `POST /v1/images/export`.
    pub async fn export_images(
        &self,
        request: &ExportRequest,
    ) -> Result<ExportResult, ClientError> {
        self.ask("/v1/images/export", request).await
    }

    /// `PUT /v1/apps`; the app's name stands in the manifest.
    pub async fn apply(&self, manifest: impl Into<Bytes>) -> Result<ApplyResult, ClientError> {
        let builder = Request::put("/v1/apps").header(CONTENT_TYPE, "application/yaml");
        self.call(builder, manifest.into(), self.deadline).await
    }

    /// `GET /v1/apps`.
    pub async fn apps(&self) -> Result<AppList, ClientError> {
        self.get("/v1/apps").await
    }

    /// `GET /v1/apps/{name}`.
    pub async fn app(&self, name: &str) -> Result<AppDocument, ClientError> {
        self.get(&format!("/v1/apps/{}", segment(name))).await
    }

    /// `DELETE /v1/apps/{name}`.
    pub async fn delete_app(
        &self,
        name: &str,
        deletion: Deletion,
    ) -> Result<ApplyResult, ClientError> {
        let force = match deletion {
            Deletion::WhenUnused => "",
            Deletion::Forced => "?force=true",
        };
        let path = format!("/v1/apps/{}{force}", segment(name));
        let builder = Request::builder().method(Method::DELETE).uri(path);
        self.call(builder, Bytes::new(), self.deadline).await
    }

    /// `GET /v1/events`: everything that is true and then what changes, of one app or of all. The
    /// connection is made, and made again, by [`Events::next`].
    pub fn events(&self, app: Option<&str>) -> Events {
        Events::new(self.clone(), app.map(str::to_owned))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, ClientError> {
        // A request is numbers and strings: its JSON always exists.
        let body = serde_json::to_vec(request).unwrap_or_default();
        let builder = Request::post(path).header(CONTENT_TYPE, "application/json");
        self.call(builder, body.into(), self.deadline).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Request::get(path), Bytes::new(), self.deadline)
            .await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        builder: hyper::http::request::Builder,
        body: Bytes,
        deadline: Duration,
    ) -> Result<T, ClientError> {
        let exchange = self.exchange(builder, body);
        let (status, answer) = tokio::time::timeout(deadline, exchange)
            .await
            .map_err(|_| ClientError::Deadline {
                agent: self.address(),
                deadline,
            })??;
        if status.is_success() {
            return serde_json::from_slice(&answer)
                .map_err(|e| self.foreign(status, &e.to_string()));
        }
        Err(self.refusal(status, &answer))
    }

    async fn exchange(
        &self,
        builder: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let (response, connection) = self.send(builder, body).await?;
        let status = response.status();
        let answer = self.collect(response).await?;
        drop(connection);
        Ok((status, answer))
    }

    /// Begins an answer that has no end; what is no success is collected into its problem. The
    /// call's deadline is that of the answer's head.
    async fn open(
        &self,
        builder: hyper::http::request::Builder,
    ) -> Result<(Response<Incoming>, Connection), ClientError> {
        let begun = async {
            let (response, connection) = self.send(builder, Bytes::new()).await?;
            let status = response.status();
            if status.is_success() {
                return Ok((response, connection));
            }
            let answer = self.collect(response).await?;
            Err(self.refusal(status, &answer))
        };
        tokio::time::timeout(self.deadline, begun)
            .await
            .map_err(|_| ClientError::Deadline {
                agent: self.address(),
                deadline: self.deadline,
            })?
    }

    async fn send(
        &self,
        builder: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Connection), ClientError> {
        let request = builder
            .header(HOST, "nodeagent")
            .body(Full::new(body))
            .map_err(|e| {
                // Paths are percent-encoded and headers are checked: only an absurdly long name is left.
                self.foreign(StatusCode::BAD_REQUEST, &e.to_string())
            })?;
        let (mut sender, mut connection) = match &self.agent {
            Agent::Socket(path) => {
                let connecting = UnixStream::connect(path).await;
                self.begin(connecting.map_err(|source| self.unreachable(source))?)
                    .await?
            }
            Agent::Remote(remote, credentials) => {
                self.begin(self.secured(remote, credentials).await?).await?
            }
        };
        match sender.send_request(request).await {
            Ok(response) => Ok((response, connection)),
            Err(source) => Err(self.broken(connection.why(source).await)),
        }
    }

    /// HTTP on a connection.
    async fn begin<S>(
        &self,
        stream: S,
    ) -> Result<(SendRequest<Full<Bytes>>, Connection), ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.broken(source))?;
        // Its end is the call's end: errors come out of `send_request` too.
        Ok((sender, Connection(tokio::spawn(connection.with_upgrades()))))
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable {
            agent: self.address(),
            source,
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let status = response.status();
        let answer = http_body_util::Limited::new(response.into_body(), LARGEST_ANSWER)
            .collect()
            .await
            .map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(source) => self.broken(*source),
                Err(other) => self.foreign(status, &other.to_string()),
            })?;
        Ok(answer.to_bytes())
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        // With TLS 1.3 the server judges the client's certificate after the client's handshake.
        if let Some(alert) = tls::alert(&source) {
            return self.unshaken(io::Error::new(io::ErrorKind::InvalidData, alert));
        }
        ClientError::BrokenOff {
            agent: self.address(),
            source,
        }
    }

    /// The problem in an answer that is no success.
    fn refusal(&self, status: StatusCode, answer: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(answer) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => self.foreign(status, "it is no problem document"),
        }
    }

    fn foreign(&self, status: StatusCode, what: &str) -> ClientError {
        ClientError::Foreign {
            agent: self.address(),
            status,
            what: what.to_owned(),
        }
    }
}

/// The connection's task lives as long as the call.
#[derive(Debug)]
struct Connection(tokio::task::JoinHandle<Result<(), hyper::Error>>);

impl Connection {
    /// Why a request could not be sent: of one that was canceled the connection knows the reason.
    async fn why(&mut self, error: hyper::Error) -> hyper::Error {
        if !error.is_canceled() {
            return error;
        }
        match (&mut self.0).await {
            Ok(Err(reason)) => reason,
            Ok(Ok(())) | Err(_) => error,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One path segment, percent-encoded (RFC 3986, 2.3).
fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    // `.` and `..` would be taken for steps in the path.
    if text.bytes().all(|b| b == b'.') {
        return encoded.replace('.', "%2E");
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("peak-7:a"), "peak-7:a");
        assert_eq!(segment("a/b c?é"), "a%2Fb%20c%3F%C3%A9");
        assert_eq!(segment(".."), "%2E%2E");
    }
}
