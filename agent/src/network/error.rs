//! What can go wrong with a slot.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::netlink::NetlinkError;
use super::ports::HostPort;
use crate::config::Connects;

/// Why a slot could not be made, removed or observed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A namespace, its file or its directory.
    #[error("cannot {operation} {}", path.display())]
    Netns {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A link, address, route or neighbour.
    #[error("cannot {operation} ({object})")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// On which link, instance or namespace.
        object: String,
        /// What the kernel said.
        #[source]
        source: NetlinkError,
    },
    /// The link's name belongs to somebody else: two names met on one hash, or a link was made by
    /// hand. Another ordinal or another runtime directory gives another name.
    #[error("the link name {link} of {instance} is taken by {holder}")]
    NameTaken {
        /// The name.
        link: String,
        /// Who needs it.
        instance: String,
        /// The present holder: its alias, or that it has none.
        holder: String,
    },
    /// Another link of this host has the route to the address. Two instances never hold one address.
    #[error("the address {address} of {instance} is routed to another link (index {link})")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Who needs it.
        instance: String,
        /// Index of the link that has it.
        link: u32,
    },
    /// Slots are connected in another way than is configured.
    #[error(
        "network.mode is {:?}, but {count} instances are connected otherwise (the first: {first}); it can be changed when the last instance has gone",
        wanted.as_str()
    )]
    Connected {
        /// What is configured.
        wanted: Connects,
        /// How many are not.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// All bridges are full.
    #[error("{bridges} bridges with {ports} ports each (network.bridge_ports) are full")]
    NoBridge {
        /// How many there can be.
        bridges: u32,
        /// Ports of each.
        ports: u32,
    },
    /// A process of the host has a host port.
    #[error("host port {port} is in use by a process of this host")]
    HostPortTaken {
        /// The port.
        port: HostPort,
        /// What bind(2) said.
        #[source]
        source: io::Error,
    },
    /// The table of the packet filter is somebody else's. Another name is chosen by
    /// `network.table`.
    #[error("the table inet {table} of the packet filter is not ours, but {}", whose(.holder))]
    TableTaken {
        /// Its name.
        table: String,
        /// Its comment; empty without one.
        holder: String,
    },
    /// The worker thread did not answer in time; the operation may still take place.
    #[error("{operation} took longer than {} s", after.as_secs())]
    Deadline {
        /// What was waited for.
        operation: &'static str,
        /// How long.
        after: Duration,
    },
    /// The worker thread is gone. It ends only by a panic, which is in the log.
    #[error("the network's worker thread has ended")]
    WorkerEnded,
}

impl NetworkError {
    /// Whether the same call can succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Netns { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Kernel { source, .. } => source.errno() != Some(rustix::io::Errno::PERM),
            Self::Deadline { .. } | Self::HostPortTaken { .. } | Self::NoBridge { .. } => true,
            Self::NameTaken { .. }
            | Self::AddressTaken { .. }
            | Self::TableTaken { .. }
            | Self::Connected { .. }
            | Self::WorkerEnded => false,
        }
    }
}

fn whose(comment: &str) -> String {
    match comment {
        "" => "a table without a comment".to_owned(),
        comment => format!("says {comment:?}"),
    }
}
