//! The packet filter: host ports and masquerade, in one table of our own.
//!
//! Owns the table (`table` says what is in it) and the connections that the kernel tracks for
//! addresses and ports that change hands. All of it by NETLINK_NETFILTER in-process, in the network
//! namespace of the thread that opened it.
//!
//! Promises: the table is replaced in one transaction, and a host port is one element of a map; a
//! table of that name which is somebody else's is not touched; what somebody else flushed is put
//! back with the next change.
//!
//! Deliberately absent: rules in the tables of others. A foreign chain that drops what is forwarded
//! cannot be overruled from here: `survey` names it.

mod conntrack;
mod expression;
mod firewall;
mod message;
mod socket;
mod survey;
mod table;

pub(super) use firewall::Firewall;
pub use survey::{Dropping, DropsBy, Survey, survey};
pub(super) use table::{Masquerade, Table};
