//! Bringing keys and signatures to the judge.

use oci_spec::image::{ImageManifest, MediaType};

use super::claims::{Flaw, Signature};
use super::judge::{Allowed, Demand, Found, Refusal, Unsigned, demand, judge, tag};
use super::key::Key;
use super::rules::Policy;
use crate::{Descriptor, Digest, Reference, Retry};

/// Media type of a layer with a payload.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation of such a layer: the signature.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Largest payload, bytes; cosign's have some 300.
const LARGEST_PAYLOAD: u64 = 64 * 1024;
/// Most signatures of one image that are looked at.
const MOST: usize = 128;

/// Where signatures come from: the registry of the image.
pub trait SignatureSource: Send + Sync {
    /// Why something could not be fetched.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The manifest at `tag` in the repository of `reference`; none when the registry says that
    /// there is none. At most as large as any manifest may be.
    fn signature_manifest(
        &self,
        reference: &Reference,
        tag: &str,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, Self::Error>> + Send;

    /// A blob of the same repository, of which no more than `blob.size` bytes are read.
    fn payload(
        &self,
        reference: &Reference,
        blob: &Descriptor,
    ) -> impl Future<Output = Result<Vec<u8>, Self::Error>> + Send;

    /// Whether trying again can help.
    fn retry(error: &Self::Error) -> Retry;
}

/// Decides whether `reference`, which is `digest`, may be pulled (see [`judge`]): reads keys and
/// fetches signatures when the rule wants one. Keys are read anew each time, so that one that is
/// replaced counts at once.
pub async fn check<S: SignatureSource>(
    policy: &Policy,
    reference: &Reference,
    digest: &Digest,
    source: &S,
) -> Result<Allowed, Refusal> {
    let rule = match demand(policy, reference)? {
        Demand::Nothing(allowed) => return Ok(allowed),
        Demand::Signature(rule) => rule,
    };
    let keys = rule.keys.iter().map(|path| Key::read(path)).collect();
    let unavailable = |what: String, error: S::Error| Refusal::Unavailable {
        reference: reference.to_string(),
        scope: rule.scope.to_string(),
        digest: digest.clone(),
        what,
        retry: S::retry(&error),
        source: Box::new(error),
    };
    let unsigned = |why| Refusal::Unsigned {
        reference: reference.to_string(),
        scope: rule.scope.to_string(),
        digest: digest.clone(),
        why: Box::new(why),
    };
    let tag = tag(digest);
    let manifest = source
        .signature_manifest(reference, &tag)
        .await
        .map_err(|error| unavailable(format!("the signatures at tag {tag}"), error))?
        .ok_or_else(|| unsigned(Unsigned::Nothing(tag.clone())))?;
    let listed = listed(&tag, &manifest).map_err(unsigned)?;
    let mut signatures = Vec::with_capacity(listed.len());
    for (blob, base64) in listed {
        let payload = match flaw(&blob) {
            Some(flaw) => Err(flaw),
            None => {
                let bytes = source
                    .payload(reference, &blob)
                    .await
                    .map_err(|error| unavailable(format!("payload {}", blob.digest), error))?;
                let got = Digest::of(&bytes);
                match got == blob.digest {
                    true => Ok(bytes),
                    false => Err(Flaw::Damaged {
                        expected: blob.digest,
                        got,
                    }),
                }
            }
        };
        signatures.push(Signature { payload, base64 });
    }
    judge(policy, reference, digest, &Found { keys, signatures })
}

/// What a manifest lists: each payload with its signature.
fn listed(tag: &str, manifest: &[u8]) -> Result<Vec<(Descriptor, Option<String>)>, Unsigned> {
    let not_understood = |why: String| Unsigned::NotUnderstood {
        tag: tag.to_owned(),
        why,
    };
    let manifest: ImageManifest =
        serde_json::from_slice(manifest).map_err(|error| not_understood(error.to_string()))?;
    match manifest.media_type() {
        None | Some(MediaType::ImageManifest) => {}
        Some(MediaType::Other(docker)) if docker == DOCKER_MANIFEST => {}
        Some(other) => return Err(not_understood(format!("it is of media type {other}"))),
    }
    let found = manifest.layers().len();
    if found > MOST {
        return Err(Unsigned::TooMany {
            found,
            allowed: MOST,
        });
    }
    let each = manifest.layers().iter().map(|layer| {
        let digest = layer.digest().to_string();
        let blob = Descriptor {
            media_type: layer.media_type().to_string(),
            digest: digest
                .parse()
                .map_err(|error: crate::InvalidDigest| not_understood(error.to_string()))?,
            size: layer.size(),
        };
        let annotations = layer.annotations().as_ref();
        let signature = annotations.and_then(|all| all.get(ANNOTATION).cloned());
        Ok((blob, signature))
    });
    each.collect()
}

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Why a payload is not fetched.
fn flaw(blob: &Descriptor) -> Option<Flaw> {
    if blob.media_type != PAYLOAD {
        Some(Flaw::MediaType(blob.media_type.clone()))
    } else if blob.size > LARGEST_PAYLOAD {
        Some(Flaw::TooLarge {
            size: blob.size,
            allowed: LARGEST_PAYLOAD,
        })
    } else {
        None
    }
}
