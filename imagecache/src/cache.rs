//! The image cache of a process: what all its pulls share.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::blobs::{Blobs, BlobsError};
use crate::error::PullError;
use crate::fetch::{FetchOptions, Fetched, Fetcher, SourceKind, Sources, Urgency, Wanted};
use crate::peers::{Peers, PeersError, PeersOptions};
use crate::policy::{self, Allowed, KeptSignature, Policy};
use crate::progress::{Board, PullProgress, Urging};
use crate::pull::within;
use crate::records::{Records, RecordsError};
use crate::registry::{Registries, Registry};
use crate::unpack::Extraction;
use crate::{Descriptor, Digest, Reference};

/// The image cache. Clones share it.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) registries: Registries,
    pub(crate) fetcher: Fetcher,
    pub(crate) blobs: Blobs,
    pub(crate) extraction: Extraction,
    pub(crate) board: Board,
    records: Records,
    policy: Arc<Policy>,
    peers: Option<Peers>,
}

/// A pull that an activation waits for.
#[derive(Debug)]
pub struct Urged {
    _urging: Urging,
    _wanted: Option<Wanted>,
}

/// Why a cache was not opened.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Its blobs.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    /// Its records.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

impl Cache {
    /// Opens the cache whose blobs lie in `root`.
    pub fn open(
        root: &Path,
        options: &FetchOptions,
        extraction: Extraction,
    ) -> Result<Self, CacheError> {
        Ok(Self {
            registries: Registries::new(options),
            fetcher: Fetcher::new(options),
            blobs: Blobs::open(root)?,
            extraction,
            board: Board::default(),
            records: Records::open(root)?,
            policy: Arc::new(Policy::everything()),
            peers: None,
        })
    }

    /// With this policy of what may be pulled and used; everything without.
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// Shares layers with these peers: they are asked first.
    pub fn with_peers(mut self, options: &PeersOptions) -> Result<Self, PeersError> {
        self.peers = Some(Peers::new(options, &self.blobs)?);
        Ok(self)
    }

    /// Those that layers are shared with.
    pub fn peers(&self) -> Option<&Peers> {
        self.peers.as_ref()
    }

    /// Whether the policy lets images of this name in, as far as the name tells. Asks nobody.
    pub fn permit_name(&self, reference: &Reference) -> Result<(), PullError> {
        Ok(policy::judge_name(&self.policy, reference)?)
    }

    /// Whether the policy lets an image be used that is here, or came by another way than
    /// [`Self::pull`]. `target` is what its name leads to. Asks the registry for a signature when
    /// the policy wants one and none that counts was kept; the answer is one to be kept.
    pub async fn permit(
        &self,
        reference: &Reference,
        target: &Digest,
        deadline: Duration,
    ) -> Result<Option<KeptSignature>, PullError> {
        self.permit_name(reference)?;
        // A record that cannot be read keeps nothing.
        let record = self.records.get(&reference.to_string()).ok().flatten();
        let record = record.filter(|record| record.target == target.as_str());
        let kept = record.and_then(|record| record.signature);
        if policy::judge_kept(&self.policy, reference, target, kept.as_ref())?.is_some() {
            return Ok(None);
        }
        let ask = async {
            let registry = self.registries.open(reference)?;
            self.permit_by(reference, target, &registry).await
        };
        within(reference, deadline, ask).await
    }

    pub(crate) async fn permit_by(
        &self,
        reference: &Reference,
        target: &Digest,
        registry: &Registry,
    ) -> Result<Option<KeptSignature>, PullError> {
        match policy::check(&self.policy, reference, target, registry).await? {
            Allowed::BySignature { signature, .. } => Ok(KeptSignature::of(&signature)),
            Allowed::ByDefault | Allowed::ByRule(_) => Ok(None),
        }
    }

    /// Our own store.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The records of images in our own store.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Pulls under way, in the order in which they began.
    pub fn under_way(&self) -> Vec<PullProgress> {
        self.board.look(|digest| self.fetcher.progress(digest))
    }

    /// Bytes of layers that sources of this kind sent since the start, also those that were not
    /// needed in the end.
    pub fn fetched(&self, kind: SourceKind) -> u64 {
        self.fetcher.arrived(kind)
    }

    /// Says that an activation waits for the pull of this name, which is under way or about to
    /// begin: as long as the result lives, its layers go before those of pre-pulls.
    pub fn urge(&self, reference: &Reference) -> Urged {
        let (urging, missing) = self.board.urge(reference.to_string());
        Urged {
            _urging: urging,
            _wanted: self.fetcher.want(&missing),
        }
    }

    /// Brings a layer's blob into our own store, unless it is there.
    pub(crate) async fn fetch(
        &self,
        sources: &Sources,
        blob: Descriptor,
        urgency: Urgency,
    ) -> Result<Fetched, PullError> {
        match &self.peers {
            Some(peers) => {
                let bring = peers.blob(&self.fetcher, sources, "layer", &blob, urgency);
                bring.await
            }
            None => {
                let into = &self.blobs;
                let fetch = self.fetcher.blob(sources, "layer", &blob, into, urgency);
                fetch.await
            }
        }
    }
}
