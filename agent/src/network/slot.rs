//! A slot: one network namespace with one address, made, mended, observed and removed.
//!
//! ```text
//!   host                         │ <runtime>/netns/web-1
//!   na-5e1f00d5  ════ veth ══════│═══ eth0  10.88.0.7/32
//!   10.88.0.7/32 dev na-5e1f00d5 │ 169.254.1.1 dev eth0 scope link
//!   10.88.0.7 lladdr (eth0)      │ default via 169.254.1.1 onlink
//!                                │ 169.254.1.1 lladdr (na-5e1f00d5)
//! ```
//!
//! In the mode `bridge` the host's end is a port, and route and neighbour are the bridge's: `bridge`.
//!
//! Everything here blocks and runs on the network's own threads. The order matters: a slot begins
//! with its netns file and ends with it, so that what a crash leaves behind has a name.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rtnetlink::packet_route::link::InfoKind;
use rustix::io::Errno;

use super::bridge::{self, Bridges, Known};
use super::error::NetworkError;
use super::link::{self, Link, LinkShape, Neighbour};
use super::names::{INSIDE, Mac, Naming, SlotNames};
use super::netlink::{Failed, Netlink, NetlinkError, Request};
use super::netns::{self, Age, Inside, NetnsFile};
use crate::config::Connects;
use crate::instance::InstanceName;

/// A slot that is ready for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The namespace's file, for the container's spec.
    pub netns: PathBuf,
    /// The instance's address.
    pub address: Ipv4Addr,
    /// The host's end of the veth.
    pub host_link: String,
}

/// What the host shows of a slot; either half may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedSlot {
    /// Whose slot it is.
    pub instance: InstanceName,
    /// Where its namespace's file is, or would be.
    pub netns: PathBuf,
    /// What lies there.
    pub file: NetnsFile,
    /// The host's end of the veth.
    pub link: Option<ObservedLink>,
}

/// The host's end of a slot's veth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// Its name.
    pub name: String,
    /// The addresses routed to it: one, unless something is wrong.
    pub addresses: Vec<Ipv4Addr>,
}

impl ObservedSlot {
    /// The address, when the slot is whole: namespace, veth and exactly one route.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match (self.file, &self.link) {
            (NetnsFile::Mounted, Some(ObservedLink { addresses, .. })) => match addresses[..] {
                [address] => Some(address),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The slots of one agent, seen from one thread: each has a routing socket of its own.
pub(super) struct Slots {
    directory: PathBuf,
    naming: Naming,
    shape: LinkShape,
    host: Netlink,
    bridges: Arc<Bridges>,
}

/// Where an instance's route leads, and what its gateway is.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// The host's end, or its bridge.
    link: u32,
    gateway: Mac,
    /// The bridge, again.
    bridge: Option<u32>,
}

impl Slots {
    /// Opens a routing socket in the calling thread's namespace: that is "the host".
    pub(super) fn open(
        directory: &Path,
        shape: LinkShape,
        bridges: Arc<Bridges>,
    ) -> Result<Self, NetworkError> {
        let host = Netlink::open().map_err(|source| NetworkError::Kernel {
            operation: "open the host's routing socket",
            object: directory.display().to_string(),
            source,
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            naming: Naming::new(directory),
            shape,
            host,
            bridges,
        })
    }

    /// Removes bridges of ours that a crash left without a port.
    ///
    /// # Errors
    /// [`NetworkError::Connected`] when a slot is connected in another way than is configured.
    pub(super) fn begin(&mut self) -> Result<(), NetworkError> {
        let links = self.links()?;
        let bridges = bridge::ours(&self.naming, &links);
        let is_port = |link: &Link| bridges.values().any(|b| link.master == Some(b.index));
        let otherwise = |link: &&Link| match self.shape.connects {
            Connects::Routed => is_port(link),
            Connects::Bridge => !is_port(link),
        };
        let ours = links.iter().filter_map(|link| {
            let instance = self.naming.owner_of(link.alias.as_deref()?)?;
            is_host_end(link, &self.naming.of(&instance)).then_some((link, instance))
        });
        let other: Vec<String> = ours
            .filter(|(link, _)| otherwise(link))
            .map(|(_, instance)| instance.to_string())
            .collect();
        if let Some(first) = other.first() {
            return Err(NetworkError::Connected {
                wanted: self.shape.connects,
                count: other.len(),
                first: first.clone(),
            });
        }
        bridge::tidy(&mut self.host, &self.naming, &links).map(drop)
    }

    fn links(&mut self) -> Result<Vec<Link>, NetworkError> {
        let answers = list(&mut self.host, "list the host's links", link::list_links())?;
        Ok(link::links(answers))
    }

    /// By whose slots an agent recognises what is its own.
    pub(super) fn owner(&self) -> String {
        self.naming.owner()
    }

    /// Makes the slot, or mends it; what is right already is left alone. A slot that could not be
    /// made leaves nothing behind.
    pub(super) fn ensure(
        &mut self,
        instance: &InstanceName,
        address: Ipv4Addr,
    ) -> Result<Slot, NetworkError> {
        let names = self.naming.of(instance);
        let path = self.directory.join(instance.to_string());
        let mut inside = netns::ensure(&path)?;
        let made = self.connect(instance, &names, address, &mut inside);
        if let Err(error) = made {
            if inside.age == Age::New
                && let Err(left) = self.remove(instance)
            {
                tracing::warn!(%instance, error = %left, "a slot that could not be made could not be removed either");
            }
            return Err(error);
        }
        Ok(Slot {
            netns: path,
            address,
            host_link: names.host_link,
        })
    }

    fn connect(
        &mut self,
        instance: &InstanceName,
        names: &SlotNames,
        address: Ipv4Addr,
        inside: &mut Inside,
    ) -> Result<(), NetworkError> {
        let bridges = Arc::clone(&self.bridges);
        // Until the port is there, nobody removes its bridge.
        let mut known = bridges.lock();
        let bridge = match self.shape.connects {
            Connects::Routed => None,
            Connects::Bridge => Some(self.bridge_of(names, &mut known)?),
        };
        let (host, eth0) = self.ensure_pair(instance, names, inside, bridge.map(|b| b.index))?;
        let way = Way {
            link: bridge.map_or(host.index, |bridge| bridge.index),
            gateway: bridge.map_or(names.host_mac, |bridge| bridge.mac),
            bridge: bridge.map(|bridge| bridge.index),
        };
        apply(
            &mut self.host,
            &names.host_link,
            link::configure_host(host.index, names, &self.shape, way.bridge),
        )?;
        drop(known);
        // Before anything inside changes: an address that somebody else has ends it here.
        self.ensure_neighbour(instance, names, way, address)?;
        self.ensure_host_route(instance, names, way, address)?;
        if inside.age == Age::Old {
            self.remove_what_was_before(names, way, &eth0, address, inside)?;
        }
        apply(
            &mut inside.netlink,
            &names.host_link,
            link::configure_inside(eth0.index, way.gateway, &self.shape, address),
        )
    }

    /// The bridge that the host's end is a port of, or one with room.
    fn bridge_of(
        &mut self,
        names: &SlotNames,
        known: &mut Known,
    ) -> Result<bridge::Bridge, NetworkError> {
        let counted = match known.take() {
            Some(counted) => counted,
            None => {
                let links = self.links()?;
                bridge::ours(&self.naming, &links)
            }
        };
        let counted = known.insert(counted);
        let host = find(&mut self.host, &names.host_link)?.filter(|host| is_host_end(host, names));
        let master = host.and_then(|host| host.master);
        match counted.values().find(|bridge| Some(bridge.index) == master) {
            Some(bridge) => Ok(*bridge),
            None => bridge::with_room(counted, &mut self.host, &self.naming, &self.shape),
        }
    }

    /// A bridge has the neighbours of many: there the entry says whose an address is.
    fn ensure_neighbour(
        &mut self,
        instance: &InstanceName,
        names: &SlotNames,
        way: Way,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        if way.bridge.is_none() {
            let set = link::set_neighbour(way.link, address, names.inside_mac);
            return apply(&mut self.host, &names.host_link, vec![set]);
        }
        let add = link::add_neighbour(way.link, address, names.inside_mac);
        match self.host.apply(vec![add]) {
            Err(failed) if failed.error.errno() == Some(Errno::EXIST) => {}
            other => return other.map_err(|failed| refused(&names.host_link, failed)),
        }
        let holder = self
            .neighbours()?
            .into_iter()
            .find(|neighbour| (neighbour.link, neighbour.address) == (way.link, address));
        match holder {
            Some(holder) if holder.mac != names.inside_mac => Err(NetworkError::AddressTaken {
                address,
                instance: instance.to_string(),
                link: way.link,
            }),
            _ => Ok(()),
        }
    }

    fn neighbours(&mut self) -> Result<Vec<Neighbour>, NetworkError> {
        let what = "list the host's neighbours";
        let answers = list(&mut self.host, what, link::list_neighbours())?;
        Ok(link::neighbours(answers))
    }

    /// Both ends of the veth; a pair that is not whole is made anew.
    fn ensure_pair(
        &mut self,
        instance: &InstanceName,
        names: &SlotNames,
        inside: &mut Inside,
        bridge: Option<u32>,
    ) -> Result<(Link, Link), NetworkError> {
        if inside.age == Age::Old {
            let host = find(&mut self.host, &names.host_link)?;
            let eth0 = find(&mut inside.netlink, INSIDE)?;
            match (host, eth0) {
                (Some(host), Some(eth0)) if is_pair(&host, &eth0, names) => {
                    return Ok((host, eth0));
                }
                (_, Some(eth0)) => {
                    apply(
                        &mut inside.netlink,
                        &names.host_link,
                        vec![link::delete_link(eth0.index)],
                    )?;
                }
                _ => {}
            }
        }
        match self.create_pair(names, inside, bridge) {
            Err(failed) if failed.error.errno() == Some(Errno::EXIST) => {
                self.delete_host_end(instance, names)?;
                self.create_pair(names, inside, bridge)
                    .map_err(|failed| refused(&names.host_link, failed))?;
            }
            other => other.map_err(|failed| refused(&names.host_link, failed))?,
        }
        let host = self.must_find_host_end(names)?;
        let eth0 = find(&mut inside.netlink, INSIDE)?.ok_or_else(|| vanished(names))?;
        Ok((host, eth0))
    }

    fn create_pair(
        &mut self,
        names: &SlotNames,
        inside: &Inside,
        bridge: Option<u32>,
    ) -> Result<(), Failed> {
        self.host.apply(link::create_pair(
            names,
            &self.shape,
            inside.as_fd(),
            bridge,
        ))
    }

    fn must_find_host_end(&mut self, names: &SlotNames) -> Result<Link, NetworkError> {
        find(&mut self.host, &names.host_link)?.ok_or_else(|| vanished(names))
    }

    /// Addresses that the slot had before. The one inside goes last: it is what a repetition finds.
    fn remove_what_was_before(
        &mut self,
        names: &SlotNames,
        way: Way,
        eth0: &Link,
        address: Ipv4Addr,
        inside: &mut Inside,
    ) -> Result<(), NetworkError> {
        let present = list(
            &mut inside.netlink,
            "list the addresses inside",
            link::list_addresses(),
        )?;
        for (index, other) in link::addresses(present) {
            if index == eth0.index && other != address {
                self.forget_way(names, way.link, other)?;
                take_away(
                    &mut inside.netlink,
                    &names.host_link,
                    link::remove_address(eth0.index, other),
                )?;
            }
        }
        Ok(())
    }

    /// Takes the route to an address away, and then what says whose it is.
    fn forget_way(
        &mut self,
        names: &SlotNames,
        link: u32,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        for request in [
            link::remove_host_route(link, address),
            link::remove_neighbour(link, address),
        ] {
            take_away(&mut self.host, &names.host_link, request)?;
        }
        Ok(())
    }

    fn ensure_host_route(
        &mut self,
        instance: &InstanceName,
        names: &SlotNames,
        way: Way,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let failed = match self
            .host
            .apply(vec![link::add_host_route(way.link, address)])
        {
            Err(failed) if failed.error.errno() == Some(Errno::EXIST) => failed,
            other => return other.map_err(|failed| refused(&names.host_link, failed)),
        };
        let answer = self.host.get(link::get_route(address)).map_err(|error| {
            refused(
                &names.host_link,
                Failed {
                    what: "look up the route to the instance",
                    error,
                },
            )
        })?;
        match link::host_routes(answer)[..] {
            [(link, _)] if link == way.link => Ok(()),
            [(link, _)] => {
                if way.bridge.is_some() {
                    let ours = link::remove_neighbour(way.link, address);
                    take_away(&mut self.host, &names.host_link, ours)?;
                }
                Err(NetworkError::AddressTaken {
                    address,
                    instance: instance.to_string(),
                    link,
                })
            }
            _ => Err(refused(&names.host_link, failed)),
        }
    }

    /// Deletes the host's end and with it the pair; a link of somebody else is not touched.
    fn delete_host_end(
        &mut self,
        instance: &InstanceName,
        names: &SlotNames,
    ) -> Result<(), NetworkError> {
        match self.own_host_end(instance, names)? {
            Some(host) => delete(&mut self.host, &host),
            None => Ok(()),
        }
    }

    fn own_host_end(
        &mut self,
        instance: &InstanceName,
        names: &SlotNames,
    ) -> Result<Option<Link>, NetworkError> {
        let Some(host) = find(&mut self.host, &names.host_link)? else {
            return Ok(None);
        };
        if is_host_end(&host, names) {
            return Ok(Some(host));
        }
        Err(NetworkError::NameTaken {
            link: host.name,
            instance: instance.to_string(),
            holder: host
                .alias
                .unwrap_or_else(|| "a link without alias".to_owned()),
        })
    }

    /// Removes what a bridge has of the slots; routes and neighbours of a veth go with it.
    fn leave_bridges(&mut self, instances: &[InstanceName]) -> Result<(), NetworkError> {
        if self.shape.connects == Connects::Routed {
            return Ok(());
        }
        let links = self.links()?;
        let bridges = bridge::ours(&self.naming, &links);
        let of_bridge = |n: &Neighbour| bridges.values().any(|b| b.index == n.link);
        let mut neighbours = self.neighbours()?;
        neighbours.retain(of_bridge);
        for instance in instances {
            let names = self.naming.of(instance);
            for neighbour in neighbours.iter().filter(|n| n.mac == names.inside_mac) {
                self.forget_way(&names, neighbour.link, neighbour.address)?;
            }
        }
        Ok(())
    }

    /// Bridges that lost their last port go.
    fn remove_bridges(&mut self) -> Result<(), NetworkError> {
        if self.shape.connects == Connects::Routed {
            return Ok(());
        }
        let bridges = Arc::clone(&self.bridges);
        let mut known = bridges.lock();
        *known = None;
        let links = self.links()?;
        *known = Some(bridge::tidy(&mut self.host, &self.naming, &links)?);
        Ok(())
    }

    /// Removes veth, mount and file of one slot, whichever of them exist.
    fn remove_own(&mut self, instance: &InstanceName) -> Result<(), NetworkError> {
        let names = self.naming.of(instance);
        match self.delete_host_end(instance, &names) {
            // The name is somebody else's, so this slot has no veth.
            Ok(()) | Err(NetworkError::NameTaken { .. }) => {}
            Err(error) => return Err(error),
        }
        netns::remove(&self.directory.join(instance.to_string()))
    }

    /// Removes one slot, whatever of it exists.
    fn remove(&mut self, instance: &InstanceName) -> Result<(), NetworkError> {
        self.leave_bridges(std::slice::from_ref(instance))?;
        self.remove_own(instance)?;
        self.remove_bridges()
    }

    /// Removes many slots for the price of few: the kernel waits out a grace period for each
    /// deletion of a link, but only once for those of one group (200 links one by one 4 s, as a
    /// group 0.1 s). What fails as a group is tried one by one, so that each has its own answer.
    pub(super) fn remove_all(
        &mut self,
        instances: &[InstanceName],
    ) -> Vec<Result<(), NetworkError>> {
        if let Err(error) = self.leave_bridges(instances) {
            tracing::warn!(%error, "what bridges have of removed slots may remain");
        }
        if instances.len() > 1 {
            let links: Vec<Link> = instances
                .iter()
                .filter_map(|instance| {
                    self.own_host_end(instance, &self.naming.of(instance))
                        .ok()
                        .flatten()
                })
                .collect();
            let doomed = self.doomed_group();
            let moved = links
                .iter()
                .map(|host| link::move_to_group(host.index, doomed))
                .collect();
            if self.host.apply(moved).is_ok()
                && let Err(failed) = self.host.apply(vec![link::delete_group(doomed)])
            {
                tracing::debug!(error = %failed.error, "links could not be deleted as a group");
            }
        }
        let removed = instances
            .iter()
            .map(|instance| self.remove_own(instance))
            .collect();
        if let Err(error) = self.remove_bridges() {
            tracing::warn!(%error, "a bridge without ports may remain until the next start");
        }
        removed
    }

    /// The group that links are in between the decision to delete them and their deletion: ours
    /// with the highest usable bit flipped. IFLA_GROUP is 32 bits, of which the kernel keeps a
    /// signed int.
    fn doomed_group(&self) -> u32 {
        self.shape.group ^ (1 << 30)
    }

    /// Everything that looks like a slot of ours, whole or in part: files in the netns directory and
    /// veths that carry our alias.
    pub(super) fn observe(&mut self) -> Result<Vec<ObservedSlot>, NetworkError> {
        let mut found: BTreeMap<InstanceName, ObservedSlot> = BTreeMap::new();
        for (name, file) in netns::list(&self.directory)? {
            if let Ok(instance) = name.parse() {
                self.entry(&mut found, instance).file = file;
            }
        }
        let links = self.links()?;
        let bridges = bridge::ours(&self.naming, &links);
        let neighbours = match bridges.is_empty() {
            true => Vec::new(),
            false => self.neighbours()?,
        };
        let routes = list(
            &mut self.host,
            "list the host's routes",
            link::list_routes(),
        )?;
        let routes = link::host_routes(routes);
        let mut addresses: BTreeMap<u32, Vec<Ipv4Addr>> = BTreeMap::new();
        for (index, address) in &routes {
            addresses.entry(*index).or_default().push(*address);
        }
        // A veth without alias was cut off before it was signed; its netns file came before it.
        let by_name: BTreeMap<String, InstanceName> = found
            .keys()
            .map(|instance| (self.naming.of(instance).host_link, instance.clone()))
            .collect();
        for host in links {
            let instance = match &host.alias {
                Some(alias) => self.naming.owner_of(alias),
                None => by_name.get(&host.name).cloned(),
            };
            let Some(instance) = instance.filter(|name| is_host_end(&host, &self.naming.of(name)))
            else {
                continue;
            };
            let bridge = bridges.values().find(|b| host.master == Some(b.index));
            let addresses = match bridge {
                None => addresses.remove(&host.index).unwrap_or_default(),
                Some(bridge) => {
                    let mac = self.naming.of(&instance).inside_mac;
                    let its = neighbours
                        .iter()
                        .filter(|n| n.link == bridge.index && n.mac == mac);
                    its.map(|n| n.address)
                        .filter(|address| routes.contains(&(bridge.index, *address)))
                        .collect()
                }
            };
            self.entry(&mut found, instance).link = Some(ObservedLink {
                name: host.name,
                addresses,
            });
        }
        Ok(found.into_values().collect())
    }

    fn entry<'a>(
        &self,
        found: &'a mut BTreeMap<InstanceName, ObservedSlot>,
        instance: InstanceName,
    ) -> &'a mut ObservedSlot {
        let netns = self.directory.join(instance.to_string());
        found.entry(instance.clone()).or_insert(ObservedSlot {
            instance,
            netns,
            file: NetnsFile::Absent,
            link: None,
        })
    }
}

/// Whether the two links are the two ends of one veth of this slot.
fn is_pair(host: &Link, eth0: &Link, names: &SlotNames) -> bool {
    host.kind == Some(InfoKind::Veth)
        && eth0.kind == Some(InfoKind::Veth)
        && host.peer == Some(eth0.index)
        && eth0.peer == Some(host.index)
        && host.mac == names.host_mac
        && eth0.mac == names.inside_mac
        && is_host_end(host, names)
}

/// Whether the link is the host's end of this slot: signed, or cut off before it could be.
fn is_host_end(host: &Link, names: &SlotNames) -> bool {
    let signed = match &host.alias {
        Some(alias) => *alias == names.alias,
        None => host.mac == names.host_mac,
    };
    host.kind == Some(InfoKind::Veth) && host.name == names.host_link && signed
}

fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetworkError> {
    match netlink.get(link::get_link(name)) {
        Ok(answer) => Ok(link::links(answer).pop()),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(refused(
            name,
            Failed {
                what: "look up the link",
                error,
            },
        )),
    }
}

fn delete(netlink: &mut Netlink, link: &Link) -> Result<(), NetworkError> {
    match netlink.apply(vec![link::delete_link(link.index)]) {
        Err(failed) if failed.error.errno() == Some(Errno::NODEV) => Ok(()),
        other => other.map_err(|failed| refused(&link.name, failed)),
    }
}

/// Removes something that may be gone already: ESRCH for routes, ENOENT for neighbours,
/// EADDRNOTAVAIL for addresses.
fn take_away(netlink: &mut Netlink, object: &str, request: Request) -> Result<(), NetworkError> {
    match netlink.apply(vec![request]) {
        Err(failed)
            if matches!(
                failed.error.errno(),
                Some(Errno::SRCH | Errno::NOENT | Errno::ADDRNOTAVAIL)
            ) =>
        {
            Ok(())
        }
        other => other.map_err(|failed| refused(object, failed)),
    }
}

fn list(
    netlink: &mut Netlink,
    what: &'static str,
    message: rtnetlink::packet_route::RouteNetlinkMessage,
) -> Result<Vec<rtnetlink::packet_route::RouteNetlinkMessage>, NetworkError> {
    netlink
        .dump(message)
        .map_err(|error| refused("all", Failed { what, error }))
}

fn apply(netlink: &mut Netlink, object: &str, requests: Vec<Request>) -> Result<(), NetworkError> {
    netlink
        .apply(requests)
        .map_err(|failed| refused(object, failed))
}

fn refused(object: &str, failed: Failed) -> NetworkError {
    NetworkError::Kernel {
        operation: failed.what,
        object: object.to_owned(),
        source: failed.error,
    }
}

fn vanished(names: &SlotNames) -> NetworkError {
    let source = NetlinkError::Refused {
        detail: Some("it was deleted by somebody else".to_owned()),
        source: Errno::NODEV.into(),
    };
    refused(
        &names.host_link,
        Failed {
            what: "find the veth that was just made",
            error: source,
        },
    )
}
