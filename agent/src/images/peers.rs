//! Layers shared with other agents: the server of this host's, and what peers are asked with.
//!
//! The server has a thread of its own: the thread that decides about instances sends nobody layers.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use imagecache::Digest;
use imagecache::peers::{
    Access, Documents, Peers, PeersError, PeersOptions, ServeOptions, Server, StoreDocuments, Token,
};
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::config;
use crate::pem::{self, Unreadable};
use crate::runtime::Containerd;

/// Why layers are not shared.
#[derive(Debug, thiserror::Error)]
pub enum SharingError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (images.peers.listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file with the token cannot be read.
    #[error("cannot read the token of the peers from {} (images.peers.token_file)", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token is none.
    #[error(
        "{} has no token (images.peers.token_file): one line of at least 16 visible ASCII characters is allowed, the same on all hosts", path.display()
    )]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read, or is no PEM of what it should hold.
    #[error(transparent)]
    Read(#[from] Unreadable),
    /// Certificate, key and authorities cannot be used, or not together.
    #[error(
        "certificate, key and ca of images.peers cannot be used together: {} {} {}",
        .files.certificate.display(), .files.key.display(), .files.ca.display()
    )]
    Tls {
        /// The files.
        files: Box<config::PeersTls>,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The list of peers, or their client.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// No thread for the server.
    #[error("the server for peers has no thread")]
    Thread(#[source] io::Error),
}

/// What is needed to ask peers and to be asked.
pub(super) struct Sharing {
    /// How peers are asked.
    pub options: PeersOptions,
    serve: ServeOptions,
    listener: StdListener,
}

/// The server, as long as it lives.
pub(super) struct Serving {
    _stop: oneshot::Sender<()>,
}

impl Sharing {
    /// Reads the secrets, and listens; nobody is served yet.
    pub fn open(settings: &config::ImagePeers) -> Result<Self, SharingError> {
        let token = settings.token_file.as_deref().map(token).transpose()?;
        let tls = settings.tls.as_ref().map(tls).transpose()?;
        let (client, server) = tls.unzip();
        let access = match (token.clone(), server) {
            (Some(token), None) => Access::Token(token),
            (Some(token), Some(tls)) => Access::TokenByTls(token, Arc::new(tls)),
            (None, Some(tls)) => Access::Certificate(Arc::new(tls)),
            // The settings are refused without one of them.
            (None, None) => {
                let path = PathBuf::new();
                return Err(SharingError::NoToken { path });
            }
        };
        let listen = |source| SharingError::Listen {
            address: settings.listen,
            source,
        };
        let listener = StdListener::bind(settings.listen).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        Ok(Self {
            options: PeersOptions {
                own: settings.own.clone(),
                peers: settings.hosts.clone(),
                token,
                tls: client,
                slowest: settings.slowest,
            },
            serve: ServeOptions {
                access,
                uploads: settings.uploads,
                bandwidth: settings.bandwidth,
            },
            listener,
        })
    }

    /// Serves what `peers` has, and documents of containerd's, until the result is dropped.
    pub fn serve(self, peers: &Peers, containerd: Containerd) -> Result<Serving, SharingError> {
        let documents = Arc::new(OfContainerd(containerd));
        let server = Server::new(peers, documents, &self.serve);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SharingError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            runtime.block_on(async {
                let listener = match TcpListener::from_std(self.listener) {
                    Ok(listener) => listener,
                    Err(error) => {
                        tracing::error!(%error, "peers are not served");
                        return;
                    }
                };
                tokio::select! {
                    () = server.serve(listener) => {}
                    // Whoever held the other end is gone.
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("peers".to_owned());
        thread.spawn(work).map_err(SharingError::Thread)?;
        Ok(Serving { _stop: stop })
    }
}

/// Manifests, indexes and configs are containerd's.
struct OfContainerd(Containerd);

impl Documents for OfContainerd {
    fn document<'d>(&'d self, digest: &'d Digest) -> BoxFuture<'d, Option<bytes::Bytes>> {
        async move { StoreDocuments(self.0.documents()).document(digest).await }.boxed()
    }
}

fn token(path: &Path) -> Result<Token, SharingError> {
    let text = std::fs::read_to_string(path).map_err(|source| SharingError::Token {
        path: path.to_owned(),
        source,
    })?;
    Token::new(text.trim_end_matches(['\r', '\n'])).ok_or(SharingError::NoToken {
        path: path.to_owned(),
    })
}

/// Both sides show the same certificate, and believe the same authorities.
fn tls(files: &config::PeersTls) -> Result<(ClientConfig, ServerConfig), SharingError> {
    let unfit = |source: Box<dyn std::error::Error + Send + Sync>| SharingError::Tls {
        files: Box::new(files.clone()),
        source,
    };
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in pem::configured_certificates(&files.ca, "images.peers.ca")? {
        roots
            .add(certificate)
            .map_err(|error| unfit(error.into()))?;
    }
    let roots = Arc::new(roots);
    let chain = pem::configured_certificates(&files.certificate, "images.peers.certificate")?;
    let key = pem::configured_private_key(&files.key, "images.peers.key")?;
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(error.into()))?
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .map_err(|error| unfit(error.into()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|error| unfit(error.into()))?;
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(error.into()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| unfit(error.into()))?;
    Ok((client, server))
}
