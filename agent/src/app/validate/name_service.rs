//! Rules for `hostname`, `hostAliases`, `dnsPolicy` and `dnsConfig`. Limits are Kubernetes'
//! (`pkg/apis/core/validation`).

use std::net::IpAddr;

use super::names;
use crate::app::manifest;
use crate::app::{Dns, DnsOption, DnsPolicy, HostAlias, NetworkMode};
use crate::document::{Findings, shown};

const POLICY: &str = "Default (what the host uses) or None (dnsConfig alone); ClusterFirst asks the DNS service of a Kubernetes cluster, and this host is in none";
const MAX_ALIASES: usize = 256;
const MAX_OPTIONS: usize = 64;

/// `hostname`: one label, because instances have no domain.
pub(super) fn hostname(
    given: Option<String>,
    network: NetworkMode,
    findings: &mut Findings,
) -> Option<String> {
    let given = given?;
    if !names::is_dns_label(&given) {
        findings.wrong("spec.hostname", shown(&given), names::DNS_LABEL);
    } else if network == NetworkMode::Host {
        findings.note(
            "spec.hostname",
            "not with network: host: instances in the host's network have the host's name",
        );
    }
    Some(given)
}

/// `hostAliases`.
pub(super) fn aliases(list: Vec<manifest::HostAlias>, findings: &mut Findings) -> Vec<HostAlias> {
    if list.len() > MAX_ALIASES {
        findings.wrong(
            "spec.hostAliases",
            format!("a list of {}", list.len()),
            format!("at most {MAX_ALIASES}"),
        );
    }
    let mut aliases = Vec::new();
    for (index, given) in list.into_iter().enumerate() {
        let field = format!("spec.hostAliases[{index}]");
        let ip = match given.ip.as_deref() {
            None => {
                findings.note(&format!("{field}.ip"), "required: an IP address");
                None
            }
            Some(text) => address(&format!("{field}.ip"), text, findings),
        };
        let hostnames = given.hostnames.unwrap_or_default();
        let at = format!("{field}.hostnames");
        if hostnames.is_empty() {
            findings.note(&at, "required: the names that the address gets");
        }
        for (index, name) in hostnames.iter().enumerate() {
            if !names::is_dns_name(name) {
                findings.wrong(&format!("{at}[{index}]"), shown(name), names::DNS_NAME);
            }
        }
        aliases.extend(ip.map(|ip| HostAlias { ip, hostnames }));
    }
    aliases
}

/// `dnsPolicy` and `dnsConfig`.
pub(super) fn dns(
    policy: Option<&str>,
    config: manifest::DnsConfig,
    findings: &mut Findings,
) -> Dns {
    let policy = match policy {
        None | Some("Default") => DnsPolicy::Host,
        Some("None") => DnsPolicy::None,
        Some(other) => {
            findings.wrong("spec.dnsPolicy", shown(other), POLICY);
            DnsPolicy::Host
        }
    };
    let field = "spec.dnsConfig.nameservers";
    let given = config.nameservers.unwrap_or_default();
    if policy == DnsPolicy::None && given.is_empty() {
        findings.note(field, "required with dnsPolicy None: at least one address");
    }
    if given.len() > Dns::MAX_NAMESERVERS {
        findings.wrong(
            field,
            format!("a list of {}", given.len()),
            format!("at most {}", Dns::MAX_NAMESERVERS),
        );
    }
    let nameservers = given
        .iter()
        .enumerate()
        .filter_map(|(index, text)| address(&format!("{field}[{index}]"), text, findings))
        .collect();
    Dns {
        policy,
        nameservers,
        searches: searches(config.searches.unwrap_or_default(), findings),
        options: options(config.options.unwrap_or_default(), findings),
    }
}

fn address(field: &str, text: &str, findings: &mut Findings) -> Option<IpAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        findings.wrong(field, shown(text), "an IP address");
    }
    address
}

fn searches(searches: Vec<String>, findings: &mut Findings) -> Vec<String> {
    let field = "spec.dnsConfig.searches";
    if searches.len() > Dns::MAX_SEARCHES {
        findings.wrong(
            field,
            format!("a list of {}", searches.len()),
            format!("at most {}", Dns::MAX_SEARCHES),
        );
    }
    let characters = searches.join(" ").len();
    if characters > Dns::MAX_SEARCH_CHARACTERS {
        findings.wrong(
            field,
            format!("{characters} characters"),
            format!("at most {} characters together", Dns::MAX_SEARCH_CHARACTERS),
        );
    }
    for (index, domain) in searches.iter().enumerate() {
        let name = domain.strip_suffix('.').unwrap_or(domain);
        if domain != "." && !names::is_search_domain(name) {
            findings.wrong(
                &format!("{field}[{index}]"),
                shown(domain),
                names::SEARCH_DOMAIN,
            );
        }
    }
    searches
}

/// An option with a space or a line break would be more than one.
fn options(list: Vec<manifest::DnsOption>, findings: &mut Findings) -> Vec<DnsOption> {
    const WORD: &str = "letters, digits, '-', '_' and '.' (resolv.conf(5)), for example ndots";
    let field = "spec.dnsConfig.options";
    if list.len() > MAX_OPTIONS {
        findings.wrong(
            field,
            format!("a list of {}", list.len()),
            format!("at most {MAX_OPTIONS}"),
        );
    }
    let word = |text: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        (1..=64).contains(&text.len()) && text.bytes().all(allowed)
    };
    let mut options = Vec::new();
    for (index, given) in list.into_iter().enumerate() {
        let at = format!("{field}[{index}].name");
        match &given.name {
            None => findings.note(&at, format!("required: {WORD}")),
            Some(name) if !word(name) => findings.wrong(&at, shown(name), WORD),
            Some(_) => {}
        }
        let value = given.value.as_ref().map(manifest::Scalar::as_str);
        if let Some(value) = value.filter(|value| !word(value)) {
            findings.wrong(&format!("{field}[{index}].value"), shown(value), WORD);
        }
        options.push(DnsOption {
            name: given.name.unwrap_or_default(),
            value: value.map(str::to_owned),
        });
    }
    options
}
