//! Images: present here, or pulled once however many ask; recorded in containerd so that they stay.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, GetImageRequest, Image as Record, UpdateImageRequest,
};
use containerd_client::types::Descriptor;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use imagecache::{ContentStore as _, Digest, PullError, PullOptions, Reference};
use prost_types::FieldMask;
use serde::{Deserialize, Serialize};

use super::connection::Deadline;
use super::content::ContainerdStore;
use super::error::{Answer, RuntimeError, Unanswered, of_pull};
use super::lease::{Collect, Lease};
use super::unpack::ContainerdUnpacker;
use super::{Containerd, labels};
use crate::config;
use crate::instance::ImageConfig;

/// Layers fetched at a time.
const PARALLEL: usize = 3;
/// The namespace that the kubelet looks at.
const KUBERNETES: &str = "k8s.io";

/// An image that is pulled, verified, unpacked and recorded: ready to prepare a rootfs from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Full name, normalised: the name of containerd's record.
    pub reference: String,
    /// Digest of the manifest for this host.
    pub digest: String,
    /// Digest of the config: the image's id.
    pub config_digest: String,
    /// Name of the topmost unpacked layer.
    pub chain_id: String,
    /// How it wants to be run.
    pub config: ImageConfig,
}

type Pull = Shared<BoxFuture<'static, Result<Image, RuntimeError>>>;

/// Pulls under way, by full name.
#[derive(Clone, Default)]
pub(super) struct Pulls(Arc<Mutex<HashMap<String, Pull>>>);

impl Containerd {
    /// The image, from this host when it is there, else from its registry. A tag is looked up in
    /// the registry only when no image of that name is here; a new look is a reference by digest.
    /// Those who ask for one image at the same time share one pull and its result; a caller that
    /// goes away does not end it.
    pub async fn ensure_image(
        &self,
        reference: &str,
        images: &config::Images,
    ) -> Result<Image, RuntimeError> {
        let parsed: Reference = reference
            .parse()
            .map_err(|error| of_pull(reference, PullError::Reference(error)))?;
        let name = parsed.to_string();
        let pull = {
            let mut under_way = self.pulls.0.lock().unwrap_or_else(PoisonError::into_inner);
            match under_way.get(&name) {
                Some(pull) => pull.clone(),
                None => {
                    let pull = self.begin(parsed, images.clone());
                    under_way.insert(name, pull.clone());
                    pull
                }
            }
        };
        pull.await
    }

    /// The reference by digest that a tag names in its registry now: what a new revision is made
    /// from. A reference by digest is returned, normalised, without a call. The image is not pulled;
    /// [`Self::ensure_image`] of the result pulls exactly that.
    pub async fn resolve_image(
        &self,
        reference: &str,
        images: &config::Images,
    ) -> Result<String, RuntimeError> {
        let resolved = async {
            let parsed: Reference = reference.parse()?;
            let digest = imagecache::resolve(&parsed, &pull_options(images)).await?;
            Ok(parsed.with_digest(&digest).to_string())
        };
        resolved.await.map_err(|error| of_pull(reference, error))
    }

    fn begin(&self, reference: Reference, images: config::Images) -> Pull {
        let containerd = self.clone();
        let name = reference.to_string();
        let work = tokio::spawn(async move {
            let result = containerd.find_or_pull(&reference, &images).await;
            let mut under_way = containerd
                .pulls
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            under_way.remove(&reference.to_string());
            result
        });
        let ended = move |error: tokio::task::JoinError| RuntimeError::Unavailable {
            operation: "pull image",
            object: name,
            source: Unanswered::Ended(error.to_string()),
        };
        async move { work.await.unwrap_or_else(|error| Err(ended(error))) }
            .boxed()
            .shared()
    }

    async fn find_or_pull(
        &self,
        reference: &Reference,
        images: &config::Images,
    ) -> Result<Image, RuntimeError> {
        // What a record names stays, so that looking for it needs no lease.
        let recorded = self.recorded(&reference.to_string()).await?;
        if let Some(target) = &recorded
            && let Some(image) = self.present(reference, target, None).await?
        {
            return Ok(describe(image));
        }
        let lease = self.lease("image", images.pull_timeout).await?;
        let result = self.make_present(reference, images, &lease).await;
        let collect = if result.is_ok() {
            Collect::Later
        } else {
            Collect::Now
        };
        if let Err(error) = lease.release(collect).await {
            let (error, image): (&dyn std::error::Error, _) = (&error, reference.to_string());
            tracing::warn!(
                error,
                image,
                "the lease of a pull stays until it ends by itself"
            );
        }
        result.map(describe)
    }

    async fn make_present(
        &self,
        reference: &Reference,
        images: &config::Images,
        lease: &Lease,
    ) -> Result<imagecache::Image, RuntimeError> {
        // The content may be here under another name: a digest needs no registry then.
        let here = match reference.digest() {
            Some(digest) => self.present(reference, digest, Some(lease)).await?,
            None => None,
        };
        let image = match here {
            Some(image) => image,
            None => self.fetch(reference, images, lease).await?,
        };
        self.keep(lease, &image).await?;
        Ok(image)
    }

    /// Digest of what the record of this name points to.
    async fn recorded(&self, name: &str) -> Result<Option<Digest>, RuntimeError> {
        let request = self.connection.request(GetImageRequest {
            name: name.to_owned(),
        });
        let mut client = ImagesClient::new(self.connection.channel());
        let answer = self
            .connection
            .answer(self.connection.plain(), client.get(request))
            .await;
        let record = match answer {
            Ok(response) => response.into_inner().image,
            Err(Answer::NotFound) => None,
            Err(said) => return Err(said.into_error("look up image", name)),
        };
        // A record whose digest we cannot read is somebody else's; ours will replace it.
        Ok(record
            .and_then(|record| record.target)
            .and_then(|target| target.digest.parse().ok()))
    }

    /// The image, when all that is needed to run it is here; with a lease, it stays here.
    async fn present(
        &self,
        reference: &Reference,
        target: &Digest,
        lease: Option<&Lease>,
    ) -> Result<Option<imagecache::Image>, RuntimeError> {
        let store = match lease {
            Some(lease) => {
                lease.cover("content", target.as_str()).await?;
                ContainerdStore::new(lease)
            }
            None => ContainerdStore::unleased(&self.connection),
        };
        let image = imagecache::local(reference, target, &store).await;
        let Some(image) = image.map_err(|error| of_pull(&reference.to_string(), error))? else {
            return Ok(None);
        };
        if let Some(lease) = lease {
            let kind = format!("snapshots/{}", self.connection.snapshotter());
            lease.cover(&kind, image.chain_id.as_str()).await?;
        }
        let unpacked = self.connection.snapshot(image.chain_id.as_str()).await?;
        Ok(unpacked.map(|_| image))
    }

    async fn fetch(
        &self,
        reference: &Reference,
        images: &config::Images,
        lease: &Lease,
    ) -> Result<imagecache::Image, RuntimeError> {
        let store = ContainerdStore::new(lease);
        let apply_deadline = Deadline {
            name: "images.pull_timeout",
            length: images.pull_timeout,
        };
        let unpacker = ContainerdUnpacker {
            lease,
            apply_deadline,
        };
        let pulled = imagecache::pull(reference, &store, &unpacker, &pull_options(images)).await;
        pulled.map_err(|error| of_pull(&reference.to_string(), error))
    }

    /// Ties the parts of the image together for the collector, and records it.
    async fn keep(&self, lease: &Lease, image: &imagecache::Image) -> Result<(), RuntimeError> {
        let store = ContainerdStore::new(lease);
        let content = labels::GC_REF_CONTENT;
        let snapshot = format!(
            "{}.{}",
            labels::GC_REF_SNAPSHOT,
            self.connection.snapshotter()
        );
        let mut of_manifest =
            BTreeMap::from([(format!("{content}.config"), image.config.digest.to_string())]);
        for (position, layer) in image.layers.iter().enumerate() {
            of_manifest.insert(format!("{content}.l.{position}"), layer.digest.to_string());
        }
        let mut ties = vec![
            (
                &image.config,
                BTreeMap::from([(snapshot, image.chain_id.to_string())]),
            ),
            (&image.manifest, of_manifest),
        ];
        if image.target != image.manifest {
            let chosen = (format!("{content}.m.0"), image.manifest.digest.to_string());
            ties.push((&image.target, BTreeMap::from([chosen])));
        }
        for (blob, references) in ties {
            let labelled = store.label(&blob.digest, references).await;
            labelled.map_err(|error| of_pull(&image.reference.to_string(), error.into()))?;
        }
        self.record(image).await
    }

    async fn record(&self, image: &imagecache::Image) -> Result<(), RuntimeError> {
        let name = image.reference.to_string();
        let labels: HashMap<String, String> = match self.connection.namespace() {
            KUBERNETES => labels::CRI
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
            _ => HashMap::new(),
        };
        let mut paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        paths.push("target".to_owned());
        let record = Record {
            name: name.clone(),
            labels,
            target: Some(Descriptor {
                media_type: image.target.media_type.clone(),
                digest: image.target.digest.to_string(),
                size: i64::try_from(image.target.size).unwrap_or(i64::MAX),
                ..Descriptor::default()
            }),
            ..Record::default()
        };
        let mut client = ImagesClient::new(self.connection.channel());
        let request = self.connection.request(CreateImageRequest {
            image: Some(record.clone()),
            ..CreateImageRequest::default()
        });
        match self
            .connection
            .answer(self.connection.plain(), client.create(request))
            .await
        {
            Ok(_) => return Ok(()),
            Err(Answer::Exists) => {}
            Err(said) => return Err(said.into_error("record image", &name)),
        }
        let request = self.connection.request(UpdateImageRequest {
            image: Some(record),
            update_mask: Some(FieldMask { paths }),
            ..UpdateImageRequest::default()
        });
        self.connection
            .call("update image", &name, client.update(request))
            .await?;
        Ok(())
    }
}

fn pull_options(images: &config::Images) -> PullOptions {
    PullOptions {
        insecure_registries: images.insecure_registries.clone(),
        auth_file: images.auth_file.clone(),
        stall_timeout: images.stall_timeout,
        deadline: images.pull_timeout,
        parallel: PARALLEL,
    }
}

fn describe(image: imagecache::Image) -> Image {
    let run = &image.run;
    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let env = run.env().iter().flatten().map(|entry| {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        (name.to_owned(), value.to_owned())
    });
    Image {
        reference: image.reference.to_string(),
        digest: image.manifest.digest.to_string(),
        config_digest: image.config.digest.to_string(),
        chain_id: image.chain_id.to_string(),
        config: ImageConfig {
            entrypoint: run.entrypoint().clone().unwrap_or_default(),
            cmd: run.cmd().clone().unwrap_or_default(),
            env: env.collect(),
            working_dir: text(run.working_dir()),
            user: text(run.user()),
            stop_signal: text(run.stop_signal()),
        },
    }
}
