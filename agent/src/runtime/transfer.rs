//! Images as files: from an archive into containerd, and from containerd's documents into one.

use imagecache::transfer::{Archive, Export, ExportError, Filled, ImportError};
use imagecache::{Cache, PullOptions, Reference};

use super::Containerd;
use super::content::ContainerdStore;
use super::error::{RuntimeError, of_pull};
use super::image::Ready;
use super::lease::{Collect, Lease};

/// Why images did not come out of an archive, or into one.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Of the archive, or of what is in it.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Of the image, or of the file that is written.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The policy is against it, or containerd did not do its part.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Containerd {
    /// Brings all images of an archive here, unpacked and recorded, when the policy lets all of them
    /// in.
    pub(crate) async fn import_images(
        &self,
        archive: Archive,
        cache: &Cache,
        options: &PullOptions,
    ) -> Result<Vec<Ready>, TransferError> {
        let mut signatures = Vec::new();
        for (reference, target) in archive.images() {
            let permit = cache.permit(reference, target, options.deadline).await;
            let refused = |error| of_pull(&reference.to_string(), error);
            signatures.push(permit.map_err(refused)?);
        }
        // An archive may take longer to be read than a lease lasts.
        let archive = archive.fill(cache.blobs()).await?;
        let images = u32::try_from(signatures.len()).unwrap_or(u32::MAX);
        let longest = options.deadline.saturating_mul(images);
        let lease = self.lease("import", longest).await?;
        let imported = self.make_all(archive, cache, options, &lease).await;
        let collect = match imported {
            Ok(_) => Collect::Later,
            Err(_) => Collect::Now,
        };
        if let Err(error) = lease.release(collect).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                error,
                "the lease of an import stays until it ends by itself"
            );
        }
        let mut imported = imported?;
        for (ready, signature) in imported.iter_mut().zip(signatures) {
            ready.signature = signature;
        }
        Ok(imported)
    }

    async fn make_all(
        &self,
        archive: Filled,
        cache: &Cache,
        options: &PullOptions,
        lease: &Lease,
    ) -> Result<Vec<Ready>, TransferError> {
        let store = ContainerdStore::new(lease);
        let images = archive.bring(&store).await?;
        let unpacker = self.unpacker(lease, options).await?;
        let mut imported = Vec::with_capacity(images.len());
        for image in images {
            let receipt = cache.unpack(&image, &unpacker, options).await;
            let failed = |error| of_pull(&image.reference.to_string(), error);
            let receipt = Some(receipt.map_err(failed)?);
            self.keep(lease, &image).await?;
            imported.push(Ready {
                image,
                receipt,
                signature: None,
            });
        }
        // Nobody needs the layers any more.
        drop(archive);
        for ready in &imported {
            let dropped = cache.drop_layers(&ready.image, options);
            dropped.map_err(ImportError::Blobs)?;
        }
        Ok(imported)
    }

    /// The images, ready to be written as an archive; the first name that is not here otherwise.
    pub(crate) async fn export_images(
        &self,
        references: &[Reference],
        cache: &Cache,
    ) -> Result<Result<Export, Reference>, TransferError> {
        let mut images = Vec::with_capacity(references.len());
        for reference in references {
            let found = match self.recorded(&reference.to_string()).await? {
                Some(recorded) => self.present(reference, &recorded.target, None).await?,
                None => None,
            };
            match found {
                Some(image) => images.push(image),
                None => return Ok(Err(reference.clone())),
            }
        }
        let store = self.documents();
        Ok(Ok(Export::of(&images, cache.blobs(), &store).await?))
    }
}
