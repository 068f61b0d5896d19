//! How the two ends of a slot are named and recognised.
//!
//! Everything is derived from the netns directory and the instance, so that nothing has to be read
//! back or remembered: link names, MAC addresses (neighbour entries can be written before the links
//! exist), and the alias by which an agent recognises its own links among those of other agents on
//! the same host. A link name has room for 32 bits of the hash only (IFNAMSIZ is 16 with the final
//! NUL, linux/if.h), so two instances can meet on one name: the alias tells them apart.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::hex::hex;
use crate::instance::InstanceName;

/// The interface inside the slot.
pub(super) const INSIDE: &str = "eth0";

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// What one slot's links are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotNames {
    /// The host's end: `na-` and 8 hexadecimal digits.
    pub(super) host_link: String,
    /// MAC of the host's end.
    pub(super) host_mac: Mac,
    /// MAC of `eth0` inside.
    pub(super) inside_mac: Mac,
    /// `ip link show` prints it: `nodeagent web-1 @ 0123456789abcdef`.
    pub(super) alias: String,
}

/// What one of our bridges is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BridgeNames {
    /// `nab-`, 8 hexadecimal digits and its number.
    pub(super) link: String,
    /// Its MAC, which no port changes.
    pub(super) mac: Mac,
    /// `ip link show` prints it: `nodeagent bridge 0 @ 0123456789abcdef`.
    pub(super) alias: String,
}

/// Names of all slots below one netns directory.
#[derive(Debug, Clone)]
pub(super) struct Naming {
    directory: Vec<u8>,
    owner: String,
}

impl Naming {
    /// The naming of the agent whose namespaces live in `directory`.
    pub(super) fn new(directory: &Path) -> Self {
        let directory = directory.as_os_str().as_bytes().to_vec();
        let owner = hex(&Sha256::digest(&directory)[..8]);
        Self { directory, owner }
    }

    /// What the agent's table in the packet filter says about itself.
    pub(super) fn owner(&self) -> String {
        format!("nodeagent {}", self.owner)
    }

    /// The names of `instance`'s slot.
    pub(super) fn of(&self, instance: &InstanceName) -> SlotNames {
        let name = instance.to_string();
        let hash = Sha256::new()
            .chain_update(&self.directory)
            .chain_update([0])
            .chain_update(&name)
            .finalize();
        SlotNames {
            host_link: format!("na-{}", hex(&hash[..4])),
            host_mac: local_mac(&hash[4..10]),
            inside_mac: local_mac(&hash[10..16]),
            alias: format!("nodeagent {name} @ {}", self.owner),
        }
    }

    /// The names of the bridge of that number.
    pub(super) fn bridge(&self, number: u32) -> BridgeNames {
        let hash = Sha256::new()
            .chain_update(&self.directory)
            // No instance is called like that.
            .chain_update([0, 0])
            .chain_update(number.to_be_bytes())
            .finalize();
        BridgeNames {
            link: format!("{}{number}", self.bridge_prefix()),
            mac: local_mac(&hash[..6]),
            alias: format!("nodeagent bridge {number} @ {}", self.owner),
        }
    }

    /// The number in the name of a bridge of ours.
    pub(super) fn bridge_number(&self, link: &str) -> Option<u32> {
        link.strip_prefix(&self.bridge_prefix())?.parse().ok()
    }

    fn bridge_prefix(&self) -> String {
        format!("nab-{:.8}-", self.owner)
    }

    /// The instance that an alias of ours names; `None` for links of others.
    pub(super) fn owner_of(&self, alias: &str) -> Option<InstanceName> {
        let (instance, owner) = alias.strip_prefix("nodeagent ")?.split_once(" @ ")?;
        (owner == self.owner).then(|| instance.parse().ok())?
    }
}

/// A unicast, locally administered address (IEEE 802: bit 0 of the first octet clear, bit 1 set).
fn local_mac(bytes: &[u8]) -> Mac {
    let mut mac = Mac::default();
    mac.copy_from_slice(bytes);
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(ordinal: u32) -> InstanceName {
        InstanceName::new("web".parse().unwrap(), ordinal)
    }

    #[test]
    fn names_fit_the_kernel_and_are_the_same_each_time() {
        let naming = Naming::new(Path::new("/run/nodeagent/netns"));
        let names = naming.of(&web(1));
        assert_eq!(names, naming.of(&web(1)));
        assert_eq!(names.host_link.len(), 11);
        for mac in [names.host_mac, names.inside_mac] {
            assert_eq!(mac[0] & 0x03, 0x02, "local and unicast: {mac:02x?}");
        }
        assert_ne!(names.host_mac, names.inside_mac);
        let longest = InstanceName::new("w".repeat(48).parse().unwrap(), u32::MAX);
        assert!(naming.of(&longest).alias.len() < 256, "IFALIASZ");
    }

    #[test]
    fn two_agents_do_not_take_each_others_links_for_their_own() {
        let one = Naming::new(Path::new("/run/one/netns"));
        let other = Naming::new(Path::new("/run/other/netns"));
        let names = one.of(&web(1));
        assert_ne!(names.host_link, other.of(&web(1)).host_link);
        assert_eq!(one.owner_of(&names.alias), Some(web(1)));
        assert_eq!(other.owner_of(&names.alias), None);
        assert_eq!(one.owner_of("uplink to the rack"), None);
    }
}
