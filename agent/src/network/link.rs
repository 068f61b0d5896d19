//! The routing messages of a slot, and what the kernel's answers say about it.
//!
//! Owns the shape of a slot on the wire: one veth pair in our link group, one /32 on each side, on
//! the host's own end or on the bridge that this is a port of,
//! permanent neighbour entries (`gc_thresh3` of the neighbour table, 1024 by default, spans all
//! namespaces: learnt entries fail from some 500 slots on). Every request can be repeated: it
//! creates or replaces. Builds and reads messages only; `netlink` sends them.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::names::{BridgeNames, INSIDE, Mac, SlotNames};
use super::netlink::Request;
use crate::config::Connects;

/// Index of `lo` in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h).
const LOOPBACK: u32 = 1;

const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// What is the same for every slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkShape {
    /// Link group of the host's ends.
    pub(super) group: u32,
    /// MTU of both ends.
    pub(super) mtu: u32,
    /// The gateway seen from inside.
    pub(super) gateway: Ipv4Addr,
    /// How host and slot are connected.
    pub(super) connects: Connects,
    /// Most ports of one bridge.
    pub(super) bridge_ports: u32,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) link: u32,
    pub(super) address: Ipv4Addr,
    pub(super) mac: Vec<u8>,
}

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Vec<u8>,
    pub(super) group: u32,
    pub(super) alias: Option<String>,
    /// Index of a veth's other end, in the namespace of that end.
    pub(super) peer: Option<u32>,
    /// Index of the bridge that it is a port of.
    pub(super) master: Option<u32>,
    pub(super) kind: Option<InfoKind>,
}

impl Link {
    fn read(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::Controller(master) => link.master = Some(master),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

/// The links of a list of answers.
pub(super) fn links(answers: impl IntoIterator<Item = RouteNetlinkMessage>) -> Vec<Link> {
    let link = |answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::read(message)),
        _ => None,
    };
    answers.into_iter().filter_map(link).collect()
}

/// Host routes of a list of answers: link index and address.
pub(super) fn host_routes(
    answers: impl IntoIterator<Item = RouteNetlinkMessage>,
) -> Vec<(u32, Ipv4Addr)> {
    answers.into_iter().filter_map(host_route_of).collect()
}

/// Addresses of a list of answers: link index and address.
pub(super) fn addresses(
    answers: impl IntoIterator<Item = RouteNetlinkMessage>,
) -> Vec<(u32, Ipv4Addr)> {
    let address = |answer| match answer {
        RouteNetlinkMessage::NewAddress(message) => {
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => v4((*address).into()),
                    _ => None,
                });
            local.map(|address| (message.header.index, address))
        }
        _ => None,
    };
    answers.into_iter().filter_map(address).collect()
}

/// The permanent IPv4 neighbours of a list of answers.
pub(super) fn neighbours(answers: impl IntoIterator<Item = RouteNetlinkMessage>) -> Vec<Neighbour> {
    let neighbour = |answer| {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else {
            return None;
        };
        let (mut address, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) => {
                    address = Some(inet);
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes),
                _ => {}
            }
        }
        let permanent = message.header.state == NeighbourState::Permanent;
        Some(Neighbour {
            link: message.header.ifindex,
            address: address.filter(|_| permanent)?,
            mac: mac?,
        })
    };
    answers.into_iter().filter_map(neighbour).collect()
}

fn host_route_of(answer: RouteNetlinkMessage) -> Option<(u32, Ipv4Addr)> {
    let RouteNetlinkMessage::NewRoute(route) = answer else {
        return None;
    };
    if route.header.destination_prefix_length != 32 || route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut link = None;
    let mut address = None;
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(index),
            RouteAttribute::Destination(destination) => address = v4(destination),
            _ => {}
        }
    }
    link.zip(address)
}

fn v4(address: RouteAddress) -> Option<Ipv4Addr> {
    match address {
        RouteAddress::Inet(address) => Some(address),
        _ => None,
    }
}

/// Asks for the link called `name`.
pub(super) fn get_link(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(link_message(
        0,
        vec![LinkAttribute::IfName(name.to_owned()), without_statistics()],
    ))
}

/// Lists all links.
pub(super) fn list_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(link_message(0, vec![without_statistics()]))
}

/// Lists the IPv4 routes.
pub(super) fn list_routes() -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    RouteNetlinkMessage::GetRoute(message)
}

/// Lists the IPv4 addresses.
pub(super) fn list_addresses() -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    RouteNetlinkMessage::GetAddress(message)
}

/// Lists the IPv4 neighbours.
pub(super) fn list_neighbours() -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Asks which route of the table (not which cached decision) leads to `address`.
pub(super) fn get_route(address: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.header.flags = RouteFlags::FibMatch;
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(address))];
    RouteNetlinkMessage::GetRoute(message)
}

/// Makes both ends, the inner one inside `namespace`; the host's end is up and in our
/// group, but not signed: a creation takes no alias (rtnl_create_link).
pub(super) fn create_pair(
    names: &SlotNames,
    shape: &LinkShape,
    namespace: BorrowedFd<'_>,
    bridge: Option<u32>,
) -> Vec<Request> {
    // Not raised here: while a pair is made, its first end has no peer yet and refuses with ENOTCONN
    // (veth_open).
    let inside = link_message(
        0,
        vec![
            LinkAttribute::IfName(INSIDE.to_owned()),
            LinkAttribute::Address(names.inside_mac.to_vec()),
            LinkAttribute::Mtu(shape.mtu),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ],
    );
    let mut host = link_message(
        0,
        vec![
            LinkAttribute::IfName(names.host_link.clone()),
            LinkAttribute::Address(names.host_mac.to_vec()),
            LinkAttribute::Mtu(shape.mtu),
            LinkAttribute::Group(shape.group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
            ]),
        ],
    );
    host.attributes
        .extend(bridge.map(LinkAttribute::Controller));
    raise(&mut host);
    vec![request(
        "create the veth pair",
        RouteNetlinkMessage::NewLink(host),
        NLM_F_CREATE | NLM_F_EXCL,
    )]
}

/// Makes the inner end `link` right; `gateway` is the MAC of what it is connected to.
pub(super) fn configure_inside(
    link: u32,
    gateway: Mac,
    shape: &LinkShape,
    address: Ipv4Addr,
) -> Vec<Request> {
    let mut eth0 = link_message(link, vec![LinkAttribute::Mtu(shape.mtu)]);
    raise(&mut eth0);
    let mut lo = link_message(LOOPBACK, Vec::new());
    raise(&mut lo);
    let mut default = route(0, RouteScope::Universe, link);
    default.header.flags = RouteFlags::Onlink;
    default
        .attributes
        .push(RouteAttribute::Gateway(RouteAddress::Inet(shape.gateway)));
    vec![
        request("raise lo", RouteNetlinkMessage::SetLink(lo), 0),
        request("raise eth0", RouteNetlinkMessage::SetLink(eth0), 0),
        request(
            "set the address",
            RouteNetlinkMessage::NewAddress(address_message(link, address)),
            SET,
        ),
        request(
            "set the gateway's neighbour",
            neighbour(link, shape.gateway, gateway),
            SET,
        ),
        request(
            "set the route to the gateway",
            RouteNetlinkMessage::NewRoute(host_route(link, shape.gateway)),
            SET,
        ),
        request(
            "set the default route",
            RouteNetlinkMessage::NewRoute(default),
            SET,
        ),
    ]
}

/// Takes an address away from the inner end `link`.
pub(super) fn remove_address(link: u32, address: Ipv4Addr) -> Request {
    let message = RouteNetlinkMessage::DelAddress(address_message(link, address));
    request("remove an address of before", message, 0)
}

/// Makes the host's end `link` right, a port of `bridge` where there is one; route and neighbour are
/// requests of their own.
pub(super) fn configure_host(
    link: u32,
    names: &SlotNames,
    shape: &LinkShape,
    bridge: Option<u32>,
) -> Vec<Request> {
    let mut host = link_message(
        link,
        vec![
            LinkAttribute::Mtu(shape.mtu),
            LinkAttribute::Group(shape.group),
            LinkAttribute::IfAlias(names.alias.clone()),
        ],
    );
    host.attributes
        .extend(bridge.map(LinkAttribute::Controller));
    raise(&mut host);
    let mut requests = vec![request(
        "raise and sign the host's end",
        RouteNetlinkMessage::SetLink(host),
        0,
    )];
    if bridge.is_some() {
        requests.push(request(
            "set up the port of the bridge",
            RouteNetlinkMessage::NewLink(link_message(link, vec![isolated_port()])),
            0,
        ));
        requests.push(request(
            "set the port's MAC address",
            port_address(link, names.inside_mac),
            SET,
        ));
    }
    requests
}

/// Nothing of another port comes in, and nothing is learnt or tried out.
fn isolated_port() -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::Isolated(true),
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(false),
            InfoBridgePort::BroadcastFlood(false),
        ])),
    ])
}

/// The permanent entry of the bridge's table of addresses for what is behind `port`.
fn port_address(port: u32, mac: Mac) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    RouteNetlinkMessage::NewNeighbour(message)
}

/// Makes a bridge with a MAC that no port changes.
pub(super) fn create_bridge(names: &BridgeNames, shape: &LinkShape) -> Request {
    let bridge = link_message(
        0,
        vec![
            LinkAttribute::IfName(names.link.clone()),
            LinkAttribute::Address(names.mac.to_vec()),
            LinkAttribute::Mtu(shape.mtu),
            LinkAttribute::Group(shape.group),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ],
    );
    request(
        "create a bridge",
        RouteNetlinkMessage::NewLink(bridge),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Raises and signs a bridge and gives it the gateway's address.
pub(super) fn configure_bridge(link: u32, names: &BridgeNames, shape: &LinkShape) -> Vec<Request> {
    let mut bridge = link_message(link, vec![LinkAttribute::IfAlias(names.alias.clone())]);
    raise(&mut bridge);
    // Never the source of what the host itself sends to instances.
    let mut gateway = address_message(link, shape.gateway);
    gateway.header.scope = AddressScope::Host;
    vec![
        request(
            "raise and sign the bridge",
            RouteNetlinkMessage::SetLink(bridge),
            0,
        ),
        request(
            "give the bridge the gateway's address",
            RouteNetlinkMessage::NewAddress(gateway),
            SET,
        ),
    ]
}

/// Sets the neighbour behind the host's own end: it is nobody else's.
pub(super) fn set_neighbour(link: u32, address: Ipv4Addr, mac: Mac) -> Request {
    let message = neighbour(link, address, mac);
    request("set the instance's neighbour", message, SET)
}

/// Adds the neighbour behind a bridge. The kernel refuses with EEXIST when the address has one.
pub(super) fn add_neighbour(link: u32, address: Ipv4Addr, mac: Mac) -> Request {
    let message = neighbour(link, address, mac);
    request(
        "add the instance's neighbour",
        message,
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Adds the host's route to `address`. The kernel refuses with EEXIST when there is one, whichever
/// link it uses: a replacement would take an address away from its holder.
pub(super) fn add_host_route(link: u32, address: Ipv4Addr) -> Request {
    let message = RouteNetlinkMessage::NewRoute(host_route(link, address));
    request(
        "add the route to the instance",
        message,
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Removes the host's route to `address` through `link`.
pub(super) fn remove_host_route(link: u32, address: Ipv4Addr) -> Request {
    let message = RouteNetlinkMessage::DelRoute(host_route(link, address));
    request("remove a route of before", message, 0)
}

/// Removes the host's neighbour entry for `address` on `link`.
pub(super) fn remove_neighbour(link: u32, address: Ipv4Addr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(
        address,
    ))];
    request(
        "remove a neighbour of before",
        RouteNetlinkMessage::DelNeighbour(message),
        0,
    )
}

/// Deletes a link, and with it a veth's other end, its routes and its neighbours.
pub(super) fn delete_link(link: u32) -> Request {
    let message = RouteNetlinkMessage::DelLink(link_message(link, Vec::new()));
    request("delete the link", message, 0)
}

/// Puts a link into another group.
pub(super) fn move_to_group(link: u32, group: u32) -> Request {
    let message = link_message(link, vec![LinkAttribute::Group(group)]);
    request(
        "move the link to the group that is deleted",
        RouteNetlinkMessage::SetLink(message),
        0,
    )
}

/// Deletes all links of a group in one go.
pub(super) fn delete_group(group: u32) -> Request {
    let message = link_message(0, vec![LinkAttribute::Group(group)]);
    request(
        "delete the links of a group",
        RouteNetlinkMessage::DelLink(message),
        0,
    )
}

fn request(what: &'static str, message: RouteNetlinkMessage, flags: u16) -> Request {
    Request {
        what,
        message,
        flags,
    }
}

fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn raise(link: &mut LinkMessage) {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
}

fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn address_message(link: u32, address: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = link;
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
    ];
    message
}

fn route(prefix: u8, scope: RouteScope, link: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Oif(link)];
    message
}

fn host_route(link: u32, address: Ipv4Addr) -> RouteMessage {
    let mut message = route(32, RouteScope::Link, link);
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::Inet(address)));
    message
}

fn neighbour(link: u32, address: Ipv4Addr, mac: Mac) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}
