//! Rules for `securityContext` and `ulimits`, as far as they do not depend on the host.

use std::collections::BTreeSet;

use super::volumes::is_clean;
use crate::app::manifest::security::{
    Capabilities, Limit, SeccompProfile, SeccompType, SecurityContext, Sysctl, Ulimits,
};
use crate::app::{
    Agent, CapabilitySet, NetworkMode, Seccomp, Security, Ulimit, User, is_namespaced,
};
use crate::document::{Findings, shown};

const FIELD: &str = "spec.securityContext";
const ID: &str = "0 to 4294967294; the kernel has no id beyond";
const PROFILE: &str =
    "a path below the host's security.seccomp_profiles, without a leading slash, \".\" and \"..\"";
const MAX: usize = 64;

/// `securityContext`, and the user that it names.
pub(super) fn security(
    given: SecurityContext,
    network: NetworkMode,
    findings: &mut Findings,
) -> (Security, Option<User>) {
    for (name, id) in [
        ("runAsUser", given.run_as_user),
        ("runAsGroup", given.run_as_group),
        ("fsGroup", given.fs_group),
    ] {
        if id == Some(u32::MAX) {
            findings.wrong(&format!("{FIELD}.{name}"), u32::MAX.to_string(), ID);
        }
    }
    if given.run_as_group.is_some() && given.run_as_user.is_none() {
        findings.note(
            &format!("{FIELD}.runAsGroup"),
            "only with runAsUser; spec.user takes a user and a group by name as well",
        );
    }
    let user = given.run_as_user.map(|uid| User {
        user: uid.to_string(),
        group: given.run_as_group.map(|gid| gid.to_string()),
    });
    let groups = given.supplemental_groups.unwrap_or_default();
    let at = format!("{FIELD}.supplementalGroups");
    if groups.len() > MAX {
        findings.wrong(
            &at,
            format!("a list of {}", groups.len()),
            format!("at most {MAX}"),
        );
    }
    for (index, group) in groups.iter().enumerate() {
        if *group == u32::MAX {
            findings.wrong(&format!("{at}[{index}]"), group.to_string(), ID);
        }
    }
    if given.privileged == Some(true) {
        findings.wrong(
            &format!("{FIELD}.privileged"),
            "true",
            "false: a privileged container has every device and every right of the host, so that nothing the agent promises about other instances would hold; name what is needed in capabilities.add",
        );
    }
    if let Some(mount) = given.proc_mount.filter(|mount| mount != "Default") {
        findings.wrong(
            &format!("{FIELD}.procMount"),
            shown(&mount),
            "Default: what the kernel tells in /proc about the host stays masked",
        );
    }
    let privilege_escalation = given.allow_privilege_escalation.unwrap_or(false);
    let security = Security {
        non_root: given.run_as_non_root.unwrap_or(false),
        supplemental_groups: groups,
        fs_group: given.fs_group,
        read_only_root: given.read_only_root_filesystem.unwrap_or(false),
        privilege_escalation,
        capabilities: capabilities(given.capabilities.unwrap_or_default(), findings),
        seccomp: seccomp(given.seccomp_profile, findings),
        sysctls: sysctls(given.sysctls.unwrap_or_default(), network, findings),
    };
    if security.capabilities.has("SYS_ADMIN") && given.allow_privilege_escalation == Some(false) {
        findings.wrong(
            &format!("{FIELD}.allowPrivilegeEscalation"),
            "false",
            "true, or nothing, beside capabilities.add SYS_ADMIN, as in Kubernetes: who has SYS_ADMIN has no more to gain",
        );
    }
    (security, user)
}

/// Users that the manifest names, against `runAsNonRoot`.
pub(super) fn non_root(
    security: &Security,
    user: Option<&User>,
    agents: &[Agent],
    findings: &mut Findings,
) {
    if !security.non_root {
        return;
    }
    let of_agents = agents
        .iter()
        .any(|agent| agent.user.as_ref().is_some_and(User::is_root));
    if user.is_some_and(User::is_root) || of_agents {
        findings.wrong(
            &format!("{FIELD}.runAsNonRoot"),
            "true",
            "false, because the manifest has a process run as root",
        );
    }
}

/// `drop` wins over `add`, and a name over `ALL`, as in Kubernetes and containerd.
fn capabilities(given: Capabilities, findings: &mut Findings) -> CapabilitySet {
    let mut read = |name: &str, list: Vec<String>| {
        let (mut all, mut named) = (false, CapabilitySet::NONE);
        for (index, text) in list.iter().enumerate() {
            match CapabilitySet::named(text) {
                Some(one) => named = named.with(one),
                None if text == "ALL" => all = true,
                None => findings.wrong(
                    &format!("{FIELD}.capabilities.{name}[{index}]"),
                    shown(text),
                    "ALL, or a name of capabilities(7) without CAP_, for example NET_BIND_SERVICE",
                ),
            }
        }
        (all, named)
    };
    let (add_all, add) = read("add", given.add.unwrap_or_default());
    let (drop_all, drop) = read("drop", given.drop.unwrap_or_default());
    let base = match (add_all, drop_all) {
        (_, true) => CapabilitySet::NONE,
        (true, false) => CapabilitySet::ALL,
        (false, false) => CapabilitySet::STANDARD,
    };
    base.with(add).without(drop)
}

fn seccomp(given: Option<SeccompProfile>, findings: &mut Findings) -> Seccomp {
    let Some(given) = given else {
        return Seccomp::RuntimeDefault;
    };
    let field = format!("{FIELD}.seccompProfile");
    let at = format!("{field}.localhostProfile");
    let profile = given.localhost_profile;
    if given.kind != Some(SeccompType::Localhost) && profile.is_some() {
        findings.note(&at, "only with type: Localhost");
    }
    match given.kind {
        Some(SeccompType::RuntimeDefault) => Seccomp::RuntimeDefault,
        Some(SeccompType::Unconfined) => Seccomp::Unconfined,
        Some(SeccompType::Localhost) => {
            match &profile {
                None => findings.note(&at, format!("required with type: Localhost: {PROFILE}")),
                Some(path) if !is_clean(&format!("/{path}")) => {
                    findings.wrong(&at, shown(path), PROFILE);
                }
                Some(_) => {}
            }
            Seccomp::Localhost(profile.unwrap_or_default())
        }
        None => {
            findings.note(
                &format!("{field}.type"),
                "required: RuntimeDefault, Unconfined or Localhost",
            );
            Seccomp::RuntimeDefault
        }
    }
}

fn sysctls(
    list: Vec<Sysctl>,
    network: NetworkMode,
    findings: &mut Findings,
) -> Vec<(String, String)> {
    const NAME: &str = "a sysctl of a container's own namespaces: kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.* or net.*, with dots between its parts";
    let field = format!("{FIELD}.sysctls");
    if list.len() > MAX {
        findings.wrong(
            &field,
            format!("a list of {}", list.len()),
            format!("at most {MAX}"),
        );
    }
    let part = |part: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        !part.is_empty() && part.bytes().all(allowed)
    };
    let mut seen = BTreeSet::new();
    let mut sysctls = Vec::new();
    for (index, given) in list.into_iter().enumerate() {
        let at = format!("{field}[{index}].name");
        let name = given.name.unwrap_or_default();
        if name.is_empty() {
            findings.note(&at, format!("required: {NAME}"));
        } else if !name.split('.').all(part) || !is_namespaced(&name) {
            findings.wrong(&at, shown(&name), NAME);
        } else if network == NetworkMode::Host && name.starts_with("net.") {
            findings.wrong(
                &at,
                shown(&name),
                "nothing of net.* with network: host: it would be the host's",
            );
        } else if !seen.insert(name.clone()) {
            findings.wrong(&at, shown(&name), "a name that no other entry has");
        }
        let at = format!("{field}[{index}].value");
        let value = given.value.unwrap_or_default();
        if value.is_empty() {
            findings.note(&at, "required: a text, numbers in quotes");
        } else if value.len() > 1024 || value.chars().any(char::is_control) {
            findings.wrong(
                &at,
                shown(&value),
                "up to 1024 bytes without control characters",
            );
        }
        sysctls.push((name, value));
    }
    sysctls
}

/// `ulimits`, by number.
pub(super) fn ulimits(at: &str, given: Ulimits, findings: &mut Findings) -> Vec<Ulimit> {
    let named = [
        ("cpu", 0, given.cpu),
        ("fsize", 1, given.fsize),
        ("data", 2, given.data),
        ("stack", 3, given.stack),
        ("core", 4, given.core),
        ("rss", 5, given.rss),
        ("nproc", 6, given.nproc),
        ("nofile", 7, given.nofile),
        ("memlock", 8, given.memlock),
        ("locks", 10, given.locks),
        ("sigpending", 11, given.sigpending),
        ("msgqueue", 12, given.msgqueue),
        ("nice", 13, given.nice),
        ("rtprio", 14, given.rtprio),
        ("rttime", 15, given.rttime),
    ];
    let mut limits = Vec::new();
    for (name, resource, given) in named {
        let Some(given) = given else { continue };
        let field = format!("{at}.{name}");
        let Some(Limit(soft)) = given.soft else {
            findings.note(
                &format!("{field}.soft"),
                "required: a number, or -1 for unlimited",
            );
            continue;
        };
        let hard = given.hard.map_or(soft, |Limit(hard)| hard);
        if soft > hard {
            findings.wrong(
                &format!("{field}.soft"),
                shown_limit(soft),
                format!("at most the hard limit, {}", shown_limit(hard)),
            );
        }
        limits.push(Ulimit {
            name,
            resource,
            soft,
            hard,
        });
    }
    limits
}

fn shown_limit(limit: u64) -> String {
    match limit {
        u64::MAX => "-1 (unlimited)".to_owned(),
        limit => limit.to_string(),
    }
}
