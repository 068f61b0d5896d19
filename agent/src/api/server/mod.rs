//! The HTTP server on the agent's unix socket, and on a TCP port where one is configured.
//!
//! ```text
//! accept ── who? ── read (deadline, 1 MiB) ── validate ── Host ── answer (deadline) ── answered
//! ```
//! Owns the socket file and every connection. Promises: who has the role that a route
//! needs is served, others are told so; callers of little right do not keep out those of more; a
//! request that is cut off, too large or malformed never reaches the core; a submission goes on
//! when its client goes away; time counts from the request's first byte; every answer that is not a
//! success is a problem document; what a reader of events does not take is kept nowhere.
//! Deliberately without compression, and without TCP that is not TLS with certificates on both
//! sides.

mod answer;
mod body;
mod caller;
mod certificate;
mod exchange;
mod exec;
mod images;
mod listen;
mod query;
mod request;
mod requests;
mod routes;
mod stream;
mod table;
mod tls;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Host, Role, Roles};
use crate::config;
use caller::{Caller, last_answer};
use exchange::{Exchange, Timed};
use requests::Requests;
use tls::{Door, Port};

pub use listen::BindError;
pub use table::{Method, Operation, ROUTES, Route};
pub use tls::TlsError;

/// What bounds a request. The defaults are what the agent runs with; tests take shorter ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest body in bytes.
    pub body: usize,
    /// Within this the header, and then the body, must have arrived. An idle connection is closed
    /// after it.
    pub read: Duration,
    /// A client that takes no byte of its answer for this long is disconnected.
    pub write_stall: Duration,
    /// Connections at a time; more wait in the kernel's backlog.
    pub connections: usize,
    /// Of these, kept for callers with the role `admin`.
    pub reserved: usize,
    /// Connections at a time of callers without a role; more are closed at once.
    pub strangers: usize,
    /// TLS handshakes at a time; more are closed at once.
    pub handshakes: usize,
    /// Within this a TLS handshake must be over.
    pub handshake: Duration,
    /// Submissions in progress at a time; more are refused as `unavailable`.
    pub submissions: usize,
    /// Streams of events at a time, and as many logs; more are refused as `unavailable`.
    pub streams: usize,
    /// Commands in instances at a time; more are refused as `unavailable`.
    pub commands: usize,
    /// Instances whose processes are read at a time; more are refused as `unavailable`.
    pub looks: usize,
    /// As [`Limits::write_stall`], for who reads a log or the output of a command: a pager takes
    /// nothing while a person reads.
    pub log_stall: Duration,
    /// Silence after which a stream says that it lives.
    pub heartbeat: Duration,
    /// How long answers may take to go out once the server stops.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1024 * 1024,
            read: Duration::from_secs(10),
            write_stall: Duration::from_secs(10),
            connections: 512,
            reserved: 32,
            strangers: 16,
            handshakes: 32,
            handshake: Duration::from_secs(5),
            submissions: 256,
            streams: 64,
            commands: 32,
            looks: 8,
            log_stall: Duration::from_secs(3600),
            heartbeat: stream::HEARTBEAT,
            shutdown: Duration::from_secs(5),
        }
    }
}

/// A bound socket, not yet served.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    /// The file that goes with the server.
    own_file: Option<PathBuf>,
    limits: Limits,
    roles: Roles,
    port: Option<Port>,
}

impl Server {
    /// Binds `path` (mode 0600). A socket file that nobody answers on is replaced; one that
    /// somebody answers on is an error. Must run inside a tokio runtime.
    pub fn bind(path: &Path, limits: Limits) -> Result<Self, BindError> {
        Ok(Self {
            listener: listen::bind(path)?,
            own_file: Some(path.to_owned()),
            limits,
            roles: Roles::default(),
            port: None,
        })
    }

    /// Lets in whom the configuration gives a role, beside root and the agent's own user; sets mode
    /// and group of the socket's file at `path`, whoever opened it.
    ///
    /// # Errors
    /// The group is not on this host, or the file cannot be changed.
    pub fn open_to(mut self, path: &Path, api: &config::Api) -> Result<Self, BindError> {
        listen::open_to(path, api)?;
        self.roles = Roles::resolve(api);
        Ok(self)
    }

    /// Serves on a socket that somebody else opened at `path` and keeps open. Must run inside a
    /// tokio runtime.
    pub fn inherit(socket: StdListener, path: &Path, limits: Limits) -> Result<Self, BindError> {
        Ok(Self {
            listener: listen::inherit(socket, path)?,
            own_file: None,
            limits,
            roles: Roles::default(),
            port: None,
        })
    }

    /// Serves callers from other hosts, too. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// The address is taken, or a file cannot be used.
    pub fn with_tls(mut self, tls: &config::ApiTls) -> Result<Self, TlsError> {
        self.port = Some(Port::open(tls, &self.limits)?);
        if let Some(address) = self.tls_address() {
            tracing::info!(%address, "the api is served by TLS, too");
        }
        Ok(self)
    }

    /// Address and port for callers from other hosts, where they are served.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.port.as_ref()?.listener.local_addr().ok()
    }

    /// From now on somebody else keeps the socket open, too: its file stays when serving ends.
    pub fn leave_file(&mut self) {
        self.own_file = None;
    }

    /// Serves until `stop`, then lets answers in progress go out (within [`Limits::shutdown`]) and
    /// removes the socket file, where it is the server's own. Submissions in progress go on; their callers are told.
    pub async fn serve<H: Host>(self, host: Arc<H>, stop: CancellationToken) {
        let requests = Arc::new(Requests::default());
        let router = TowerToHyperService::new(routes::router(
            host,
            &self.limits,
            Arc::clone(&requests),
            stop.clone(),
        ));
        let mut connections = JoinSet::new();
        let rooms = Arc::new(Rooms::new(&self.limits));
        loop {
            let room = connections.len() < self.limits.connections;
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => log_end(ended),
                accepted = self.listener.accept(), if room => match accepted {
                    Ok((stream, _)) => {
                        let caller = Caller::of_process(&stream, &self.roles);
                        let Ok(permit) = rooms.admit(&caller) else {
                            tracing::debug!(%caller, "api connection closed: its callers have too many");
                            continue;
                        };
                        let serving = connection(stream, caller, Arc::clone(&requests), router.clone(), self.limits.clone(), stop.clone());
                        connections.spawn(async move {
                            serving.await;
                            drop(permit);
                        });
                    }
                    Err(error) => not_accepted(&error).await,
                },
                (door, accepted) = accept(self.port.as_ref()), if room => match accepted {
                    Ok((stream, _)) => {
                        let (rooms, requests) = (Arc::clone(&rooms), Arc::clone(&requests));
                        let (router, limits, stop) = (router.clone(), self.limits.clone(), stop.clone());
                        connections.spawn(async move {
                            let admitted = stop.run_until_cancelled(door.admit(stream)).await;
                            let Some((stream, caller)) = admitted.flatten() else {
                                return;
                            };
                            let Ok(_permit) = rooms.admit(&caller) else {
                                tracing::debug!(%caller, "api connection closed: its callers have too many");
                                return;
                            };
                            connection(stream, caller, requests, router, limits, stop).await;
                        });
                    }
                    Err(error) => not_accepted(&error).await,
                },
            }
        }
        let answers = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.limits.shutdown, answers)
            .await
            .is_err()
        {
            tracing::warn!("api connections were closed before their answers went out");
        }
        let Some(file) = &self.own_file else {
            return;
        };
        if let Err(error) = std::fs::remove_file(file) {
            tracing::debug!(%error, socket = %file.display(), "api socket was already gone");
        }
    }
}

/// The next connection to the port; never without one.
async fn accept(port: Option<&Port>) -> (Arc<Door>, io::Result<(TcpStream, SocketAddr)>) {
    match port {
        Some(port) => (Arc::clone(&port.door), port.listener.accept().await),
        None => std::future::pending().await,
    }
}

async fn not_accepted(error: &io::Error) {
    tracing::warn!(%error, "api connection could not be accepted");
    // Out of descriptors, mostly: wait for some to come back.
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Shares of the connections, so that nobody keeps out who may more.
struct Rooms {
    strangers: Arc<Semaphore>,
    known: Arc<Semaphore>,
}

impl Rooms {
    fn new(limits: &Limits) -> Self {
        let known = limits.connections.saturating_sub(limits.reserved);
        Self {
            strangers: Arc::new(Semaphore::new(limits.strangers)),
            known: Arc::new(Semaphore::new(known)),
        }
    }

    /// A place for the caller, or none; `admin` has whatever is left.
    fn admit(
        &self,
        caller: &Caller,
    ) -> Result<Option<OwnedSemaphorePermit>, tokio::sync::TryAcquireError> {
        let share = match caller.role {
            Some(Role::Admin) => return Ok(None),
            Some(Role::View | Role::Operate) => &self.known,
            None => &self.strangers,
        };
        Arc::clone(share).try_acquire_owned().map(Some)
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn log_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "api connection ended by a panic");
    }
}

async fn connection<S, R>(
    stream: S,
    caller: Caller,
    requests: Arc<Requests>,
    router: TowerToHyperService<R>,
    limits: Limits,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    TowerToHyperService<R>:
        Service<hyper::Request<Incoming>, Response = Response<Body>, Error = Infallible>,
{
    let exchange = Arc::new(Exchange::default());
    let io = TokioIo::new(Timed::new(
        stream,
        Arc::clone(&exchange),
        limits.write_stall,
    ));
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&exchange));
        request.extensions_mut().insert(caller.clone());
        let exchange = &exchange;
        let path = request.uri().path();
        let answer = match caller.role {
            None if !table::is_open(path) => {
                requests.count(None, StatusCode::FORBIDDEN);
                Err(caller.forbidden(Role::View, path))
            }
            _ => Ok(router.call(request)),
        };
        async move {
            let response = match answer {
                Ok(answer) => answer.await?,
                Err(problem) => last_answer(problem),
            };
            exchange.answer_is_ready();
            Ok::<_, Infallible>(response)
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read)
        .serve_connection(io, service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "api connection ended early");
    }
}
