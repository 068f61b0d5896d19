//! `[discovery.*]`: the backends, each on its own and held against each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::assemble::{MINUTE, up_to};
use super::check::Check;
use super::duration::spell;
use super::fragment;
use super::settings::*;
use crate::document::shown;

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn assemble(
    given: fragment::Discovery,
    paths: &Paths,
    check: &mut Check<'_>,
) -> Discovery {
    Discovery {
        file: file(given.file.unwrap_or_default(), paths, check),
        etcd: etcd(given.etcd.unwrap_or_default(), check),
    }
}

fn requirement(required: Option<bool>) -> Requirement {
    match required {
        Some(false) => Requirement::Optional,
        Some(true) | None => Requirement::Required,
    }
}

fn file(
    given: fragment::FileDiscovery,
    paths: &Paths,
    check: &mut Check<'_>,
) -> Option<FileDiscovery> {
    let default: PathBuf = Path::new(&paths.runtime).join("discovery");
    let file = FileDiscovery {
        requirement: requirement(given.required),
        directory: check.path("discovery.file.directory", given.directory, default),
        propagation_bound: check.duration(
            "discovery.file.propagation_bound",
            given.propagation_bound,
            5 * SECOND,
            up_to(60 * MINUTE),
        ),
    };
    given.enabled.unwrap_or(true).then_some(file)
}

/// What is given is checked, whether the backend is enabled or not.
fn etcd(given: fragment::EtcdDiscovery, check: &mut Check<'_>) -> Option<EtcdDiscovery> {
    let enabled = given.enabled.unwrap_or(false);
    if enabled && given.endpoints.is_none() {
        check.0.note(
            "discovery.etcd.endpoints",
            "required, because discovery.etcd.enabled is true: set endpoints = [\"http://host:2379\"]",
        );
    }
    let secured = given.ca_file.is_some();
    let endpoints = endpoints(given.endpoints, secured, check);
    let ttl = check.duration(
        "discovery.etcd.ttl",
        given.ttl,
        MINUTE,
        3 * SECOND..=60 * MINUTE,
    );
    if ttl.subsec_nanos() != 0 {
        check.0.wrong(
            "discovery.etcd.ttl",
            shown(&spell(ttl)),
            "whole seconds: etcd counts leases in them",
        );
    }
    // A renewal is due at a third of the TTL; what hangs longer would cost the lease.
    let third = ttl / 3;
    let mut timeout = |field, given, default: Duration| {
        let timeout = check.duration(
            field,
            given,
            default.min(third),
            Duration::from_millis(10)..=MINUTE,
        );
        if timeout > third {
            check.0.wrong(
                field,
                shown(&spell(timeout)),
                format!("at most a third of discovery.etcd.ttl, {}", spell(third)),
            );
        }
        timeout
    };
    let dial_timeout = timeout(
        "discovery.etcd.dial_timeout",
        given.dial_timeout,
        2 * SECOND,
    );
    let request_timeout = timeout(
        "discovery.etcd.request_timeout",
        given.request_timeout,
        5 * SECOND,
    );
    let etcd = EtcdDiscovery {
        requirement: requirement(given.required),
        endpoints,
        prefix: prefix(given.prefix, check),
        ttl,
        dial_timeout,
        request_timeout,
        propagation_bound: check.duration(
            "discovery.etcd.propagation_bound",
            given.propagation_bound,
            5 * SECOND,
            up_to(60 * MINUTE),
        ),
        user: user(given.username, given.password_file, check),
        tls: tls(given.ca_file, given.cert_file, given.key_file, check),
    };
    enabled.then_some(etcd)
}

fn endpoints(given: Option<Vec<String>>, secured: bool, check: &mut Check<'_>) -> Vec<String> {
    let given = given.unwrap_or_else(|| vec!["http://127.0.0.1:2379".to_owned()]);
    if given.is_empty() {
        check.0.wrong(
            "discovery.etcd.endpoints",
            "an empty list",
            "at least one URL, for example [\"http://127.0.0.1:2379\"]",
        );
    }
    for (index, endpoint) in given.iter().enumerate() {
        let field = format!("discovery.etcd.endpoints[{index}]");
        let (scheme, authority) = endpoint.split_once("://").unwrap_or(("", endpoint));
        if !matches!(scheme, "http" | "https") || !is_authority(authority) {
            check.0.wrong(
                &field,
                shown(endpoint),
                "http://host:port or https://host:port without a path",
            );
        } else if secured != (scheme == "https") {
            check.0.wrong(
                &field,
                shown(endpoint),
                "https:// exactly when discovery.etcd.ca_file is set",
            );
        } else if given[..index].contains(endpoint) {
            check.0.wrong(
                &field,
                shown(endpoint),
                "each endpoint once; this one is listed before",
            );
        }
    }
    given
}

fn is_authority(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_ok = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&host.len())
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        }
    };
    host_ok && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn prefix(given: Option<String>, check: &mut Check<'_>) -> String {
    let prefix = given.unwrap_or_else(|| "/nodeagent".to_owned());
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let ok = prefix.len() <= 200
        && prefix
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(part));
    if !ok {
        check.0.wrong(
            "discovery.etcd.prefix",
            shown(&prefix),
            "1 to 200 characters: '/' and parts of letters, digits, '-', '_' and '.', for example /nodeagent",
        );
    }
    prefix
}

fn user(
    name: Option<String>,
    password_file: Option<String>,
    check: &mut Check<'_>,
) -> Option<EtcdUser> {
    let password_file = check.optional_path("discovery.etcd.password_file", password_file);
    if let Some(name) = &name
        && (name.is_empty() || name.len() > 256 || name.chars().any(char::is_control))
    {
        check.0.wrong(
            "discovery.etcd.username",
            shown(name),
            "1 to 256 characters without control characters",
        );
    }
    match (name, password_file) {
        (Some(name), Some(password_file)) => Some(EtcdUser {
            name,
            password_file,
        }),
        (None, None) => None,
        (Some(_), None) => {
            check.0.note(
                "discovery.etcd.password_file",
                "required with discovery.etcd.username: a file with the password, readable by root alone",
            );
            None
        }
        (None, Some(_)) => {
            check.0.note(
                "discovery.etcd.username",
                "required with discovery.etcd.password_file",
            );
            None
        }
    }
}

fn tls(
    ca_file: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    check: &mut Check<'_>,
) -> Option<EtcdTls> {
    let ca_file = check.optional_path("discovery.etcd.ca_file", ca_file);
    let cert_file = check.optional_path("discovery.etcd.cert_file", cert_file);
    let key_file = check.optional_path("discovery.etcd.key_file", key_file);
    let missing = match (&ca_file, &cert_file, &key_file) {
        (None, Some(_), _) | (None, _, Some(_)) => Some(("ca_file", "cert_file and key_file")),
        (Some(_), Some(_), None) => Some(("key_file", "cert_file")),
        (Some(_), None, Some(_)) => Some(("cert_file", "key_file")),
        _ => None,
    };
    if let Some((missing, given)) = missing {
        check.0.note(
            &format!("discovery.etcd.{missing}"),
            format!("required with {given} of discovery.etcd"),
        );
    }
    Some(EtcdTls {
        ca_file: ca_file?,
        identity: cert_file.zip(key_file),
    })
}
