//! A registry as the source of its images' signatures.

use crate::fetch::into_content_store;
use crate::memory::MemoryStore;
use crate::policy::SignatureSource;
use crate::{ContentStore as _, Descriptor, PullError, Reference, Retry};

use super::Registry;

impl SignatureSource for Registry {
    type Error = PullError;

    async fn signature_manifest(
        &self,
        reference: &Reference,
        tag: &str,
    ) -> Result<Option<Vec<u8>>, PullError> {
        let Some(tagged) = reference.with_tag(tag) else {
            return Ok(None);
        };
        match self.manifest(&tagged).await {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(PullError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn payload(&self, _: &Reference, blob: &Descriptor) -> Result<Vec<u8>, PullError> {
        let store = MemoryStore::default();
        into_content_store(&self.sources(), "signature", blob, &store).await?;
        Ok(store.read(&blob.digest, blob.size).await?.to_vec())
    }

    fn retry(error: &PullError) -> Retry {
        error.retry()
    }
}
