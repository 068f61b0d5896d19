//! Addresses and slots: which instance has which address, and the namespace and veth that carry it.
//!
//! Owns the address [`Ledger`] (pure) and the slots of this host ([`Network`]): a named network
//! namespace, a veth pair in the agent's link group (in the mode `bridge` a port of one of its
//! bridges), /32 routes and permanent neighbours, and in the packet filter host ports and masquerade (`netfilter`). All of it through netlink in-process. "The
//! host" is the network namespace that [`Network::new`] is called in.
//!
//! Promises: two instances never hold one address; a slot operation can be repeated at any time and
//! ends in the same slot; what a crash leaves behind is shown by [`Network::slots`] and removed by
//! [`Network::remove_slot`]; no thread of the runtime ever changes its namespace.
//!
//! Deliberately absent: IPv6 addresses, and anything read from `/sys/class/net`, which shows
//! the namespace of its mount and not the caller's.

mod bridge;
mod error;
mod forwarding;
mod host_address;
mod ledger;
mod link;
mod names;
mod netfilter;
mod netlink;
mod netns;
mod ports;
mod slot;
mod trial;
mod worker;

pub use error::NetworkError;
pub use forwarding::{Forwards, forwarding};
pub use host_address::host_address;
pub use ledger::{Conflict, Exhausted, Grant, GrantRefused, Lease, LeaseState, Ledger};
pub use netfilter::{Dropping, DropsBy, Survey, survey};
pub use netlink::NetlinkError;
pub use netns::NetnsFile;
pub use ports::{HostPort, PortRefused, probe};
pub use slot::{ObservedLink, ObservedSlot, Slot};
pub use trial::try_veth;
pub use worker::{Network, SlotGrant};
