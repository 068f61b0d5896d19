//! The effective configuration as TOML, with the origin of every key.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use imagecache::fetch::ProxySettings;
use imagecache::peers::Peer;
use imagecache::policy::{Default as Otherwise, PolicySettings, RuleSettings, Verdict};

use super::duration::spell;
use super::fragment::VERSION;
use super::{Account, AddressRange, Discovery, Forwarding, ImagePeers, Loaded, Requirement};
use crate::app::quantity;

/// Valid TOML of everything in effect; a comment names the file and line of each key, or `default`.
/// Keys without a value are comments. Reading the text back gives the same settings.
pub fn show(loaded: &Loaded) -> String {
    let s = &loaded.settings;
    let mut page = Page {
        loaded,
        table: "",
        text: format!("version = {VERSION}\n"),
    };
    page.table("host");
    page.text("id", &s.host.id);
    page.text("fleet", &s.host.fleet);
    page.table("paths");
    page.path("state", &s.paths.state);
    page.path("runtime", &s.paths.runtime);
    page.path("api_socket", &s.paths.api_socket);
    page.table("api");
    page.text("socket_mode", &format!("{:04o}", s.api.socket_mode));
    match &s.api.socket_group {
        Some(group) => page.text("socket_group", &group.to_string()),
        None => page.unset("socket_group"),
    }
    page.accounts("view_groups", &s.api.view.groups);
    page.accounts("view_users", &s.api.view.users);
    page.accounts("operate_groups", &s.api.operate.groups);
    page.accounts("operate_users", &s.api.operate.users);
    page.accounts("admin_groups", &s.api.admin.groups);
    page.accounts("admin_users", &s.api.admin.users);
    if let Some(tls) = &s.api.tls {
        page.table("api.tls");
        page.text("listen", &tls.listen.to_string());
        page.path("certificate", &tls.certificate);
        page.path("key", &tls.key);
        page.path("client_ca", &tls.client_ca);
        page.list("view", &tls.view);
        page.list("operate", &tls.operate);
        page.list("admin", &tls.admin);
    }
    page.table("containerd");
    page.path("socket", &s.containerd.socket);
    page.text("namespace", &s.containerd.namespace);
    page.text("snapshotter", &s.containerd.snapshotter);
    page.duration("timeout", s.containerd.timeout);
    page.table("runtime");
    page.text("shim", &s.runtime.shim);
    page.optional_path("binary", s.runtime.binary.as_deref());
    page.text("cgroup_parent", &s.runtime.cgroup_parent);
    page.text("scope", s.runtime.scope.as_str());
    page.path("container_init", &s.runtime.container_init);
    page.table("network");
    page.text("mode", s.network.mode.as_str());
    page.number("bridge_ports", s.network.bridge_ports.into());
    page.ranges("pools", &s.network.pools);
    page.text("gateway", &s.network.gateway.to_string());
    page.number("link_group", s.network.link_group.into());
    page.number("mtu", s.network.mtu.into());
    page.duration("quarantine", s.network.quarantine);
    page.value("reachable", &s.network.reachable.to_string());
    page.optional_text(
        "host_address",
        s.network.host_address.map(|a| a.to_string()),
    );
    let ports = &s.network.host_ports;
    page.text("host_ports", &format!("{}-{}", ports.start(), ports.end()));
    page.value("masquerade", &s.network.masquerade.to_string());
    page.ranges("masquerade_except", &s.network.masquerade_except);
    page.text(
        "forwarding",
        match s.network.forwarding {
            Forwarding::Check => "check",
            Forwarding::Enable => "enable",
        },
    );
    page.text("table", &s.network.table);
    page.path("resolv_conf", &s.network.resolv_conf);
    page.table("images");
    page.list("insecure_registries", &s.images.insecure_registries);
    page.duration("pull_timeout", s.images.pull_timeout);
    page.duration("stall_timeout", s.images.stall_timeout);
    page.optional_path("auth_file", s.images.auth_file.as_deref());
    page.path("root", &s.images.root);
    page.optional_path("hosts_dir", s.images.hosts_dir.as_deref());
    page.optional_path("ca_file", s.images.ca_file.as_deref());
    match s.images.bandwidth {
        0 => page.unset("bandwidth"),
        bytes => page.text("bandwidth", &quantity::spell(bytes)),
    }
    page.value("keep_blobs", &s.images.keep_blobs.to_string());
    page.optional_path("stable_file", s.images.stable_file.as_deref());
    page.duration("check_interval", s.images.check_interval);
    match s.images.max_size {
        0 => page.unset("max_size"),
        bytes => page.text("max_size", &quantity::spell(bytes)),
    }
    match s.images.max_files {
        0 => page.unset("max_files"),
        files => page.value("max_files", &files.to_string()),
    }
    page.path("kubelet_config", &s.images.kubelet_config);
    page.number("connections", s.images.connections as u64);
    page.number("connections_per_blob", s.images.connections_per_blob as u64);
    page.text("chunk", &quantity::spell(s.images.chunk));
    page.number("retries", s.images.retries.into());
    page.duration("hedge_after", s.images.hedge_after);
    page.proxy(&s.images.proxy);
    page.optional_path("credential_helpers", s.images.credential_helpers.as_deref());
    page.policy(&s.images.policy);
    if let Some(peers) = &s.images.peers {
        page.peers(peers);
    }
    page.table("volumes");
    page.paths("allowed_host_paths", &s.volumes.allowed_host_paths);
    page.table("logs");
    page.text("max_size", &quantity::spell(s.logs.max_size));
    page.number("max_files", s.logs.max_files.into());
    page.table("security");
    let allowed: Vec<String> = s
        .security
        .allowed_capabilities
        .names()
        .map(str::to_owned)
        .collect();
    page.list("allowed_capabilities", &allowed);
    page.list("allowed_sysctls", &s.security.allowed_sysctls);
    page.path("seccomp_profiles", &s.security.seccomp_profiles);
    page.paths("allowed_env_file_paths", &s.security.allowed_env_file_paths);
    page.discovery(&s.discovery);
    page.table("tasks");
    page.duration("activation_deadline", s.tasks.activation_deadline);
    page.duration("keep_results", s.tasks.keep_results);
    page.number("give_up_after", s.tasks.give_up_after.into());
    page.table("refill");
    page.number("concurrency", s.refill.concurrency as u64);
    page.text
}

struct Page<'a> {
    loaded: &'a Loaded,
    table: &'static str,
    text: String,
}

impl Page<'_> {
    fn table(&mut self, name: &'static str) {
        self.table = name;
        let _ = write!(self.text, "\n[{name}]\n");
    }

    fn value(&mut self, key: &str, toml: &str) {
        let origin = self.origin(key);
        let _ = writeln!(self.text, "{key} = {toml} # {origin}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.value(key, &quoted(value));
    }

    fn path(&mut self, key: &str, path: &Path) {
        self.text(key, &path.to_string_lossy());
    }

    fn optional_path(&mut self, key: &str, path: Option<&Path>) {
        self.optional_text(key, path.map(|path| path.to_string_lossy().into_owned()));
    }

    fn optional_text(&mut self, key: &str, text: Option<String>) {
        match text {
            Some(text) => self.text(key, &text),
            None => self.unset(key),
        }
    }

    fn accounts(&mut self, key: &str, accounts: &[Account]) {
        let texts: Vec<String> = accounts.iter().map(Account::to_string).collect();
        self.list(key, &texts);
    }

    fn duration(&mut self, key: &str, duration: Duration) {
        self.text(key, &spell(duration));
    }

    fn number(&mut self, key: &str, number: u64) {
        self.value(key, &number.to_string());
    }

    fn list(&mut self, key: &str, values: &[String]) {
        let quoted: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        self.value(key, &format!("[{}]", quoted.join(", ")));
    }

    fn unset(&mut self, key: &str) {
        let _ = writeln!(self.text, "# {key} is not set");
    }

    fn proxy(&mut self, proxy: &ProxySettings) {
        match proxy {
            ProxySettings::Environment => {
                self.unset("proxy");
                self.unset("no_proxy");
            }
            ProxySettings::Direct => {
                self.text("proxy", "none");
                self.unset("no_proxy");
            }
            ProxySettings::Url { url, except } => {
                self.text("proxy", url);
                let except = except.split(',').filter(|host| !host.is_empty());
                let except: Vec<String> = except.map(str::to_owned).collect();
                self.list("no_proxy", &except);
            }
        }
    }

    fn policy(&mut self, policy: &PolicySettings) {
        self.table("images.policy");
        match policy.default {
            None => self.unset("default"),
            Some(Otherwise::Allow) => self.text("default", "allow"),
            Some(Otherwise::Deny) => self.text("default", "deny"),
        }
        let rule = |rule: &RuleSettings| {
            let mut members = vec![format!("scope = {}", quoted(&rule.scope))];
            if rule.verdict == Verdict::Deny {
                members.push("verdict = \"deny\"".to_owned());
            }
            if rule.require_digest {
                members.push("require_digest = true".to_owned());
            }
            if !rule.require_signature.is_empty() {
                let keys = rule.require_signature.iter();
                let keys: Vec<String> = keys.map(|key| quoted(&key.to_string_lossy())).collect();
                members.push(format!("require_signature = [{}]", keys.join(", ")));
            }
            if let Some(scope) = &rule.signed_as {
                members.push(format!("signed_as = {}", quoted(scope)));
            }
            members.join(", ")
        };
        self.tables("rules", policy.rules.iter().map(rule));
    }

    fn peers(&mut self, peers: &ImagePeers) {
        self.table("images.peers");
        self.text("listen", &peers.listen.to_string());
        self.text("address", &peers.own.address);
        self.optional_text("zone", peers.own.zone.clone());
        self.optional_text("rack", peers.own.rack.clone());
        let host = |peer: &Peer| {
            let mut members = vec![format!("address = {}", quoted(&peer.address))];
            for (key, label) in [("zone", &peer.zone), ("rack", &peer.rack)] {
                if let Some(label) = label {
                    members.push(format!("{key} = {}", quoted(label)));
                }
            }
            members.join(", ")
        };
        self.tables("hosts", peers.hosts.iter().map(host));
        self.optional_path("token_file", peers.token_file.as_deref());
        if let Some(tls) = &peers.tls {
            self.path("certificate", &tls.certificate);
            self.path("key", &tls.key);
            self.path("ca", &tls.ca);
        }
        self.number("uploads", peers.uploads as u64);
        match peers.bandwidth {
            0 => self.unset("bandwidth"),
            bytes => self.text("bandwidth", &quantity::spell(bytes)),
        }
        self.text("slowest", &quantity::spell(peers.slowest));
    }

    /// Small tables, each on one line with what is in it.
    fn tables(&mut self, key: &str, tables: impl Iterator<Item = String>) {
        let tables: Vec<String> = tables.map(|members| format!("{{ {members} }}")).collect();
        match tables.is_empty() {
            true => self.unset(key),
            false => self.value(key, &format!("[{}]", tables.join(", "))),
        }
    }

    fn discovery(&mut self, discovery: &Discovery) {
        self.table("discovery.file");
        self.value("enabled", &discovery.file.is_some().to_string());
        if let Some(file) = &discovery.file {
            self.requirement(file.requirement);
            self.path("directory", &file.directory);
            self.duration("propagation_bound", file.propagation_bound);
        }
        self.table("discovery.etcd");
        self.value("enabled", &discovery.etcd.is_some().to_string());
        if let Some(etcd) = &discovery.etcd {
            self.requirement(etcd.requirement);
            self.list("endpoints", &etcd.endpoints);
            self.text("prefix", &etcd.prefix);
            self.duration("ttl", etcd.ttl);
            self.duration("dial_timeout", etcd.dial_timeout);
            self.duration("request_timeout", etcd.request_timeout);
            self.duration("propagation_bound", etcd.propagation_bound);
            match &etcd.user {
                Some(user) => self.text("username", &user.name),
                None => self.unset("username"),
            }
            let password = etcd.user.as_ref().map(|user| user.password_file.as_path());
            self.optional_path("password_file", password);
            let tls = etcd.tls.as_ref();
            let identity = tls.and_then(|tls| tls.identity.as_ref());
            self.optional_path("ca_file", tls.map(|tls| tls.ca_file.as_path()));
            self.optional_path("cert_file", identity.map(|(cert, _)| cert.as_path()));
            self.optional_path("key_file", identity.map(|(_, key)| key.as_path()));
        }
    }

    fn requirement(&mut self, requirement: Requirement) {
        let required = requirement == Requirement::Required;
        self.value("required", &required.to_string());
    }

    fn paths(&mut self, key: &str, paths: &[PathBuf]) {
        let texts: Vec<String> = paths
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        self.list(key, &texts);
    }

    fn ranges(&mut self, key: &str, ranges: &[AddressRange]) {
        let texts: Vec<String> = ranges
            .iter()
            .map(|range| format!("{}/{}", range.base, range.prefix))
            .collect();
        self.list(key, &texts);
    }

    fn origin(&self, key: &str) -> String {
        let path = format!("{}.{key}", self.table);
        match self.loaded.origins.get(&path) {
            Some(place) => match &place.file {
                // A file name may hold a newline; a comment may not.
                Some(file) => {
                    format!("{}:{}", file.display(), place.line).replace(char::is_control, "?")
                }
                None => format!("line {}", place.line),
            },
            None if path == "host.id" => "default, from /etc/machine-id".to_owned(),
            None => "default".to_owned(),
        }
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
