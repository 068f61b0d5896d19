//! `/v1/images`: what is known of images, and what is asked of them.

use std::path::Path;
use std::time::Duration;

use imagecache::evict::{Kept, Plan};
use imagecache::progress::{PullProgress, Stage};
use imagecache::{Receipt, Record, Reference, Retry};

use super::answers::timestamp;
use super::node::Node;
use super::verified;
use crate::api::v1::{
    EvictRequest, EvictResult, EvictedImage, ExportRequest, ExportResult, Finding, ImageDocument,
    ImageList, ImageReceipt, ImageRequest, ImageState, ImportRequest, ImportResult, KeptImage,
    LayerReceipt, LayerStage, Problem, ProblemCode, PullDocument, PullLayer, VerifyRequest,
    VerifyResult,
};
use crate::chain::chain;
use crate::images::{KeepError, Needs, Overwrite, Room};
use crate::pool::Effects;
use crate::runtime::{RuntimeError, TransferError};
use crate::sys;

/// How long containerd may take to say what it has of the images.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

impl<E: Effects> Node<E> {
    pub(super) async fn list_images(&self) -> Result<ImageList, Problem> {
        let images = &self.executor.images;
        let look = async {
            let listed = images.list().await.map_err(|error| refused(&error))?;
            Ok((listed, self.images_needed().await?))
        };
        let (listed, needs) = self.soon(look).await?;
        let document = |(record, ready)| document(record, ready, &needs);
        Ok(ImageList {
            images: listed.into_iter().map(document).collect(),
            pulls: images.under_way().into_iter().map(pull).collect(),
            verification: images.verification().map(verified::under_way),
        })
    }

    pub(super) async fn pull_image(&self, request: ImageRequest) -> Result<ImageDocument, Problem> {
        let images = &self.executor.images;
        let name = full_name(&request.reference)?;
        let _held = images.holds().hold(&name).await;
        images
            .ensure(&name)
            .await
            .map_err(|error| unpulled(&error))?;
        self.document_of_ready(&name, request.pin).await
    }

    pub(super) async fn import_images(
        &self,
        request: ImportRequest,
    ) -> Result<ImportResult, Problem> {
        let name = request.reference.as_deref().map(full_name).transpose()?;
        let images = &self.executor.images;
        let imported = images.import(Path::new(&request.path), name.as_deref());
        let imported = imported.await.map_err(|error| refused(&error))?;
        let mut documents = Vec::with_capacity(imported.len());
        for held in &imported {
            documents.push(self.document_of_ready(held.name(), request.pin).await?);
        }
        Ok(ImportResult { images: documents })
    }

    pub(super) async fn export_images(
        &self,
        request: ExportRequest,
    ) -> Result<ExportResult, Problem> {
        let names: Result<Vec<String>, Problem> = request
            .references
            .iter()
            .map(|name| full_name(name))
            .collect();
        let references = names?;
        let overwrite = match request.overwrite {
            true => Overwrite::Allowed,
            false => Overwrite::Never,
        };
        let path = Path::new(&request.path);
        let export = self.executor.images.export(&references, path, overwrite);
        Ok(ExportResult {
            bytes: export.await.map_err(|error| refused(&error))?,
            references,
            path: request.path,
        })
    }

    pub(super) async fn pin_image(
        &self,
        reference: &str,
        pinned: bool,
    ) -> Result<ImageDocument, Problem> {
        let name = full_name(reference)?;
        let images = &self.executor.images;
        let pin = images.pin(&name, pinned).await;
        let record = pin.map_err(|error| refused(&error))?;
        let look = async {
            let ready = images.is_ready(&record).await;
            let ready = ready.map_err(|error| refused(&error))?;
            let needs = self.needs_of(&record).await?;
            Ok(document(record, ready, &needs))
        };
        self.soon(look).await
    }

    /// What is known of an image that was made ready a moment ago, and perhaps is to be pinned.
    async fn document_of_ready(&self, name: &str, pin: bool) -> Result<ImageDocument, Problem> {
        let images = &self.executor.images;
        let record = match pin {
            true => images.pin(name, true).await,
            false => images.recorded(name).await,
        };
        let record = record.map_err(|error| refused(&error))?;
        let look = async {
            let needs = self.needs_of(&record).await?;
            Ok(document(record, true, &needs))
        };
        self.soon(look).await
    }

    /// What containerd says, or that it does not say it in time.
    async fn soon<T>(&self, look: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        let looked = tokio::time::timeout(LOOK_DEADLINE, look).await;
        looked.unwrap_or_else(|_| {
            let detail = format!(
                "containerd does not say within {} s what it has of the images; {} pulls are under way",
                LOOK_DEADLINE.as_secs(),
                self.executor.images.under_way().len()
            );
            Err(Problem::new(ProblemCode::Unavailable, detail))
        })
    }

    pub(super) async fn verify_images(
        &self,
        request: VerifyRequest,
    ) -> Result<VerifyResult, Problem> {
        let name = request.reference.as_deref().map(full_name).transpose()?;
        let verified = self.executor.images.verify(name.as_deref()).await;
        sys::give_memory_back();
        let verified = verified.map_err(|error| refused(&error))?;
        Ok(verified::result(verified))
    }

    pub(super) async fn evict_images(&self, request: EvictRequest) -> Result<EvictResult, Problem> {
        let room = request.bytes.map_or(Room::All, Room::Bytes);
        let plan = match request.dry_run {
            true => self.plan_eviction(room).await?,
            false => self.evict(room).await?,
        };
        let evicted = plan.evictions.into_iter();
        let kept = plan.kept.into_iter();
        Ok(EvictResult {
            dry_run: request.dry_run,
            evicted: evicted
                .map(|eviction| EvictedImage {
                    reference: eviction.name,
                    freed_bytes: eviction.frees.bytes,
                })
                .collect(),
            kept: kept
                .map(|(reference, why)| KeptImage {
                    reference,
                    why: why_kept(why).to_owned(),
                })
                .collect(),
            freed_bytes: plan.frees.bytes,
            short_bytes: plan.short.bytes,
        })
    }

    async fn plan_eviction(&self, room: Room) -> Result<Plan, Problem> {
        let needs = self.images_needed().await?;
        let unknown = self.executor.images.belongs().unknown();
        if let (Some(file), Some(why)) = (&self.settings.images.stable_file, unknown) {
            let detail = format!(
                "nothing is evicted: which images images.stable_file names is not known ({}: {why})",
                file.display()
            );
            return Err(Problem::new(ProblemCode::Unavailable, detail));
        }
        let plan = self.executor.images.plan_eviction(room, &needs).await;
        plan.map_err(|error| refused(&error))
    }

    /// Makes room, by what was not used for longest and nobody needs; what went.
    pub(super) async fn evict(&self, room: Room) -> Result<Plan, Problem> {
        let images = &self.executor.images;
        let _alone = images.alone_in_removing().await;
        loop {
            let plan = self.plan_eviction(room).await?;
            if plan.evictions.is_empty() {
                return Ok(plan);
            }
            let names = plan.evictions.iter().map(|eviction| &*eviction.name);
            if let Some(going) = images.holds().let_go(names) {
                // Who took one while it was planned has named it by now; who comes now waits.
                let needs = self.images_needed().await?;
                let evicted = images.evict(&plan, going, needs).await;
                if evicted.map_err(|error| refused(&error))? {
                    return Ok(plan);
                }
            }
        }
    }

    /// Full names of images that an app's revision or a container in our namespace was made from,
    /// and of those that are stable.
    pub(super) async fn images_needed(&self) -> Result<Needs, Problem> {
        let mut needs = self.needs_of_pools().await?;
        let containers = self.executor.runtime.images_of_containers().await;
        needs
            .in_use
            .extend(containers.map_err(|error| unpulled(&error))?);
        Ok(needs)
    }

    /// The same as far as one image is concerned: a host may have thousands of containers.
    async fn needs_of(&self, record: &Record) -> Result<Needs, Problem> {
        let mut needs = self.needs_of_pools().await?;
        let (name, runtime) = (&record.reference, &self.executor.runtime);
        if !needs.in_use.contains(name) {
            let used = runtime.is_image_of_container(name, &record.target).await;
            if used.map_err(|error| unpulled(&error))? {
                needs.in_use.insert(name.clone());
            }
        }
        Ok(needs)
    }

    /// What apps need and what is stable, without containers that belong to no app.
    async fn needs_of_pools(&self) -> Result<Needs, Problem> {
        // Before that the pools are not there that need them.
        self.observation().await?;
        let mut needs = Needs::default();
        for entry in self.pools.all() {
            needs.in_use.insert(entry.revision.image.reference.clone());
            let snapshot = entry.handle.snapshot.borrow();
            let stable = snapshot.stable.as_ref();
            needs
                .stable
                .extend(stable.map(|stable| stable.revision.image.reference.clone()));
        }
        let (listed, _) = self.executor.images.belongs().listed();
        needs
            .stable
            .extend(listed.into_iter().map(|listed| listed.image));
        Ok(needs)
    }
}

fn full_name(reference: &str) -> Result<String, Problem> {
    match reference.parse::<Reference>() {
        Ok(reference) => Ok(reference.to_string()),
        Err(error) => {
            let detail = "refused: reference; nothing was changed";
            let finding = Finding::new("reference", reference.to_owned(), error.to_string());
            let problem = Problem::new(ProblemCode::InvalidRequest, detail);
            Err(problem.with_findings([finding]))
        }
    }
}

fn document(record: Record, ready: bool, needs: &Needs) -> ImageDocument {
    ImageDocument {
        state: match ready {
            true => ImageState::Ready,
            false => ImageState::Incomplete,
        },
        pinned: record.pinned,
        in_use: needs.in_use.contains(&record.reference),
        stable: needs.stable.contains(&record.reference),
        bytes: record.layers.iter().map(|layer| layer.size).sum(),
        layers: u32::try_from(record.layers.len()).unwrap_or(u32::MAX),
        ready_at: timestamp(record.ready_at.saturating_mul(1000)),
        used_at: timestamp(record.used_at.saturating_mul(1000)),
        receipt: record.receipt.map(receipt),
        reference: record.reference,
        digest: record.digest,
    }
}

pub(super) fn receipt(receipt: Receipt) -> ImageReceipt {
    let layers = receipt.layers.into_iter().map(|layer| LayerReceipt {
        digest: layer.digest,
        bytes: layer.size,
        from: layer.from.as_str().to_owned(),
        sender: layer.sender,
        fetched_bytes: layer.fetched_bytes,
        fetch_seconds: layer.fetch_seconds,
        unpack_seconds: layer.unpack_seconds,
    });
    ImageReceipt {
        seconds: receipt.seconds,
        fetched_bytes: receipt.fetched_bytes,
        layers: layers.collect(),
    }
}

pub(super) fn pull(pull: PullProgress) -> PullDocument {
    let layers = pull.layers.into_iter().map(|layer| PullLayer {
        digest: layer.digest.to_string(),
        bytes: layer.size,
        fetched: layer.fetched,
        stage: match layer.stage {
            Stage::Fetching => LayerStage::Fetching,
            Stage::Extracting => LayerStage::Extracting,
            Stage::Extracted => LayerStage::Extracted,
            Stage::Ready => LayerStage::Ready,
        },
    });
    PullDocument {
        reference: pull.reference,
        layers: layers.collect(),
    }
}

const fn why_kept(why: Kept) -> &'static str {
    match why {
        Kept::Pinned => "pinned",
        Kept::InUse => "inUse",
        Kept::Stable => "stable",
    }
}

fn unpulled(error: &RuntimeError) -> Problem {
    let code = match error.is_retryable() {
        true => ProblemCode::Unavailable,
        false => ProblemCode::ImageRefused,
    };
    Problem::new(code, chain(error))
}

fn refused(error: &KeepError) -> Problem {
    match error {
        KeepError::NotFound { reference } => Problem::not_found("image", reference),
        KeepError::Runtime(error) | KeepError::Transfer(TransferError::Runtime(error)) => {
            unpulled(error)
        }
        KeepError::Transfer(TransferError::Import(wrong)) => {
            let code = match wrong.retry() {
                Retry::Later => ProblemCode::Unavailable,
                Retry::Never => ProblemCode::ImageRefused,
            };
            Problem::new(code, chain(error))
        }
        KeepError::Transfer(TransferError::Export(_)) | KeepError::File(_) => {
            Problem::new(ProblemCode::ImageRefused, chain(error))
        }
        KeepError::Records(_) | KeepError::Blobs(_) | KeepError::Ended(_) => {
            Problem::new(ProblemCode::Internal, chain(error))
        }
    }
}
