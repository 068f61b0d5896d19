//! Blobs from other agents: verified blobs are served to peers, and a herd of hosts that want one
//! image asks its registry for each blob about once.
//!
//! ```text
//! bring(blob) ── claim ──► keeper of the blob (rendezvous hashing over the live hosts)
//!     │                       │ "yours": nobody is before you       ──► registry
//!     │                       └ "from X": X has it or is bringing it
//!     └─ follow X (long poll until it is verified) ──► fetch from X ──► else claim again
//! ```
//!
//! The keeper of a blob needs neither to have it nor to want it: it remembers, in memory and for a
//! while, who asked, and sends each next one to the nearest of those before it. So what comes of
//! many asking at once is a tree, with one host at its root that goes to the registry. Decision
//! 0058 has the arithmetic.
//!
//! Promises: only whole blobs that were verified here are served (0057), and what comes from a peer
//! is verified before anybody sees it; every wait is bounded, and whatever peers do, the registry
//! is asked in the end; registries' credentials are never shown to peers, nor a peer's token to
//! anybody else. Deliberately not here: finding peers (the list is given), tags, pushing.

mod access;
mod body;
mod client;
mod herd;
mod hosts;
mod keeper;
mod patient;
mod request;
mod served;
mod server;
mod standing;
mod wanted;
mod watched;

pub use access::{Access, Token};
pub use herd::{Peers, PeersError, PeersOptions};
pub use hosts::{InvalidPeer, Peer, check_list};
pub use served::Served;
pub use server::{Documents, ServeOptions, Server, StoreDocuments};
pub use standing::{PeerStatus, Trouble};
