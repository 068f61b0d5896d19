//! Images of this host: here or pulled, once however many ask.
//!
//! What takes the processor (hashing, inflating, writing) happens on threads of its own that exist
//! while something is pulled: the thread that decides about instances never waits for an image.

mod belongs;
mod examine;
mod holds;
mod keep;
pub mod listed;
mod peers;
mod transfer;
mod verify;
mod workers;

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use imagecache::fetch::{FetchOptions, SourceKind, Urgency};
use imagecache::peers::{Peers, Served};
use imagecache::policy::{InvalidPolicy, Policy};
use imagecache::progress::PullProgress;
use imagecache::{
    Afterwards, Cache, CacheError, Extraction, PullError, PullOptions, Receipt, Record,
    RecordsError, Reference,
};
use tokio::sync::{broadcast, watch};

use crate::chain::chain;
use crate::config;
use crate::runtime::{Containerd, Image, Ready, RuntimeError, Unanswered, describe, of_pull};
use examine::Examination;
use peers::{Serving, Sharing};
use workers::Workers;

pub use belongs::{Belongs, Drift, Listed};
pub use holds::{Going, Held, Holds};
pub use keep::{KeepError, Needs, Room};
pub use peers::SharingError;
pub use transfer::{FileError, Overwrite};
pub use verify::{DamagedBlob, DamagedTree, NotCompared, Verification, Verified};

type Pull = Shared<BoxFuture<'static, Result<Image, RuntimeError>>>;

/// Why there are no images of this host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Our own store.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The policy cannot be meant.
    #[error(transparent)]
    Policy(#[from] InvalidPolicy),
    /// Layers cannot be shared with the peers.
    #[error(transparent)]
    Sharing(#[from] SharingError),
}

/// News that a reader may be behind.
const NEWS: usize = 256;

/// What became of a pull.
#[derive(Debug, Clone)]
pub enum News {
    /// It began; the image may turn out to be here.
    Began,
    /// It has ended, with its receipt or the reason; an image that was here has none.
    Ended(String, Result<Option<Receipt>, String>),
}

/// Images of this host. Clones share everything.
#[derive(Clone)]
pub struct Images {
    containerd: Containerd,
    cache: Cache,
    options: PullOptions,
    /// Pulls under way, by full name.
    pulls: Arc<Mutex<HashMap<String, Pull>>>,
    workers: Workers,
    belongs: Belongs,
    holds: Holds,
    examination: Examination,
    /// Who has it removes images, or what is unpacked of them.
    removing: Arc<tokio::sync::Mutex<()>>,
    /// Told after a pull.
    pulled: watch::Sender<()>,
    /// How pulls began and ended.
    news: broadcast::Sender<News>,
    /// Who has it looks at what lies on the disk.
    verifying: Arc<tokio::sync::Mutex<()>>,
    /// How far that is.
    verification: watch::Sender<Option<Verification>>,
    /// The server for peers.
    _serving: Option<Arc<Serving>>,
}

impl Images {
    /// Opens the store of `settings`, and serves peers where there are some; asks nobody for
    /// anything.
    pub fn open(containerd: Containerd, settings: &config::Images) -> Result<Self, OpenError> {
        let fetch = FetchOptions {
            insecure_registries: settings.insecure_registries.clone(),
            auth_file: settings.auth_file.clone(),
            hosts_dir: settings.hosts_dir.clone(),
            ca_file: settings.ca_file.clone(),
            credential_helpers: settings.credential_helpers.clone(),
            proxy: settings.proxy.clone(),
            stall_timeout: settings.stall_timeout,
            hedge_after: settings.hedge_after,
            connections: settings.connections,
            connections_per_blob: settings.connections_per_blob,
            chunk: settings.chunk,
            retries: settings.retries,
            bandwidth: settings.bandwidth,
        };
        let cache = Cache::open(&settings.root, &fetch, Extraction::for_this_machine())?;
        let mut cache = cache.with_policy(Policy::new(&settings.policy)?);
        let mut serving = None;
        if let Some(peers) = &settings.peers {
            let sharing = Sharing::open(peers)?;
            cache = cache
                .with_peers(&sharing.options)
                .map_err(SharingError::Peers)?;
            if let Some(peers) = cache.peers() {
                serving = Some(Arc::new(sharing.serve(peers, containerd.clone())?));
            }
        }
        let holds = Holds::default();
        Ok(Self {
            examination: Examination::begin(&cache, &holds),
            containerd,
            cache,
            options: PullOptions {
                deadline: settings.pull_timeout,
                blobs: match settings.keep_blobs {
                    true => Afterwards::Kept,
                    false => Afterwards::Dropped,
                },
                urgency: Urgency::Activation,
            },
            pulls: Arc::default(),
            workers: Workers::default(),
            belongs: Belongs::default(),
            holds,
            removing: Arc::default(),
            pulled: watch::Sender::new(()),
            news: broadcast::Sender::new(NEWS),
            verifying: Arc::default(),
            verification: watch::Sender::new(None),
            _serving: serving,
        })
    }

    /// The image, from this host when it is there, else from its registry. Those who ask for one
    /// image at the same time share one pull and its result; a caller that goes away does not end
    /// it.
    pub async fn ensure(&self, reference: &str) -> Result<Image, RuntimeError> {
        self.shared_pull(parse(reference)?, Urgency::Activation)
            .await
    }

    /// Has an image ready that an app was applied with: the policy of today judges it, and what has
    /// gone since, or power was lost over, is brought again.
    pub async fn make_sure(&self, image: &Image) -> Result<(), RuntimeError> {
        let name = &image.reference;
        let _held = self.holds.hold(name).await;
        self.permit(name).await?;
        let is_here = self.containerd.has_snapshot(&image.chain_id).await?;
        if is_here && !self.has_damaged() {
            return Ok(());
        }
        if !is_here {
            tracing::warn!(
                image = name,
                "it is not on this host any more, and pulled again"
            );
        }
        self.ensure(name).await.map(drop)
    }

    /// Whether the policy of today lets an image be used that is here, by digest. Without a call,
    /// unless a signature is wanted and none that counts was kept.
    async fn permit(&self, reference: &str) -> Result<(), RuntimeError> {
        let parsed = parse(reference)?;
        let refused = |error| of_pull(reference, error);
        let Some(target) = parsed.digest() else {
            return self.cache.permit_name(&parsed).map_err(refused);
        };
        let permit = self.cache.permit(&parsed, target, self.deadline()).await;
        if let Some(signature) = permit.map_err(refused)? {
            let (records, name) = (self.cache.records().clone(), parsed.to_string());
            let keep = move || records.change(&name, |record| record.signature = Some(signature));
            self.write_down(reference, move || keep().map(drop)).await;
        }
        Ok(())
    }

    /// Makes an image ready before anybody asks, behind those that are asked for; what its name
    /// meant when it was resolved, by digest.
    pub async fn bring(&self, image: &Reference) -> Result<String, RuntimeError> {
        self.shared_pull(image.clone(), Urgency::PrePull).await?;
        let name = image.to_string();
        let record = self.recorded(&name).await.ok();
        let target = record.and_then(|record| record.target.parse().ok());
        Ok(target.map_or(name, |target| image.with_digest(&target).to_string()))
    }

    /// What belongs on this host.
    pub const fn belongs(&self) -> &Belongs {
        &self.belongs
    }

    /// Images that must not go at the moment.
    pub const fn holds(&self) -> &Holds {
        &self.holds
    }

    /// How pulls begin and end, from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Changes when a pull has ended.
    pub fn pulled(&self) -> watch::Receiver<()> {
        self.pulled.subscribe()
    }

    async fn shared_pull(
        &self,
        parsed: Reference,
        urgency: Urgency,
    ) -> Result<Image, RuntimeError> {
        let name = parsed.to_string();
        let _held = self.holds.hold(&name).await;
        if let Some(image) = self.here(&parsed).await {
            return Ok(image);
        }
        let pull = {
            let mut under_way = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            match under_way.get(&name) {
                Some(pull) => pull.clone(),
                None => {
                    let pull = self.begin(parsed.clone(), urgency);
                    under_way.insert(name, pull.clone());
                    pull
                }
            }
        };
        // What is pulled may have been begun for nobody.
        let _urged = (urgency == Urgency::Activation).then(|| self.cache.urge(&parsed));
        pull.await
    }

    /// The image, when it is ready on this host: no thread is made for it, and nobody is told. What
    /// stands in the way of that, a pull tells.
    async fn here(&self, reference: &Reference) -> Option<Image> {
        let here = self
            .containerd
            .image_here(reference, &self.cache, self.deadline());
        let ready = here.await.ok().flatten()?;
        let chains = ready.image.chain().into_iter().map(|layer| layer.chain_id);
        self.refuse_damaged(&reference.to_string(), chains).ok()?;
        let described = describe(&ready.image);
        self.record(ready).await;
        Some(described)
    }

    /// The reference by digest that a tag names in its registry now: what a new revision is made
    /// from. A reference by digest is returned, normalised, without a call. The image is not pulled;
    /// [`Self::ensure`] of the result pulls exactly that.
    pub async fn resolve(&self, reference: &str) -> Result<String, RuntimeError> {
        let parsed = parse(reference)?;
        let digest = self.cache.resolve(&parsed, self.deadline()).await;
        let digest = digest.map_err(|error| of_pull(reference, error))?;
        Ok(parsed.with_digest(&digest).to_string())
    }

    fn deadline(&self) -> Duration {
        self.options.deadline
    }

    fn begin(&self, reference: Reference, urgency: Urgency) -> Pull {
        let name = reference.to_string();
        let images = self.clone();
        let work = async move {
            // Who asked for it may go away.
            let _held = images.holds.hold(&reference.to_string()).await;
            // Nobody may be listening.
            images.news.send(News::Began).ok();
            let made = images.make_ready(&reference, urgency).await;
            let (result, news) = match made {
                Ok((image, receipt)) => (Ok(image), Ok(receipt)),
                Err(error) => {
                    let why = chain(&error);
                    (Err(error), Err(why))
                }
            };
            let is_last = {
                let mut under_way = images.pulls.lock().unwrap_or_else(PoisonError::into_inner);
                under_way.remove(&reference.to_string());
                under_way.is_empty()
            };
            images
                .news
                .send(News::Ended(reference.to_string(), news))
                .ok();
            images.pulled.send_replace(());
            if is_last {
                images.settle_in_background();
            }
            result
        };
        let ended = move |why: String| RuntimeError::Unavailable {
            operation: "pull image",
            object: name.clone(),
            source: Unanswered::Ended(why),
        };
        let work = match self.workers.spawn(work) {
            Ok(work) => work,
            Err(error) => {
                let error = ended(format!("no threads for it: {error}"));
                return std::future::ready(Err(error)).boxed().shared();
            }
        };
        async move {
            let done = work.await;
            done.unwrap_or_else(|error| Err(ended(error.to_string())))
        }
        .boxed()
        .shared()
    }
}

impl Images {
    /// Bytes of layers that sources of this kind sent since the start.
    pub fn fetched(&self, kind: SourceKind) -> u64 {
        self.cache.fetched(kind)
    }

    /// What peers were sent since the start; nothing without peers.
    pub fn served(&self) -> Served {
        self.cache.peers().map(Peers::served).unwrap_or_default()
    }

    /// Pulls under way.
    pub fn under_way(&self) -> Vec<PullProgress> {
        self.cache.under_way()
    }

    async fn make_ready(
        &self,
        reference: &Reference,
        urgency: Urgency,
    ) -> Result<(Image, Option<Receipt>), RuntimeError> {
        // It may be made from layers that are looked at now.
        self.examination.over().await;
        let options = PullOptions {
            urgency,
            ..self.options
        };
        let ready = self
            .containerd
            .ensure_image(reference, &self.cache, &options)
            .await?;
        let chains = ready.image.chain().into_iter().map(|layer| layer.chain_id);
        self.refuse_damaged(&reference.to_string(), chains)?;
        let (described, receipt) = (describe(&ready.image), ready.receipt.clone());
        self.record(ready).await;
        Ok((described, receipt))
    }

    /// Writes down what is ready.
    async fn record(&self, ready: Ready) {
        let is_new = ready.receipt.is_some() || ready.signature.is_some();
        let records = self.cache.records().clone();
        let name = ready.image.reference.to_string();
        let mut record = Record::of(&ready.image, ready.receipt);
        record.signature = ready.signature;
        let write = move || {
            if is_new || !records.used(&record.reference)? {
                records.put(record)?;
            }
            Ok(())
        };
        self.write_down(&name, write).await;
    }

    /// What cannot be written about an image that is here is told, and nothing more.
    async fn write_down(
        &self,
        image: &str,
        write: impl FnOnce() -> Result<(), RecordsError> + Send + 'static,
    ) {
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), image, "no record of it"),
            Err(error) => tracing::error!(%error, image, "no record of it"),
        }
    }

    /// Brings what was pulled to the disk, once nothing is being pulled: what is written then would
    /// wait for it. Until it is there, a loss of power makes it suspect.
    fn settle_in_background(&self) {
        let (unsettled, containerd) = (
            self.cache.blobs().unsettled().clone(),
            self.containerd.clone(),
        );
        let settle = async move {
            let trees = match containerd.snapshots_directory().await {
                Ok(trees) => trees,
                Err(error) => {
                    tracing::debug!(error = chain(&error), "images stay unsettled for now");
                    return;
                }
            };
            let settle = move || {
                let trees = trees.map(std::fs::File::open).transpose();
                let trees = trees.map_err(|error| error.to_string())?;
                let trees: Vec<_> = trees.iter().map(|trees| trees.as_fd()).collect();
                let settled = unsettled.settle(&trees);
                settled.map_err(|error| chain(&error))
            };
            match tokio::task::spawn_blocking(settle).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(error, "images stay unsettled"),
                Err(error) => tracing::error!(%error, "images stay unsettled"),
            }
        };
        if let Err(error) = self.workers.spawn(settle) {
            tracing::warn!(%error, "images stay unsettled: no threads");
        }
    }
}

fn parse(reference: &str) -> Result<Reference, RuntimeError> {
    let parsed = reference.parse();
    parsed.map_err(|error| of_pull(reference, PullError::Reference(error)))
}
