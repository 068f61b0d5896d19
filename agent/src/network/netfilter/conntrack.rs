//! Connections that the kernel tracks: what a freed address or a new host port may not inherit.
//!
//! A translation is decided by a connection's first packet and kept as long as packets come. The
//! entries of an address that goes to another instance, and UDP flows to a host port from before it
//! was one, are therefore removed (linux/netfilter/nfnetlink_conntrack.h).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::message::{Attributes, IPV4, Message, Object, address, find};
use super::socket::Netfilter;
use crate::network::netlink::NetlinkError;

/// Subsystem 1, `enum cntl_msg_types`: IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;

/// `enum ctattr_type`: both directions, the entry's id, its zone.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `enum ctattr_tuple`, `ctattr_ip`, `ctattr_l4proto`.
const ADDRESSES: u16 = 1;
const TRANSPORT: u16 = 2;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const PROTOCOL: u16 = 1;
const DESTINATION_PORT: u16 = 3;
const UDP: u8 = 17;

/// Which connections are forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Forget {
    /// Those from or to these addresses, before or after translation.
    pub(super) addresses: BTreeSet<Ipv4Addr>,
    /// UDP flows that were sent to these ports.
    pub(super) udp_ports: BTreeSet<u16>,
}

impl Forget {
    fn nothing(&self) -> bool {
        self.addresses.is_empty() && self.udp_ports.is_empty()
    }

    fn concerns(&self, entry: &Object) -> bool {
        let directions = [ORIGINAL, REPLY].map(|kind| entry.get(kind));
        let of_an_address = directions.iter().flatten().any(|tuple| {
            let ends = find(tuple, ADDRESSES);
            [SOURCE, DESTINATION]
                .into_iter()
                .filter_map(|end| address(find(ends?, end)?))
                .any(|end| self.addresses.contains(&end))
        });
        of_an_address || directions[0].is_some_and(|original| self.is_udp_to_port(original))
    }

    fn is_udp_to_port(&self, tuple: &[u8]) -> bool {
        let Some(transport) = find(tuple, TRANSPORT) else {
            return false;
        };
        let port = find(transport, DESTINATION_PORT).and_then(|port| port.first_chunk());
        find(transport, PROTOCOL) == Some(&[UDP])
            && port.is_some_and(|port| self.udp_ports.contains(&u16::from_be_bytes(*port)))
    }
}

/// Removes the entries; returns how many there were. One that is gone by then is fine.
pub(super) fn forget(socket: &mut Netfilter, what: &Forget) -> Result<usize, NetlinkError> {
    if what.nothing() {
        return Ok(0);
    }
    let mut doomed = Vec::new();
    let list = message("list the tracked connections", GET, Attributes::new());
    socket.list(&list, |entry| {
        if what.concerns(&entry) {
            doomed.push(entry);
        }
    })?;
    let count = doomed.len();
    for entry in doomed {
        match socket.request(&removal(&entry)) {
            Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => {}
            other => other?,
        }
    }
    Ok(count)
}

/// By tuple and id: a connection that took the tuple meanwhile is another one.
fn removal(entry: &Object) -> Message {
    let mut attributes = Attributes::new();
    if let Some(tuple) = entry.get(ORIGINAL) {
        attributes = attributes.bytes(ORIGINAL | 1 << 15, tuple);
    }
    for kind in [ID, ZONE] {
        if let Some(value) = entry.get(kind) {
            attributes = attributes.bytes(kind, value);
        }
    }
    message("forget a connection", DELETE, attributes)
}

fn message(what: &'static str, kind: u16, attributes: Attributes) -> Message {
    Message {
        what,
        kind,
        flags: 0,
        family: IPV4,
        resource: 0,
        attributes,
    }
}
