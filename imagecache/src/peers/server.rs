//! The server: what a peer may read of us, over the OCI distribution protocol, and no more.
//!
//! Whole, verified blobs and documents, by digest. HEAD of a blob that is on its way waits as long
//! as the peer prefers to; HEAD with the peer's own address is a claim, answered by the keeper.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
    HeaderName, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Peers;
use super::access::Access;
use super::body::{Body, part, small};
use super::herd::Shared;
use super::hosts::OWN;
use super::keeper::Way;
use super::patient::Patient;
use super::request::{Asked, FAILED, PEER, PROGRESS, asked, range, wait};
use super::served::Upload;
use crate::blobs::Blob;
use crate::fetch::Bandwidth;
use crate::manifest::{CONFIG_LIMIT, media_type};
use crate::{ContentStore, Digest};

/// Connections at a time; more are closed at once.
const MOST_CONNECTIONS: usize = 512;
/// Waits for blobs on their way at a time; more are answered at once.
const MOST_WAITS: usize = 1024;
/// Looks into the store at a time: one may have to hash a blob of a former boot.
const MOST_LOOKS: usize = 16;
/// A peer that does not take what it is sent for this long is cut off.
const READER: Duration = Duration::from_secs(10);
/// A request, or the next one of a connection, begins within this.
const REQUEST: Duration = Duration::from_secs(30);
/// A TLS handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest wait for a blob on its way, whatever a peer prefers.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// How long a request may queue for an upload.
const QUEUE: Duration = Duration::from_secs(2);
/// How many may queue for each upload.
const QUEUE_PER_UPLOAD: usize = 4;
/// Pause after an accept that failed (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Manifests, indexes and configs: small, and verified by whoever keeps them.
pub trait Documents: Send + Sync {
    /// The document, when it is there.
    fn document<'d>(&'d self, digest: &'d Digest) -> BoxFuture<'d, Option<Bytes>>;
}

/// The documents of a content store.
#[derive(Debug)]
pub struct StoreDocuments<S>(pub S);

impl<S: ContentStore> Documents for StoreDocuments<S> {
    fn document<'d>(&'d self, digest: &'d Digest) -> BoxFuture<'d, Option<Bytes>> {
        let read = self.0.read(digest, CONFIG_LIMIT);
        // Absent, too large, or a store that is away: there are others to ask.
        read.map(|read| read.ok().filter(|bytes| Digest::of(bytes) == *digest))
            .boxed()
    }
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Who may ask.
    pub access: Access,
    /// Uploads at a time; four times as many may queue for 2 s, more are sent elsewhere.
    pub uploads: usize,
    /// Bytes per second of all uploads together; 0 is no limit.
    pub bandwidth: u64,
}

/// Serves what is in the store of [`Peers`].
#[derive(Clone)]
pub struct Server(Arc<Serving>);

struct Serving {
    peers: Arc<Shared>,
    documents: Arc<dyn Documents>,
    access: Access,
    uploads: Arc<Semaphore>,
    queue: Semaphore,
    waits: Semaphore,
    looks: Semaphore,
    bandwidth: Arc<Bandwidth>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// A server of what `peers` brings and has.
    pub fn new(peers: &Peers, documents: Arc<dyn Documents>, options: &ServeOptions) -> Self {
        let uploads = options.uploads.max(1);
        Self(Arc::new(Serving {
            peers: peers.shared(),
            documents,
            access: options.access.clone(),
            uploads: Arc::new(Semaphore::new(uploads)),
            queue: Semaphore::new(uploads.saturating_mul(QUEUE_PER_UPLOAD)),
            waits: Semaphore::new(MOST_WAITS),
            looks: Semaphore::new(MOST_LOOKS),
            bandwidth: Arc::new(Bandwidth::new(options.bandwidth)),
        }))
    }

    /// Serves for good; dropped, every connection is closed.
    pub async fn serve(&self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, from)) if connections.len() < MOST_CONNECTIONS => {
                    connections.spawn(Self::connection(Arc::clone(&self.0), stream, from));
                }
                Ok((_, from)) => tracing::debug!(%from, "too many connections of peers"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(serving: Arc<Serving>, stream: TcpStream, from: SocketAddr) {
        // Nothing is lost but a little speed.
        drop(stream.set_nodelay(true));
        let ended = match serving.access.tls() {
            None => Self::http(serving, stream).await,
            Some(tls) => {
                let acceptor = TlsAcceptor::from(Arc::clone(tls));
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => Self::http(serving, stream).await,
                    Ok(Err(error)) => Err(error.into()),
                    Err(_) => Err("the handshake took too long".into()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%from, %error, "a connection of a peer broke");
        }
    }

    async fn http<S: AsyncRead + AsyncWrite + Unpin>(
        serving: Arc<Serving>,
        stream: S,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let service = service_fn(move |request: Request<Incoming>| {
            let serving = Arc::clone(&serving);
            async move { Ok::<_, io::Error>(serving.answer(&request).await) }
        });
        let stream = TokioIo::new(Patient::new(stream, READER));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(REQUEST)
            .max_headers(64);
        Ok(http.serve_connection(stream, service).await?)
    }
}

/// Answers for which there is nothing more to say.
fn plain(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
    let mut response = Response::new(small(body.to_string()));
    *response.status_mut() = status;
    set(response.headers_mut(), CONTENT_TYPE, "application/json");
    response
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: impl ToString) {
    // All values are ours: numbers, addresses that were checked, digests.
    if let Ok(value) = value.to_string().try_into() {
        headers.insert(name, value);
    }
}

fn unknown() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "it is not here")
}

fn busy(message: &str) -> Response<Body> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message);
    set(response.headers_mut(), RETRY_AFTER, 1);
    response
}

impl Serving {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if let Some(token) = self.access.token() {
            let header = request.headers().get(AUTHORIZATION);
            if !token.is_in(header.and_then(|value| value.to_str().ok())) {
                let mut response = plain(
                    StatusCode::UNAUTHORIZED,
                    "UNAUTHORIZED",
                    "the token of the peers is required",
                );
                set(response.headers_mut(), WWW_AUTHENTICATE, "Bearer");
                return response;
            }
        }
        match asked(request.method(), request.uri().path()) {
            Ok(Asked::Api) => {
                let mut response = Response::new(small("{}"));
                let headers = response.headers_mut();
                set(headers, CONTENT_TYPE, "application/json");
                response
            }
            Ok(Asked::Blob(digest)) => self.blob(request, &digest).await,
            Ok(Asked::Manifest(digest)) => match self.documents.document(&digest).await {
                Some(bytes) => {
                    let kind = media_type("document", &bytes);
                    document(&digest, bytes, kind.as_deref().ok())
                }
                None => unknown(),
            },
            Err(StatusCode::METHOD_NOT_ALLOWED) => {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                let mut response = plain(status, "UNSUPPORTED", "GET and HEAD are allowed");
                set(response.headers_mut(), ALLOW, "GET, HEAD");
                response
            }
            Err(status) => plain(
                status,
                "UNSUPPORTED",
                "blobs and manifests by sha256 digest are here, nothing else",
            ),
        }
    }

    async fn blob(&self, request: &Request<Incoming>, digest: &Digest) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let headers = request.headers();
        let from = self.host_in(headers, &PEER);
        if let Some(from) = from.filter(|from| head && *from != OWN) {
            return self.claim(request, digest, from).await;
        }
        // Before the look: what comes in between is seen by one of them.
        let bringing = self.peers.wanted.get(digest);
        if let Some(blob) = self.find(digest).await {
            return self.found(request, digest, blob).await;
        }
        if let Some(bringing) = bringing {
            let longest = wait(headers).min(LONGEST_WAIT);
            if let Ok(_waiting) = self.waits.try_acquire() {
                // Over or not, it is looked at again.
                drop(tokio::time::timeout(longest, bringing.over()).await);
            }
            return match self.find(digest).await {
                Some(blob) => self.found(request, digest, blob).await,
                None if self.peers.wanted.get(digest).is_some() => self.bringing(digest),
                None => unknown(),
            };
        }
        match self.documents.document(digest).await {
            Some(bytes) => document(digest, bytes, None),
            None => unknown(),
        }
    }

    /// A peer asks us as the blob's keeper.
    async fn claim(
        &self,
        request: &Request<Incoming>,
        digest: &Digest,
        from: usize,
    ) -> Response<Body> {
        // Before the look: what comes in between is seen by one of them.
        let before = self.peers.wanted.get(digest).is_some();
        let here = self.find(digest).await;
        let failed = self.host_in(request.headers(), &FAILED);
        let (way, bringing) = {
            let mut keeper = self.peers.keeper();
            // Who begins to bring it asks the keeper afterwards: with the keeper in our hands we
            // see whether we have begun.
            let bringing = before || self.peers.wanted.get(digest).is_some();
            let (hosts, now) = (&self.peers.hosts, Instant::now());
            if here.is_some() {
                keeper.claim(hosts, digest, OWN, None, now);
            } else if !bringing {
                // What we had once may be gone.
                keeper.claim(hosts, digest, from, Some(OWN), now);
            }
            (keeper.claim(hosts, digest, from, failed, now), bringing)
        };
        match (way, here) {
            (Way::Yours | Way::From(OWN), Some(blob)) => self.found(request, digest, blob).await,
            (Way::From(OWN), None) if bringing => self.bringing(digest),
            (Way::Yours | Way::From(OWN), None) => unknown(),
            (Way::From(other), _) => {
                let mut response = Response::new(small(Bytes::new()));
                *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
                let (scheme, path) = (self.scheme(), request.uri().path());
                let address = &self.peers.hosts.get(other).address;
                let location = format!("{scheme}://{address}{path}");
                set(response.headers_mut(), LOCATION, location);
                response
            }
        }
    }

    /// The host whose address a header has.
    fn host_in(&self, headers: &HeaderMap, name: &HeaderName) -> Option<usize> {
        let address = headers.get(name)?.to_str().ok()?;
        self.peers.hosts.find(address)
    }

    fn scheme(&self) -> &'static str {
        match self.access.tls() {
            Some(_) => "https",
            None => "http",
        }
    }

    /// 503: it is on its way.
    fn bringing(&self, digest: &Digest) -> Response<Body> {
        // Another process of this host may be the one that writes it.
        let begun = self.peers.blobs.begun(digest).unwrap_or(0);
        let own = begun.saturating_add(self.peers.activity.load(Ordering::Relaxed));
        let bringing = self.peers.wanted.get(digest);
        let progress = bringing.map_or(own, |bringing| bringing.progress(own));
        let mut response = busy("it is on its way");
        set(response.headers_mut(), PROGRESS, progress);
        response
    }

    async fn find(&self, digest: &Digest) -> Option<Blob> {
        // It is never closed.
        let _look = self.looks.acquire().await.ok()?;
        let (blobs, digest) = (self.peers.blobs.clone(), digest.clone());
        match tokio::task::spawn_blocking(move || blobs.find(&digest)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot look for a blob that a peer wants");
                None
            }
            Err(_) => None,
        }
    }

    async fn found(
        &self,
        request: &Request<Incoming>,
        digest: &Digest,
        blob: Blob,
    ) -> Response<Body> {
        let asked = match range(request.headers(), blob.size) {
            Ok(asked) => asked,
            Err(status) => {
                let mut response = plain(status, "RANGE_INVALID", "it has no such bytes");
                let value = format!("bytes */{}", blob.size);
                set(response.headers_mut(), CONTENT_RANGE, value);
                return response;
            }
        };
        let sent = asked.clone().unwrap_or(0..blob.size);
        let body = if request.method() == Method::HEAD {
            small(Bytes::new())
        } else {
            let Ok(_queued) = self.queue.try_acquire() else {
                return busy("too many uploads");
            };
            let place = Arc::clone(&self.uploads).acquire_owned();
            let Ok(Ok(place)) = tokio::time::timeout(QUEUE, place).await else {
                return busy("too many uploads");
            };
            let upload = Upload::begin(Arc::clone(&self.peers.served), place);
            part(blob.file, sent.clone(), Arc::clone(&self.bandwidth), upload)
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        if asked.is_some() {
            let value = format!("bytes {}-{}/{}", sent.start, sent.end - 1, blob.size);
            set(headers, CONTENT_RANGE, value);
        }
        set(headers, CONTENT_LENGTH, sent.end - sent.start);
        set(headers, ACCEPT_RANGES, "bytes");
        content(headers, digest, "application/octet-stream");
        if asked.is_some() {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        response
    }
}

fn document(digest: &Digest, bytes: Bytes, media_type: Option<&str>) -> Response<Body> {
    let length = bytes.len();
    let mut response = Response::new(small(bytes));
    let headers = response.headers_mut();
    set(headers, CONTENT_LENGTH, length);
    content(
        headers,
        digest,
        media_type.unwrap_or("application/octet-stream"),
    );
    response
}

fn content(headers: &mut HeaderMap, digest: &Digest, media_type: &str) {
    let name = HeaderName::from_static("docker-content-digest");
    set(headers, name, digest);
    set(headers, CONTENT_TYPE, media_type);
}

impl Shared {
    /// Asks our own memory, as the keeper of a blob.
    pub(super) fn keep(&self, digest: &Digest, from: usize, failed: Option<usize>) -> Way {
        let mut keeper = self.keeper();
        keeper.claim(&self.hosts, digest, from, failed, Instant::now())
    }
}
