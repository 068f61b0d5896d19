//! The hosts that share blobs, who is near whom, and who is whose keeper: pure.

use std::collections::BTreeSet;

use crate::{Digest, Hasher};

/// A host, as all others know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `host:port` where its agent serves blobs.
    pub address: String,
    /// Where it is, as the operator names it.
    pub zone: Option<String>,
    /// Where it is within its zone.
    pub rack: Option<String>,
}

/// An address that is none, or that is there twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "peer {value:?} is refused ({why}): `host:port` is allowed, each once, for example 10.0.0.7:7070"
)]
pub struct InvalidPeer {
    /// The address as given.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Whether a list of hosts is one, as [`super::Peers`] needs it: every address `host:port`, each
/// once; `own` may be among them.
pub fn check_list(own: &Peer, peers: &[Peer]) -> Result<(), InvalidPeer> {
    Hosts::new(own, peers).map(drop)
}

/// All hosts; a number stands for each.
#[derive(Debug)]
pub(super) struct Hosts {
    all: Vec<Peer>,
}

/// The host that we are.
pub(super) const OWN: usize = 0;

impl Hosts {
    /// `own` may be among `peers`, so that one list serves all hosts.
    pub fn new(own: &Peer, peers: &[Peer]) -> Result<Self, InvalidPeer> {
        let mut all = vec![own.clone()];
        all.extend(
            peers
                .iter()
                .filter(|peer| peer.address != own.address)
                .cloned(),
        );
        let mut seen = BTreeSet::new();
        for peer in &all {
            let refuse = |why| InvalidPeer {
                value: peer.address.clone(),
                why,
            };
            let (host, port) = peer.address.rsplit_once(':').ok_or(refuse("no port"))?;
            if port.parse::<u16>().is_ok_and(|port| port > 0) {
                let url = format!("http://{}/", peer.address).parse::<url::Url>();
                if host.contains(['/', '@', '?', '#']) || url.is_err() {
                    return Err(refuse("no host"));
                }
            } else {
                return Err(refuse("no port"));
            }
            if !seen.insert(&peer.address) {
                return Err(refuse("it is there twice"));
            }
        }
        Ok(Self { all })
    }

    pub fn get(&self, host: usize) -> &Peer {
        &self.all[host]
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// The host with this address.
    pub fn find(&self, address: &str) -> Option<usize> {
        self.all.iter().position(|peer| peer.address == address)
    }

    /// How far apart two hosts are: 0 one rack, 1 one zone, 2 the rest. What is not said is not
    /// near.
    pub fn distance(&self, one: usize, other: usize) -> u8 {
        let (one, other) = (&self.all[one], &self.all[other]);
        match (one.zone == other.zone, &one.rack, &other.rack) {
            (true, Some(a), Some(b)) if a == b => 0,
            (true, ..) if one.zone.is_some() => 1,
            _ => 2,
        }
    }

    /// All hosts by rendezvous hashing: the first is the blob's keeper, the next one when that is
    /// away. Everybody with the same list has the same order, and a host that is added or taken
    /// away moves only what is its own.
    pub fn keepers(&self, digest: &Digest) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        order.sort_by_cached_key(|host| score(digest, &self.all[*host].address));
        order
    }

    /// All others, near ones first; among equally near ones by rendezvous hashing, so that not
    /// everybody begins with the same.
    pub fn by_distance(&self, digest: &Digest) -> Vec<usize> {
        let mut order = self.keepers(digest);
        order.retain(|host| *host != OWN);
        order.sort_by_key(|host| self.distance(OWN, *host));
        order
    }
}

fn score(digest: &Digest, address: &str) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(digest.as_str().as_bytes());
    hasher.update(b" ");
    hasher.update(address.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str, zone: &str, rack: &str) -> Peer {
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Peer {
            address: address.to_owned(),
            zone: said(zone),
            rack: said(rack),
        }
    }

    fn hosts(count: usize) -> Hosts {
        let all: Vec<Peer> = (0..count)
            .map(|at| peer(&format!("h{at}:1"), "", ""))
            .collect();
        Hosts::new(&all[0], &all).unwrap()
    }

    #[test]
    fn near_is_the_rack_then_the_zone_and_what_is_not_said_is_far() {
        let all = [
            peer("a:1", "z1", "r1"),
            peer("b:1", "z1", "r1"),
            peer("c:1", "z1", "r2"),
            peer("d:1", "z2", "r1"),
            peer("e:1", "", ""),
            peer("f:1", "", ""),
            peer("g:1", "", "r9"),
            peer("h:1", "", "r9"),
        ];
        let hosts = Hosts::new(&all[0], &all).unwrap();
        for (one, other, distance) in [
            (0, 1, 0),
            (0, 2, 1),
            (0, 3, 2),
            (0, 4, 2),
            (4, 5, 2),
            (6, 7, 0),
        ] {
            assert_eq!(hosts.distance(one, other), distance, "{one} {other}");
        }
        let order = hosts.by_distance(&Digest::of(b"x"));
        assert_eq!(order[..2], [1, 2]);
        assert_eq!(order.len(), 7);
    }

    #[test]
    fn blobs_spread_over_their_keepers_and_stay_when_another_host_leaves() {
        let (eight, seven) = (hosts(8), hosts(7));
        let mut kept = [0; 8];
        for blob in 0..800_u32 {
            let digest = Digest::of(&blob.to_le_bytes());
            let keeper = eight.keepers(&digest)[0];
            kept[keeper] += 1;
            if keeper != 7 {
                assert_eq!(seven.keepers(&digest)[0], keeper);
            }
        }
        assert!(
            kept.iter().all(|count| (60..140).contains(count)),
            "{kept:?}"
        );
    }

    #[test]
    fn the_same_list_gives_the_same_keepers_to_everybody() {
        let all: Vec<Peer> = (0..8).map(|at| peer(&format!("h{at}:1"), "", "")).collect();
        let digest = Digest::of(b"x");
        let keeper = |own: usize| {
            let hosts = Hosts::new(&all[own], &all).unwrap();
            hosts.get(hosts.keepers(&digest)[0]).address.clone()
        };
        assert!((1..8).all(|own| keeper(own) == keeper(0)));
    }

    #[test]
    fn a_wrong_address_is_refused() {
        let own = peer("a:1", "", "");
        for (address, why) in [
            ("b", "no port"),
            ("b:", "no port"),
            ("b:0", "no port"),
            ("b:70000", "no port"),
            (":1", "no host"),
            ("user@b:1", "no host"),
            ("b/c:1", "no host"),
        ] {
            let refused = Hosts::new(&own, &[peer(address, "", "")]).unwrap_err();
            assert_eq!(refused.why, why, "{address}");
        }
        let twice = [peer("b:1", "", ""), peer("b:1", "z", "")];
        let refused = Hosts::new(&own, &twice).unwrap_err();
        assert_eq!(refused.why, "it is there twice");
        assert!(refused.to_string().contains("\"b:1\""), "{refused}");
        assert_eq!(
            Hosts::new(&own, &[own.clone(), peer("[::1]:1", "", "")])
                .unwrap()
                .len(),
            2
        );
    }
}
