//! Several agents on one machine, one fleet: each on a test host of its own (network, containerd,
//! registry, configuration, state), all on a wire to one etcd.
//!
//! ```text
//!   etcd's network ─┬─ wire ── host 0: agent, containerd, registry
//!                   └─ wire ── host 1: agent, containerd, registry
//! ```

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::etcd::Etcd;
use crate::ground::Ground;
use crate::host::TestHost;
use crate::neighbour::lay_wire;

/// Hosts and the etcd that they share. Dropped, all of it is removed.
#[derive(Debug)]
pub struct Fleet {
    // Hosts go before what they talk to.
    /// The hosts; their agents are configured and not started.
    pub hosts: Vec<TestHost>,
    /// What they share.
    pub etcd: Etcd,
    /// Where that is.
    pub center: Ground,
}

impl Fleet {
    /// `count` hosts (at most 60) with etcd as a required backend of discovery, beside the files.
    /// `etcd` is added to the settings of `[discovery.etcd]`.
    pub fn new(count: u8, etcd: &str) -> Result<Self> {
        let center = Ground::new()?;
        let mut hosts = Vec::new();
        for n in 0..count {
            let host = TestHost::without_agent(&discovery(&center_address(n), etcd))?;
            connect(&center, &host.ground, n)?;
            hosts.push(host);
        }
        let etcd = Etcd::start_on(&center, Ipv4Addr::UNSPECIFIED, 1, &[])?;
        Ok(Self {
            hosts,
            etcd,
            center,
        })
    }

    /// Starts the agent of one host and waits until it is ready.
    pub fn start(&mut self, host: usize) -> Result<()> {
        let host = self.hosts.get_mut(host).context("no such host")?;
        host.agent.start(&host.ground).map(drop)
    }
}

/// Settings of discovery in files and in etcd at `address`, with short bounds; `etcd` is added to
/// `[discovery.etcd]`.
pub fn discovery(address: &Ipv4Addr, etcd: &str) -> String {
    format!(
        r#"
[discovery.file]
propagation_bound = "100ms"
[discovery.etcd]
enabled = true
endpoints = ["http://{address}:2379"]
dial_timeout = "500ms"
request_timeout = "1s"
propagation_bound = "100ms"
{etcd}
"#
    )
}

/// The wires are networks of four addresses of TEST-NET-2 (RFC 5737).
fn center_address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 4 * n + 1)
}

fn connect(center: &Ground, host: &Ground, n: u8) -> Result<()> {
    let (address, name) = (center_address(n), format!("host{n}"));
    let host_address = Ipv4Addr::new(198, 51, 100, 4 * n + 2);
    let center = center.netns();
    lay_wire(host.netns(), &format!("{host_address}/30"), center, &name)?;
    center.ip(&format!("address add {address}/30 dev {name}"))
}
