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
        let file = netns.file().display().to_string();
        let host_end = [
            format!("link add {WIRE} type veth peer name wire1 netns {file}"),
            format!("address add {WIRE_HOST}/24 dev {WIRE}"),
            format!("link set {WIRE} up"),
        ];
        let own_end = [
            format!("address add {WIRE_NEIGHBOUR}/24 dev wire1"),
            "link set wire1 up".to_owned(),
            format!("route add default via {WIRE_HOST}"),
        ];
        for (at, commands) in [(ground.netns(), host_end), (&netns, own_end)] {
            for command in commands {
                at.ip(&command)?;
            }
        }
        Ok(Self { netns })
    }

    /// Where it is.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}
