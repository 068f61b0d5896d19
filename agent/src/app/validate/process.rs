//! Rules for what a process of a container is executed with: argv, environment, user.

use super::names;
use super::volumes::is_clean;
use crate::app::manifest::{self, NameValue, Scalar};
use crate::app::{EnvFile, User};
use crate::document::{Findings, shown};

/// The kernel refuses longer strings in execve(2) (`MAX_ARG_STRLEN`, 32 pages).
const MAX_STRING: usize = 128 * 1024 - 1;
const MAX_ENV_FILES: usize = 16;

/// argv strings: no NUL, not longer than the kernel takes.
pub(super) fn arguments(field: &str, list: &[String], findings: &mut Findings) {
    for (index, text) in list.iter().enumerate() {
        if text.contains('\0') || text.len() > MAX_STRING {
            findings.wrong(
                &format!("{field}[{index}]"),
                shown(text),
                "text without NUL, below 128 KiB",
            );
        }
    }
}

/// `env`: names may come twice, the later wins, as in Kubernetes.
pub(super) fn environment(
    field: &str,
    list: Option<Vec<NameValue>>,
    findings: &mut Findings,
) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for (index, pair) in list.unwrap_or_default().into_iter().enumerate() {
        let at = format!("{field}[{index}].name");
        let value = pair.value.unwrap_or_default();
        match &pair.name {
            None => findings.note(&at, format!("required: {}", names::ENV_NAME)),
            Some(name) if !names::is_env_name(name) => {
                findings.wrong(&at, shown(name), names::ENV_NAME);
            }
            Some(name) if names::is_reserved(name) => findings.wrong(
                &at,
                shown(name),
                "any name but NOTIFY_SOCKET, TRACEPARENT and NODEAGENT_*, which the agent sets",
            ),
            Some(_) => {}
        }
        if value.contains('\0') || value.len() > MAX_STRING {
            findings.wrong(
                &format!("{field}[{index}].value"),
                shown(&value),
                "text without NUL, below 128 KiB",
            );
        }
        env.push((pair.name.unwrap_or_default(), value));
    }
    env
}

/// `envFrom`.
pub(super) fn env_files(list: Vec<manifest::EnvFrom>, findings: &mut Findings) -> Vec<EnvFile> {
    const PATH: &str = "an absolute path without \".\", \"..\" or a trailing slash, below one of the host's security.allowed_env_file_paths";
    if list.len() > MAX_ENV_FILES {
        findings.wrong(
            "spec.envFrom",
            format!("a list of {}", list.len()),
            format!("at most {MAX_ENV_FILES}"),
        );
    }
    let mut files = Vec::new();
    for (index, given) in list.into_iter().enumerate() {
        let field = format!("spec.envFrom[{index}]");
        let prefix = given.prefix.unwrap_or_default();
        if !prefix.is_empty() && !names::is_env_name(&prefix) {
            findings.wrong(&format!("{field}.prefix"), shown(&prefix), names::ENV_NAME);
        }
        let at = format!("{field}.envFile.path");
        let Some(file) = given.env_file else {
            findings.note(&format!("{field}.envFile"), "required: the file to read");
            continue;
        };
        match &file.path {
            None => findings.note(&at, format!("required: {PATH}")),
            Some(path) if !is_clean(path) => findings.wrong(&at, shown(path), PATH),
            Some(_) => {}
        }
        files.push(EnvFile {
            path: file.path.unwrap_or_default(),
            prefix,
            optional: file.optional.unwrap_or(false),
        });
    }
    files
}

/// `uid`, `uid:gid`, `name` or `name:group`.
pub(super) fn user(field: &str, given: Option<Scalar>, findings: &mut Findings) -> Option<User> {
    let given = given?;
    let text = given.as_str();
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty()
        || !names::is_user(user)
        || group.is_some_and(|g| g.is_empty() || !names::is_user(g))
    {
        findings.wrong(field, shown(text), names::USER);
    }
    Some(User {
        user: user.to_owned(),
        group: group.map(str::to_owned),
    })
}
