//! What an app asks for beyond what every container has, against what this host allows:
//! capabilities, sysctls, limits, seccomp profiles. Looked at when an app is applied, and again
//! whenever a container is made.

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;

use super::trusted::{self, Place, Readers, TrustedError};
use crate::app::{App, CapabilitySet, SAFE_SYSCTLS, Seccomp, Ulimit};
use crate::chain::chain;
use crate::config::Settings;
use crate::document::Finding;
use crate::instance::Failure;
use crate::instance::spec::HostFacts;

/// Why a seccomp profile cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
    /// The file.
    #[error(transparent)]
    File(#[from] TrustedError),
    /// It is no profile.
    #[error("{} is no seccomp profile of the OCI runtime specification", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Everything that `app` asks for and this host does not allow.
pub(super) fn check(app: &App, settings: &Settings, facts: &HostFacts) -> Vec<Finding> {
    let mut findings = beyond(app, settings, facts);
    findings.extend(profile(app, settings).err());
    findings
}

/// Capabilities, sysctls and limits that this host does not allow.
fn beyond(app: &App, settings: &Settings, facts: &HostFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let allowed = settings.security.allowed_capabilities;
    let beyond = app.security.capabilities;
    let beyond = beyond.without(CapabilitySet::STANDARD).without(allowed);
    if beyond != CapabilitySet::NONE {
        let more = match allowed {
            CapabilitySet::NONE => "security.allowed_capabilities names none beside".to_owned(),
            allowed => format!("and {allowed} (security.allowed_capabilities)"),
        };
        findings.push(Finding::new(
            "spec.securityContext.capabilities.add",
            Some(beyond.to_string()),
            format!("on this host {}; {more}", CapabilitySet::STANDARD),
        ));
    }
    for (index, (name, _)) in app.security.sysctls.iter().enumerate() {
        if !is_allowed(name, &settings.security.allowed_sysctls) {
            findings.push(Finding::new(
                format!("spec.securityContext.sysctls[{index}].name"),
                Some(format!("{name:?}")),
                format!(
                    "on this host {}, and what security.allowed_sysctls names: {}",
                    SAFE_SYSCTLS.join(", "),
                    match settings.security.allowed_sysctls.as_slice() {
                        [] => "nothing".to_owned(),
                        named => named.join(", "),
                    }
                ),
            ));
        }
    }
    findings.extend(
        app.ulimits
            .iter()
            .filter_map(|limit| beyond_host(limit, facts)),
    );
    findings
}

/// The seccomp profile of an app that names one, where everything it asks for is still allowed.
pub(super) fn prepare(
    app: &App,
    settings: &Settings,
    facts: &HostFacts,
) -> Result<Option<LinuxSeccomp>, Failure> {
    let refused = |finding: &Finding| Failure::new("not_allowed", finding.to_string());
    match beyond(app, settings, facts).first() {
        Some(finding) => Err(refused(finding)),
        None => profile(app, settings).map_err(|finding| refused(&finding)),
    }
}

/// The profile, or why its field is refused.
fn profile(app: &App, settings: &Settings) -> Result<Option<LinuxSeccomp>, Finding> {
    seccomp_profile(app, settings).map_err(|error| {
        let field = "spec.securityContext.seccompProfile.localhostProfile";
        Finding::new(field, None, chain(&error))
    })
}

/// Patterns end in `*` or name one.
fn is_allowed(name: &str, allowed: &[String]) -> bool {
    let matches = |pattern: &String| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    };
    SAFE_SYSCTLS.contains(&name) || allowed.iter().any(matches)
}

fn beyond_host(limit: &Ulimit, facts: &HostFacts) -> Option<Finding> {
    let highest = facts.hard_limit(limit.resource);
    (limit.hard > highest).then(|| {
        let given = match limit.hard {
            u64::MAX => "-1".to_owned(),
            hard => hard.to_string(),
        };
        let field = format!("spec.ulimits.{}.hard", limit.name);
        let allowed = format!("at most {highest}, which is as high as containers get on this host");
        Finding::new(field, Some(given), allowed)
    })
}

/// The profile of an app that names a file; `None` for every other.
fn seccomp_profile(app: &App, settings: &Settings) -> Result<Option<LinuxSeccomp>, ProfileError> {
    let Seccomp::Localhost(name) = &app.security.seccomp else {
        return Ok(None);
    };
    let directory = &settings.security.seccomp_profiles;
    let path = directory.join(name);
    let place = Place::Below {
        directories: std::slice::from_ref(directory),
        key: "security.seccomp_profiles",
    };
    let text = trusted::read(&path.to_string_lossy(), place, Readers::Anybody)?;
    parsed(&path, &text).map(Some)
}

fn parsed(path: &Path, text: &[u8]) -> Result<LinuxSeccomp, ProfileError> {
    serde_json::from_slice(text).map_err(|source| ProfileError::Format {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_allows_what_it_begins() {
        let allowed = ["net.core.somaxconn".to_owned(), "kernel.msg*".to_owned()];
        for (name, expected) in [
            ("net.core.somaxconn", true),
            ("net.core.somaxconn2", false),
            ("kernel.msgmax", true),
            ("kernel.sem", false),
            ("net.ipv4.tcp_syncookies", true),
        ] {
            assert_eq!(is_allowed(name, &allowed), expected, "{name}");
        }
    }
}
