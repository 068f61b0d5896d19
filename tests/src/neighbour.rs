//! A client on another host: a second network namespace on a wire with the test host.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::ground::Ground;
use crate::netns::Netns;

/// The test host's end of the wire and the neighbour's (TEST-NET-2 of RFC 5737).
pub const WIRE_HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// See [`WIRE_HOST`].
pub const WIRE_NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Name of the test host's end.
pub const WIRE: &str = "wire0";

/// Lays a wire from `host` to another namespace, where its end is called `name`. The host's end has
/// this address with its prefix; both ends are up.
pub(crate) fn lay_wire(host: &Netns, address: &str, other: &Netns, name: &str) -> Result<()> {
    let file = other.file().display().to_string();
    host.ip(&format!(
        "link add {WIRE} type veth peer name {name} netns {file}"
    ))?;
    host.ip(&format!("address add {address} dev {WIRE}"))?;
    host.ip(&format!("link set {WIRE} up"))?;
    other.ip(&format!("link set {name} up"))
}

/// The neighbour; it goes with the ground.
#[derive(Debug)]
pub struct Neighbour {
    netns: Netns,
}

impl Neighbour {
    /// Connects one to the test host. Its default route leads there; whether the host forwards is
    /// not touched.
    pub fn connect(ground: &Ground) -> Result<Self> {
        let netns = Netns::create(&ground.path("neighbour"))?;
        lay_wire(ground.netns(), &format!("{WIRE_HOST}/24"), &netns, "wire1")?;
        netns.ip(&format!("address add {WIRE_NEIGHBOUR}/24 dev wire1"))?;
        netns.ip(&format!("route add default via {WIRE_HOST}"))?;
        Ok(Self { netns })
    }

    /// Where it is.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}
