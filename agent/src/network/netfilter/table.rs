//! The agent's table as messages. Pure: nothing here knows a socket.
//!
//! ```text
//! table inet nodeagent {
//!   comment "nodeagent 0123456789abcdef"                       whose it is
//!   map host_ports    { proto . port           : instance . port }
//!   map host_ports_at { address . proto . port : instance . port }
//!   set instances     { network.pools }
//!   set direct        { network.pools, network.masquerade_except }
//!   chain prerouting  { nat hook prerouting priority dstnat
//!     fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @host_ports_at
//!     fib daddr type local dnat ip to meta l4proto . th dport map @host_ports }
//!   chain output      { nat hook output priority dstnat; the same two, not for 127.0.0.0/8 }
//!   chain postrouting { nat hook postrouting priority srcnat
//!     ct status dnat ip saddr @instances ip daddr @instances masquerade
//!     ip saddr @instances ip daddr != @direct masquerade }
//! }
//! ```
//! A host port is one element of a map, whatever their number.

use std::net::Ipv4Addr;

use super::expression::{FIRST, Member, Rule, SECOND, THIRD};
use super::message::{Attributes, INET, Message};
use crate::app::Protocol;
use crate::config::AddressRange;
use crate::network::ports::HostPort;

/// Operations of nf_tables: subsystem 10, `enum nf_tables_msg_types`.
const fn operation(number: u16) -> u16 {
    10 << 8 | number
}
const NEW_TABLE: u16 = operation(0);
const GET_TABLE: u16 = operation(1);
const DELETE_TABLE: u16 = operation(2);
const NEW_CHAIN: u16 = operation(3);
const NEW_RULE: u16 = operation(6);
const NEW_SET: u16 = operation(9);
const NEW_ELEMENT: u16 = operation(12);
const DELETE_ELEMENT: u16 = operation(14);

/// `NLM_F_CREATE` and `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// nft's names of types, six bits each in a concatenation: what `nft list` reads.
const ADDRESS: u32 = 7;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;

/// `NFT_SET_INTERVAL`, `NFT_SET_MAP`.
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// Elements of one message: an attribute ends at 64 KiB.
const ELEMENTS: usize = 512;

const HOST_PORTS: &str = "host_ports";
const HOST_PORTS_AT: &str = "host_ports_at";
const INSTANCES: &str = "instances";
const DIRECT: &str = "direct";

/// `NF_INET_PRE_ROUTING`, `NF_INET_LOCAL_OUT`, `NF_INET_POST_ROUTING` and their usual priorities.
const PREROUTING: (&str, u32, i32) = ("prerouting", 0, -100);
const OUTPUT: (&str, u32, i32) = ("output", 3, -100);
const POSTROUTING: (&str, u32, i32) = ("postrouting", 4, 100);

/// Whether what leaves the host comes from the host's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::network) enum Masquerade {
    Yes,
    No,
}

/// What is the same as long as the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::network) struct Table {
    /// Its name.
    pub(in crate::network) name: String,
    /// Whose it is: the comment.
    pub(in crate::network) owner: String,
    /// Addresses of instances.
    pub(in crate::network) pools: Vec<AddressRange>,
    /// Destinations beyond `pools` that see instances' own addresses.
    pub(in crate::network) except: Vec<AddressRange>,
    /// Whether all others see the host's.
    pub(in crate::network) masquerade: Masquerade,
}

/// A host port and the instance behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Forward {
    pub(super) port: HostPort,
    pub(super) instance: Ipv4Addr,
}

impl Table {
    /// Lists tables; [`owner_of`] reads them.
    pub(super) fn list() -> Message {
        message("list the tables", GET_TABLE, 0, Attributes::new())
    }

    /// Replaces the table, whether it is there or not.
    pub(super) fn replace(&self, forwards: &[Forward]) -> Vec<Message> {
        let mut changes = self.remove();
        changes.push(self.create());
        let pools: Vec<AddressRange> = self.pools.clone();
        let direct: Vec<AddressRange> = pools.iter().chain(&self.except).copied().collect();
        changes.push(self.set(1, HOST_PORTS, MAP, &[PROTOCOL, PORT], &[ADDRESS, PORT]));
        let key = [ADDRESS, PROTOCOL, PORT];
        changes.push(self.set(2, HOST_PORTS_AT, MAP, &key, &[ADDRESS, PORT]));
        changes.push(self.set(3, INSTANCES, INTERVAL, &[ADDRESS], &[]));
        changes.push(self.set(4, DIRECT, INTERVAL, &[ADDRESS], &[]));
        changes.push(self.elements(NEW_ELEMENT, INSTANCES, &intervals(&pools)));
        changes.push(self.elements(NEW_ELEMENT, DIRECT, &intervals(&direct)));
        changes.extend(self.forward(forwards));
        changes.push(self.chain(PREROUTING));
        changes.push(self.chain(OUTPUT));
        changes.push(self.chain(POSTROUTING));
        let sent_here = Rule::ipv4().sent_to_this_host();
        let from_here = sent_here.clone().not_to_loopback();
        for (chain, rule) in [(PREROUTING, sent_here), (OUTPUT, from_here)] {
            let at = rule.clone().destination(FIRST);
            let at = at.protocol(SECOND).port(THIRD).look_up(HOST_PORTS_AT);
            let any = rule.protocol(FIRST).port(SECOND).look_up(HOST_PORTS);
            changes.push(self.rule(chain, at.translate_destination()));
            changes.push(self.rule(chain, any.translate_destination()));
        }
        // To itself, or past the host within one bridge, the answer would not come back this way.
        let hairpin = Rule::ipv4().translated();
        let hairpin = hairpin.source(FIRST).in_set(INSTANCES, Member::Yes);
        let hairpin = hairpin.destination(FIRST).in_set(INSTANCES, Member::Yes);
        changes.push(self.rule(POSTROUTING, hairpin.masquerade()));
        if self.masquerade == Masquerade::Yes {
            let leaves = Rule::ipv4().source(FIRST).in_set(INSTANCES, Member::Yes);
            let leaves = leaves.destination(FIRST).in_set(DIRECT, Member::No);
            changes.push(self.rule(POSTROUTING, leaves.masquerade()));
        }
        changes
    }

    /// Removes the table, whether it is there or not.
    pub(super) fn remove(&self) -> Vec<Message> {
        let name = Attributes::new().text(1, &self.name);
        vec![
            self.create(),
            message("remove the table", DELETE_TABLE, 0, name),
        ]
    }

    /// Adds host ports.
    pub(super) fn forward(&self, forwards: &[Forward]) -> Vec<Message> {
        self.ports(NEW_ELEMENT, forwards)
    }

    /// Takes host ports away.
    pub(super) fn withdraw(&self, forwards: &[Forward]) -> Vec<Message> {
        self.ports(DELETE_ELEMENT, forwards)
    }

    fn ports(&self, kind: u16, forwards: &[Forward]) -> Vec<Message> {
        let (at, any): (Vec<&Forward>, Vec<&Forward>) = forwards
            .iter()
            .partition(|forward| forward.port.address.is_some());
        let mut changes = Vec::new();
        for (map, forwards) in [(HOST_PORTS_AT, at), (HOST_PORTS, any)] {
            for some in forwards.chunks(ELEMENTS) {
                let elements: Vec<Attributes> = some.iter().map(|f| element(f)).collect();
                changes.push(self.elements(kind, map, &elements));
            }
        }
        changes
    }

    fn create(&self) -> Message {
        let table = Attributes::new()
            .text(1, &self.name)
            .bytes(6, &comment(&self.owner));
        message("make the table", NEW_TABLE, CREATE, table)
    }

    fn set(&self, id: u32, name: &str, flags: u32, key: &[u32], data: &[u32]) -> Message {
        let named = |types: &[u32]| types.iter().fold(0, |name, part| name << 6 | part);
        // Each part of a concatenation takes four bytes.
        let length = |types: &[u32]| u32::try_from(4 * types.len()).unwrap_or(u32::MAX);
        let mut set = Attributes::new()
            .text(1, &self.name)
            .text(2, name)
            .number(3, flags)
            .number(4, named(key))
            .number(5, length(key));
        if !data.is_empty() {
            set = set.number(6, named(data)).number(7, length(data));
        }
        message("make a set", NEW_SET, CREATE, set.number(10, id))
    }

    fn elements(&self, kind: u16, set: &str, elements: &[Attributes]) -> Message {
        let list = elements.iter().fold(Attributes::new(), |list, element| {
            list.nested(1, element.clone())
        });
        let what = match kind {
            DELETE_ELEMENT => "take a host port away",
            _ => "fill a set",
        };
        let flags = if kind == DELETE_ELEMENT { 0 } else { CREATE };
        let attributes = Attributes::new().text(1, &self.name).text(2, set);
        message(what, kind, flags, attributes.nested(3, list))
    }

    fn chain(&self, (name, hook, priority): (&str, u32, i32)) -> Message {
        let hook = Attributes::new()
            .number(1, hook)
            .bytes(2, &priority.to_be_bytes());
        let chain = Attributes::new()
            .text(1, &self.name)
            .text(3, name)
            .nested(4, hook)
            .text(7, "nat");
        message("make a chain", NEW_CHAIN, CREATE, chain)
    }

    fn rule(&self, (chain, _, _): (&str, u32, i32), rule: Rule) -> Message {
        let attributes = Attributes::new()
            .text(1, &self.name)
            .text(2, chain)
            .nested(4, rule.expressions());
        message("add a rule", NEW_RULE, CREATE | APPEND, attributes)
    }
}

fn message(what: &'static str, kind: u16, flags: u16, attributes: Attributes) -> Message {
    Message {
        what,
        kind,
        flags,
        family: INET,
        resource: 0,
        attributes,
    }
}

/// A comment as nft writes it: type 0 of its table's user data, length, text with NUL.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, length];
    bytes.extend(text.bytes().take(usize::from(length) - 1));
    bytes.push(0);
    bytes
}

/// The comment in a table's user data.
pub(super) fn owner_of(user_data: &[u8]) -> Option<&str> {
    let text = user_data.get(2..)?;
    std::str::from_utf8(text.strip_suffix(&[0])?).ok()
}

fn element(forward: &Forward) -> Attributes {
    let HostPort {
        protocol,
        address,
        port,
        container_port,
    } = forward.port;
    let mut key = address.map_or_else(Vec::new, |address| address.octets().to_vec());
    key.extend([protocol_number(protocol), 0, 0, 0]);
    key.extend(in_four_bytes(port));
    let mut data = forward.instance.octets().to_vec();
    data.extend(in_four_bytes(container_port));
    let value = |bytes: &[u8]| Attributes::new().bytes(1, bytes);
    Attributes::new()
        .nested(1, value(&key))
        .nested(2, value(&data))
}

fn in_four_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Of the IANA's list of protocol numbers.
pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// Beginnings and ends of the ranges, which the kernel does not take when they touch or overlap.
fn intervals(ranges: &[AddressRange]) -> Vec<Attributes> {
    let mut sorted: Vec<(u64, u64)> = ranges
        .iter()
        .map(|range| {
            let first = u64::from(range.base.to_bits());
            (first, first + (1 << (32 - u32::from(range.prefix))))
        })
        .collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (first, end) in sorted {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(end),
            _ => merged.push((first, end)),
        }
    }
    let key = |bits: u64| {
        let bits = u32::try_from(bits).ok()?;
        let value = Attributes::new().bytes(1, &bits.to_be_bytes());
        Some(Attributes::new().nested(1, value))
    };
    // The kernel's own beginning: what lies before the first range is none.
    let mut edges: Vec<Attributes> = key(0)
        .map(|begin| begin.number(3, INTERVAL_END))
        .filter(|_| merged.first().is_some_and(|(first, _)| *first > 0))
        .into_iter()
        .collect();
    for (first, end) in merged {
        edges.extend(key(first));
        edges.extend(key(end).map(|end| end.number(3, INTERVAL_END)));
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_read_back() {
        let bytes = comment("nodeagent 0123");
        assert_eq!(owner_of(&bytes), Some("nodeagent 0123"));
        assert_eq!(owner_of(&[]), None);
    }

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        let range = |base: [u8; 4], prefix| AddressRange {
            base: base.into(),
            prefix,
        };
        let apart = [range([10, 0, 0, 0], 24), range([10, 0, 2, 0], 24)];
        assert_eq!(intervals(&apart).len(), 5);
        let touching = [range([10, 0, 1, 0], 24), range([10, 0, 0, 0], 24)];
        assert_eq!(intervals(&touching).len(), 3);
        let within = [range([10, 0, 0, 0], 8), range([10, 88, 0, 0], 16)];
        assert_eq!(intervals(&within).len(), 3);
        assert_eq!(intervals(&[range([255, 0, 0, 0], 8)]).len(), 2, "no end");
    }
}
