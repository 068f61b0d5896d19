//! The API by TCP: TLS with certificates on both sides.
//!
//! ```text
//! accept ── a place? ── first byte ── handshake (deadline) ── names ── role ── as on the socket
//! ```
//! Certificates, key and authorities are read again when a file has changed, before the next
//! handshake; what cannot be used is logged, and the last that could be goes on. Connections keep
//! what they began with. Sessions are not resumed: every connection shows its certificate.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::caller::{Caller, Who};
use super::{Limits, certificate};
use crate::config;
use crate::pem::{self, Unreadable};

/// Why the API is not served by TCP.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (api.tls.listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read, or is no PEM of what it should hold.
    #[error(transparent)]
    Read(#[from] Unreadable),
    /// A file holds no certificate.
    #[error("{} holds no certificate ({key})", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The configuration's key.
        key: &'static str,
    },
    /// Certificate and key cannot be used, or not together.
    #[error("{} and {} cannot be used (api.tls.certificate, api.tls.key)", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The authorities cannot be used.
    #[error("the certificates in {} cannot be used as authorities (api.tls.client_ca)", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A port that listens, not yet served.
#[derive(Debug)]
pub(super) struct Port {
    pub listener: TcpListener,
    pub door: Arc<Door>,
}

/// What stands between a connection and its caller.
#[derive(Debug)]
pub(super) struct Door {
    tls: config::ApiTls,
    current: Mutex<Current>,
    handshakes: Arc<Semaphore>,
    deadline: Duration,
}

#[derive(Debug)]
struct Current {
    files: Seen,
    config: Arc<ServerConfig>,
}

/// How the three files looked; none for one that is not there.
type Seen = [Option<(u64, u64, i64, i64)>; 3];

impl Port {
    pub fn open(tls: &config::ApiTls, limits: &Limits) -> Result<Self, TlsError> {
        let files = look(tls);
        let config = load(tls)?;
        let listen = |source| TlsError::Listen {
            address: tls.listen,
            source,
        };
        let listener = StdListener::bind(tls.listen).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        Ok(Self {
            listener: TcpListener::from_std(listener).map_err(listen)?,
            door: Arc::new(Door {
                tls: tls.clone(),
                current: Mutex::new(Current { files, config }),
                handshakes: Arc::new(Semaphore::new(limits.handshakes)),
                deadline: limits.handshake,
            }),
        })
    }
}

impl Door {
    /// The connection and who is at its other end; none when there is nobody to be served.
    pub async fn admit(&self, stream: TcpStream) -> Option<(TlsStream<TcpStream>, Caller)> {
        let Ok(_place) = self.handshakes.try_acquire() else {
            tracing::debug!("api connection closed: too many handshakes are under way");
            return None;
        };
        match timeout(self.deadline, self.handshake(stream)).await {
            Ok(Ok(admitted)) => admitted,
            Ok(Err(error)) => {
                tracing::debug!(%error, "api connection ended in its handshake");
                None
            }
            Err(_) => {
                let deadline = self.deadline.as_secs_f64();
                tracing::debug!(deadline, "api connection ended: handshake deadline");
                None
            }
        }
    }

    async fn handshake(
        &self,
        mut stream: TcpStream,
    ) -> io::Result<Option<(TlsStream<TcpStream>, Caller)>> {
        stream.set_nodelay(true)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0].is_ascii_alphabetic() {
            // A method: no record of TLS begins with a letter (RFC 8446, 5.1).
            stream.write_all(PLAIN).await?;
            linger(stream).await;
            return Ok(None);
        }
        let accepting = TlsAcceptor::from(self.config()).accept(stream);
        let stream = match accepting.into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                linger(stream).await;
                return Err(error);
            }
        };
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let names = shown.map(certificate::names).unwrap_or_default();
        let caller = Caller {
            role: certificate::role(&names, &self.tls),
            who: Who::Certificate(names),
        };
        Ok(Some((stream, caller)))
    }

    /// What the files say now, or said when they could be used last.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let files = look(&self.tls);
        if files != current.files {
            // Whatever comes of it: the same files are not read twice.
            current.files = files;
            match load(&self.tls) {
                Ok(config) => {
                    tracing::info!("certificates of the api were read again");
                    current.config = config;
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(
                        error,
                        "certificates of the api cannot be used; the former go on"
                    );
                }
            }
        }
        Arc::clone(&current.config)
    }
}

/// Closes so that the peer reads what was said last: bytes of it that nobody has read would make
/// the kernel reset the connection and throw that away. The handshake's deadline bounds it.
async fn linger(mut stream: TcpStream) {
    // Whatever goes wrong, the connection is over.
    stream.shutdown().await.ok();
    let mut rest = stream.take(LINGER);
    tokio::io::copy(&mut rest, &mut tokio::io::sink())
        .await
        .ok();
}

/// The most that is read from who was turned away: the request that came with the handshake.
const LINGER: u64 = 2 * 1024 * 1024;
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 31\r\n\r\nthis port speaks TLS: https://\n";

fn look(tls: &config::ApiTls) -> Seen {
    [&tls.certificate, &tls.key, &tls.client_ca].map(|path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    })
}

fn load(tls: &config::ApiTls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    let authorities = |source| TlsError::Authorities {
        path: tls.client_ca.clone(),
        source,
    };
    for certificate in certificates(&tls.client_ca, "api.tls.client_ca")? {
        let added = roots.add(certificate);
        added.map_err(|error| authorities(error.into()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|error: VerifierBuilderError| authorities(error.into()))?;
    let chain = certificates(&tls.certificate, "api.tls.certificate")?;
    let key = pem::configured_private_key(&tls.key, "api.tls.key")?;
    let pair = |source| TlsError::Pair {
        certificate: tls.certificate.clone(),
        key: tls.key.clone(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(path: &Path, key: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem::configured_certificates(path, key).map_err(|error| match error.source {
        pem::Error::NoItemsFound => TlsError::Empty {
            path: error.path,
            key,
        },
        _ => error.into(),
    })
}
