//! Which instance has which port of the host: granted beside its address, inside INTENT.
//!
//! A fixed port (`hostPort: 8080`) belongs to one instance at a time. An `auto` one comes from the
//! configured range, stays with its instance across restarts, and after it was given back goes to no
//! other instance before the quarantine of addresses has passed: clients may still use it.
//!
//! Pure but for [`probe`], which asks the kernel whether a process of the host has the port.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::{App, HostPortWish, Protocol};
use crate::instance::InstanceName;

/// A port of the host that leads to a port of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// Transport.
    pub protocol: Protocol,
    /// The host's address that it is on; absent, all of them.
    pub address: Option<Ipv4Addr>,
    /// On the host.
    pub port: u16,
    /// In the instance.
    pub container_port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{} {address}:{}", self.protocol, self.port),
            None => write!(f, "{} {}", self.protocol, self.port),
        }
    }
}

impl HostPort {
    /// Whether one packet could be meant for both.
    pub fn conflicts(&self, other: &Self) -> bool {
        let overlap = match (self.address, other.address) {
            (Some(one), Some(another)) => one == another,
            _ => true,
        };
        overlap && (self.protocol, self.port) == (other.protocol, other.port)
    }
}

/// A host port cannot be granted now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortRefused {
    /// It is fixed, and another instance has it.
    #[error(
        "host port {port} is held by {holder}; a fixed host port is for one instance of a host, `hostPort: auto` gives each its own"
    )]
    Taken {
        /// The port.
        port: HostPort,
        /// Who has it.
        holder: InstanceName,
    },
    /// Every port of the range is held, in quarantine, or a process of the host has it.
    #[error("no free {protocol} host port in {} to {} (network.host_ports)", range.start(), range.end())]
    Exhausted {
        /// Transport.
        protocol: Protocol,
        /// The configured range.
        range: RangeInclusive<u16>,
    },
}

/// How long an `auto` port that a process of the host was found to have is not granted again.
const AVOIDED: Duration = Duration::from_secs(600);

/// The host ports of all instances.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    quarantine_ms: u64,
    held: HashMap<InstanceName, Vec<HostPort>>,
    /// Given back: by whom, when, what.
    released: HashMap<InstanceName, (u64, Vec<HostPort>)>,
    /// Found in use by a process: not before this.
    avoided: BTreeMap<(Protocol, u16), u64>,
    /// Holders by port; few of one number differ in their address.
    by_port: BTreeMap<(Protocol, u16), Vec<InstanceName>>,
    next: u16,
}

impl Ports {
    pub(super) fn new(range: RangeInclusive<u16>, quarantine_ms: u64) -> Self {
        Self {
            next: *range.start(),
            range,
            quarantine_ms,
            held: HashMap::new(),
            released: HashMap::new(),
            avoided: BTreeMap::new(),
            by_port: BTreeMap::new(),
        }
    }

    /// All ports that `app` wishes for, or none of them.
    pub(super) fn grant(
        &mut self,
        instance: &InstanceName,
        app: &App,
        now_ms: u64,
    ) -> Result<Vec<HostPort>, PortRefused> {
        let mut granted: Vec<HostPort> = Vec::new();
        for wish in &app.ports {
            let Some(host_port) = wish.host_port else {
                continue;
            };
            let port = HostPort {
                protocol: wish.protocol,
                address: wish.host_ip,
                port: 0,
                container_port: wish.container_port,
            };
            granted.push(match host_port {
                HostPortWish::Fixed(number) => {
                    let port = HostPort {
                        port: number,
                        ..port
                    };
                    self.free(instance, port)?;
                    port
                }
                HostPortWish::Auto => self.any(instance, port, &granted, now_ms)?,
            });
        }
        self.forget(instance);
        self.hold(instance, granted.clone());
        Ok(granted)
    }

    /// Gives back what `instance` holds.
    pub(super) fn release(&mut self, instance: &InstanceName, now_ms: u64) {
        let Some(ports) = self.unhold(instance) else {
            return;
        };
        if !ports.is_empty() {
            self.released.insert(instance.clone(), (now_ms, ports));
        }
    }

    /// A process of the host has one of the ports that `instance` was granted: another time it
    /// gets others.
    pub(super) fn avoid(&mut self, instance: &InstanceName, now_ms: u64) {
        let until = now_ms.saturating_add(AVOIDED.as_millis().try_into().unwrap_or(u64::MAX));
        for port in self.held.get(instance).into_iter().flatten() {
            self.avoided.insert((port.protocol, port.port), until);
        }
    }

    /// What the journal says; `released_ms` when it was given back.
    pub(super) fn restore(
        &mut self,
        instance: &InstanceName,
        ports: Vec<HostPort>,
        released_ms: Option<u64>,
    ) {
        match released_ms {
            None => self.hold(instance, ports),
            Some(_) if ports.is_empty() => {}
            Some(at_ms) => {
                self.released.insert(instance.clone(), (at_ms, ports));
            }
        }
    }

    fn free(&self, instance: &InstanceName, port: HostPort) -> Result<(), PortRefused> {
        let holder = self.holders(port).find(|holder| *holder != instance);
        match holder {
            None => Ok(()),
            Some(holder) => Err(PortRefused::Taken {
                port,
                holder: holder.clone(),
            }),
        }
    }

    fn holders(&self, port: HostPort) -> impl Iterator<Item = &InstanceName> {
        let same_number = self.by_port.get(&(port.protocol, port.port));
        same_number.into_iter().flatten().filter(move |holder| {
            let held = self.held.get(*holder);
            held.is_some_and(|held| held.iter().any(|other| other.conflicts(&port)))
        })
    }

    /// The one that it had, else the next one that nobody has or had lately.
    fn any(
        &mut self,
        instance: &InstanceName,
        wanted: HostPort,
        granted: &[HostPort],
        now_ms: u64,
    ) -> Result<HostPort, PortRefused> {
        self.avoided.retain(|_, until| *until > now_ms);
        let before = self.held.get(instance);
        let before = before.or_else(|| self.released.get(instance).map(|(_, ports)| ports));
        let same = |port: &&HostPort| {
            (port.protocol, port.container_port) == (wanted.protocol, wanted.container_port)
                && self.range.contains(&port.port)
        };
        let had = before
            .into_iter()
            .flatten()
            .find(same)
            .map(|port| port.port);
        let quarantined: HashSet<(Protocol, u16)> = self
            .released
            .iter()
            .filter(|(who, (at, _))| {
                *who != instance && at.saturating_add(self.quarantine_ms) > now_ms
            })
            .flat_map(|(_, (_, ports))| ports.iter().map(|port| (port.protocol, port.port)))
            .collect();
        let round = (self.next..=*self.range.end()).chain(*self.range.start()..self.next);
        let usable = |number: &u16| {
            let port = HostPort {
                port: *number,
                ..wanted
            };
            let key = (wanted.protocol, *number);
            !self.avoided.contains_key(&key)
                && !quarantined.contains(&key)
                && !granted.iter().any(|other| other.conflicts(&port))
                && self.free(instance, port).is_ok()
        };
        let Some(number) = had.into_iter().chain(round).find(usable) else {
            return Err(PortRefused::Exhausted {
                protocol: wanted.protocol,
                range: self.range.clone(),
            });
        };
        if Some(number) != had {
            self.next = match number {
                number if number == *self.range.end() => *self.range.start(),
                number => number + 1,
            };
        }
        Ok(HostPort {
            port: number,
            ..wanted
        })
    }

    fn hold(&mut self, instance: &InstanceName, ports: Vec<HostPort>) {
        self.released.remove(instance);
        for port in &ports {
            let holders = self.by_port.entry((port.protocol, port.port)).or_default();
            holders.push(instance.clone());
        }
        if !ports.is_empty() {
            self.held.insert(instance.clone(), ports);
        }
    }

    fn forget(&mut self, instance: &InstanceName) {
        self.unhold(instance);
    }

    fn unhold(&mut self, instance: &InstanceName) -> Option<Vec<HostPort>> {
        let ports = self.held.remove(instance)?;
        for port in &ports {
            let key = (port.protocol, port.port);
            if let Some(holders) = self.by_port.get_mut(&key) {
                holders.retain(|holder| holder != instance);
                if holders.is_empty() {
                    self.by_port.remove(&key);
                }
            }
        }
        Some(ports)
    }
}

/// Whether no process in the calling thread's network namespace has the port: binds it for an
/// instant.
///
/// # Errors
/// What bind(2) says, `EADDRINUSE` above all; `EADDRNOTAVAIL` for an address that the host has not.
pub fn probe(port: &HostPort) -> io::Result<()> {
    let at = (port.address.unwrap_or(Ipv4Addr::UNSPECIFIED), port.port);
    match port.protocol {
        Protocol::Tcp => TcpListener::bind(at).map(drop),
        Protocol::Udp => UdpSocket::bind(at).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARANTINE_MS: u64 = 120_000;

    fn app(ports: &str) -> App {
        let manifest = format!(
            "{{apiVersion: nodeagent/v1, kind: App, metadata: {{name: web}}, \
             spec: {{image: 'web:1', ports: [{ports}]}}}}"
        );
        crate::app::parse(&manifest).unwrap()
    }

    fn web(ordinal: u32) -> InstanceName {
        InstanceName::new("web".parse().unwrap(), ordinal)
    }

    fn ports() -> Ports {
        Ports::new(20000..=20002, QUARANTINE_MS)
    }

    fn numbers(granted: Result<Vec<HostPort>, PortRefused>) -> Vec<u16> {
        granted.unwrap().iter().map(|port| port.port).collect()
    }

    #[test]
    fn a_fixed_port_has_one_holder_and_is_free_at_once_when_given_back() {
        let mut ports = ports();
        let fixed = app("{containerPort: 80, hostPort: 8080}");
        assert_eq!(numbers(ports.grant(&web(0), &fixed, 0)), [8080]);
        assert_eq!(numbers(ports.grant(&web(0), &fixed, 0)), [8080]);
        let refused = ports.grant(&web(1), &fixed, 0).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "host port tcp 8080 is held by web-0; a fixed host port is for one instance of a host, `hostPort: auto` gives each its own"
        );
        ports.release(&web(0), 0);
        assert_eq!(numbers(ports.grant(&web(1), &fixed, 1)), [8080]);
    }

    #[test]
    fn protocols_and_addresses_keep_equal_numbers_apart() {
        let mut ports = ports();
        for (n, port) in [
            "hostPort: 53",
            "hostPort: 53, protocol: UDP, hostIP: 192.0.2.1",
            "hostPort: 53, protocol: UDP, hostIP: 192.0.2.2",
        ]
        .into_iter()
        .enumerate()
        {
            let app = app(&format!("{{containerPort: 53, {port}}}"));
            let instance = web(u32::try_from(n).unwrap());
            assert_eq!(numbers(ports.grant(&instance, &app, 0)), [53], "{port}");
        }
        let everywhere = app("{containerPort: 53, protocol: UDP, hostPort: 53}");
        assert!(ports.grant(&web(9), &everywhere, 0).is_err());
    }

    #[test]
    fn automatic_ports_stay_with_their_instance_and_rest_before_another_has_them() {
        let mut ports = ports();
        let auto = app("{containerPort: 80, hostPort: auto}");
        let two = app("{containerPort: 80, hostPort: auto}, {containerPort: 81, hostPort: auto}");
        assert_eq!(numbers(ports.grant(&web(0), &auto, 0)), [20000]);
        assert_eq!(numbers(ports.grant(&web(1), &two, 0)), [20001, 20002]);
        let refused = ports.grant(&web(2), &auto, 0).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no free tcp host port in 20000 to 20002 (network.host_ports)"
        );
        ports.release(&web(0), 1_000);
        assert!(ports.grant(&web(2), &auto, QUARANTINE_MS + 999).is_err());
        assert_eq!(numbers(ports.grant(&web(0), &auto, 2_000)), [20000]);
        ports.release(&web(0), 3_000);
        let after = QUARANTINE_MS + 3_000;
        assert_eq!(numbers(ports.grant(&web(2), &auto, after)), [20000]);
    }

    #[test]
    fn quarantine_and_holders_survive_a_restart() {
        let auto = app("{containerPort: 80, hostPort: auto}");
        let mut before = ports();
        let held = before.grant(&web(0), &auto, 0).unwrap();
        let released = before.grant(&web(1), &auto, 0).unwrap();
        let mut after = ports();
        after.restore(&web(0), held, None);
        after.restore(&web(1), released, Some(1_000));
        assert_eq!(numbers(after.grant(&web(2), &auto, 2_000)), [20002]);
        assert!(after.grant(&web(3), &auto, 2_000).is_err());
        assert_eq!(numbers(after.grant(&web(1), &auto, 2_000)), [20001]);
    }
}
