//! Speaks with other agents: claims, waits, and the bytes of blobs.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, LOCATION, RANGE,
    RETRY_AFTER,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};

use super::access::Token;
use super::request::{FAILED, PEER, PREFER, PROGRESS};
use super::standing::Trouble;
use crate::fetch::{Failure, Incoming, Source, SourceKind};
use crate::manifest::CONFIG_LIMIT;
use crate::{Descriptor, Digest};

/// A peer that is not connected within this is away.
const CONNECT: Duration = Duration::from_millis(500);
/// A peer answers within this, and what it was asked to wait. A host that unpacks has little time
/// to answer, and one that is taken for away makes another copy leave the registry.
const ANSWER: Duration = Duration::from_secs(5);
/// The answer to a request for bytes begins within this: requests queue for uploads.
const UPLOAD: Duration = Duration::from_secs(5);
/// A peer that sends no byte for this long has failed.
pub(super) const SILENT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept: shorter than the server does.
const IDLE: Duration = Duration::from_secs(20);

/// What a peer said of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// It has it.
    Here,
    /// It is bringing it; the number changes while it gets on.
    Bringing(u64),
    /// This peer has it or is bringing it.
    Elsewhere(String),
    /// It neither has nor brings it.
    Unknown,
}

/// The client of one agent.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    scheme: &'static str,
    token: Option<Token>,
}

impl Client {
    /// Speaks TLS when there are settings for it.
    pub fn new(
        token: Option<Token>,
        tls: Option<rustls::ClientConfig>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let scheme = match tls {
            Some(_) => "https",
            None => "http",
        };
        let tls = match tls {
            Some(tls) => tls,
            // Never used: whoever speaks no TLS trusts nobody by it.
            None => {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                rustls::ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth()
            }
        };
        let http = reqwest::Client::builder()
            .user_agent(concat!("nodeagent/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            // Peers are near; a proxy would see their token.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE)
            .build()?;
        Ok(Self {
            http,
            scheme,
            token,
        })
    }

    fn request(&self, method: Method, address: &str, path: &str) -> RequestBuilder {
        let url = format!("{}://{address}/v2/{path}", self.scheme);
        let request = self.http.request(method, url);
        match &self.token {
            None => request,
            Some(token) => {
                let mut headers = HeaderMap::new();
                if let Ok(mut value) = HeaderValue::try_from(token.header()) {
                    value.set_sensitive(true);
                    headers.insert(AUTHORIZATION, value);
                }
                request.headers(headers)
            }
        }
    }

    /// Asks for a blob as who wants it, at its keeper.
    pub async fn claim(
        &self,
        keeper: &str,
        path: &str,
        own: &str,
        failed: Option<&str>,
    ) -> Result<Reply, Trouble> {
        let mut request = self.request(Method::HEAD, keeper, path).header(PEER, own);
        if let Some(failed) = failed {
            request = request.header(FAILED, failed);
        }
        self.ask(request, ANSWER).await
    }

    /// Asks whether a peer has a blob; waits when it is bringing it.
    pub async fn look(&self, peer: &str, path: &str, wait: Duration) -> Result<Reply, Trouble> {
        let mut request = self.request(Method::HEAD, peer, path);
        if !wait.is_zero() {
            request = request.header(PREFER, format!("wait={}", wait.as_secs()));
        }
        self.ask(request, ANSWER + wait).await
    }

    async fn ask(&self, request: RequestBuilder, patience: Duration) -> Result<Reply, Trouble> {
        let sent = tokio::time::timeout(patience, request.send()).await;
        let response = sent.map_err(|_| Trouble::Away)?.map_err(|error| {
            tracing::debug!(error = %error.without_url(), "a peer could not be asked");
            Trouble::Away
        })?;
        let text = |name| {
            let value = response.headers().get(name);
            value.and_then(|value: &HeaderValue| value.to_str().ok())
        };
        match response.status() {
            StatusCode::OK => Ok(Reply::Here),
            StatusCode::NOT_FOUND => Ok(Reply::Unknown),
            StatusCode::SERVICE_UNAVAILABLE => {
                let progress = text(PROGRESS).and_then(|value| value.parse().ok());
                Ok(Reply::Bringing(progress.unwrap_or(0)))
            }
            StatusCode::TEMPORARY_REDIRECT => {
                let location = text(LOCATION).and_then(|value| value.parse::<url::Url>().ok());
                let address = location.and_then(|url| {
                    let port = url.port_or_known_default()?;
                    Some(format!("{}:{port}", url.host_str()?))
                });
                Ok(address.map_or(Reply::Unknown, Reply::Elsewhere))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Trouble::Refuses),
            _ => Err(Trouble::Away),
        }
    }

    /// A manifest, index or config of a peer; none when what it sends is not that.
    pub async fn document(&self, peer: &str, repository: &str, digest: &Digest) -> Option<Bytes> {
        let path = format!("{repository}/manifests/{digest}");
        let request = self.request(Method::GET, peer, &path);
        let read = async {
            let mut response = request.send().await.ok()?;
            if response.status() != StatusCode::OK {
                return None;
            }
            let mut bytes = Vec::new();
            while let Some(piece) = response.chunk().await.ok()? {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > CONFIG_LIMIT {
                    return None;
                }
            }
            (Digest::of(&bytes) == *digest).then(|| Bytes::from(bytes))
        };
        tokio::time::timeout(UPLOAD, read).await.ok().flatten()
    }
}

/// A blob's path below `/v2/`.
pub(super) fn blob_path(repository: &str, digest: &Digest) -> String {
    format!("{repository}/blobs/{digest}")
}

/// One peer as a source of blobs.
pub(super) struct PeerSource {
    pub client: Client,
    pub address: String,
    pub repository: String,
    /// Bytes per second below which it is given up; 0 is never.
    pub slowest: u64,
}

impl fmt::Debug for PeerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}", self.address)
    }
}

impl PeerSource {
    async fn get(&self, blob: &Descriptor, range: Range<u64>) -> Result<Incoming, Failure> {
        let path = blob_path(&self.repository, &blob.digest);
        let request = self.client.request(Method::GET, &self.address, &path);
        let mut request = request.header(ACCEPT_ENCODING, "identity");
        let part = range != (0..blob.size);
        if part {
            let last = range.end.saturating_sub(1);
            request = request.header(RANGE, format!("bytes={}-{last}", range.start));
        }
        let sent = tokio::time::timeout(UPLOAD, request.send()).await;
        let response = sent
            .map_err(|_| Failure::Stalled(UPLOAD))?
            .map_err(unreachable)?;
        let expected = range.end - range.start;
        match response.status() {
            StatusCode::OK if !part => {}
            StatusCode::PARTIAL_CONTENT if part => {
                let last = range.end.saturating_sub(1);
                let exact = format!("bytes {}-{last}/{}", range.start, blob.size);
                let got = response.headers().get(CONTENT_RANGE);
                if got.is_none_or(|got| got.as_bytes() != exact.as_bytes()) {
                    return Err(Failure::Malformed(format!(
                        "{exact} was expected, {got:?} came"
                    )));
                }
            }
            status => return Err(refusal(status, &response)),
        }
        match response.content_length() {
            Some(got) if got != expected => Err(Failure::WrongSize { expected, got }),
            _ => Ok(Incoming {
                range,
                bytes: stream(response, self.slowest),
            }),
        }
    }
}

/// The bytes as they come: a peer is known to be quick, so silence is an end sooner than elsewhere.
/// Only the time counts in which it is waited for.
fn stream(response: Response, slowest: u64) -> BoxStream<'static, Result<Bytes, Failure>> {
    let pieces = response.bytes_stream().boxed();
    let begun = (pieces, Duration::ZERO, 0_u64);
    stream::try_unfold(begun, move |(mut pieces, waited, came)| async move {
        let asked = Instant::now();
        match tokio::time::timeout(SILENT, pieces.next()).await {
            Err(_) => Err(Failure::Stalled(SILENT)),
            Ok(None) => Ok(None),
            Ok(Some(piece)) => {
                let piece = piece.map_err(unreachable)?;
                let (waited, came) = (waited + asked.elapsed(), came + piece.len() as u64);
                if waited > SILENT && (came as f64) < slowest as f64 * waited.as_secs_f64() {
                    let source = format!("it sends less than {slowest} bytes per second").into();
                    return Err(Failure::Refused { source });
                }
                Ok(Some((piece, (pieces, waited, came))))
            }
        }
    })
    .boxed()
}

fn refusal(status: StatusCode, response: &Response) -> Failure {
    let source = format!("HTTP {status}").into();
    match status {
        StatusCode::NOT_FOUND => Failure::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Unauthorised {
            message: format!("HTTP {status} to the token of the peers"),
        },
        StatusCode::SERVICE_UNAVAILABLE => {
            let after = response.headers().get(RETRY_AFTER);
            let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
            Failure::Unavailable {
                retry_after: after.map(Duration::from_secs),
                source,
            }
        }
        _ => Failure::Refused { source },
    }
}

fn unreachable(error: reqwest::Error) -> Failure {
    Failure::Unreachable {
        source: error.without_url().into(),
    }
}

impl Source for PeerSource {
    fn name(&self) -> &str {
        &self.address
    }

    fn repository(&self) -> &str {
        &self.repository
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Peer
    }

    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Incoming, Failure>> {
        self.get(blob, range).boxed()
    }
}
