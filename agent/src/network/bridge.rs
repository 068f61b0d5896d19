//! Bridges of the mode `bridge`: several, because the kernel gives one at most 1023 ports.
//!
//! ```text
//!   host                                      │ <runtime>/netns/web-1
//!   nab-0f0e0d0c-0  gateway/32, fixed MAC     │
//!     └─ na-5e1f00d5  port, isolated ═══ veth ══ eth0  10.88.0.7/32
//!   10.88.0.7/32 dev nab-0f0e0d0c-0           │ gateway dev eth0, default via gateway
//!   10.88.0.7 lladdr (eth0)                   │ gateway lladdr (nab-0f0e0d0c-0)
//! ```
//! An instance has the same view as in the mode `routed`, and all that it sends goes to the host:
//! ports are isolated from each other, learn nothing and are flooded with nothing; the table of
//! addresses of the bridge has one permanent entry for each. So it does not matter which bridge an
//! instance is on, nobody can take another's address, and no port has to be a hairpin.
//!
//! A bridge is made for the first port that has no room elsewhere and removed with its last one.
//! Nothing is remembered but the number of ports, which is read anew after each removal.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rtnetlink::packet_route::link::InfoKind;

use super::error::NetworkError;
use super::link::{self, Link, LinkShape};
use super::names::{BridgeNames, Mac, Naming};
use super::netlink::{Failed, Netlink};

/// Bridges of one agent: a link's name has room for two digits.
const MOST_BRIDGES: u32 = 100;

/// One of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bridge {
    pub(super) index: u32,
    pub(super) mac: Mac,
    pub(super) ports: u32,
}

/// Ours, by number; `None` when they have to be counted.
pub(super) type Known = Option<BTreeMap<u32, Bridge>>;

/// What is known of our bridges, for both threads. Who holds it adds or removes ports alone.
#[derive(Debug, Default)]
pub(super) struct Bridges(Mutex<Known>);

impl Bridges {
    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        // Every change is one assignment: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Our bridges among `links`, each with the number of its ports.
pub(super) fn ours(naming: &Naming, links: &[Link]) -> BTreeMap<u32, Bridge> {
    let ports = |index| links.iter().filter(|l| l.master == Some(index)).count();
    let ours = links.iter().filter_map(|link| {
        let number = naming.bridge_number(&link.name)?;
        let names = naming.bridge(number);
        is_ours(link, &names).then(|| {
            let bridge = Bridge {
                index: link.index,
                mac: names.mac,
                ports: u32::try_from(ports(link.index)).unwrap_or(u32::MAX),
            };
            (number, bridge)
        })
    });
    ours.collect()
}

/// A bridge with room for one more port; it is made when there is none, and counts that port.
pub(super) fn with_room(
    known: &mut BTreeMap<u32, Bridge>,
    host: &mut Netlink,
    naming: &Naming,
    shape: &LinkShape,
) -> Result<Bridge, NetworkError> {
    let ports = known.iter().map(|(number, bridge)| (*number, bridge.ports));
    let number = choose(&ports.collect(), shape.bridge_ports).ok_or(NetworkError::NoBridge {
        bridges: MOST_BRIDGES,
        ports: shape.bridge_ports,
    })?;
    let mut bridge = match known.get(&number) {
        Some(bridge) => *bridge,
        None => make(host, &naming.bridge(number), shape)?,
    };
    bridge.ports += 1;
    known.insert(number, bridge);
    Ok(bridge)
}

/// Removes the bridges without ports; the others are returned.
pub(super) fn tidy(
    host: &mut Netlink,
    naming: &Naming,
    links: &[Link],
) -> Result<BTreeMap<u32, Bridge>, NetworkError> {
    let mut all = ours(naming, links);
    let empty: Vec<u32> = all
        .iter()
        .filter(|(_, bridge)| bridge.ports == 0)
        .map(|(number, _)| *number)
        .collect();
    for number in empty {
        if let Some(bridge) = all.remove(&number) {
            host.apply(vec![link::delete_link(bridge.index)])
                .map_err(|failed| refused(&naming.bridge(number), failed))?;
        }
    }
    Ok(all)
}

/// The first number whose bridge has room, or has not been made.
fn choose(ports: &BTreeMap<u32, u32>, most: u32) -> Option<u32> {
    (0..MOST_BRIDGES).find(|number| ports.get(number).is_none_or(|ports| *ports < most))
}

fn make(
    host: &mut Netlink,
    names: &BridgeNames,
    shape: &LinkShape,
) -> Result<Bridge, NetworkError> {
    host.apply(vec![link::create_bridge(names, shape)])
        .map_err(|failed| refused(names, failed))?;
    let answer = host.get(link::get_link(&names.link)).map_err(|error| {
        let what = "look up the bridge";
        refused(names, Failed { what, error })
    })?;
    let index = link::links(answer).first().map_or(0, |link| link.index);
    host.apply(link::configure_bridge(index, names, shape))
        .map_err(|failed| refused(names, failed))?;
    Ok(Bridge {
        index,
        mac: names.mac,
        ports: 0,
    })
}

/// Signed, or cut off before it could be.
fn is_ours(link: &Link, names: &BridgeNames) -> bool {
    let signed = match &link.alias {
        Some(alias) => *alias == names.alias,
        None => link.mac == names.mac,
    };
    link.kind == Some(InfoKind::Bridge) && link.name == names.link && signed
}

fn refused(names: &BridgeNames, failed: Failed) -> NetworkError {
    NetworkError::Kernel {
        operation: failed.what,
        object: names.link.clone(),
        source: failed.error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn ports_go_where_there_is_room_and_a_bridge_is_made_when_there_is_none() {
        let ports = |list: &[(u32, u32)]| list.iter().copied().collect();
        assert_eq!(choose(&ports(&[]), 900), Some(0));
        assert_eq!(choose(&ports(&[(0, 899)]), 900), Some(0));
        assert_eq!(choose(&ports(&[(0, 900), (1, 900)]), 900), Some(2));
        assert_eq!(choose(&ports(&[(0, 900), (2, 1)]), 900), Some(1));
        let full = (0..MOST_BRIDGES).map(|number| (number, 900)).collect();
        assert_eq!(choose(&full, 900), None);
    }

    #[test]
    fn only_what_is_signed_by_us_is_ours() {
        let naming = Naming::new(Path::new("/run/nodeagent/netns"));
        let names = naming.bridge(99);
        assert!(names.link.len() < 16, "IFNAMSIZ: {}", names.link);
        let link = Link {
            index: 7,
            name: names.link.clone(),
            kind: Some(InfoKind::Bridge),
            alias: Some(names.alias.clone()),
            ..Link::default()
        };
        let port = |index| Link {
            index,
            master: Some(7),
            ..Link::default()
        };
        let found = ours(&naming, &[link.clone(), port(8), port(9)]);
        assert_eq!(found[&99].ports, 2);
        let other = Link {
            alias: Some("uplink".to_owned()),
            ..link
        };
        assert!(ours(&naming, &[other]).is_empty());
    }
}
