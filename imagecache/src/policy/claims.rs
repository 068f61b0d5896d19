//! One signature: what it covers, what it claims, and whether that is the image.
//!
//! cosign's "simple signing": the payload is a JSON document of the format that Red Hat's simple
//! signing defines (containers/image, docs/containers-signature.5.md; cosign,
//! specs/SIGNATURE_SPEC.md), the signature is an annotation of the layer that has it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::key::Key;
use super::rules::Scope;
use crate::{Digest, Reference};

/// What `critical.type` has to be.
const TYPE: &str = "cosign container image signature";

/// A signature as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The bytes that were signed, or why there are none.
    pub payload: Result<Vec<u8>, Flaw>,
    /// The annotation `dev.cosignproject.cosign/signature`.
    pub base64: Option<String>,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Something else is stored beside the signatures.
    #[error("it is of media type {0:?}, not a simple signing payload")]
    MediaType(String),
    /// The payload is larger than any should be.
    #[error("its payload has {size} bytes, at most {allowed} are allowed")]
    TooLarge {
        /// As the manifest says.
        size: u64,
        /// The limit.
        allowed: u64,
    },
    /// The payload is not what the manifest names.
    #[error("its payload is damaged: it has digest {got}, the manifest says {expected}")]
    Damaged {
        /// As the manifest says.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// There is a payload and no signature.
    #[error("it has no annotation dev.cosignproject.cosign/signature")]
    NoSignature,
    /// The annotation is not base64.
    #[error("its signature is not base64: {0}")]
    NotBase64(String),
    /// None of the keys has made it.
    #[error("it was not made with any of the keys")]
    OtherKey,
    /// It was made with a key, over something that is no payload.
    #[error("its payload is not understood: {0}")]
    NotUnderstood(String),
    /// It was made with a key, for something else than an image.
    #[error("it is of type {0:?}, not {TYPE:?}")]
    OtherType(String),
    /// It was made with a key, for another image.
    #[error("it is for {0}")]
    OtherDigest(String),
    /// It was made with a key, for another repository.
    #[error("it is for an image of {signed:?}, not of {wanted}")]
    OtherRepository {
        /// What the payload says.
        signed: String,
        /// What it should be.
        wanted: String,
    },
}

// Members that are not known must not be passed over inside of `critical`
// (containers-signature.5.md, "critical"); a member that is there twice is an error of serde's.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

impl Signature {
    /// The key that has signed this image of this repository. Nothing is believed of the payload
    /// before a key vouches for it.
    pub(super) fn key<'a>(
        &self,
        reference: &Reference,
        digest: &Digest,
        signed_as: Option<&Scope>,
        keys: &[&'a Key],
    ) -> Result<&'a Key, Flaw> {
        let payload = self.payload.as_ref().map_err(Clone::clone)?;
        let base64 = self.base64.as_ref().ok_or(Flaw::NoSignature)?;
        let signature = STANDARD
            .decode(base64)
            .map_err(|error| Flaw::NotBase64(error.to_string()))?;
        let key = keys
            .iter()
            .find(|key| {
                key.key
                    .as_ref()
                    .is_ok_and(|key| key.has_signed(payload, &signature))
            })
            .ok_or(Flaw::OtherKey)?;
        let Payload { critical } = serde_json::from_slice(payload)
            .map_err(|error| Flaw::NotUnderstood(error.to_string()))?;
        if critical.kind != TYPE {
            return Err(Flaw::OtherType(critical.kind));
        }
        if critical.image.docker_manifest_digest != digest.as_str() {
            return Err(Flaw::OtherDigest(critical.image.docker_manifest_digest));
        }
        let signed = critical.identity.docker_reference;
        let is_wanted = signed
            .parse::<Reference>()
            .is_ok_and(|signed| match signed_as {
                Some(scope) => scope.covers(&signed),
                None => {
                    signed.registry() == reference.registry()
                        && signed.repository() == reference.repository()
                }
            });
        // cosign leaves this to the digest alone, which `*` does as well.
        if is_wanted || signed_as.is_some_and(Scope::is_everything) {
            return Ok(key);
        }
        Err(Flaw::OtherRepository {
            signed,
            wanted: match signed_as {
                Some(scope) => scope.to_string(),
                None => format!("{}/{}", reference.registry(), reference.repository()),
            },
        })
    }
}
