//! The address under which clients reach this host.

use std::net::Ipv4Addr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteType};

use super::error::NetworkError;
use super::link;
use super::netlink::Netlink;
use crate::config;

/// The configured address, else the one that the default route of the calling thread's network
/// namespace goes out with: its preferred source, or the first address of its interface. `None`
/// without either.
///
/// # Errors
/// [`NetworkError::Kernel`] when the kernel's lists cannot be read.
pub fn host_address(settings: &config::Network) -> Result<Option<Ipv4Addr>, NetworkError> {
    if settings.host_address.is_some() {
        return Ok(settings.host_address);
    }
    let unread = |source| NetworkError::Kernel {
        operation: "look for the default route",
        object: "main table".to_owned(),
        source,
    };
    let mut netlink = Netlink::open().map_err(unread)?;
    let routes = netlink.dump(link::list_routes()).map_err(unread)?;
    let Some(route) = routes
        .into_iter()
        .filter_map(DefaultRoute::read)
        .min_by_key(|route| route.metric)
    else {
        return Ok(None);
    };
    if let Some(source) = route.preferred_source {
        return Ok(Some(source));
    }
    let addresses = netlink.dump(link::list_addresses()).map_err(unread)?;
    Ok(link::addresses(addresses)
        .into_iter()
        .find(|(index, _)| Some(*index) == route.link)
        .map(|(_, address)| address))
}

struct DefaultRoute {
    metric: u32,
    link: Option<u32>,
    preferred_source: Option<Ipv4Addr>,
}

impl DefaultRoute {
    fn read(answer: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(route) = answer else {
            return None;
        };
        let header = &route.header;
        if header.address_family != AddressFamily::Inet
            || header.destination_prefix_length != 0
            || header.kind != RouteType::Unicast
            || header.table != RouteHeader::RT_TABLE_MAIN
        {
            return None;
        }
        let mut found = Self {
            metric: 0,
            link: None,
            preferred_source: None,
        };
        for attribute in route.attributes {
            match attribute {
                RouteAttribute::Priority(metric) => found.metric = metric,
                RouteAttribute::Oif(link) => found.link = Some(link),
                RouteAttribute::PrefSource(RouteAddress::Inet(source)) => {
                    found.preferred_source = Some(source);
                }
                _ => {}
            }
        }
        Some(found)
    }
}
