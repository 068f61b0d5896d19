//! Rules for `ports`: what the app listens on, and which ports of the host lead there.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::names;
use crate::app::manifest::{self, PortNumber, Scalar};
use crate::app::{HostPortWish, NetworkMode, Port, Protocol, Warm};
use crate::document::{Findings, shown};

const HOST_PORT: &str =
    "a port number, 1 to 65535, or auto: one of network.host_ports for each instance";

/// `spec.ports`.
pub(super) fn ports(
    ports: Vec<manifest::Port>,
    network: NetworkMode,
    findings: &mut Findings,
) -> Vec<Port> {
    let (mut seen_names, mut seen_numbers) = (BTreeSet::new(), BTreeSet::new());
    let mut valid: Vec<Port> = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        if let Some(name) = &port.name {
            let at = format!("{field}.name");
            if !names::is_port_name(name) {
                findings.wrong(&at, shown(name), names::PORT_NAME);
            } else if !seen_names.insert(name.clone()) {
                findings.wrong(&at, shown(name), "a name that no other port has");
            }
        }
        let protocol = match port.protocol {
            None | Some(manifest::Protocol::Tcp) => Protocol::Tcp,
            Some(manifest::Protocol::Udp) => Protocol::Udp,
        };
        let at = format!("{field}.containerPort");
        match port.container_port {
            None => findings.note(&at, "required: a port number, 1 to 65535"),
            Some(PortNumber(number)) if !seen_numbers.insert((protocol, number)) => {
                findings.wrong(&at, number.to_string(), "a number that no other port has");
            }
            Some(_) => {}
        }
        let checked = Port {
            name: port.name,
            // A port whose number could not be read keeps its name known: one finding is enough.
            container_port: port
                .container_port
                .map_or(1, |PortNumber(number)| number.get()),
            protocol,
            host_port: host_port(
                &format!("{field}.hostPort"),
                port.host_port.as_ref(),
                findings,
            ),
            host_ip: host_ip(
                &format!("{field}.hostIP"),
                port.host_ip.as_deref(),
                findings,
            ),
        };
        if network == NetworkMode::Host {
            in_the_hosts_network(&field, &checked, findings);
        }
        if let Some(HostPortWish::Fixed(number)) = checked.host_port
            && valid.iter().any(|other| meets(other, &checked))
        {
            let at = format!("{field}.hostPort");
            findings.wrong(
                &at,
                number.to_string(),
                "a host port that no other port has",
            );
        }
        valid.push(checked);
    }
    valid
}

/// Clients are told the host's address: a port of the host leads to the registered one.
pub(super) fn lead_to(registered: u16, ports: &mut Vec<Port>) {
    let auto = Some(HostPortWish::Auto);
    let known = ports
        .iter_mut()
        .find(|port| port.container_port == registered && port.protocol == Protocol::Tcp);
    match known {
        Some(port) => port.host_port = port.host_port.or(auto),
        None => ports.push(Port {
            name: None,
            container_port: registered,
            protocol: Protocol::Tcp,
            host_port: auto,
            host_ip: None,
        }),
    }
}

/// One instance has a fixed port from the gate on: more than one cannot wait.
pub(super) fn one_instance_each(ports: &[Port], warm: &Warm, findings: &mut Findings) {
    let fixed = |port: &&Port| matches!(port.host_port, Some(HostPortWish::Fixed(_)));
    if warm.armed > 1
        && let Some(Port {
            host_port: Some(HostPortWish::Fixed(number)),
            ..
        }) = ports.iter().find(fixed)
    {
        findings.wrong(
            "spec.warm.armed",
            warm.armed.to_string(),
            format!("0 or 1 with the fixed host port {number}, which one instance of a host can have; `hostPort: auto` gives each its own"),
        );
    }
}

fn meets(one: &Port, other: &Port) -> bool {
    let overlap = one.host_ip.is_none() || other.host_ip.is_none() || one.host_ip == other.host_ip;
    overlap
        && one.protocol == other.protocol
        && one.host_port == other.host_port
        && matches!(one.host_port, Some(HostPortWish::Fixed(_)))
}

fn host_port(field: &str, given: Option<&Scalar>, findings: &mut Findings) -> Option<HostPortWish> {
    let given = given?;
    let wish = match given {
        Scalar::Text(text) if text == "auto" => Some(HostPortWish::Auto),
        Scalar::Text(_) => None,
        Scalar::Number(text) => text
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .map(HostPortWish::Fixed),
    };
    if wish.is_none() {
        findings.wrong(field, value(given), HOST_PORT);
    }
    wish
}

fn host_ip(field: &str, given: Option<&str>, findings: &mut Findings) -> Option<Ipv4Addr> {
    let given = given?;
    match given.parse::<Ipv4Addr>() {
        Ok(Ipv4Addr::UNSPECIFIED) => None,
        Ok(address) if !address.is_loopback() && !address.is_multicast() => Some(address),
        _ => {
            findings.wrong(
                field,
                shown(given),
                "an IPv4 address of the host (not of 127.0.0.0/8), or 0.0.0.0 for all of them",
            );
            None
        }
    }
}

fn in_the_hosts_network(field: &str, port: &Port, findings: &mut Findings) {
    let own = HostPortWish::Fixed(port.container_port);
    if let Some(wish) = port.host_port.filter(|wish| *wish != own) {
        let given = match wish {
            HostPortWish::Auto => "auto".to_owned(),
            HostPortWish::Fixed(number) => number.to_string(),
        };
        findings.wrong(
            &format!("{field}.hostPort"),
            given,
            format!(
                "{}, the containerPort, with network: host: nothing is translated there",
                port.container_port
            ),
        );
    }
}

/// Number of the port that `given` names: a number, or the name of one of `ports`.
pub(super) fn number(field: &str, given: &Scalar, ports: &[Port], findings: &mut Findings) -> u16 {
    let number = match given {
        Scalar::Number(text) => text.parse().ok().filter(|number| *number > 0),
        Scalar::Text(name) => ports
            .iter()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port),
    };
    number.unwrap_or_else(|| {
        let known: Vec<&str> = ports
            .iter()
            .filter_map(|port| port.name.as_deref())
            .collect();
        let allowed = if known.is_empty() {
            "a number 1 to 65535 (spec.ports names no port)".to_owned()
        } else {
            format!(
                "a number 1 to 65535, or the name of a port in spec.ports: {}",
                known.join(", ")
            )
        };
        findings.wrong(field, value(given), allowed);
        1
    })
}

fn value(given: &Scalar) -> String {
    match given {
        Scalar::Number(text) => text.clone(),
        Scalar::Text(text) => shown(text),
    }
}
