//! Bringing a blob as one of many that may want it: who is asked, when, and for how long.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};

use super::access::Token;
use super::client::{Client, PeerSource, Reply, SILENT, blob_path};
use super::hosts::{Hosts, InvalidPeer, OWN, Peer};
use super::keeper::{Keeper, Way};
use super::served::{Counts, Served};
use super::standing::{PeerStatus, Standing, Trouble};
use super::wanted::{Bring, Wanted};
use super::watched::Watched;
use crate::blobs::{Blobs, BlobsError};
use crate::fetch::{Budget, Fetched, Fetcher, Hedge, Source, Sources, Urgency};
use crate::{Descriptor, Digest, PullError, Retry};

/// Peers that are tried for a blob one after the other before the registry is asked.
const MOST_PEERS: usize = 4;
/// Keepers that are tried before we are our own.
const MOST_KEEPERS: usize = 2;
/// Peers that are asked at once whether they have a blob, or a document.
const MOST_ASKED: usize = 8;
/// How long a peer is asked to wait at a time.
const WAIT: Duration = Duration::from_secs(5);
/// Pause between two questions when the answer came at once.
const PAUSE: Duration = Duration::from_millis(100);
/// A peer that brings a blob and shows no progress for this long is not waited for any more.
const NO_PROGRESS: Duration = Duration::from_secs(10);
/// A peer that brings a blob is waited for no longer than this, whatever its progress.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Stands where a registry names no repository: peers do not look at it.
const NO_REPOSITORY: &str = "blobs";
/// Tries of one transfer from a peer.
const RETRIES: u32 = 8;

/// Who shares blobs with whom.
#[derive(Debug, Clone)]
pub struct PeersOptions {
    /// This host, as the others have it in their lists.
    pub own: Peer,
    /// The others; this host may be among them.
    pub peers: Vec<Peer>,
    /// Shown to peers, and to nobody else.
    pub token: Option<Token>,
    /// Peers are spoken to by TLS with these settings, which may have a certificate of ours.
    pub tls: Option<rustls::ClientConfig>,
    /// Bytes per second of one connection below which a peer is given up; 0 is never.
    pub slowest: u64,
}

/// Why there are no peers.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The list is wrong.
    #[error(transparent)]
    Peer(#[from] InvalidPeer),
    /// The HTTP client could not be made.
    #[error("the HTTP client for peers could not be made")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The peers of this host. Clones share what is known of them.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

/// What client and server of one host share.
pub(super) struct Shared {
    pub hosts: Hosts,
    pub blobs: Blobs,
    pub wanted: Wanted,
    /// Bytes that came of all blobs: as long as it grows, those that wait for a place are waited
    /// for as well.
    pub activity: Arc<AtomicU64>,
    pub served: Arc<Counts>,
    keeper: Mutex<Keeper>,
    standing: Standing,
    client: Client,
    slowest: u64,
}

impl Shared {
    pub fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers")
            .field("hosts", &self.0.hosts)
            .finish_non_exhaustive()
    }
}

/// How following a peer ended.
enum Followed {
    /// It has the blob.
    Has,
    /// It has and brings nothing, or does not get on.
    Lost,
}

/// How a transfer from a peer ended.
enum Transfer {
    Done(Fetched),
    /// It has too much to do, and nothing is wrong with it.
    Busy,
    /// It is of no use for this blob.
    Failed,
}

impl Peers {
    /// For the blobs of this store.
    pub fn new(options: &PeersOptions, blobs: &Blobs) -> Result<Self, PeersError> {
        let client = Client::new(options.token.clone(), options.tls.clone());
        Ok(Self(Arc::new(Shared {
            hosts: Hosts::new(&options.own, &options.peers)?,
            blobs: blobs.clone(),
            wanted: Wanted::default(),
            activity: Arc::default(),
            served: Arc::default(),
            keeper: Mutex::default(),
            standing: Standing::default(),
            client: client.map_err(PeersError::Client)?,
            slowest: options.slowest,
        })))
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.0)
    }

    /// What they were sent of ours, by [`Server`](super::Server)s of these peers.
    pub fn served(&self) -> Served {
        self.0.served.now()
    }

    /// All peers, and how they are.
    pub fn status(&self) -> Vec<PeerStatus> {
        let now = Instant::now();
        let others = OWN + 1..self.0.hosts.len();
        let status = |host| PeerStatus {
            address: self.0.hosts.get(host).address.clone(),
            rests: self.0.standing.rests(host, now),
        };
        others.map(status).collect()
    }

    /// Brings a blob into the store unless it is there, as [`Fetcher::blob`] does: from a peer where
    /// one has it or is about to, else from `registry`. What one source sent before it failed, the
    /// next one goes on with.
    ///
    /// Waits for others hold no connection of the fetcher: all blobs of an image may be asked for at
    /// a time.
    pub async fn blob(
        &self,
        fetcher: &Fetcher,
        registry: &Sources,
        kind: &str,
        blob: &Descriptor,
        urgency: Urgency,
    ) -> Result<Fetched, PullError> {
        let shared = &*self.0;
        let alone = shared.hosts.len() == 1;
        if alone || shared.has(&blob.digest).await? {
            let into = &shared.blobs;
            return fetcher.blob(registry, kind, blob, into, urgency).await;
        }
        let asked = Instant::now();
        let repository = registry
            .ordered
            .last()
            .map_or(NO_REPOSITORY, |last| last.repository());
        let bring = Bringing {
            shared,
            blob,
            path: blob_path(repository, &blob.digest),
            repository,
            on_its_way: shared.wanted.begin(&blob.digest),
            fetch: &|sources| {
                let fetcher = fetcher.clone();
                async move {
                    let into = &shared.blobs;
                    fetcher.blob(&sources, kind, blob, into, urgency).await
                }
                .boxed()
            },
        };
        let fetched = bring.run(registry).await?;
        let elapsed = asked.elapsed();
        Ok(Fetched { elapsed, ..fetched })
    }

    /// A manifest, index or config by its digest from a peer, for when its registry is away:
    /// verified. Asks some near ones at once.
    pub async fn document(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        let asked = self.0.candidates(digest);
        let ask = |host: usize| {
            let address = &self.0.hosts.get(host).address;
            self.0.client.document(address, repository, digest)
        };
        let found = join_all(asked.into_iter().map(ask)).await;
        found.into_iter().flatten().next()
    }
}

impl Shared {
    /// Those that may be asked whether they have something, near ones first.
    fn candidates(&self, digest: &Digest) -> Vec<usize> {
        let mut order = self.hosts.by_distance(digest);
        order.retain(|host| !self.rests(*host));
        order.truncate(MOST_ASKED);
        order
    }

    async fn has(&self, digest: &Digest) -> Result<bool, BlobsError> {
        let (blobs, digest) = (self.blobs.clone(), digest.clone());
        let found = tokio::task::spawn_blocking(move || blobs.find(&digest)).await;
        // A panic of the store is passed on by the engine, which looks again.
        found.unwrap_or(Ok(None)).map(|found| found.is_some())
    }

    fn rests(&self, host: usize) -> bool {
        self.standing.rests(host, Instant::now()).is_some()
    }

    fn failed(&self, host: usize, trouble: Trouble, digest: &Digest) {
        let peer = &self.hosts.get(host).address;
        let trouble_is = trouble.as_str();
        match trouble {
            Trouble::WrongBytes => {
                tracing::warn!(peer, %digest, "a peer sent wrong bytes and is left alone");
            }
            // Told once, not for each layer.
            Trouble::Away | Trouble::Refuses if !self.rests(host) => {
                tracing::info!(peer, trouble_is, "a peer is left alone for a while");
            }
            Trouble::Away | Trouble::Refuses => {}
        }
        self.standing.failed(host, trouble, Instant::now());
    }
}

type Fetch<'b> = dyn Fn(Sources) -> BoxFuture<'b, Result<Fetched, PullError>> + Sync + 'b;

/// One blob being brought.
struct Bringing<'b> {
    shared: &'b Shared,
    blob: &'b Descriptor,
    path: String,
    repository: &'b str,
    on_its_way: Bring,
    fetch: &'b Fetch<'b>,
}

impl Bringing<'_> {
    async fn run(&self, registry: &Sources) -> Result<Fetched, PullError> {
        let mut lost = None;
        for _ in 0..MOST_PEERS {
            let Way::From(host) = self.claim(lost.take()).await else {
                break;
            };
            match self.follow(host).await {
                Followed::Lost => lost = Some(host),
                Followed::Has => match self.transfer(host).await? {
                    Transfer::Done(done) => return Ok(done),
                    Transfer::Busy => {}
                    Transfer::Failed => lost = Some(host),
                },
            }
        }
        if let Some(done) = self.sweep().await? {
            return Ok(done);
        }
        self.on_its_way.fetches();
        let ordered = registry.ordered.iter();
        let registry = Sources {
            ordered: ordered
                .map(|source| self.watched(Arc::clone(source)))
                .collect(),
            // It serves a herd: that it is slow says nothing about this connection.
            hedge: Hedge::Others,
            ..registry.clone()
        };
        let result = (self.fetch)(registry).await;
        if result.as_ref().is_err_and(is_of_the_source)
            && let Some(done) = self.sweep().await?
        {
            return Ok(done);
        }
        result
    }

    fn watched(&self, source: Arc<dyn Source>) -> Arc<dyn Source> {
        let activity = Arc::clone(&self.shared.activity);
        Arc::new(Watched { source, activity })
    }

    /// Asks the keeper; the next one when it is away.
    async fn claim(&self, lost: Option<usize>) -> Way {
        let (shared, digest) = (self.shared, &self.blob.digest);
        let own = &shared.hosts.get(OWN).address;
        let failed = lost.map(|host| shared.hosts.get(host).address.as_str());
        let others = shared.hosts.keepers(digest).into_iter();
        let alive = others.filter(|host| *host == OWN || !shared.rests(*host));
        for keeper in alive.take(MOST_KEEPERS) {
            if keeper == OWN {
                break;
            }
            let address = &shared.hosts.get(keeper).address;
            let claimed = shared.client.claim(address, &self.path, own, failed).await;
            match claimed {
                Ok(Reply::Here | Reply::Bringing(_)) => return Way::From(keeper),
                Ok(Reply::Unknown) => return Way::Yours,
                Ok(Reply::Elsewhere(address)) => match shared.hosts.find(&address) {
                    Some(host) if host != OWN => return Way::From(host),
                    _ => return Way::Yours,
                },
                Err(trouble) => shared.failed(keeper, trouble, digest),
            }
        }
        shared.keep(digest, OWN, lost)
    }

    /// Waits until the peer has the blob.
    async fn follow(&self, host: usize) -> Followed {
        let shared = self.shared;
        let address = &shared.hosts.get(host).address;
        let mut progress = None;
        let begun = Instant::now();
        let mut since = begun;
        while !shared.rests(host) && begun.elapsed() < LONGEST_WAIT {
            match shared.client.look(address, &self.path, WAIT).await {
                Ok(Reply::Here) => return Followed::Has,
                Ok(Reply::Bringing(now)) => {
                    self.on_its_way.saw(now);
                    if progress != Some(now) {
                        (progress, since) = (Some(now), Instant::now());
                    } else if since.elapsed() > NO_PROGRESS {
                        tracing::debug!(peer = address, digest = %self.blob.digest,
                            "a peer does not get on with a blob");
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(Reply::Unknown | Reply::Elsewhere(_)) => break,
                Err(trouble) => shared.failed(host, trouble, &self.blob.digest),
            }
        }
        Followed::Lost
    }

    /// Asks some near ones at once, and takes it from one that has it.
    async fn sweep(&self) -> Result<Option<Fetched>, PullError> {
        let shared = self.shared;
        let ask = |host: usize| async move {
            let address = &shared.hosts.get(host).address;
            let looked = shared.client.look(address, &self.path, Duration::ZERO);
            (host, looked.await)
        };
        let asked = shared.candidates(&self.blob.digest).into_iter();
        for (host, reply) in join_all(asked.map(ask)).await {
            match reply {
                Ok(Reply::Here) => {
                    if let Transfer::Done(done) = self.transfer(host).await? {
                        return Ok(Some(done));
                    }
                }
                Ok(_) => {}
                Err(trouble) => shared.failed(host, trouble, &self.blob.digest),
            }
        }
        Ok(None)
    }

    /// Fetches from one peer. The error is one that no other source would mend.
    async fn transfer(&self, host: usize) -> Result<Transfer, PullError> {
        let source = PeerSource {
            client: self.shared.client.clone(),
            address: self.shared.hosts.get(host).address.clone(),
            repository: self.repository.to_owned(),
            slowest: self.shared.slowest,
        };
        let sources = Sources {
            ordered: vec![self.watched(Arc::new(source))],
            budget: Arc::new(Budget::new(RETRIES)),
            stall_timeout: SILENT,
            hedge: Hedge::Others,
        };
        let digest = &self.blob.digest;
        self.on_its_way.fetches();
        let error = match (self.fetch)(sources).await {
            Ok(done) => return Ok(Transfer::Done(done)),
            Err(error) if is_of_the_source(&error) => error,
            Err(error) => return Err(error),
        };
        tracing::debug!(%digest, %error, "a peer did not give a blob");
        Ok(match error {
            PullError::WrongDigest { .. } | PullError::WrongSize { .. } => {
                self.shared.failed(host, Trouble::WrongBytes, digest);
                Transfer::Failed
            }
            PullError::Registry {
                retry: Retry::Later,
                ..
            } => Transfer::Busy,
            PullError::Unauthorised { .. } => {
                self.shared.failed(host, Trouble::Refuses, digest);
                Transfer::Failed
            }
            PullError::Unreachable { .. }
            | PullError::Stalled { .. }
            | PullError::Registry { .. } => {
                self.shared.failed(host, Trouble::Away, digest);
                Transfer::Failed
            }
            _ => Transfer::Failed,
        })
    }
}

/// Whether another source could do better.
fn is_of_the_source(error: &PullError) -> bool {
    matches!(
        error,
        PullError::NotFound { .. }
            | PullError::Unreachable { .. }
            | PullError::Stalled { .. }
            | PullError::TooSlow { .. }
            | PullError::WrongDigest { .. }
            | PullError::WrongSize { .. }
            | PullError::Unauthorised { .. }
            | PullError::Registry { .. }
            | PullError::Malformed { .. }
    )
}
