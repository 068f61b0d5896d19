//! Manifest -> [`App`]: every default, every rule, all findings.
//!
//! One function for each part of the manifest; each returns something usable even when it noted a
//! finding, so that the rest is looked at as well.

mod agents;
mod conduct;
mod name_service;
mod names;
mod ports;
mod probe;
mod process;
mod reuse;
mod security;
mod volumes;

use std::collections::BTreeMap;
use std::time::Duration;

pub(super) use names::{ENV_NAME, is_env_name, is_reserved};

use super::manifest::{self, Manifest, Scalar};
use super::quantity::{CPU_ALLOWED, MEMORY_ALLOWED, cpu_millis, memory_bytes};
use super::{
    App, NetworkMode, Port, RegisteredAddress, Registration, Resources, RestartPolicy, Warm,
};
use crate::document::{Findings, join_key, shown};
use crate::instance::AppName;

const API_VERSION: &str = "nodeagent/v1";
const KIND: &str = "App";
const DEFAULT_MEMORY: u64 = 512 << 20;
const DEFAULT_PIDS: u64 = 1024;
/// PID_MAX_LIMIT of the kernel.
const MAX_PIDS: u64 = 4_194_304;
const MAX_SECONDS: u32 = 86_400;
const MAX_ARMED: u32 = 1000;

/// The app, unless what is missing leaves nothing to build; the findings decide whether it counts.
pub(super) fn app(manifest: Manifest, findings: &mut Findings) -> Option<App> {
    constant(
        "apiVersion",
        manifest.api_version.as_deref(),
        API_VERSION,
        findings,
    );
    constant("kind", manifest.kind.as_deref(), KIND, findings);
    let metadata = manifest.metadata.unwrap_or_default();
    let name = app_name(metadata.name.as_deref(), findings);
    let labels = labels(metadata.labels.unwrap_or_default(), findings);
    let Some(spec) = manifest.spec else {
        findings.note("spec", "required: at least an image");
        return None;
    };

    let image = image(spec.image, findings);
    let (command, args) = (
        spec.command.unwrap_or_default(),
        spec.args.unwrap_or_default(),
    );
    process::arguments("spec.command", &command, findings);
    process::arguments("spec.args", &args, findings);
    if command.first().is_some_and(String::is_empty) {
        findings.wrong("spec.command[0]", "\"\"", "a program");
    }
    let env_from = process::env_files(spec.env_from.unwrap_or_default(), findings);
    let env = process::environment("spec.env", spec.env, findings);
    let by_name = process::user("spec.user", spec.user, findings);
    working_dir("spec.workingDir", spec.working_dir.as_deref(), findings);
    let network = match spec.network {
        None | Some(manifest::Network::Routed) => NetworkMode::Routed,
        Some(manifest::Network::Host) => NetworkMode::Host,
    };
    let (security, by_number) =
        security::security(spec.security_context.unwrap_or_default(), network, findings);
    if by_name.is_some() && by_number.is_some() {
        findings.note(
            "spec.securityContext.runAsUser",
            "not beside spec.user, which says the same and takes names as well",
        );
    }
    let user = by_name.or(by_number);
    let ulimits = security::ulimits("spec.ulimits", spec.ulimits.unwrap_or_default(), findings);
    let conduct = conduct::conduct(
        "spec",
        conduct::Given {
            nice: spec.nice,
            oom_score_adj: spec.oom_score_adj,
            stop_signal: spec.stop_signal,
            delivery: spec.signal_delivery,
        },
        findings,
    );
    let signals = conduct::signals(spec.signals.unwrap_or_default(), findings);
    let exit_codes = conduct::exit_codes(spec.exit_codes.unwrap_or_default(), findings);
    let hostname = name_service::hostname(spec.hostname, network, findings);
    let host_aliases = name_service::aliases(spec.host_aliases.unwrap_or_default(), findings);
    let dns = name_service::dns(
        spec.dns_policy.as_deref(),
        spec.dns_config.unwrap_or_default(),
        findings,
    );
    let mut ports = ports::ports(spec.ports.unwrap_or_default(), network, findings);
    let readiness = probe::readiness(
        "spec.readiness",
        spec.readiness,
        &ports,
        probe::Whose::App,
        findings,
    );
    let startup = probe::startup(spec.startup, &readiness, &ports, findings);
    let liveness = probe::liveness(spec.liveness, &ports, findings);
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    let resources = resources(spec.resources.unwrap_or_default(), findings);
    let agents = agents::agents(
        spec.agents.unwrap_or_default(),
        &ports,
        Duration::from_secs(grace.into()),
        &resources,
        findings,
    );
    security::non_root(&security, user.as_ref(), &agents, findings);
    let mounts = volumes::mounts(
        spec.volumes.unwrap_or_default(),
        spec.volume_mounts.unwrap_or_default(),
        findings,
    );
    let secret_files = volumes::secrets(spec.secret_files.unwrap_or_default(), findings);
    let restart = restart(
        "spec.restartPolicy",
        spec.restart_policy.as_deref(),
        findings,
    )
    .unwrap_or_default();
    let clean = reuse::clean(spec.reuse.unwrap_or_default(), findings);
    let warm = warm(spec.warm.unwrap_or_default(), findings);
    let registration = registration(
        spec.registration.unwrap_or_default(),
        name.as_ref().map_or("", AppName::as_str),
        &ports,
        findings,
    );
    if network != NetworkMode::Host && registration.address == Some(RegisteredAddress::Host) {
        ports::lead_to(registration.port, &mut ports);
    }
    ports::one_instance_each(&ports, &warm, findings);
    let seconds = |field: &str, value: Option<u32>, findings: &mut Findings| {
        let value = value.unwrap_or(30);
        if value > MAX_SECONDS {
            findings.wrong(
                field,
                value.to_string(),
                format!("0 to {MAX_SECONDS} seconds"),
            );
        }
        Duration::from_secs(value.into())
    };
    let termination_grace = seconds(
        "spec.terminationGracePeriodSeconds",
        spec.termination_grace_period_seconds,
        findings,
    );
    let drain = seconds("spec.drainSeconds", spec.drain_seconds, findings);

    Some(App {
        name: name?,
        labels,
        image,
        command,
        args,
        env_from,
        env,
        working_dir: spec.working_dir,
        user,
        hostname,
        host_aliases,
        dns,
        ports,
        resources,
        security,
        ulimits,
        conduct,
        signals,
        exit_codes,
        startup,
        readiness,
        liveness,
        agents,
        mounts,
        secret_files,
        restart,
        clean,
        warm,
        registration,
        network,
        termination_grace,
        drain,
    })
}

/// `None` when it is not given, or wrong.
fn restart(field: &str, given: Option<&str>, findings: &mut Findings) -> Option<RestartPolicy> {
    let mut policies = RestartPolicy::ALL.into_iter();
    let policy = policies.find(|policy| Some(policy.as_str()) == given);
    if let (None, Some(given)) = (policy, given) {
        findings.wrong(field, shown(given), "Always, OnFailure or Never");
    }
    policy
}

fn constant(field: &str, value: Option<&str>, wanted: &str, findings: &mut Findings) {
    match value {
        None => findings.note(field, format!("required: {wanted}")),
        Some(value) if value != wanted => {
            findings.wrong(field, shown(value), wanted);
        }
        Some(_) => {}
    }
}

fn app_name(name: Option<&str>, findings: &mut Findings) -> Option<AppName> {
    let Some(name) = name else {
        findings.note("metadata.name", "required: the app's name, for example web");
        return None;
    };
    match name.parse() {
        Ok(name) => Some(name),
        Err(invalid) => {
            let crate::instance::InvalidName { value, allowed, .. } = invalid;
            findings.wrong("metadata.name", shown(&value), allowed);
            None
        }
    }
}

fn labels(labels: BTreeMap<String, String>, findings: &mut Findings) -> BTreeMap<String, String> {
    for (key, value) in &labels {
        let field = join_key("metadata.labels", key);
        if !names::is_label_key(key) {
            findings.note(
                &field,
                format!("the key is not allowed; allowed: {}", names::LABEL_KEY),
            );
        } else if !names::is_label_value(value) {
            findings.wrong(&field, shown(value), names::LABEL_VALUE);
        }
    }
    labels
}

fn image(image: Option<String>, findings: &mut Findings) -> String {
    match &image {
        None => findings.note("spec.image", format!("required: {}", names::IMAGE)),
        Some(text) if !names::is_image(text) => {
            findings.wrong("spec.image", shown(text), names::IMAGE);
        }
        Some(_) => {}
    }
    image.unwrap_or_default()
}

fn working_dir(field: &str, path: Option<&str>, findings: &mut Findings) {
    if let Some(path) = path
        && (!path.starts_with('/') || path.contains('\0') || path.len() > 4095)
    {
        findings.wrong(field, shown(path), "an absolute path inside the container");
    }
}

fn resources(resources: manifest::Resources, findings: &mut Findings) -> Resources {
    let limits = resources.limits.unwrap_or_default();
    let (cpu_millis, memory) = quantities("spec.resources.limits", &limits, findings);
    let pids = limits.pids.unwrap_or(DEFAULT_PIDS);
    // The runtime's own threads count until it becomes container-init, hence the lower bound.
    if !(16..=MAX_PIDS).contains(&pids) {
        findings.wrong(
            "spec.resources.limits.pids",
            pids.to_string(),
            format!("16 to {MAX_PIDS} processes and threads"),
        );
    }
    Resources {
        cpu_millis,
        memory_bytes: memory.unwrap_or(DEFAULT_MEMORY),
        pids,
    }
}

/// Limits of cpu (thousandths of a core) and memory (bytes), as far as they are given.
fn quantities(
    field: &str,
    limits: &manifest::Limits,
    findings: &mut Findings,
) -> (Option<u64>, Option<u64>) {
    let mut quantity =
        |name: &str, given: Option<&Scalar>, parse: fn(&str) -> Option<u64>, allowed: &str| {
            let given = given?.as_str();
            let value = parse(given);
            if value.is_none() {
                findings.wrong(&format!("{field}.{name}"), shown(given), allowed);
            }
            value
        };
    (
        quantity("cpu", limits.cpu.as_ref(), cpu_millis, CPU_ALLOWED),
        quantity(
            "memory",
            limits.memory.as_ref(),
            memory_bytes,
            MEMORY_ALLOWED,
        ),
    )
}

fn warm(warm: manifest::Warm, findings: &mut Findings) -> Warm {
    let armed = warm.armed.unwrap_or(0);
    if armed > MAX_ARMED {
        findings.wrong(
            "spec.warm.armed",
            armed.to_string(),
            format!("0 to {MAX_ARMED}"),
        );
    }
    Warm { armed }
}

fn registration(
    given: manifest::Registration,
    app: &str,
    ports: &[Port],
    findings: &mut Findings,
) -> Registration {
    let enabled = given.enabled.unwrap_or(true);
    let service = given.service.unwrap_or_else(|| app.to_owned());
    if !service.is_empty() && !names::is_service(&service) || service.is_empty() && !app.is_empty()
    {
        findings.wrong("spec.registration.service", shown(&service), names::SERVICE);
    }
    let port = match (&given.port, ports.first()) {
        (Some(port), _) => ports::number("spec.registration.port", port, ports, findings),
        (None, Some(first)) => first.container_port,
        (None, None) => {
            if enabled {
                findings.note(
                    "spec.registration.port",
                    "required, because registration is enabled and spec.ports is empty: add a port, or set spec.registration.enabled to false",
                );
            }
            0
        }
    };
    let weight = given.weight.unwrap_or(100);
    if !(1..=1000).contains(&weight) {
        findings.wrong("spec.registration.weight", weight.to_string(), "1 to 1000");
    }
    let metadata = given.metadata.unwrap_or_default();
    for (key, value) in &metadata {
        let field = join_key("spec.registration.metadata", key);
        if !names::is_label_key(key) {
            findings.note(
                &field,
                format!("the key is not allowed; allowed: {}", names::LABEL_KEY),
            );
        } else if value.len() > 1024 || value.chars().any(char::is_control) {
            findings.wrong(
                &field,
                shown(value),
                "up to 1024 bytes without control characters",
            );
        }
    }
    Registration {
        enabled,
        service,
        address: given.address.map(|address| match address {
            manifest::RegisteredAddress::Instance => RegisteredAddress::Instance,
            manifest::RegisteredAddress::Host => RegisteredAddress::Host,
        }),
        port,
        weight,
        metadata,
    }
}
