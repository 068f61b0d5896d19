//! Rules as the operator writes them: each for a scope of repositories, the first that fits counts.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Reference;

/// What becomes of images that no rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// They may be pulled.
    Allow,
    /// They may not.
    Deny,
}

/// What a rule says of the images in its scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, std::default::Default)]
pub enum Verdict {
    /// They may be pulled when they meet the rule's conditions.
    #[default]
    Allow,
    /// They may not be pulled.
    Deny,
}

/// The policy as it is written.
#[derive(Debug, Clone, PartialEq, Eq, std::default::Default)]
pub struct PolicySettings {
    /// For what no rule is for. When nothing is said: everything is allowed as long as there are no
    /// rules, and nothing but what they name when there are.
    pub default: Option<Default>,
    /// In order: the first whose scope an image is in decides.
    pub rules: Vec<RuleSettings>,
}

/// A rule as it is written.
#[derive(Debug, Clone, PartialEq, Eq, std::default::Default)]
pub struct RuleSettings {
    /// `*`, a registry, or a registry and the beginning of a repository: see [`Scope`].
    pub scope: String,
    /// What it says.
    pub verdict: Verdict,
    /// Images have to be named by digest.
    pub require_digest: bool,
    /// Files with public keys (PEM, ECDSA on P-256), one of which has to have signed; none: no
    /// signature is wanted.
    pub require_signature: Vec<PathBuf>,
    /// The scope that signatures have to be made for, when it is not the image's own repository:
    /// copies keep the signatures of what they were copied from.
    pub signed_as: Option<String>,
}

/// A policy that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule} of the image policy: {field} {why}")]
pub struct InvalidPolicy {
    /// Its place, from 1.
    pub rule: usize,
    /// The field.
    pub field: &'static str,
    /// What is wrong with it, with its value, and what is allowed.
    pub why: String,
}

/// Repositories that begin alike: whole components, so that `ghcr.io/team` is not `ghcr.io/teams`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// As written; empty for everything.
    text: String,
}

impl Scope {
    /// Whether the repository of `reference` is in it. Names are full ones: `busybox` is
    /// `docker.io/library/busybox`.
    pub fn covers(&self, reference: &Reference) -> bool {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        self.covers_name(&name)
    }

    pub(super) fn is_everything(&self) -> bool {
        self.text.is_empty()
    }

    fn is_within(&self, other: &Self) -> bool {
        other.covers_name(&self.text)
    }

    fn covers_name(&self, name: &str) -> bool {
        self.text.is_empty()
            || name
                .strip_prefix(&self.text)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() {
            "*"
        } else {
            &self.text
        })
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            let text = String::new();
            return Ok(Self { text });
        }
        let refuse = |why: &str| {
            Err(format!(
                "{text:?} is no scope ({why}): `*`, REGISTRY or REGISTRY/REPOSITORY are allowed, for example ghcr.io/team"
            ))
        };
        let (registry, path) = text.split_once('/').unwrap_or((text, ""));
        let is_registry = registry == "localhost" || registry.contains(['.', ':']);
        if !is_registry || text.ends_with('/') || text.contains('*') {
            return refuse("it has to begin with a registry and to end with a whole name");
        }
        // Asked of whoever knows: a scope is what an image of this name could be in.
        let probe = match path {
            "" => format!("{registry}/probe/probe"),
            path => format!("{registry}/{path}/probe"),
        };
        match probe.parse::<Reference>() {
            Ok(probe) if !path.contains([':', '@']) => {
                let registry = probe.registry();
                let text = match path {
                    "" => registry.to_owned(),
                    path => format!("{registry}/{path}"),
                };
                Ok(Self { text })
            }
            _ => refuse("that is no name of a repository"),
        }
    }
}

/// A rule that was found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub scope: Scope,
    pub verdict: Verdict,
    pub require_digest: bool,
    pub keys: Vec<PathBuf>,
    pub signed_as: Option<Scope>,
}

/// What may be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub(super) default: Default,
    pub(super) rules: Vec<Rule>,
}

impl Policy {
    /// The policy that lets everything in.
    pub fn everything() -> Self {
        Self {
            default: Default::Allow,
            rules: Vec::new(),
        }
    }

    /// Checks what was written.
    pub fn new(settings: &PolicySettings) -> Result<Self, InvalidPolicy> {
        let mut rules: Vec<Rule> = Vec::with_capacity(settings.rules.len());
        for (index, written) in settings.rules.iter().enumerate() {
            let refuse = |field, why| InvalidPolicy {
                rule: index + 1,
                field,
                why,
            };
            let rule = rule(written, &refuse)?;
            let before = rules
                .iter()
                .position(|before| rule.scope.is_within(&before.scope));
            if let Some(before) = before {
                let why = format!(
                    "{} is never reached: rule {} for {} comes first, and the first that fits counts",
                    rule.scope,
                    before + 1,
                    rules[before].scope
                );
                return Err(refuse("scope", why));
            }
            rules.push(rule);
        }
        let default = settings.default.unwrap_or(if rules.is_empty() {
            Default::Allow
        } else {
            Default::Deny
        });
        Ok(Self { default, rules })
    }

    pub(super) fn rule(&self, reference: &Reference) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.scope.covers(reference))
    }
}

fn rule(
    written: &RuleSettings,
    refuse: &impl Fn(&'static str, String) -> InvalidPolicy,
) -> Result<Rule, InvalidPolicy> {
    let scope = written
        .scope
        .parse()
        .map_err(|why: String| refuse("scope", why))?;
    let is_signed = !written.require_signature.is_empty();
    if written.verdict == Verdict::Deny && (written.require_digest || is_signed) {
        let why = "is deny, so require_digest and require_signature mean nothing: allow, or leave them out";
        return Err(refuse("verdict", why.to_owned()));
    }
    for path in &written.require_signature {
        if !path.is_absolute() {
            let why = format!("{path:?} is not an absolute path");
            return Err(refuse("require_signature", why));
        }
    }
    let signed_as = match &written.signed_as {
        None => None,
        Some(_) if !is_signed => {
            let why = "means nothing without require_signature";
            return Err(refuse("signed_as", why.to_owned()));
        }
        Some(scope) => Some(
            scope
                .parse()
                .map_err(|why: String| refuse("signed_as", why))?,
        ),
    };
    Ok(Rule {
        scope,
        verdict: written.verdict,
        require_digest: written.require_digest,
        keys: written.require_signature.clone(),
        signed_as,
    })
}
