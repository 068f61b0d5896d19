//! All layers of an image at a time.

use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, try_join_all};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::extract::Turn;
use super::implicit::inherit;
use super::{Extraction, Layer, Snapshot, Tree, UnpackError, Unpacker};
use crate::blobs::{Blob, Blobs, Check};
use crate::fetch::{Fetched, Share};
use crate::layer::Applied;
use crate::progress::Stage;
use crate::waiting::{Cancel, while_waited_for};
use crate::{Descriptor, Digest, PullError};

/// Brings a blob here.
pub(crate) type Fetch<'f> =
    dyn Fn(Descriptor) -> BoxFuture<'f, Result<Fetched, PullError>> + Sync + 'f;

/// A layer that is unpacked.
pub(crate) struct Unpacked {
    /// Who sent its blob, and how long that took; none when the layer was unpacked already.
    pub fetched: Option<(Vec<Share>, Duration)>,
    /// How long it was extracted and placed, without waiting for others.
    pub unpacking: Duration,
}

/// What unpacks an image: where to, and by what.
pub(crate) struct Parts<'p, U> {
    pub unpacker: &'p U,
    pub extraction: &'p Extraction,
    pub blobs: &'p Blobs,
    /// Layers that are fetched at a time, at least one.
    pub at_a_time: usize,
    /// Hears how far a layer is, counted from the first.
    pub tell: &'p (dyn Fn(usize, Stage) + Sync),
}

/// Fetches and unpacks `layers`, from the bottom up; what lies below the first is unpacked. The
/// first failure ends all.
///
/// A layer is placed when all below it are: those at the bottom are fetched first, or the whole
/// chain would wait for the last one.
pub(crate) async fn layers<'f, U: Unpacker>(
    layers: &[Layer],
    parts: &Parts<'_, U>,
    fetch: &Fetch<'f>,
) -> Result<Vec<Unpacked>, PullError> {
    let begun = &Semaphore::new(parts.at_a_time);
    let mut below = None;
    let tasks = layers.iter().enumerate().map(|(position, layer)| {
        let (done, wait) = oneshot::channel();
        let wait = below.replace(wait);
        async move {
            let tell = |stage| (parts.tell)(position, stage);
            // Fair, and asked from the bottom up; nobody closes it. Before the lock of the chain:
            // who has that one waits for no layer above.
            let turn = begun.acquire().await.ok();
            let unpacked = one(layer, parts, fetch, turn, wait, &tell).await?;
            tell(Stage::Ready);
            // Nobody waits for the topmost.
            done.send(()).ok();
            Ok::<_, PullError>(unpacked)
        }
    });
    try_join_all(tasks).await
}

async fn one<'f, U: Unpacker>(
    layer: &Layer,
    parts: &Parts<'_, U>,
    fetch: &Fetch<'f>,
    turn: Option<SemaphorePermit<'_>>,
    below: Option<oneshot::Receiver<()>>,
    tell: &(dyn Fn(Stage) + Sync),
) -> Result<Unpacked, PullError> {
    let (_lock, somebody_was) = parts.extraction.chains.lock(&layer.chain_id).await;
    // Nobody asks again for what was not there a moment ago, unless another pull was at it.
    if somebody_was && parts.unpacker.unpacked(&layer.chain_id).await? {
        return Ok(Unpacked {
            fetched: None,
            unpacking: Duration::ZERO,
        });
    }
    let Fetched {
        mut blob,
        shares,
        elapsed,
        ..
    } = fetch(layer.blob.clone()).await?;
    drop(turn);
    tell(Stage::Extracting);
    let Some(workplace) = parts.unpacker.workplace() else {
        after(below).await;
        let begin = Instant::now();
        parts.unpacker.apply(layer, &blob).await?;
        return Ok(Unpacked {
            fetched: Some((shares, elapsed)),
            unpacking: begin.elapsed(),
        });
    };
    let mut again = true;
    let (tree, applied, extracting) = loop {
        let tree = workplace.tree()?;
        match extract(layer, blob, tree, parts.extraction).await {
            Ok(extracted) => break extracted,
            Err(error) if again && error.may_be_damage() => {
                again = false;
                // What was verified may have rotted since: then it is fetched once more.
                let (blobs, digest) = (parts.blobs.clone(), layer.blob.digest.clone());
                let checked = blocking(move |_| blobs.check(&digest).map_err(UnpackError::from));
                if !matches!(checked.await?, Check::Damaged { .. }) {
                    return Err(error.into());
                }
                tracing::warn!(layer = %layer.blob.digest, "a damaged blob is fetched again");
                blob = fetch(layer.blob.clone()).await?.blob;
            }
            Err(error) => return Err(error.into()),
        }
    };
    tell(Stage::Extracted);
    after(below).await;
    let begin = Instant::now();
    place(layer, parts, tree, applied).await?;
    Ok(Unpacked {
        fetched: Some((shares, elapsed)),
        unpacking: extracting + begin.elapsed(),
    })
}

/// Waits for the layer below. When that failed, its error ends the whole in this instant.
async fn after(below: Option<oneshot::Receiver<()>>) {
    if let Some(below) = below
        && below.await.is_err()
    {
        std::future::pending::<()>().await;
    }
}

async fn extract(
    layer: &Layer,
    blob: Blob,
    tree: Tree,
    extraction: &Extraction,
) -> Result<(Tree, Applied, Duration), UnpackError> {
    let turn = extraction.turns.take();
    let place = extraction.places.clone().acquire_owned().await;
    let (layer, extraction) = (layer.clone(), extraction.clone());
    blocking(move |cancel| {
        // Held until the work has ended: soon, when nobody waits for it any more.
        let (_turn, _place) = (turn, place);
        let begin = Instant::now();
        let applied = extraction.run(&layer, blob, &tree, Turn::OfPull, cancel)?;
        Ok((tree, applied, begin.elapsed()))
    })
    .await
}

async fn place<U: Unpacker>(
    layer: &Layer,
    parts: &Parts<'_, U>,
    tree: Tree,
    applied: Applied,
) -> Result<(), PullError> {
    let prepared = match parts.unpacker.prepare(layer).await? {
        Snapshot::Present => return Ok(()),
        Snapshot::Prepared(prepared) => prepared,
    };
    let put = async {
        let unsettled = parts.blobs.unsettled().clone();
        let (name, target, lower) = (
            chain_mark(&layer.chain_id),
            prepared.target.clone(),
            prepared.lower.clone(),
        );
        blocking(move |_| {
            inherit(tree.path(), &applied.implicit, &lower)?;
            unsettled.mark(&name)?;
            tree.place(&target)
        })
        .await?;
        parts.unpacker.commit(layer, &prepared).await
    };
    let placed = put.await;
    if placed.is_err() {
        parts.unpacker.discard(&prepared).await;
    }
    Ok(placed?)
}

/// What an unpacked chain is called among what is unsettled.
pub fn chain_mark(chain_id: &Digest) -> String {
    format!("chain-{}", chain_id.hex())
}

/// The chain that a mark is about; none when it is about something else.
pub fn marked_chain(mark: &str) -> Option<Digest> {
    let hex = mark.strip_prefix("chain-")?;
    format!("sha256:{hex}").parse().ok()
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> Result<T, UnpackError> + Send + 'static,
) -> Result<T, UnpackError> {
    match while_waited_for(work).await {
        Ok(result) => result,
        Err(ended) => Err(UnpackError::Failed {
            operation: "extract",
            object: "a layer".to_owned(),
            source: ended.into(),
        }),
    }
}
