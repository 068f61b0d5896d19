//! What is made once and kept outside of the checkout, by the scripts in `tests/peers`.

use std::path::PathBuf;

/// Where it is kept: `NODEAGENT_PEERS`, else below /var/cache.
pub fn cache() -> PathBuf {
    std::env::var_os("NODEAGENT_PEERS").map_or_else(
        || PathBuf::from("/var/cache/nodeagent-peers"),
        PathBuf::from,
    )
}

/// Where `tests/peers/build` puts the programs of a peer.
pub fn programs(peer: &str) -> PathBuf {
    cache().join(peer).join("bin")
}
