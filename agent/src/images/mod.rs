//! Images of this host: here or pulled, once however many ask.
//!
//! What takes the processor (hashing, inflating, writing) happens on threads of its own that exist
//! while something is pulled: the thread that decides about instances never waits for an image.

mod keep;
mod workers;

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use imagecache::fetch::{FetchOptions, Urgency};
use imagecache::progress::PullProgress;
use imagecache::{
    Afterwards, Cache, CacheError, Extraction, PullError, PullOptions, Record, Reference,
};

use crate::chain::chain;
use crate::config;
use crate::runtime::{Containerd, Image, RuntimeError, Unanswered, describe, of_pull};
use workers::Workers;

pub use keep::{Evicted, KeepError, Verified};

type Pull = Shared<BoxFuture<'static, Result<Image, RuntimeError>>>;

/// Images of this host. Clones share everything.
#[derive(Clone)]
pub struct Images {
    containerd: Containerd,
    cache: Cache,
    options: PullOptions,
    /// Pulls under way, by full name.
    pulls: Arc<Mutex<HashMap<String, Pull>>>,
    workers: Workers,
}

impl Images {
    /// Opens the store of `settings`; asks nobody for anything.
    pub fn open(containerd: Containerd, settings: &config::Images) -> Result<Self, CacheError> {
        let fetch = FetchOptions {
            insecure_registries: settings.insecure_registries.clone(),
            auth_file: settings.auth_file.clone(),
            hosts_dir: settings.hosts_dir.clone(),
            ca_file: settings.ca_file.clone(),
            stall_timeout: settings.stall_timeout,
            bandwidth: settings.bandwidth,
            ..FetchOptions::default()
        };
        Ok(Self {
            containerd,
            cache: Cache::open(&settings.root, &fetch, Extraction::for_this_machine())?,
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
        })
    }

    /// The image, from this host when it is there, else from its registry. Those who ask for one
    /// image at the same time share one pull and its result; a caller that goes away does not end
    /// it.
    pub async fn ensure(&self, reference: &str) -> Result<Image, RuntimeError> {
        let parsed = parse(reference)?;
        let name = parsed.to_string();
        let pull = {
            let mut under_way = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            match under_way.get(&name) {
                Some(pull) => pull.clone(),
                None => {
                    let pull = self.begin(parsed);
                    under_way.insert(name, pull.clone());
                    pull
                }
            }
        };
        pull.await
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

    fn begin(&self, reference: Reference) -> Pull {
        let name = reference.to_string();
        let images = self.clone();
        let work = async move {
            let result = images.make_ready(&reference).await;
            let is_last = {
                let mut under_way = images.pulls.lock().unwrap_or_else(PoisonError::into_inner);
                under_way.remove(&reference.to_string());
                under_way.is_empty()
            };
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
    /// Pulls under way.
    pub fn under_way(&self) -> Vec<PullProgress> {
        self.cache.under_way()
    }

    async fn make_ready(&self, reference: &Reference) -> Result<Image, RuntimeError> {
        let name = reference.to_string();
        self.forget_what_is_suspect(&name).await?;
        let (image, receipt) = self
            .containerd
            .ensure_image(reference, &self.cache, &self.options)
            .await?;
        let pulled = receipt.is_some();
        let records = self.cache.records().clone();
        let record = Record::of(&image, receipt);
        let recorded = tokio::task::spawn_blocking(move || {
            match pulled || records.get(&record.reference)?.is_none() {
                true => records.put(record).map(drop),
                false => records.used(&record.reference),
            }
        });
        // The image is here: what could not be written about it is told, and nothing more.
        match recorded.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), image = name, "no record of it")
            }
            Err(error) => tracing::error!(%error, image = name, "no record of it"),
        }
        Ok(describe(&image))
    }

    /// Brings what was pulled to the disk, once nothing is being pulled: what is written then would
    /// wait for it. Until it is there, a loss of power makes it suspect.
    fn settle_in_background(&self) {
        let (unsettled, trees) = (
            self.cache.blobs().unsettled().clone(),
            self.containerd.snapshots_directory(),
        );
        let settle = move || {
            let trees = trees.map(std::fs::File::open).transpose();
            let settled = match &trees {
                Ok(Some(trees)) => unsettled.settle(&[trees.as_fd()]),
                // Nowhere but in our own store.
                Ok(None) => unsettled.settle(&[]),
                Err(error) => {
                    tracing::warn!(%error, "images stay unsettled: snapshots cannot be opened");
                    return;
                }
            };
            if let Err(error) = settled {
                tracing::warn!(error = chain(&error), "images stay unsettled");
            }
        };
        if let Err(error) = self
            .workers
            .spawn(async { tokio::task::spawn_blocking(settle).await })
        {
            tracing::warn!(%error, "images stay unsettled: no threads");
        }
    }

    /// An image that was unpacked shortly before power was lost is unpacked anew from blobs that
    /// are hashed again; where a container needs it already, that is told.
    async fn forget_what_is_suspect(&self, name: &str) -> Result<(), RuntimeError> {
        let unsettled = self.cache.blobs().unsettled();
        if unsettled.all_suspects().is_empty() {
            return Ok(());
        }
        let record = self.cache.records().get(name).ok().flatten();
        let Some(record) = record else { return Ok(()) };
        let suspects = keep::suspect_chains(&record, unsettled);
        if suspects.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            image = name,
            layers = suspects.len(),
            "power was lost before it was on the disk: it is unpacked anew"
        );
        self.containerd.forget_image(name).await?;
        for (chain_id, mark) in suspects {
            if self.containerd.has_snapshot(&chain_id).await? {
                tracing::error!(
                    image = name,
                    chain_id,
                    "it is used, so it is not unpacked anew: its files may be damaged"
                );
            } else if let Err(error) = unsettled.clear(&mark) {
                tracing::warn!(error = chain(&error), "it stays suspect");
            }
        }
        Ok(())
    }
}

fn parse(reference: &str) -> Result<Reference, RuntimeError> {
    let parsed = reference.parse();
    parsed.map_err(|error| of_pull(reference, PullError::Reference(error)))
}
