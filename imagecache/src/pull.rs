//! The way of an image: manifest, config, then all layers at a time, each extracted as soon as it
//! is verified and placed in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use oci_spec::image::Config;

use crate::blobs::BlobsError;
use crate::cache::Cache;
use crate::error::{PullError, named};
use crate::fetch::{Budget, Hedge, Sources, Urgency};
use crate::manifest::{self, CONFIG_LIMIT, Document, MANIFEST_LIMIT, Manifest};
use crate::policy::KeptSignature;
use crate::progress::Entry;
use crate::receipt::{LayerReceipt, Origin, Receipt};
use crate::registry::Registry;
use crate::unpack::{self, Parts, Unpacked};
use crate::{
    ContentStore, Descriptor, Digest, Layer, Reference, StoreError, UnpackError, Unpacker,
    chain_ids, fetch,
};

/// How to pull.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PullOptions {
    /// Deadline of the whole pull.
    pub deadline: Duration,
    /// Whether blobs stay in the store when their layers are unpacked: for peers, for other images
    /// and for whoever looks again.
    pub blobs: Afterwards,
    /// Who waits for it.
    pub urgency: Urgency,
}

/// What becomes of blobs whose layers are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// They stay until they are evicted.
    Kept,
    /// They go at the end of the pull.
    Dropped,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(600),
            blobs: Afterwards::Kept,
            urgency: Urgency::PrePull,
        }
    }
}

/// An image whose documents are in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Full name, normalised.
    pub reference: Reference,
    /// What the reference names in the registry: an index or the manifest itself.
    pub target: Descriptor,
    /// The manifest for this host. Its digest is the image's.
    pub manifest: Descriptor,
    /// The config.
    pub config: Descriptor,
    /// Layers from the bottom up.
    pub layers: Vec<Descriptor>,
    /// Diff ids of the layers, from the bottom up.
    pub diff_ids: Vec<Digest>,
    /// Name of the topmost unpacked layer.
    pub chain_id: Digest,
    /// How the image wants to be run.
    pub run: Config,
}

/// An image that is pulled, verified and unpacked, and how that went.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// How it came.
    pub receipt: Receipt,
    /// The signature by which the policy let it in, where it wanted one.
    pub signature: Option<KeptSignature>,
}

impl Cache {
    /// Brings an image here: its documents into `store`, its layers into our own store, and has it
    /// unpacked by `unpacker`. When this returns, every blob that was fetched is verified and the
    /// whole chain is unpacked. Layers that are unpacked already are not fetched. Cancelling by
    /// drop leaves nothing committed that was not verified.
    pub async fn pull<S: ContentStore, U: Unpacker>(
        &self,
        reference: &Reference,
        store: &S,
        unpacker: &U,
        options: &PullOptions,
    ) -> Result<Pulled, PullError> {
        let begin = Instant::now();
        let entry = self.board.enter(reference.to_string());
        let whole_pull = async {
            self.permit_name(reference)?;
            let registry = self.registries.open(reference)?;
            let (image, signature) = self.documents(reference, &registry, store).await?;
            let sources = registry.sources();
            let layers = self
                .layers(&image, &sources, unpacker, options.urgency, &entry)
                .await?;
            self.drop_layers(&image, options)?;
            Ok(Pulled {
                receipt: whole(&image, layers, begin),
                image,
                signature,
            })
        };
        within(reference, options.deadline, whole_pull).await
    }

    /// Has an image unpacked whose documents and layers are here, because an archive had them. No
    /// registry is asked: a layer that is not here is [`PullError::NotHere`]. The layers stay: see
    /// [`Self::drop_layers`].
    pub async fn unpack<U: Unpacker>(
        &self,
        image: &Image,
        unpacker: &U,
        options: &PullOptions,
    ) -> Result<Receipt, PullError> {
        let begin = Instant::now();
        let entry = self.board.enter(image.reference.to_string());
        // There is nobody to be asked.
        let sources = Sources {
            ordered: Vec::new(),
            budget: Arc::new(Budget::new(0)),
            stall_timeout: options.deadline,
            hedge: Hedge::Others,
        };
        let work = async {
            let mut layers = self
                .layers(image, &sources, unpacker, options.urgency, &entry)
                .await?;
            for layer in layers
                .iter_mut()
                .filter(|layer| layer.from == Origin::Store)
            {
                layer.from = Origin::Import;
            }
            Ok(whole(image, layers, begin))
        };
        within(&image.reference, options.deadline, work).await
    }

    /// Drops the layers of an image that is unpacked, where they are not to stay.
    pub fn drop_layers(&self, image: &Image, options: &PullOptions) -> Result<(), BlobsError> {
        if options.blobs == Afterwards::Dropped {
            for layer in &image.layers {
                self.blobs.remove(&layer.digest)?;
            }
        }
        Ok(())
    }

    /// What the reference names in its registry now: the digest of an index or manifest. Costs no
    /// network when the reference has a digest, or the policy is against the name. Keeps nothing.
    pub async fn resolve(
        &self,
        reference: &Reference,
        deadline: Duration,
    ) -> Result<Digest, PullError> {
        self.permit_name(reference)?;
        let look = async { self.registries.open(reference)?.resolve(reference).await };
        within(reference, deadline, look).await
    }

    /// The documents of an image, and the signature by which it may be had. Nothing is kept of one
    /// that may not.
    async fn documents<S: ContentStore>(
        &self,
        reference: &Reference,
        registry: &Registry,
        store: &S,
    ) -> Result<(Image, Option<KeptSignature>), PullError> {
        let name = reference.to_string();
        let bytes = self.manifest(reference, registry).await?;
        let digest = Digest::of(&bytes);
        let signature = self.permit_by(reference, &digest, registry).await?;
        let object = named("manifest", &digest);
        let target = Descriptor {
            media_type: manifest::media_type(&object, &bytes)?,
            digest,
            size: bytes.len() as u64,
        };
        let (manifest, parsed) = match manifest::document(&name, &object, &bytes)? {
            Document::Manifest(parsed) => (target.clone(), parsed),
            Document::Index(chosen) => {
                let chosen_name = reference.with_digest(&chosen.digest);
                let bytes = self.manifest(&chosen_name, registry).await?;
                let parsed = image_manifest(&name, &chosen, &bytes)?;
                fetch::keep(store, &chosen, bytes).await?;
                (chosen, parsed)
            }
        };
        fetch::keep(store, &target, bytes).await?;
        if let Err(error) = fetch::blob(registry, "config", &parsed.config, store).await {
            let found = self.of_peers(reference, &parsed.config.digest).await;
            fetch::keep(store, &parsed.config, found.ok_or(error)?).await?;
        }
        let config = store.read(&parsed.config.digest, CONFIG_LIMIT).await?;
        let image = assemble(reference, target, manifest, parsed, &config)?;
        Ok((image, signature))
    }

    /// The manifest or index; by digest from a peer when the registry does not have it, or is away.
    async fn manifest(
        &self,
        reference: &Reference,
        registry: &Registry,
    ) -> Result<Bytes, PullError> {
        let error = match registry.manifest(reference).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        let found = match reference.digest() {
            Some(digest) => self.of_peers(reference, digest).await,
            None => None,
        };
        found
            .filter(|bytes| bytes.len() as u64 <= MANIFEST_LIMIT)
            .ok_or(error)
    }

    async fn of_peers(&self, reference: &Reference, digest: &Digest) -> Option<Bytes> {
        let peers = self.peers()?;
        let found = peers.document(reference.repository(), digest).await?;
        tracing::info!(%digest, "a document came from a peer: the registry did not give it");
        Some(found)
    }

    async fn layers<U: Unpacker>(
        &self,
        image: &Image,
        sources: &Sources,
        unpacker: &U,
        urgency: Urgency,
        entry: &Entry,
    ) -> Result<Vec<LayerReceipt>, PullError> {
        let chain = image.chain();
        let blobs = chain.iter().map(|layer| layer.blob.digest.clone());
        let _needed = self.blobs.need(blobs);
        let present = unpacked_below(&chain, unpacker).await?;
        entry.layers(&image.layers, present);
        let is_urgent = entry.is_urged() || urgency == Urgency::Activation;
        let missing = chain[present..].iter().map(|layer| &layer.blob.digest);
        // Also those that another pull brings.
        let _wanted = is_urgent.then(|| self.fetcher.want(missing));
        let parts = Parts {
            unpacker,
            extraction: &self.extraction,
            blobs: &self.blobs,
            // As many again as have a connection wait for one, or for a peer.
            at_a_time: 2 * self.fetcher.connections(),
            tell: &|layer, stage| entry.reached(present + layer, stage),
        };
        let fetch = move |blob: Descriptor| self.fetch(sources, blob, urgency).boxed();
        let unpacked = unpack::layers(&chain[present..], &parts, &fetch).await?;
        let before = chain[..present].iter().map(|layer| receipt(layer, None));
        let now = chain[present..].iter().zip(unpacked);
        Ok(before
            .chain(now.map(|(layer, unpacked)| receipt(layer, Some(unpacked))))
            .collect())
    }
}

/// How many layers of `chain`, from the bottom up, are unpacked. What lies below an unpacked layer
/// is unpacked: so the topmost is looked for by halves.
async fn unpacked_below<U: Unpacker>(chain: &[Layer], unpacker: &U) -> Result<usize, UnpackError> {
    let (mut present, mut absent) = (0, chain.len() + 1);
    // The whole image is asked for first: mostly it is there, or nothing is.
    let mut look = chain.len();
    while let Some(layer) = look.checked_sub(1).and_then(|position| chain.get(position)) {
        match unpacker.unpacked(&layer.chain_id).await? {
            true => present = look,
            false => absent = look,
        }
        if absent - present == 1 {
            break;
        }
        look = present.midpoint(absent);
    }
    Ok(present)
}

/// The receipt of an image whose layers came like this, since `begin`.
fn whole(image: &Image, layers: Vec<LayerReceipt>, begin: Instant) -> Receipt {
    Receipt {
        reference: image.reference.to_string(),
        target: image.target.digest.to_string(),
        digest: image.manifest.digest.to_string(),
        seconds: Receipt::seconds(begin.elapsed()),
        fetched_bytes: layers.iter().map(|layer| layer.fetched_bytes).sum(),
        layers,
    }
}

fn receipt(layer: &Layer, unpacked: Option<Unpacked>) -> LayerReceipt {
    let (fetched, unpacking) = match unpacked {
        Some(Unpacked { fetched, unpacking }) => (fetched, unpacking),
        None => (None, Duration::ZERO),
    };
    let was_unpacked = fetched.is_none();
    let (shares, elapsed) = fetched.unwrap_or_default();
    let most = shares.iter().max_by_key(|share| share.bytes);
    LayerReceipt {
        digest: layer.blob.digest.to_string(),
        size: layer.blob.size,
        chain_id: layer.chain_id.to_string(),
        from: match most {
            Some(share) => share.kind.into(),
            None if was_unpacked => Origin::Unpacked,
            None => Origin::Store,
        },
        sender: most.map(|share| share.name.clone()),
        fetched_bytes: shares.iter().map(|share| share.bytes).sum(),
        fetch_seconds: Receipt::seconds(elapsed),
        unpack_seconds: Receipt::seconds(unpacking),
    }
}

pub(crate) async fn within<T>(
    reference: &Reference,
    deadline: Duration,
    work: impl Future<Output = Result<T, PullError>>,
) -> Result<T, PullError> {
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(PullError::TooSlow {
            reference: reference.to_string(),
            deadline,
        }),
    }
}

/// The image whose index or manifest is `target`, from the store alone; none when one of its
/// documents is not there.
pub async fn local<S: ContentStore>(
    reference: &Reference,
    target: &Digest,
    store: &S,
) -> Result<Option<Image>, PullError> {
    let name = reference.to_string();
    let Some(bytes) = read(store, target, MANIFEST_LIMIT).await? else {
        return Ok(None);
    };
    let object = named("manifest", target);
    let target = Descriptor {
        media_type: manifest::media_type(&object, &bytes)?,
        digest: target.clone(),
        size: bytes.len() as u64,
    };
    let (manifest, parsed) = match manifest::document(&name, &object, &bytes)? {
        Document::Manifest(parsed) => (target.clone(), parsed),
        Document::Index(chosen) => {
            let Some(bytes) = read(store, &chosen.digest, MANIFEST_LIMIT).await? else {
                return Ok(None);
            };
            let parsed = image_manifest(&name, &chosen, &bytes)?;
            (chosen, parsed)
        }
    };
    let Some(config) = read(store, &parsed.config.digest, CONFIG_LIMIT).await? else {
        return Ok(None);
    };
    assemble(reference, target, manifest, parsed, &config).map(Some)
}

async fn read<S: ContentStore>(
    store: &S,
    digest: &Digest,
    limit: u64,
) -> Result<Option<Bytes>, PullError> {
    match store.read(digest, limit).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The manifest that an index chose; an index inside an index is not followed.
fn image_manifest(name: &str, chosen: &Descriptor, bytes: &[u8]) -> Result<Manifest, PullError> {
    let object = named("manifest", &chosen.digest);
    match manifest::document(name, &object, bytes)? {
        Document::Manifest(parsed) => Ok(parsed),
        Document::Index(_) => Err(PullError::Malformed {
            object,
            why: "an index names another index for this platform".to_owned(),
        }),
    }
}

fn assemble(
    reference: &Reference,
    target: Descriptor,
    manifest: Descriptor,
    parsed: Manifest,
    config: &[u8],
) -> Result<Image, PullError> {
    let object = named("config", &parsed.config.digest);
    let settings =
        manifest::settings(&reference.to_string(), &object, config, parsed.layers.len())?;
    let Some(chain_id) = chain_ids(&settings.diff_ids).pop() else {
        return Err(PullError::Malformed {
            object,
            why: "it names no diff ids".to_owned(),
        });
    };
    Ok(Image {
        reference: reference.clone(),
        target,
        manifest,
        config: parsed.config,
        layers: parsed.layers,
        diff_ids: settings.diff_ids,
        chain_id,
        run: settings.run,
    })
}

impl Image {
    /// What its layers are unpacked as, from the bottom up.
    pub fn chain(&self) -> Vec<Layer> {
        let mut parent = None;
        let chain = chain_ids(&self.diff_ids);
        self.layers
            .iter()
            .zip(&self.diff_ids)
            .zip(chain)
            .map(|((blob, diff_id), chain_id)| Layer {
                blob: blob.clone(),
                diff_id: diff_id.clone(),
                parent: parent.replace(chain_id.clone()),
                chain_id,
            })
            .collect()
    }
}
