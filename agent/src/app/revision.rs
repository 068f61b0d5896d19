//! Which version of an app an instance was made from.
//!
//! The hash is taken over our own serialisation of the validated [`App`], not over the text: comments,
//! order and spelled-out defaults do not make a revision. Every value is written with its length, so
//! that no two apps have one serialisation. Fields of later versions must be left out while they
//! have their default, or an upgrade of the agent would replace every warm instance.

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{
    Access, Agent, AgentRestart, App, CapabilitySet, Clean, Conduct, Dns, DnsOption, DnsPolicy,
    EnvFile, Essential, HostAlias, HostPathKind, HostPortWish, Look, NetworkMode, Probe, Protocol,
    Readiness, RegisteredAddress, RestartPolicy, Rewrite, Scheme, Seccomp, SecretFile, Security,
    SignalDelivery, Ulimit, User, VitalProbe, Volume, VolumeMount,
};
use crate::hex::hex;

/// Short name of an app's version: 12 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(String);

impl Revision {
    /// The 12 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A revision read back from where [`Revision::as_str`] was written; `None` when it is not one.
    pub fn from_stored(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 12 && text.bytes().all(hex)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Revision of the instances that are made from `app` with the image of `image_digest`.
///
/// Left out are `restart`, `warm` and `drain`: they steer the pool, and no instance is made
/// differently by them.
pub fn revision(app: &App, image_digest: &str) -> Revision {
    let mut writer = Writer::new("revision/1");
    writer.instance(app);
    writer.text("image-digest", image_digest);
    Revision(writer.finish())
}

/// Hash of everything in the manifest, 12 hexadecimal digits: whether applying it changes anything.
pub fn manifest_hash(app: &App) -> String {
    let mut writer = Writer::new("manifest/1");
    writer.instance(app);
    if app.restart != RestartPolicy::Always {
        writer.text("restart", app.restart.as_str());
    }
    writer.number("warm.armed", app.warm.armed.into());
    writer.duration("drain", app.drain);
    writer.finish()
}

struct Writer(Sha256);

impl Writer {
    fn new(kind: &str) -> Self {
        let mut writer = Self(Sha256::new());
        writer.text("kind", kind);
        writer
    }

    fn text(&mut self, name: &str, value: &str) {
        for part in [name, value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part.as_bytes());
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.text(name, &value.to_string());
    }

    fn duration(&mut self, name: &str, value: Duration) {
        self.text(name, &value.as_nanos().to_string());
    }

    fn list(&mut self, name: &str, values: &[String]) {
        self.number(name, values.len() as u64);
        for value in values {
            self.text("", value);
        }
    }

    fn pairs<'a>(
        &mut self,
        name: &str,
        pairs: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
    ) {
        self.number(name, pairs.len() as u64);
        for (key, value) in pairs {
            self.text(key, value);
        }
    }

    fn user(&mut self, user: Option<&User>) {
        if let Some(User { user, group }) = user {
            self.text("user", user);
            if let Some(group) = group {
                self.text("group", group);
            }
        }
    }

    /// Everything that an instance is made from. Taken apart in full, so that a new field does not
    /// compile until somebody has decided about it.
    fn instance(&mut self, app: &App) {
        let App {
            name,
            labels,
            image,
            command,
            args,
            env_from,
            env,
            working_dir,
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
            restart: _,
            clean,
            warm: _,
            registration,
            network,
            termination_grace,
            drain: _,
        } = app;
        self.text("name", name.as_str());
        self.pairs("labels", labels.iter());
        self.text("image", image);
        self.list("command", command);
        self.list("args", args);
        for EnvFile {
            path,
            prefix,
            optional,
        } in env_from
        {
            self.text("env-file", path);
            self.text("prefix", prefix);
            self.text("optional", if *optional { "yes" } else { "no" });
        }
        self.pairs("env", env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = working_dir {
            self.text("working-dir", dir);
        }
        self.user(user.as_ref());
        self.name_service(hostname.as_deref(), host_aliases, dns);
        self.number("ports", ports.len() as u64);
        for port in ports {
            self.text("port", port.name.as_deref().unwrap_or(""));
            self.number("number", port.container_port.into());
            if port.protocol == Protocol::Udp {
                self.text("protocol", "udp");
            }
            match port.host_port {
                None => {}
                Some(HostPortWish::Auto) => self.text("host-port", "auto"),
                Some(HostPortWish::Fixed(number)) => self.number("host-port", number.into()),
            }
            if let Some(address) = port.host_ip {
                self.text("host-ip", &address.to_string());
            }
        }
        if let Some(cpu) = resources.cpu_millis {
            self.number("cpu", cpu);
        }
        self.number("memory", resources.memory_bytes);
        self.number("pids", resources.pids);
        self.security(security);
        self.ulimits(ulimits);
        self.conduct(conduct);
        for (name, rewrites) in [("signal", signals), ("exit-code", exit_codes)] {
            for Rewrite { from, to } in rewrites {
                self.number(name, (*from).into());
                self.number("to", (*to).into());
            }
        }
        self.readiness(readiness);
        self.vital("startup", startup.as_ref());
        self.vital("liveness", liveness.as_ref());
        self.number("agents", agents.len() as u64);
        for (index, agent) in agents.iter().enumerate() {
            self.agent(index, agent);
        }
        for mount in mounts {
            self.mount(mount);
        }
        for SecretFile { name, source, mode } in secret_files {
            self.text("secret", name);
            self.text("source", source);
            self.number("mode", (*mode).into());
        }
        if let Clean::Paths(paths) = clean {
            self.list("clean", paths);
        }
        if registration.enabled {
            self.text("service", &registration.service);
            match registration.address {
                None => {}
                Some(RegisteredAddress::Instance) => self.text("address", "instance"),
                Some(RegisteredAddress::Host) => self.text("address", "host"),
            }
            self.number("port", registration.port.into());
            self.number("weight", registration.weight.into());
            self.pairs("metadata", registration.metadata.iter());
        }
        self.text(
            "network",
            match network {
                NetworkMode::Routed => "routed",
                NetworkMode::Host => "host",
            },
        );
        self.duration("grace", *termination_grace);
    }

    fn ulimits(&mut self, ulimits: &[Ulimit]) {
        for Ulimit {
            name, soft, hard, ..
        } in ulimits
        {
            self.text("ulimit", name);
            self.number("soft", *soft);
            self.number("hard", *hard);
        }
    }

    fn conduct(&mut self, conduct: &Conduct) {
        let Conduct {
            nice,
            oom_score_adj,
            stop_signal,
            delivery,
        } = conduct;
        if let Some(nice) = nice {
            self.text("nice", &nice.to_string());
        }
        if let Some(score) = oom_score_adj {
            self.text("oom-score-adj", &score.to_string());
        }
        if let Some(signal) = stop_signal {
            self.number("stop-signal", (*signal).into());
        }
        if *delivery != SignalDelivery::default() {
            self.text("signal-delivery", delivery.as_str());
        }
    }

    /// `index` is its place in the list, by which it waits for the one before it.
    fn agent(&mut self, index: usize, agent: &Agent) {
        let Agent {
            name,
            command,
            env,
            user,
            working_dir,
            ulimits,
            conduct,
            termination_grace,
            after,
            readiness,
            essential,
            restart: AgentRestart { policy, max },
            exit_code,
            resources,
        } = agent;
        self.text("agent", name);
        self.list("command", command);
        self.pairs("env", env.iter().map(|(name, value)| (name, value)));
        self.user(user.as_ref());
        self.readiness(readiness);
        let (essential, usual) = match essential {
            Essential::Yes => ("yes", RestartPolicy::Never),
            Essential::No => ("no", RestartPolicy::Always),
        };
        self.text("essential", essential);
        if let Some(dir) = working_dir {
            self.text("working-dir", dir);
        }
        self.ulimits(ulimits);
        self.conduct(conduct);
        if let Some(grace) = termination_grace {
            self.duration("grace", *grace);
        }
        if *after != index.checked_sub(1).into_iter().collect::<Vec<_>>() {
            self.number("after", after.len() as u64);
            for other in after {
                self.number("", *other as u64);
            }
        }
        if *policy != usual {
            self.text("restart", policy.as_str());
        }
        if let Some(max) = max {
            self.number("max-restarts", (*max).into());
        }
        if let Some(code) = exit_code {
            self.number("exit-code", (*code).into());
        }
        if let Some(own) = resources {
            self.number("resources", own.cpu_millis.unwrap_or(0));
            self.number("", own.memory_bytes.unwrap_or(0));
            self.number("", own.pids.unwrap_or(0));
        }
    }

    fn mount(&mut self, mount: &VolumeMount) {
        let VolumeMount {
            name,
            volume,
            path,
            access,
        } = mount;
        self.text("mount", name);
        self.text("path", path);
        if *access == Access::ReadOnly {
            self.text("access", "read-only");
        }
        match volume {
            Volume::HostPath { path, kind } => {
                self.text("host-path", path);
                match kind {
                    None => {}
                    Some(HostPathKind::Directory) => self.text("type", "directory"),
                    Some(HostPathKind::File) => self.text("type", "file"),
                }
            }
            Volume::EmptyDir => self.text("volume", "empty"),
            Volume::Memory { size } => {
                self.text("volume", "memory");
                if let Some(size) = size {
                    self.number("size", *size);
                }
            }
            Volume::InstanceDirectory => self.text("volume", "instance"),
        }
    }

    fn security(&mut self, security: &Security) {
        let Security {
            non_root,
            supplemental_groups,
            fs_group,
            read_only_root,
            privilege_escalation,
            capabilities,
            seccomp,
            sysctls,
        } = security;
        for (name, set) in [
            ("non-root", non_root),
            ("read-only-root", read_only_root),
            ("privilege-escalation", privilege_escalation),
        ] {
            if *set {
                self.text(name, "yes");
            }
        }
        for group in supplemental_groups {
            self.number("supplemental-group", (*group).into());
        }
        if let Some(group) = fs_group {
            self.number("fs-group", (*group).into());
        }
        if *capabilities != CapabilitySet::STANDARD {
            self.number("capabilities", capabilities.mask());
        }
        match seccomp {
            Seccomp::RuntimeDefault => {}
            Seccomp::Unconfined => self.text("seccomp", "unconfined"),
            Seccomp::Localhost(profile) => self.text("seccomp-profile", profile),
        }
        for (name, value) in sysctls {
            self.text("sysctl", name);
            self.text("value", value);
        }
    }

    fn name_service(&mut self, hostname: Option<&str>, aliases: &[HostAlias], dns: &Dns) {
        if let Some(hostname) = hostname {
            self.text("hostname", hostname);
        }
        for HostAlias { ip, hostnames } in aliases {
            self.text("host-alias", &ip.to_string());
            self.list("hostnames", hostnames);
        }
        let Dns {
            policy,
            nameservers,
            searches,
            options,
        } = dns;
        if *policy == DnsPolicy::None {
            self.text("dns-policy", "none");
        }
        for address in nameservers {
            self.text("nameserver", &address.to_string());
        }
        for domain in searches {
            self.text("search", domain);
        }
        for DnsOption { name, value } in options {
            self.text("dns-option", name);
            self.text("value", value.as_deref().unwrap_or(""));
        }
    }

    fn readiness(&mut self, readiness: &Readiness) {
        match readiness {
            Readiness::None => self.text("readiness", "none"),
            Readiness::Notify { timeout } => {
                self.text("readiness", "notify");
                self.duration("timeout", *timeout);
            }
            Readiness::NotificationFd { fd, timeout } => {
                self.text("readiness", "notification-fd");
                self.number("fd", (*fd).into());
                self.duration("timeout", *timeout);
            }
            Readiness::Probe(probe) => self.probe("readiness", probe),
        }
    }

    fn vital(&mut self, name: &str, vital: Option<&VitalProbe>) {
        let Some(vital) = vital else { return };
        self.probe(name, &vital.probe);
        if let Some(grace) = vital.termination_grace {
            self.duration("grace", grace);
        }
    }

    fn probe(&mut self, name: &str, probe: &Probe) {
        let host = match &probe.look {
            Look::Tcp { port, host } => {
                self.text(name, "tcp");
                self.number("port", (*port).into());
                *host
            }
            Look::Http {
                port,
                host,
                scheme,
                path,
                headers,
            } => {
                self.text(name, "http");
                self.number("port", (*port).into());
                self.text("path", path);
                self.pairs("headers", headers.iter().map(|(name, value)| (name, value)));
                if *scheme == Scheme::Https {
                    self.text("scheme", "https");
                }
                *host
            }
            Look::Exec { command } => {
                self.text(name, "exec");
                self.list("command", command);
                None
            }
        };
        if let Some(host) = host {
            self.text("host", &host.to_string());
        }
        let timing = &probe.timing;
        self.duration("delay", timing.initial_delay);
        self.duration("period", timing.period);
        self.duration("timeout", timing.timeout);
        self.number("threshold", timing.failure_threshold.into());
        if timing.success_threshold != 1 {
            self.number("successes", timing.success_threshold.into());
        }
    }

    fn finish(self) -> String {
        hex(&self.0.finalize()[..6])
    }
}
