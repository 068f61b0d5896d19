//! Merged fragments -> [`Settings`]: defaults, rules, all findings.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::check::{Check, contains, overlap};
use super::fragment::{self, Fragment};
use super::settings::*;
use super::{discovery, duration, images, peers};
use crate::app::CapabilitySet;
use crate::document::{Findings, shown};

pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// What the host says about itself, for defaults.
pub(super) struct HostFacts {
    /// Content of `/etc/machine-id` without the newline, when there is a usable one.
    pub(super) machine_id: Option<String>,
}

/// Settings with every default; they count only when `findings` stays empty.
pub(super) fn assemble(merged: Fragment, facts: &HostFacts, findings: &mut Findings) -> Settings {
    let mut check = Check(findings);
    let host = host(merged.host.unwrap_or_default(), facts, &mut check);
    let paths = paths(merged.paths.unwrap_or_default(), &mut check);
    let discovery = discovery::assemble(merged.discovery.unwrap_or_default(), &paths, &mut check);
    Settings {
        host,
        api: api(merged.api.unwrap_or_default(), &mut check),
        containerd: containerd(merged.containerd.unwrap_or_default(), &mut check),
        runtime: runtime(merged.runtime.unwrap_or_default(), &mut check),
        network: network(merged.network.unwrap_or_default(), &discovery, &mut check),
        images: images_of(merged.images.unwrap_or_default(), &paths, &mut check),
        volumes: volumes(merged.volumes.unwrap_or_default(), &mut check),
        logs: logs(merged.logs.unwrap_or_default(), &mut check),
        security: security(merged.security.unwrap_or_default(), &mut check),
        tasks: tasks(merged.tasks.unwrap_or_default(), &mut check),
        refill: Refill {
            concurrency: check.number(
                "refill.concurrency",
                merged.refill.unwrap_or_default().concurrency,
                2,
                1..=64,
            ) as usize,
        },
        paths,
        discovery,
    }
}

pub(super) fn up_to(longest: Duration) -> RangeInclusive<Duration> {
    Duration::from_millis(1)..=longest
}

fn host(given: fragment::Host, facts: &HostFacts, check: &mut Check<'_>) -> Host {
    if given.id.is_none() && facts.machine_id.is_none() {
        check.0.note(
            "host.id",
            "required, because /etc/machine-id is missing or not initialised: set id = \"...\" in [host], or run systemd-machine-id-setup",
        );
    }
    let default = facts.machine_id.as_deref().unwrap_or("unknown");
    Host {
        id: check.word("host.id", given.id, default, "-_.", 128),
        fleet: check.word("host.fleet", given.fleet, "default", "-_.", 128),
    }
}

fn paths(given: fragment::Paths, check: &mut Check<'_>) -> Paths {
    let state = check.path("paths.state", given.state, "/var/lib/nodeagent");
    let runtime = check.path("paths.runtime", given.runtime, "/run/nodeagent");
    if state == runtime {
        check.0.wrong(
            "paths.runtime",
            shown(&runtime.to_string_lossy()),
            "another directory than paths.state: what is in paths.runtime is gone after a reboot",
        );
    }
    check.socket_length("paths.runtime", &runtime.join("ctl/gate.sock"));
    let api_socket = check.socket(
        "paths.api_socket",
        given.api_socket,
        runtime.join("api.sock"),
    );
    Paths {
        state,
        runtime,
        api_socket,
    }
}

fn api(given: fragment::Api, check: &mut Check<'_>) -> Api {
    let mut members =
        |role: &str, users: Option<Vec<String>>, groups: Option<Vec<String>>| Members {
            users: check.accounts(&format!("api.{role}_users"), users),
            groups: check.accounts(&format!("api.{role}_groups"), groups),
        };
    let view = members("view", given.view_users, given.view_groups);
    let operate = members("operate", given.operate_users, given.operate_groups);
    let admin = members("admin", given.admin_users, given.admin_groups);
    let roots_alone = view.is_empty() && operate.is_empty() && admin.is_empty();
    Api {
        socket_mode: check.socket_mode(
            "api.socket_mode",
            given.socket_mode,
            if roots_alone { 0o600 } else { 0o666 },
        ),
        socket_group: given
            .socket_group
            .and_then(|group| check.account("api.socket_group", &group)),
        view,
        operate,
        admin,
        tls: given.tls.and_then(|tls| api_tls(tls, check)),
    }
}

/// Absent without `listen`; with it the files are required.
fn api_tls(given: fragment::ApiTls, check: &mut Check<'_>) -> Option<ApiTls> {
    let listen = given.listen.as_deref();
    let listen = listen.map(|text| check.listen("api.tls.listen", text));
    let mut file = |name: &str, what: &str, given: Option<String>| {
        let field = format!("api.tls.{name}");
        if given.is_none() && listen.is_some() {
            let rule = format!("required with api.tls.listen: a PEM file with {what}");
            check.0.note(&field, &rule);
        }
        check.path(&field, given, "/")
    };
    let certificate = file("certificate", "the agent's certificate", given.certificate);
    let key = file("key", "its private key", given.key);
    let authorities = "the authorities of clients' certificates";
    let client_ca = file("client_ca", authorities, given.client_ca);
    let mut names = |role: &str, given: Option<Vec<String>>| {
        let field = format!("api.tls.{role}");
        check.certificate_names(&field, given.unwrap_or_default())
    };
    let view = names("view", given.view);
    let operate = names("operate", given.operate);
    let admin = names("admin", given.admin);
    let Some(listen) = listen else {
        let rule = "required in [api.tls]: an address and a port, for example \"0.0.0.0:7443\"";
        check.0.note("api.tls.listen", rule);
        return None;
    };
    Some(ApiTls {
        listen: listen?,
        certificate,
        key,
        client_ca,
        view,
        operate,
        admin,
    })
}

fn containerd(given: fragment::Containerd, check: &mut Check<'_>) -> Containerd {
    Containerd {
        socket: check.socket(
            "containerd.socket",
            given.socket,
            "/run/containerd/containerd.sock",
        ),
        // Length and alphabet are containerd's (pkg/identifiers).
        namespace: check.word(
            "containerd.namespace",
            given.namespace,
            "nodeagent",
            "-_.",
            76,
        ),
        snapshotter: check.word(
            "containerd.snapshotter",
            given.snapshotter,
            "overlayfs",
            "-_.",
            76,
        ),
        timeout: check.duration(
            "containerd.timeout",
            given.timeout,
            Duration::from_secs(10),
            Duration::from_millis(100)..=10 * MINUTE,
        ),
    }
}

fn runtime(given: fragment::Runtime, check: &mut Check<'_>) -> Runtime {
    // Who names a place means it.
    let usual = match given.cgroup_parent {
        Some(_) => UseScope::Never,
        None => UseScope::Auto,
    };
    Runtime {
        scope: check.scope("runtime.scope", given.scope, usual),
        shim: check.word(
            "runtime.shim",
            given.shim,
            "io.containerd.runc.v2",
            "-_.",
            128,
        ),
        binary: check.optional_path("runtime.binary", given.binary),
        cgroup_parent: check.cgroup("runtime.cgroup_parent", given.cgroup_parent, "/nodeagent"),
        container_init: check.path(
            "runtime.container_init",
            given.container_init,
            "/usr/lib/nodeagent/container-init",
        ),
    }
}

fn network(given: fragment::Network, discovery: &Discovery, check: &mut Check<'_>) -> Network {
    let gateway = check.address(
        "network.gateway",
        given.gateway,
        Ipv4Addr::new(169, 254, 1, 1),
    );
    let default = [AddressRange {
        base: Ipv4Addr::new(10, 88, 0, 0),
        prefix: 16,
    }];
    let pools = match given.pools {
        None => default.to_vec(),
        Some(texts) => pools(&texts, gateway, check),
    };
    let bound = discovery.propagation_bound();
    // Who was stopped without etcd's word may be found there until its lease is over.
    let forgotten = discovery.etcd.as_ref().map(|etcd| etcd.ttl + bound);
    let quarantine = check.duration(
        "network.quarantine",
        given.quarantine,
        forgotten.unwrap_or(bound).max(2 * MINUTE),
        up_to(DAY),
    );
    if quarantine < bound {
        check.0.wrong(
            "network.quarantine",
            shown(&duration::spell(quarantine)),
            format!(
                "at least the longest propagation_bound of discovery, {}: until then clients may still use a freed address",
                duration::spell(bound)
            ),
        );
    }
    let reachable = given.reachable.unwrap_or(false);
    let except = given.masquerade_except.unwrap_or_default();
    let except = except.iter().enumerate().filter_map(|(index, text)| {
        check.range(&format!("network.masquerade_except[{index}]"), text)
    });
    let masquerade_except = except.collect();
    Network {
        mode: mode(given.mode, check),
        bridge_ports: check.number("network.bridge_ports", given.bridge_ports, 900, 1..=900),
        pools,
        gateway,
        // Group 0 holds every link of the host that nobody grouped.
        link_group: check.number(
            "network.link_group",
            given.link_group,
            7017,
            1..=i32::MAX as u32,
        ),
        mtu: check.number("network.mtu", given.mtu, 1500, 576..=65_535),
        quarantine,
        reachable,
        host_address: check.optional_address("network.host_address", given.host_address),
        host_ports: check.ports("network.host_ports", given.host_ports, 20000..=29999),
        masquerade: given.masquerade.unwrap_or(!reachable),
        masquerade_except,
        forwarding: forwarding(given.forwarding, check),
        table: check.word("network.table", given.table, "nodeagent", "-_", 64),
        resolv_conf: check.path("network.resolv_conf", given.resolv_conf, "/etc/resolv.conf"),
    }
}

fn mode(given: Option<String>, check: &mut Check<'_>) -> Connects {
    let Some(text) = given else {
        return Connects::Routed;
    };
    let named = Connects::ALL.into_iter().find(|(_, name)| *name == text);
    named.map_or_else(
        || {
            let allowed =
                "routed or bridge; apps without a network of their own say `network: host`";
            check.0.wrong("network.mode", shown(&text), allowed);
            Connects::Routed
        },
        |(mode, _)| mode,
    )
}

fn forwarding(given: Option<String>, check: &mut Check<'_>) -> Forwarding {
    match given.as_deref() {
        None | Some("check") => Forwarding::Check,
        Some("enable") => Forwarding::Enable,
        Some(other) => {
            let allowed = "check or enable";
            check.0.wrong("network.forwarding", shown(other), allowed);
            Forwarding::Check
        }
    }
}

fn pools(texts: &[String], gateway: Ipv4Addr, check: &mut Check<'_>) -> Vec<AddressRange> {
    let mut pools: Vec<AddressRange> = Vec::new();
    if texts.is_empty() {
        check.0.wrong(
            "network.pools",
            "an empty list",
            "at least one range, for example [\"10.88.0.0/16\"]",
        );
    }
    for (index, text) in texts.iter().enumerate() {
        let field = format!("network.pools[{index}]");
        let Some(range) = check.range(&field, text) else {
            continue;
        };
        if let Some(other) = pools.iter().find(|other| overlap(other, &range)) {
            let allowed = format!(
                "ranges without a common address; {}/{} is one already",
                other.base, other.prefix
            );
            check.0.wrong(&field, shown(text), allowed);
        } else if contains(&range, gateway) {
            let allowed = format!("a range without the gateway, {gateway} (network.gateway)");
            check.0.wrong(&field, shown(text), allowed);
        } else {
            pools.push(range);
        }
    }
    pools
}

fn volumes(given: fragment::Volumes, check: &mut Check<'_>) -> Volumes {
    Volumes {
        allowed_host_paths: check.paths("volumes.allowed_host_paths", given.allowed_host_paths),
    }
}

fn logs(given: fragment::Logs, check: &mut Check<'_>) -> Logs {
    let most_files = u32::from(crate::logs::MOST_FILES);
    // With one alone a reader could not tell what it missed from what is there.
    let max_files = check.number("logs.max_files", given.max_files, 5, 2..=most_files);
    Logs {
        // Smaller ones would be moved faster than they are read.
        max_size: check.size(
            "logs.max_size",
            given.max_size,
            10 << 20,
            64 << 10..=1 << 40,
        ),
        max_files: u8::try_from(max_files).unwrap_or(crate::logs::MOST_FILES),
    }
}

fn security(given: fragment::Security, check: &mut Check<'_>) -> Security {
    let mut allowed_capabilities = CapabilitySet::NONE;
    for (index, name) in given.allowed_capabilities.iter().flatten().enumerate() {
        let field = format!("security.allowed_capabilities[{index}]");
        allowed_capabilities = allowed_capabilities.with(check.capability(&field, name));
    }
    let allowed_sysctls = given.allowed_sysctls.unwrap_or_default();
    for (index, pattern) in allowed_sysctls.iter().enumerate() {
        check.sysctl_pattern(&format!("security.allowed_sysctls[{index}]"), pattern);
    }
    Security {
        allowed_capabilities,
        allowed_sysctls,
        seccomp_profiles: check.path(
            "security.seccomp_profiles",
            given.seccomp_profiles,
            "/etc/nodeagent/seccomp",
        ),
        allowed_env_file_paths: check.paths(
            "security.allowed_env_file_paths",
            given.allowed_env_file_paths,
        ),
    }
}

fn images_of(given: fragment::Images, paths: &Paths, check: &mut Check<'_>) -> Images {
    let insecure_registries = given.insecure_registries.unwrap_or_default();
    for (index, registry) in insecure_registries.iter().enumerate() {
        if !is_registry(registry) {
            check.0.wrong(
                &format!("images.insecure_registries[{index}]"),
                shown(registry),
                "host or host:port without a scheme or path, for example registry.lan:5000",
            );
        }
    }
    let pull_timeout = check.duration(
        "images.pull_timeout",
        given.pull_timeout,
        10 * MINUTE,
        Duration::from_secs(1)..=DAY,
    );
    let stall_timeout = check.duration(
        "images.stall_timeout",
        given.stall_timeout,
        Duration::from_secs(30).min(pull_timeout),
        Duration::from_millis(100)..=DAY,
    );
    if stall_timeout > pull_timeout {
        check.0.wrong(
            "images.stall_timeout",
            shown(&duration::spell(stall_timeout)),
            format!(
                "at most images.pull_timeout, {}",
                duration::spell(pull_timeout)
            ),
        );
    }
    let connections = check.number("images.connections", given.connections, 12, 1..=256);
    let connections_per_blob = check.number(
        "images.connections_per_blob",
        given.connections_per_blob,
        4.min(connections),
        1..=connections.max(1),
    );
    let [connections, connections_per_blob] =
        [connections, connections_per_blob].map(|number| number as usize);
    Images {
        insecure_registries,
        pull_timeout,
        stall_timeout,
        auth_file: check.optional_path("images.auth_file", given.auth_file),
        root: match check.optional_path("images.root", given.root) {
            Some(root) => root,
            None => paths.state.join("images"),
        },
        hosts_dir: check.optional_path("images.hosts_dir", given.hosts_dir),
        ca_file: check.optional_path("images.ca_file", given.ca_file),
        bandwidth: match given.bandwidth {
            None => 0,
            given => check.size("images.bandwidth", given, 0, 64 << 10..=1 << 40),
        },
        keep_blobs: given.keep_blobs.unwrap_or(true),
        stable_file: check.optional_path("images.stable_file", given.stable_file),
        check_interval: check.duration(
            "images.check_interval",
            given.check_interval,
            10 * MINUTE,
            Duration::from_secs(1)..=DAY,
        ),
        max_size: match given.max_size {
            None => 0,
            given => check.size("images.max_size", given, 0, 1 << 20..=1 << 50),
        },
        max_files: match given.max_files {
            None => 0,
            given => u64::from(check.number("images.max_files", given, 0, 1000..=u32::MAX)),
        },
        kubelet_config: check.path(
            "images.kubelet_config",
            given.kubelet_config,
            "/var/lib/kubelet/config.yaml",
        ),
        connections,
        connections_per_blob,
        chunk: check.size("images.chunk", given.chunk, 16 << 20, 1 << 20..=1 << 30),
        retries: check.number("images.retries", given.retries, 32, 0..=1000),
        hedge_after: check.duration(
            "images.hedge_after",
            given.hedge_after,
            Duration::from_secs(3),
            Duration::from_millis(100)..=DAY,
        ),
        proxy: images::proxy(given.proxy, given.no_proxy, check),
        credential_helpers: check
            .optional_path("images.credential_helpers", given.credential_helpers),
        policy: images::policy(given.policy.unwrap_or_default(), check),
        peers: given.peers.and_then(|given| peers::peers(given, check)),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, "1"));
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.len() <= 253
        && host.split('.').all(label)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn tasks(given: fragment::Tasks, check: &mut Check<'_>) -> Tasks {
    Tasks {
        activation_deadline: check.duration(
            "tasks.activation_deadline",
            given.activation_deadline,
            MINUTE,
            Duration::from_millis(100)..=DAY,
        ),
        keep_results: check.duration(
            "tasks.keep_results",
            given.keep_results,
            30 * DAY,
            MINUTE..=3650 * DAY,
        ),
        give_up_after: check.number("tasks.give_up_after", given.give_up_after, 3, 1..=100),
    }
}
