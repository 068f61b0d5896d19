//! `[images]`: the proxy of registries and the policy.

use imagecache::fetch::ProxySettings;
use imagecache::policy::{Default as Otherwise, Policy, PolicySettings, RuleSettings, Verdict};
use url::Url;

use super::check::Check;
use super::fragment;
use crate::document::shown;

/// The value of `images.proxy` for none at all.
const NONE: &str = "none";

pub(super) fn proxy(
    given: Option<String>,
    except: Option<Vec<String>>,
    check: &mut Check<'_>,
) -> ProxySettings {
    let is_url = given.as_deref().is_some_and(|given| given != NONE);
    if except.is_some() && !is_url {
        check.0.note(
            "images.no_proxy",
            "means nothing without a URL in images.proxy: set that, or NO_PROXY in the agent's environment",
        );
    }
    for (index, host) in except.iter().flatten().enumerate() {
        if host.is_empty() || host.contains(',') || host.contains(char::is_whitespace) {
            check.0.wrong(
                &format!("images.no_proxy[{index}]"),
                shown(host),
                "a host, a domain like .lan, or a network like 10.0.0.0/8",
            );
        }
    }
    let Some(given) = given else {
        return ProxySettings::Environment;
    };
    if given == NONE {
        return ProxySettings::Direct;
    }
    let allowed = "http://host:port or https://host:port, or none; with a password: HTTPS_PROXY in the environment of the agent, which others do not read";
    match given.parse::<Url>() {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            // The value has a secret in it.
            check.0.wrong("images.proxy", "a URL with a user", allowed);
        }
        Ok(url)
            if matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some()
                && matches!(url.path(), "" | "/")
                && url.query().is_none()
                && url.fragment().is_none() => {}
        _ => check.0.wrong("images.proxy", shown(&given), allowed),
    }
    ProxySettings::Url {
        url: given,
        except: except.unwrap_or_default().join(","),
    }
}

pub(super) fn policy(given: fragment::ImagePolicy, check: &mut Check<'_>) -> PolicySettings {
    let default = given.default.and_then(|given| {
        let default = match given.as_str() {
            "allow" => Some(Otherwise::Allow),
            "deny" => Some(Otherwise::Deny),
            _ => None,
        };
        if default.is_none() {
            let field = "images.policy.default";
            check.0.wrong(field, shown(&given), "allow, deny");
        }
        default
    });
    let rules: Vec<fragment::ImageRule> = given.rules.unwrap_or_default();
    // What stands for a scope that is missing would be in the way of the next rule.
    let is_whole = rules.iter().all(|rule| rule.scope.is_some());
    let rules = rules.into_iter().enumerate();
    let rules = rules.map(|(index, given)| rule(index, given, check));
    let settings = PolicySettings {
        default,
        rules: rules.collect(),
    };
    if is_whole && let Err(wrong) = Policy::new(&settings) {
        let index = wrong.rule.saturating_sub(1);
        let field = format!("images.policy.rules[{index}].{}", wrong.field);
        check.0.note(&field, wrong.why);
    }
    settings
}

fn rule(index: usize, given: fragment::ImageRule, check: &mut Check<'_>) -> RuleSettings {
    let field = |name: &str| format!("images.policy.rules[{index}].{name}");
    if given.scope.is_none() {
        let allowed = "required: *, REGISTRY or REGISTRY/REPOSITORY, for example ghcr.io/team";
        check.0.note(&field("scope"), allowed);
    }
    let verdict = match given.verdict.as_deref() {
        None | Some("allow") => Verdict::Allow,
        Some("deny") => Verdict::Deny,
        Some(other) => {
            let field = field("verdict");
            check.0.wrong(&field, shown(other), "allow, deny");
            Verdict::Deny
        }
    };
    if given.require_signature.as_ref().is_some_and(Vec::is_empty) {
        let allowed = "at least one file with a public key; no signature is wanted without the key require_signature";
        let field = field("require_signature");
        check.0.wrong(&field, "an empty list", allowed);
    }
    RuleSettings {
        scope: given.scope.unwrap_or_else(|| "*".to_owned()),
        verdict,
        require_digest: given.require_digest.unwrap_or(false),
        require_signature: check.paths(&field("require_signature"), given.require_signature),
        signed_as: given.signed_as,
    }
}
