//! Fetching blobs: from the registry into the store, verified on the way.
//!
//! A blob that is too long, too short or has another sha256 is never committed; what was written of
//! it is given up at once.

use bytes::Bytes;

use crate::error::{PullError, named};
use crate::registry::{Next, Registry};
use crate::{Begun, BlobWriter as _, ContentStore, Descriptor, Hasher};

/// Brings a blob into the store unless it is there. `kind` is for errors: `config`, `layer`.
pub(crate) async fn blob<S: ContentStore>(
    registry: &Registry,
    kind: &str,
    blob: &Descriptor,
    store: &S,
) -> Result<(), PullError> {
    let mut writer = match store.begin(blob).await? {
        Begun::Present => return Ok(()),
        Begun::Writer(writer) => writer,
    };
    match receive(registry, &named(kind, &blob.digest), blob, &mut writer).await {
        Ok(()) => Ok(writer.commit().await?),
        Err(error) => {
            writer.abort().await;
            Err(error)
        }
    }
}

async fn receive<W: crate::BlobWriter>(
    registry: &Registry,
    object: &str,
    blob: &Descriptor,
    writer: &mut W,
) -> Result<(), PullError> {
    let wrong_size = |got: u64| PullError::WrongSize {
        registry: registry.name().to_owned(),
        object: object.to_owned(),
        expected: blob.size,
        got,
    };
    let mut hasher = Hasher::default();
    let mut got = 0;
    let mut incoming = registry.blob(object, blob).await?;
    loop {
        match incoming.next().await {
            Ok(Next::Bytes(bytes)) => {
                got += bytes.len() as u64;
                if got > blob.size {
                    return Err(wrong_size(got));
                }
                hasher.update(&bytes);
                writer.write(bytes).await?;
            }
            // oci-client finds a short blob to have a wrong digest; the size says more.
            Err(PullError::WrongDigest { .. }) if got != blob.size => return Err(wrong_size(got)),
            Err(error) => return Err(error),
            Ok(Next::End) => break,
        }
    }
    if got != blob.size {
        return Err(wrong_size(got));
    }
    let digest = hasher.finish();
    if digest != blob.digest {
        return Err(registry.wrong_digest(object, blob.digest.as_str(), digest.as_str()));
    }
    Ok(())
}

/// Puts bytes that we hold, and have verified, into the store.
pub(crate) async fn keep<S: ContentStore>(
    store: &S,
    blob: &Descriptor,
    bytes: Bytes,
) -> Result<(), PullError> {
    match store.begin(blob).await? {
        Begun::Present => Ok(()),
        Begun::Writer(mut writer) => match writer.write(bytes).await {
            Ok(()) => Ok(writer.commit().await?),
            Err(error) => {
                writer.abort().await;
                Err(error.into())
            }
        },
    }
}
