//! What an app asks for beyond what every container has, against what this host allows:
//! capabilities, priorities, sysctls, limits, seccomp profiles. Looked at when an app is applied, and again
//! whenever a container is made.

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;

use super::trusted::{self, Place, Readers, TrustedError};
use crate::app::{App, CapabilitySet, Conduct, SAFE_SYSCTLS, Seccomp, Ulimit};
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

/// Capabilities, priorities, sysctls and limits that this host does not allow.
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
    let own = ("spec".to_owned(), &app.conduct, &app.ulimits);
    let agents = app.agents.iter().enumerate().map(|(index, agent)| {
        let field = format!("spec.agents[{index}]");
        (field, &agent.conduct, &agent.ulimits)
    });
    for (field, conduct, ulimits) in std::iter::once(own).chain(agents) {
        findings.extend(priority(&field, conduct, allowed, facts));
        let beyond = |limit| beyond_host(&field, limit, facts);
        findings.extend(ulimits.iter().filter_map(beyond));
    }
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

/// Priorities before those of the host's other processes, which the host has to allow, and the
/// runtime to be able to give.
fn priority(
    field: &str,
    conduct: &Conduct,
    allowed: CapabilitySet,
    facts: &HostFacts,
) -> Vec<Finding> {
    let (nice, score) = (conduct.nice.map(i16::from), conduct.oom_score_adj);
    let mut findings = Vec::new();
    for (name, given, highest, capability) in [
        ("nice", nice, 19, "SYS_NICE"),
        ("oomScoreAdj", score, 1000, "SYS_RESOURCE"),
    ] {
        let Some(given) = given.filter(|given| *given < 0) else {
            continue;
        };
        let why = if !allowed.has(capability) {
            format!("less where security.allowed_capabilities names {capability}")
        } else if !facts.gives.has(capability) {
            format!("less needs {capability}, which nothing on this host has")
        } else {
            continue;
        };
        findings.push(Finding::new(
            format!("{field}.{name}"),
            Some(given.to_string()),
            format!("on this host 0 to {highest}; {why}"),
        ));
    }
    findings
}

fn beyond_host(field: &str, limit: &Ulimit, facts: &HostFacts) -> Option<Finding> {
    let highest = facts.hard_limit(limit.resource);
    (limit.hard > highest).then(|| {
        let given = match limit.hard {
            u64::MAX => "-1".to_owned(),
            hard => hard.to_string(),
        };
        let field = format!("{field}.ulimits.{}.hard", limit.name);
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

    #[test]
    fn a_priority_before_others_needs_the_host_and_the_runtime() {
        let conduct = Conduct {
            nice: Some(-1),
            oom_score_adj: Some(-2),
            ..Conduct::default()
        };
        let facts = HostFacts::detect();
        let with = |gives: CapabilitySet, allowed: CapabilitySet| {
            let facts = HostFacts { gives, ..facts };
            let findings = priority("spec", &conduct, allowed, &facts);
            findings.iter().map(Finding::to_string).collect::<Vec<_>>()
        };
        assert_eq!(with(CapabilitySet::ALL, CapabilitySet::ALL), [""; 0]);
        assert_eq!(
            with(CapabilitySet::NONE, CapabilitySet::ALL),
            [
                "spec.nice: -1 is not allowed; allowed: on this host 0 to 19; less needs SYS_NICE, which nothing on this host has",
                "spec.oomScoreAdj: -2 is not allowed; allowed: on this host 0 to 1000; less needs SYS_RESOURCE, which nothing on this host has",
            ]
        );
        let refused = with(CapabilitySet::ALL, CapabilitySet::NONE);
        assert!(
            refused[1].ends_with("less where security.allowed_capabilities names SYS_RESOURCE")
        );
        let lower = Conduct {
            nice: Some(1),
            oom_score_adj: Some(0),
            ..conduct
        };
        let none = CapabilitySet::NONE;
        assert_eq!(priority("spec", &lower, none, &facts), []);
    }
}
