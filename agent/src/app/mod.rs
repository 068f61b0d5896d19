//! An app: what a manifest describes, after validation.
//!
//! [`parse`] turns the text of a manifest (YAML or JSON) into an [`App`] with every default
//! applied, or into every reason why not. What YAML looks like stays in `manifest`; only [`App`]
//! leaves. The text is what the journal keeps: parsing it again gives the same app.
//!
//! Images are not looked up here, and nothing here knows the host; [`check_against`] compares an
//! app with the host's settings when it is applied.

mod capabilities;
mod conduct;
mod env_file;
mod manifest;
mod name_service;
pub(crate) mod quantity;
mod revision;
mod security;
mod signal;
mod types;
mod validate;

pub use capabilities::CapabilitySet;
pub use conduct::{AgentRestart, Conduct, Rewrite, SignalDelivery};
pub use env_file::{EnvFile, WrongLine, variables as env_variables};
pub use name_service::{Dns, DnsOption, DnsPolicy, HostAlias};
pub use revision::{Revision, manifest_hash, revision};
pub use security::{SAFE_SYSCTLS, Seccomp, Security, Ulimit, check_against_image, is_namespaced};
pub use signal::signal_number;
pub use types::*;

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::document::{Finding, Findings, from_yaml, read};

/// A manifest that changes nothing, because of every one of `findings`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// At least one, in the order of the text.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the manifest was refused")?;
        for finding in &self.findings {
            write!(f, "\n  {finding}")?;
        }
        Ok(())
    }
}

/// Reads and validates the text of one manifest, at most
/// [`MAX_BYTES`](crate::document::MAX_BYTES) of YAML or JSON.
///
/// # Errors
/// [`Refused`] with all mistakes that were found.
pub fn parse(text: &str) -> Result<App, Refused> {
    let root = from_yaml(text).map_err(|finding| Refused {
        findings: vec![finding],
    })?;
    let (shape, unread) = read::<manifest::Manifest>(&root);
    let mut findings = Findings::new(&root);
    findings.extend(unread);
    let app = shape.and_then(|shape| validate::app(shape, &mut findings));
    let findings = findings.finish();
    match app {
        Some(app) if findings.is_empty() => Ok(app),
        _ => Err(Refused { findings }),
    }
}

/// JSON Schema of a manifest.
pub fn schema() -> serde_json::Value {
    crate::document::schema::<manifest::Manifest>("nodeagent app manifest")
}

/// What apps have to go by on this host.
#[derive(Debug, Clone, Copy)]
pub struct HostTerms {
    /// The longest that clients of any discovery backend may go on using a deregistered instance.
    pub propagation_bound: Duration,
    /// Whether clients on other hosts reach the addresses of instances.
    pub reachable: bool,
    /// Address under which clients reach this host, when it is known.
    pub host_address: Option<Ipv4Addr>,
}

/// What an app asks for that this host does not allow.
pub fn check_against(app: &App, host: &HostTerms) -> Vec<Finding> {
    if !app.registration.enabled {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if app.drain < host.propagation_bound {
        findings.push(Finding::new(
            "spec.drainSeconds",
            Some(app.drain.as_secs().to_string()),
            format!(
                "at least the propagation bound of discovery on this host, {} s: until then clients may still come",
                host.propagation_bound.as_secs_f64()
            ),
        ));
    }
    let field = "spec.registration.address";
    let with_the_host = app.network == NetworkMode::Host
        || app.registration.address == Some(RegisteredAddress::Host);
    if with_the_host && host.host_address.is_none() {
        findings.push(Finding::new(
            field,
            Some("host".to_owned()),
            "only on a host whose address is known: there is no default route to take it from, set network.host_address in the agent's configuration",
        ));
    } else if !with_the_host && app.registration.address.is_none() && !host.reachable {
        findings.push(Finding::new(
            field,
            None,
            "required on this host: instance (only clients that are routed to the instance's address reach it, at least those on this host) or host (the host's address and a host port); instance is the default where the configuration says network.reachable = true",
        ));
    }
    findings
}
