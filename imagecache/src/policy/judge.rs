//! The decision: from a policy, a name, a digest and what was found of signatures to yes or no.

use std::fmt;
use std::path::PathBuf;

use super::claims::{Flaw, Signature};
use super::key::Key;
use super::rules::{Default, Policy, Rule, Verdict};
use crate::{Digest, Reference, Retry};

/// Keys and signatures for one image.
#[derive(Debug, std::default::Default)]
pub struct Found {
    /// All keys of the rule.
    pub keys: Vec<Key>,
    /// All signatures of the digest.
    pub signatures: Vec<Signature>,
}

/// Why an image may be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// No rule is for it, and the default is to allow.
    ByDefault,
    /// The rule with this scope.
    ByRule(String),
    /// The rule with this scope, and a signature by the key in this file.
    BySignature {
        /// The rule's scope.
        scope: String,
        /// The key's file.
        key: PathBuf,
        /// The signature.
        signature: Box<Signature>,
    },
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByDefault => f.write_str("no rule of the image policy is for it"),
            Self::ByRule(scope) => write!(f, "the rule for {scope} allows it"),
            Self::BySignature { scope, key, .. } => {
                write!(
                    f,
                    "the rule for {scope} allows it, signed with {}",
                    key.display()
                )
            }
        }
    }
}

/// Why an image may not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No rule is for it.
    #[error(
        "the image policy refuses {reference}: no rule is for it, and the default is deny; there are rules for {scopes}"
    )]
    NotListed {
        /// The image.
        reference: String,
        /// Scopes of the rules.
        scopes: String,
    },
    /// A rule is against it.
    #[error("the image policy refuses {reference}: the rule for {scope} denies it")]
    Denied {
        /// The image.
        reference: String,
        /// Scope of the rule.
        scope: String,
    },
    /// It has to be named by digest.
    #[error(
        "the image policy refuses {reference}: the rule for {scope} wants a digest (NAME@sha256:…), and none was given"
    )]
    NoDigest {
        /// The image.
        reference: String,
        /// Scope of the rule.
        scope: String,
    },
    /// Nobody whose key counts has signed it.
    #[error(
        "the image policy refuses {reference}: the rule for {scope} wants {digest} signed: {why}"
    )]
    Unsigned {
        /// The image.
        reference: String,
        /// Scope of the rule.
        scope: String,
        /// What should have been signed.
        digest: Digest,
        /// What was found instead.
        why: Box<Unsigned>,
    },
    /// Signatures could not be fetched.
    #[error(
        "the image policy refuses {reference}: the rule for {scope} wants {digest} signed, and {what} could not be fetched"
    )]
    Unavailable {
        /// The image.
        reference: String,
        /// Scope of the rule.
        scope: String,
        /// What should have been signed.
        digest: Digest,
        /// What was asked for.
        what: String,
        /// Whether trying again can help.
        retry: Retry,
        /// Why it was not there.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Refusal {
    /// Whether the same call can succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { retry, .. } => *retry,
            _ => Retry::Never,
        }
    }
}

/// What was found instead of a signature that counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// None at all.
    #[error("there is no signature (tag {0})")]
    Nothing(String),
    /// Something where the signatures should be.
    #[error("what is at tag {tag} is no list of signatures: {why}")]
    NotUnderstood {
        /// The tag.
        tag: String,
        /// What is wrong with it.
        why: String,
    },
    /// More than are looked at.
    #[error("there are {found} signatures, at most {allowed} are looked at")]
    TooMany {
        /// How many.
        found: usize,
        /// The limit.
        allowed: usize,
    },
    /// None that counts; a sentence for each of the keys that cannot be used, and for each
    /// signature, in order.
    #[error("{}", sentences(keys, signatures))]
    NoneCounts {
        /// Keys that cannot be used, and why.
        keys: Vec<String>,
        /// Why each signature does not count.
        signatures: Vec<Flaw>,
    },
}

fn sentences(keys: &[String], signatures: &[Flaw]) -> String {
    let count = signatures.len();
    let mut all = keys.to_vec();
    for (number, flaw) in (1..).zip(signatures) {
        all.push(format!("signature {number} of {count}: {flaw}"));
    }
    all.join("; ")
}

/// What is left to be shown when a rule was found.
pub(super) enum Demand<'a> {
    Nothing(Allowed),
    Signature(&'a Rule),
}

/// What `policy` wants to see of an image before it may be pulled.
pub(super) fn demand<'a>(policy: &'a Policy, reference: &Reference) -> Result<Demand<'a>, Refusal> {
    let name = reference.to_string();
    let Some(rule) = policy.rule(reference) else {
        return match policy.default {
            Default::Allow => Ok(Demand::Nothing(Allowed::ByDefault)),
            Default::Deny => Err(Refusal::NotListed {
                reference: name,
                scopes: scopes(policy),
            }),
        };
    };
    let scope = rule.scope.to_string();
    if rule.verdict == Verdict::Deny {
        return Err(Refusal::Denied {
            reference: name,
            scope,
        });
    }
    if rule.require_digest && reference.digest().is_none() {
        return Err(Refusal::NoDigest {
            reference: name,
            scope,
        });
    }
    Ok(match rule.keys.is_empty() {
        true => Demand::Nothing(Allowed::ByRule(scope)),
        false => Demand::Signature(rule),
    })
}

fn scopes(policy: &Policy) -> String {
    let scopes: Vec<_> = policy.rules.iter().map(|r| r.scope.to_string()).collect();
    match scopes.is_empty() {
        true => "nothing".to_owned(),
        false => scopes.join(", "),
    }
}

/// Decides whether `reference`, which is `digest`, may be pulled. `digest` is what the name leads
/// to: that of the index when the image is for several platforms, as cosign signs it. `found` is
/// looked at when the rule wants a signature.
pub fn judge(
    policy: &Policy,
    reference: &Reference,
    digest: &Digest,
    found: &Found,
) -> Result<Allowed, Refusal> {
    let rule = match demand(policy, reference)? {
        Demand::Nothing(allowed) => return Ok(allowed),
        Demand::Signature(rule) => rule,
    };
    let unsigned = |why| Refusal::Unsigned {
        reference: reference.to_string(),
        scope: rule.scope.to_string(),
        digest: digest.clone(),
        why: Box::new(why),
    };
    if found.signatures.is_empty() {
        return Err(unsigned(Unsigned::Nothing(tag(digest))));
    }
    // Keys of another rule do not count, whoever brought them.
    let of_rule = |key: &&Key| rule.keys.contains(&key.path);
    let keys: Vec<&Key> = found.keys.iter().filter(of_rule).collect();
    let mut flaws = Vec::with_capacity(found.signatures.len());
    for signature in &found.signatures {
        match signature.key(reference, digest, rule.signed_as.as_ref(), &keys) {
            Ok(key) => {
                return Ok(Allowed::BySignature {
                    scope: rule.scope.to_string(),
                    key: key.path.clone(),
                    signature: Box::new(signature.clone()),
                });
            }
            Err(flaw) => flaws.push(flaw),
        }
    }
    let keys = keys.iter().filter_map(|key| match &key.key {
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    });
    Err(unsigned(Unsigned::NoneCounts {
        keys: keys.collect(),
        signatures: flaws,
    }))
}

/// Where the signatures of a digest are, in the repository of the image (cosign,
/// specs/SIGNATURE_SPEC.md, "Tag-based discovery").
pub(super) fn tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}
