//! Images of this host: here or pulled, once however many ask.
//!
//! What takes the processor (hashing, inflating, writing) happens on threads of its own that exist
//! while something is pulled: the thread that decides about instances never waits for an image.

mod workers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use imagecache::blobs::BlobsError;
use imagecache::fetch::{FetchOptions, Urgency};
use imagecache::{Afterwards, Cache, Extraction, PullError, PullOptions, Receipt, Reference};

use crate::config;
use crate::runtime::{Containerd, Image, RuntimeError, Unanswered, of_pull};
use workers::Workers;

/// An image that is here, and how it came if that was now.
pub type Ensured = (Image, Option<Receipt>);

type Pull = Shared<BoxFuture<'static, Result<Ensured, RuntimeError>>>;

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
    pub fn open(containerd: Containerd, settings: &config::Images) -> Result<Self, BlobsError> {
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
    pub async fn ensure(&self, reference: &str) -> Result<Ensured, RuntimeError> {
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
            let pulled = images.containerd;
            let result = pulled
                .ensure_image(&reference, &images.cache, &images.options)
                .await;
            let mut under_way = images.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.remove(&reference.to_string());
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

fn parse(reference: &str) -> Result<Reference, RuntimeError> {
    let parsed = reference.parse();
    parsed.map_err(|error| of_pull(reference, PullError::Reference(error)))
}
