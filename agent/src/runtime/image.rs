//! Images in containerd: present here or pulled, and recorded so that they stay.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as Record, UpdateImageRequest,
};
use containerd_client::types::Descriptor;
use imagecache::policy::KeptSignature;
use imagecache::{
    Cache, ContentStore as _, Digest, PullOptions, Pulled, Receipt, Reference, Workplace,
};
use prost_types::FieldMask;
use serde::{Deserialize, Serialize};

use super::connection::Deadline;
use super::content::ContainerdStore;
use super::error::{Answer, RuntimeError, of_pull};
use super::kubernetes::{self, Forget};
use super::lease::{Collect, Lease};
use super::unpack::ContainerdUnpacker;
use super::{Containerd, labels};
use crate::instance::ImageConfig;

/// The snapshotter whose trees we know.
const OVERLAYFS: &str = "overlayfs";

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

/// An image that is ready, and how it came to be.
#[derive(Debug)]
pub(crate) struct Ready {
    pub image: imagecache::Image,
    /// How it came; none when there was nothing to pull.
    pub receipt: Option<Receipt>,
    /// A signature by which the policy let it in, when one was asked for.
    pub signature: Option<KeptSignature>,
}

impl Containerd {
    /// The image, when it is on this host. A tag means what it meant when it was pulled. The policy
    /// is asked of an image that is here, too.
    pub(crate) async fn image_here(
        &self,
        reference: &Reference,
        cache: &Cache,
        deadline: Duration,
    ) -> Result<Option<Ready>, RuntimeError> {
        let refused = |error| of_pull(&reference.to_string(), error);
        cache.permit_name(reference).map_err(refused)?;
        // What a record names stays, so that looking for it needs no lease.
        let Some(recorded) = self.recorded(&reference.to_string()).await? else {
            return Ok(None);
        };
        let Some(image) = self.present(reference, &recorded.target, None).await? else {
            return Ok(None);
        };
        let permit = cache.permit(reference, &recorded.target, deadline);
        let signature = permit.await.map_err(refused)?;
        if self.is_kubernetes() && !kubernetes::is_kept(&recorded.record) {
            self.label_pinned(recorded.record, true).await?;
        }
        Ok(Some(Ready {
            image,
            receipt: None,
            signature,
        }))
    }

    /// The image, from this host when it is there, else from its registry into `cache` and from
    /// there into containerd. A tag is looked up in the registry only when no image of that name is
    /// here; a new look is a reference by digest.
    pub(crate) async fn ensure_image(
        &self,
        reference: &Reference,
        cache: &Cache,
        options: &PullOptions,
    ) -> Result<Ready, RuntimeError> {
        let here = self.image_here(reference, cache, options.deadline).await?;
        if let Some(ready) = here {
            return Ok(ready);
        }
        let lease = self.lease("image", options.deadline).await?;
        let result = self.make_present(reference, cache, options, &lease).await;
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
        result
    }

    /// Which of these names containerd has a record of, with all that is needed to run it.
    pub(crate) async fn is_ready(&self, reference: &Reference) -> Result<bool, RuntimeError> {
        let Some(recorded) = self.recorded(&reference.to_string()).await? else {
            return Ok(false);
        };
        let present = self.present(reference, &recorded.target, None).await?;
        Ok(present.is_some())
    }

    /// Removes containerd's record of an image, and what nothing else refers to, before it returns.
    /// One that is gone is fine. An image that the kubelet made is the kubelet's again.
    pub(crate) async fn forget_image(&self, name: &str) -> Result<(), RuntimeError> {
        if !self.is_kubernetes() {
            return self.remove_record(name).await;
        }
        let Some(recorded) = self.recorded(name).await? else {
            return Ok(());
        };
        let records = self.images_of(&[recorded.target.to_string()]).await?;
        match kubernetes::forget(name, &records) {
            Forget::GiveBack(record) => self.label_pinned(*record, false).await,
            Forget::Remove(names) => {
                for name in names {
                    self.remove_record(&name).await?;
                }
                Ok(())
            }
        }
    }

    async fn remove_record(&self, name: &str) -> Result<(), RuntimeError> {
        let request = self.connection.request(DeleteImageRequest {
            name: name.to_owned(),
            sync: true,
            ..DeleteImageRequest::default()
        });
        let mut client = ImagesClient::new(self.connection.channel());
        match self
            .connection
            .answer(self.connection.slow(), client.delete(request))
            .await
        {
            Ok(_) | Err(Answer::NotFound) => Ok(()),
            Err(said) => Err(said.into_error("remove image", name)),
        }
    }

    async fn make_present(
        &self,
        reference: &Reference,
        cache: &Cache,
        options: &PullOptions,
        lease: &Lease,
    ) -> Result<Ready, RuntimeError> {
        // The content may be here under another name: a digest needs no registry then.
        let here = match reference.digest() {
            Some(digest) => self.present(reference, digest, Some(lease)).await?,
            None => None,
        };
        let ready = match here {
            Some(image) => {
                let target = &image.target.digest;
                let permit = cache.permit(reference, target, options.deadline).await;
                let refused = |error| of_pull(&reference.to_string(), error);
                Ready {
                    signature: permit.map_err(refused)?,
                    image,
                    receipt: None,
                }
            }
            None => {
                let pulled = self.fetch(reference, cache, options, lease).await?;
                Ready {
                    image: pulled.image,
                    receipt: Some(pulled.receipt),
                    signature: pulled.signature,
                }
            }
        };
        self.keep(lease, &ready.image).await?;
        Ok(ready)
    }

    /// The record of this name.
    pub(super) async fn recorded(&self, name: &str) -> Result<Option<Recorded>, RuntimeError> {
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
        Ok(record.and_then(|record| {
            Some(Recorded {
                target: record.target.as_ref()?.digest.parse().ok()?,
                record,
            })
        }))
    }

    /// The image, when all that is needed to run it is here; with a lease, it stays here.
    pub(super) async fn present(
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
        cache: &Cache,
        options: &PullOptions,
        lease: &Lease,
    ) -> Result<Pulled, RuntimeError> {
        let store = ContainerdStore::new(lease);
        let unpacker = self.unpacker(lease, options).await?;
        let pulled = cache.pull(reference, &store, &unpacker, options).await;
        pulled.map_err(|error| of_pull(&reference.to_string(), error))
    }

    pub(super) async fn unpacker<'l>(
        &'l self,
        lease: &'l Lease,
        options: &PullOptions,
    ) -> Result<ContainerdUnpacker<'l>, RuntimeError> {
        Ok(ContainerdUnpacker {
            lease,
            apply_deadline: Deadline {
                name: "images.pull_timeout",
                length: options.deadline,
            },
            workplace: self.workplace().await?,
        })
    }

    /// Manifests, indexes and configs, to be read: whoever reads them sees that they are there.
    pub(crate) fn documents(&self) -> ContainerdStore<'_> {
        ContainerdStore::unleased(&self.connection)
    }

    /// Where trees are that we unpack; none where containerd unpacks by itself.
    pub(crate) async fn snapshots_directory(&self) -> Result<Option<PathBuf>, RuntimeError> {
        let workplace = self.workplace().await?;
        Ok(workplace.and_then(|workplace| workplace.path().parent().map(PathBuf::from)))
    }

    /// Whether containerd has a snapshot of this name.
    pub(crate) async fn has_snapshot(&self, key: &str) -> Result<bool, RuntimeError> {
        Ok(self.connection.snapshot(key).await?.is_some())
    }

    /// Where layers are extracted: beside overlayfs's snapshots. Looked for once; none where
    /// another snapshotter is used, or its directory is not visible from here.
    pub(super) async fn workplace(&self) -> Result<Option<&Workplace>, RuntimeError> {
        let open = async {
            let ours = self.connection.snapshotter();
            let snapshotters = self.snapshotters().await?;
            let root = snapshotters
                .into_iter()
                .find(|snapshotter| snapshotter.name == ours && ours == OVERLAYFS)
                .and_then(|snapshotter| snapshotter.root.map(PathBuf::from))
                .filter(|root| root.join("snapshots").is_dir());
            let Some(root) = root else {
                tracing::info!(snapshotter = ours, "containerd unpacks layers by itself");
                return Ok(None);
            };
            let workplace = Workplace::open(&root.join("nodeagent"));
            let workplace = workplace.map_err(|error| of_pull("any", error.into()))?;
            Ok::<_, RuntimeError>(Some(workplace))
        };
        let found = self.workplace.get_or_try_init(|| open).await?;
        Ok(found.as_ref())
    }

    /// The label of a config that keeps the unpacked layers.
    pub(super) fn tie_to_snapshot(&self) -> String {
        let snapshotter = self.connection.snapshotter();
        format!("{}.{snapshotter}", labels::GC_REF_SNAPSHOT)
    }

    /// Ties the parts of the image together for the collector, and records it.
    pub(super) async fn keep(
        &self,
        lease: &Lease,
        image: &imagecache::Image,
    ) -> Result<(), RuntimeError> {
        let store = ContainerdStore::new(lease);
        let content = labels::GC_REF_CONTENT;
        let mut of_manifest =
            BTreeMap::from([(format!("{content}.config"), image.config.digest.to_string())]);
        for (position, layer) in image.layers.iter().enumerate() {
            of_manifest.insert(format!("{content}.l.{position}"), layer.digest.to_string());
        }
        let mut ties = vec![
            (
                &image.config,
                BTreeMap::from([(self.tie_to_snapshot(), image.chain_id.to_string())]),
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
        let asked = image.reference.to_string();
        if !self.is_kubernetes() {
            return self.make_record(image, &asked, HashMap::new()).await;
        }
        for name in kubernetes::derived_names(image) {
            let labels = kubernetes::labels_of(labels::DERIVED);
            let record = record_of(image, &name, labels);
            self.create_record(record).await?;
        }
        let labels = kubernetes::labels_of(labels::ASKED);
        self.make_record(image, &asked, labels).await
    }

    /// Creates the record, or says that there is one.
    async fn create_record(&self, record: Record) -> Result<bool, RuntimeError> {
        let name = record.name.clone();
        let mut client = ImagesClient::new(self.connection.channel());
        let request = self.connection.request(CreateImageRequest {
            image: Some(record),
            ..CreateImageRequest::default()
        });
        match self
            .connection
            .answer(self.connection.plain(), client.create(request))
            .await
        {
            Ok(_) => Ok(true),
            Err(Answer::Exists) => Ok(false),
            Err(said) => Err(said.into_error("record image", &name)),
        }
    }

    async fn make_record(
        &self,
        image: &imagecache::Image,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), RuntimeError> {
        let mut paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        paths.push("target".to_owned());
        let record = record_of(image, name, labels);
        if self.create_record(record.clone()).await? {
            return Ok(());
        }
        let mut client = ImagesClient::new(self.connection.channel());
        let request = self.connection.request(UpdateImageRequest {
            image: Some(record),
            update_mask: Some(FieldMask { paths }),
            ..UpdateImageRequest::default()
        });
        self.connection
            .call("update image", name, client.update(request))
            .await?;
        Ok(())
    }
}

fn record_of(image: &imagecache::Image, name: &str, labels: HashMap<String, String>) -> Record {
    Record {
        name: name.to_owned(),
        labels,
        target: Some(Descriptor {
            media_type: image.target.media_type.clone(),
            digest: image.target.digest.to_string(),
            size: i64::try_from(image.target.size).unwrap_or(i64::MAX),
            ..Descriptor::default()
        }),
        ..Record::default()
    }
}

/// What containerd's record of an image says.
pub(super) struct Recorded {
    /// Digest of its index or manifest.
    pub(super) target: Digest,
    record: Record,
}

/// What an instance needs to know of an image.
pub(crate) fn describe(image: &imagecache::Image) -> Image {
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
