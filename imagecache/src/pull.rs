//! The way of an image: manifest, config, then layers fetched side by side and unpacked in order
//! as they arrive.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use oci_spec::image::Config;
use tokio::sync::oneshot;

use crate::error::{PullError, named};
use crate::manifest::{self, CONFIG_LIMIT, Document, MANIFEST_LIMIT, Manifest};
use crate::registry::Registry;
use crate::{
    ContentStore, Descriptor, Digest, Layer, Reference, StoreError, Unpacker, chain_ids, fetch,
};

/// How to pull.
#[derive(Debug, Clone, PartialEq)]
pub struct PullOptions {
    /// Registries (`host[:port]`) spoken to by plain HTTP; loopback registries always are.
    pub insecure_registries: Vec<String>,
    /// docker's `config.json` with credentials, when there is one.
    pub auth_file: Option<PathBuf>,
    /// A registry that sends no byte for this long has failed.
    pub stall_timeout: Duration,
    /// Deadline of the whole pull.
    pub deadline: Duration,
    /// Layers fetched at a time.
    pub parallel: usize,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            auth_file: None,
            stall_timeout: Duration::from_secs(30),
            deadline: Duration::from_secs(600),
            parallel: 3,
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

/// Brings an image into `store` and has it unpacked by `unpacker`. When this returns, every blob
/// that was fetched is verified and the whole chain is unpacked. Layers that are unpacked already
/// are not fetched. Cancelling by drop leaves nothing committed that was not verified.
pub async fn pull<S: ContentStore, U: Unpacker>(
    reference: &Reference,
    store: &S,
    unpacker: &U,
    options: &PullOptions,
) -> Result<Image, PullError> {
    let whole = async {
        let registry = Registry::open(reference, options).await?;
        let image = documents(reference, &registry, store).await?;
        layers(&image, &registry, store, unpacker, options).await?;
        Ok(image)
    };
    within(reference, options, whole).await
}

async fn within<T>(
    reference: &Reference,
    options: &PullOptions,
    work: impl Future<Output = Result<T, PullError>>,
) -> Result<T, PullError> {
    match tokio::time::timeout(options.deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(PullError::TooSlow {
            reference: reference.to_string(),
            deadline: options.deadline,
        }),
    }
}

/// What the reference names in its registry now: the digest of an index or manifest. Costs no
/// network when the reference has a digest. Keeps nothing.
pub async fn resolve(reference: &Reference, options: &PullOptions) -> Result<Digest, PullError> {
    if let Some(digest) = reference.digest() {
        return Ok(digest.clone());
    }
    let look = async {
        let registry = Registry::open(reference, options).await?;
        Ok(Digest::of(&registry.manifest(reference).await?))
    };
    within(reference, options, look).await
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

async fn documents<S: ContentStore>(
    reference: &Reference,
    registry: &Registry,
    store: &S,
) -> Result<Image, PullError> {
    let name = reference.to_string();
    let bytes = registry.manifest(reference).await?;
    let digest = Digest::of(&bytes);
    let object = named("manifest", &digest);
    let target = Descriptor {
        media_type: manifest::media_type(&object, &bytes)?,
        digest,
        size: bytes.len() as u64,
    };
    let (manifest, parsed) = match manifest::document(&name, &object, &bytes)? {
        Document::Manifest(parsed) => (target.clone(), parsed),
        Document::Index(chosen) => {
            let bytes = registry
                .manifest(&reference.with_digest(&chosen.digest))
                .await?;
            let parsed = image_manifest(&name, &chosen, &bytes)?;
            fetch::keep(store, &chosen, bytes).await?;
            (chosen, parsed)
        }
    };
    fetch::keep(store, &target, bytes).await?;
    fetch::blob(registry, "config", &parsed.config, store).await?;
    let config = store.read(&parsed.config.digest, CONFIG_LIMIT).await?;
    assemble(reference, target, manifest, parsed, &config)
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

async fn layers<S: ContentStore, U: Unpacker>(
    image: &Image,
    registry: &Registry,
    store: &S,
    unpacker: &U,
    options: &PullOptions,
) -> Result<(), PullError> {
    let mut missing = chain(image);
    // From the top down: what lies below an unpacked layer is unpacked.
    for position in (0..missing.len()).rev() {
        if unpacker.unpacked(&missing[position].chain_id).await? {
            missing.drain(..=position);
            break;
        }
    }
    let (fetched, arrivals): (Vec<_>, Vec<_>) = missing.iter().map(|_| oneshot::channel()).unzip();
    let mut fetches: Vec<BoxFuture<'_, Result<(), PullError>>> = Vec::with_capacity(missing.len());
    for (layer, fetched) in missing.iter().zip(fetched) {
        fetches.push(Box::pin(async move {
            fetch::blob(registry, "layer", &layer.blob, store).await?;
            // Nobody waits any more when unpacking failed; that error is the one to report.
            fetched.send(()).or(Ok(()))
        }));
    }
    let fetches = stream::iter(fetches)
        .buffer_unordered(options.parallel)
        .try_collect::<()>();
    let unpacks = async {
        for (layer, arrival) in missing.iter().zip(arrivals) {
            if arrival.await.is_err() {
                // The fetch ended without its layer: its error ends the whole in this instant.
                std::future::pending::<()>().await;
            }
            unpacker.apply(layer).await?;
        }
        Ok(())
    };
    tokio::try_join!(fetches, unpacks)?;
    Ok(())
}

fn chain(image: &Image) -> Vec<Layer> {
    let mut parent = None;
    let chain = chain_ids(&image.diff_ids);
    image
        .layers
        .iter()
        .zip(&image.diff_ids)
        .zip(chain)
        .map(|((blob, diff_id), chain_id)| Layer {
            blob: blob.clone(),
            diff_id: diff_id.clone(),
            parent: parent.replace(chain_id.clone()),
            chain_id,
        })
        .collect()
}
