//! One look at an instance: a connection, one GET, or a command inside.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::http::uri::InvalidUri;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Inside, Place, ProbeFailed, tls};
use crate::app::{Look, Scheme};

/// How much of an answer's body is read before the connection is closed, so that a server that
/// writes a page does not see a reset (Kubernetes reads 10 KiB, too).
const BODY_LIMIT: usize = 10 * 1024;

/// Why one probe failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptFailed {
    /// No connection.
    #[error("connect")]
    Connect(#[source] io::Error),
    /// No TLS.
    #[error("tls")]
    Tls(#[source] io::Error),
    /// No complete answer.
    #[error("request")]
    Request(#[source] hyper::Error),
    /// The answer was not 200..=399.
    #[error("answered {0}")]
    Status(StatusCode),
    /// `timeoutSeconds` were over.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The command ended with this code.
    #[error("exited with code {0}")]
    Code(u8),
    /// This signal ended the command.
    #[error("was ended by signal {0}")]
    Signal(u8),
    /// The command was killed when `timeoutSeconds` were over.
    #[error("had not ended within {0:?} and was killed")]
    Killed(Duration),
    /// The command cannot be executed.
    #[error("cannot be executed")]
    Execute(#[source] io::Error),
    /// Nobody could look: neither a pass nor a failure.
    #[error("is not known")]
    NotKnown(#[source] Box<dyn Error + Send + Sync>),
}

/// What is probed, as people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// Where a connection goes.
    Address(SocketAddr),
    /// The program of a command.
    Command(String),
}

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Command(program) => write!(f, "the command {program:?}"),
        }
    }
}

/// What is looked at.
pub(super) enum Target<'a> {
    Tcp,
    Http {
        scheme: Scheme,
        path: &'a str,
        headers: &'a [(String, String)],
    },
    Command,
}

impl<'a> Target<'a> {
    /// The target and where it is.
    pub(super) fn of(look: &'a Look, own: IpAddr) -> (Self, Probed) {
        let (target, host, port) = match look {
            Look::Tcp { port, host } => (Self::Tcp, host, port),
            Look::Http {
                port,
                host,
                scheme,
                path,
                headers,
            } => {
                let target = Self::Http {
                    scheme: *scheme,
                    path,
                    headers,
                };
                (target, host, port)
            }
            Look::Exec { command } => {
                let program = command.first().cloned().unwrap_or_default();
                return (Self::Command, Probed::Command(program));
            }
        };
        let address = SocketAddr::new(host.unwrap_or(own), *port);
        (target, Probed::Address(address))
    }

    pub(super) fn check(&self, probed: &Probed) -> Result<(), ProbeFailed> {
        let Probed::Address(address) = *probed else {
            return Ok(());
        };
        match self.request(address) {
            Ok(_) => Ok(()),
            Err(source) => Err(ProbeFailed::Request { address, source }),
        }
    }

    /// The request of an HTTP probe; nothing for others.
    fn request(
        &self,
        address: SocketAddr,
    ) -> Result<Option<Request<Empty<Bytes>>>, hyper::http::Error> {
        let Self::Http { path, headers, .. } = self else {
            return Ok(None);
        };
        let target: hyper::Uri = path
            .parse()
            .map_err(|e: InvalidUri| hyper::http::Error::from(e))?;
        let mut request = Request::get(target);
        for (name, value) in *headers {
            request = request.header(name, value);
        }
        let mut request = request.body(Empty::new())?;
        let given = request.headers_mut();
        if !given.contains_key(header::HOST) {
            given.insert(header::HOST, address.to_string().try_into()?);
        }
        if !given.contains_key(header::USER_AGENT) {
            given.insert(
                header::USER_AGENT,
                header::HeaderValue::from_static("nodeagent-probe/1"),
            );
        }
        given.insert(
            header::CONNECTION,
            header::HeaderValue::from_static("close"),
        );
        Ok(Some(request))
    }

    /// One look of at most `within`.
    pub(super) async fn attempt<I: Inside>(
        &self,
        probed: &Probed,
        place: &Place<'_, I>,
        within: Duration,
    ) -> Result<(), AttemptFailed> {
        match *probed {
            Probed::Command(_) => place.inside.look(within).await,
            Probed::Address(address) => match timeout(within, self.connect(address)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(AttemptFailed::Timeout(within)),
            },
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<(), AttemptFailed> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(AttemptFailed::Connect)?;
        // `check` has seen that the request can be made.
        let (Self::Http { scheme, .. }, Ok(Some(request))) = (self, self.request(address)) else {
            return Ok(());
        };
        match scheme {
            Scheme::Http => http(stream, request).await,
            Scheme::Https => {
                let stream = tls::connect(stream, address.ip()).await;
                http(stream.map_err(AttemptFailed::Tls)?, request).await
            }
        }
    }
}

async fn http<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<(), AttemptFailed> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(AttemptFailed::Request)?;
    let exchange = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(AttemptFailed::Request)?;
        let status = answer.status();
        let mut body = answer.into_body();
        let mut seen = 0;
        // A body that breaks off does not make a good status bad.
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen >= BODY_LIMIT {
                break;
            }
        }
        if (200..=399).contains(&status.as_u16()) {
            Ok(())
        } else {
            Err(AttemptFailed::Status(status))
        }
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The connection ends first when the server closes; the exchange then has its answer.
        _ = &mut connection => exchange.await,
    }
}
