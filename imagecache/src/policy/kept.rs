//! A signature that counted, kept beside the image: what is here is judged again without its
//! registry, by the policy and the keys of the day.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::claims::Signature;
use super::judge::{Allowed, Demand, Found, Refusal, demand, judge};
use super::key::Key;
use super::rules::Policy;
use crate::{Digest, Reference};

/// A signature and what it signs, as it was found. Worth nothing until a key vouches for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSignature {
    /// The payload, in base64.
    payload: String,
    /// The signature, in base64, as its annotation has it.
    signature: String,
}

impl KeptSignature {
    /// Of one that counted; none of one that could not.
    pub(crate) fn of(signature: &Signature) -> Option<Self> {
        Some(Self {
            payload: STANDARD.encode(signature.payload.as_ref().ok()?),
            signature: signature.base64.clone()?,
        })
    }

    fn signature(&self) -> Option<Signature> {
        Some(Signature {
            payload: Ok(STANDARD.decode(&self.payload).ok()?),
            base64: Some(self.signature.clone()),
        })
    }
}

/// Whether an image of this name may be had at all, as far as the name tells: what can be said
/// before anybody is asked.
pub fn judge_name(policy: &Policy, reference: &Reference) -> Result<(), Refusal> {
    demand(policy, reference).map(drop)
}

/// Whether `reference`, which is `digest` and is here, may be used by what was kept. None when its
/// registry has to be asked for a signature: see [`super::check`].
pub fn judge_kept(
    policy: &Policy,
    reference: &Reference,
    digest: &Digest,
    kept: Option<&KeptSignature>,
) -> Result<Option<Allowed>, Refusal> {
    let rule = match demand(policy, reference)? {
        Demand::Nothing(allowed) => return Ok(Some(allowed)),
        Demand::Signature(rule) => rule,
    };
    let Some(signature) = kept.and_then(KeptSignature::signature) else {
        return Ok(None);
    };
    let found = Found {
        keys: rule.keys.iter().map(|path| Key::read(path)).collect(),
        signatures: vec![signature],
    };
    // Another one may be in the registry by now.
    Ok(judge(policy, reference, digest, &found).ok())
}
