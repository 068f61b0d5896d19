//! `[images.peers]`: who shares layers with whom.

use std::net::SocketAddr;

use imagecache::peers::{InvalidPeer, Peer, check_list};

use super::check::Check;
use super::fragment;
use super::settings::{ImagePeers, PeersTls};

/// Absent without `listen`; what is given is checked all the same.
pub(super) fn peers(given: fragment::ImagePeers, check: &mut Check<'_>) -> Option<ImagePeers> {
    let is_on = given.listen.is_some();
    let listen = given.listen.as_deref();
    let listen = listen.and_then(|text| check.listen("images.peers.listen", text));
    let token_file = check.optional_path("images.peers.token_file", given.token_file);
    let tls_given = given.certificate.is_some() || given.key.is_some() || given.ca.is_some();
    let mut file = |name: &str, what: &str, given: Option<String>| {
        let field = format!("images.peers.{name}");
        if given.is_none() && tls_given {
            let rule = format!("required with TLS between peers: a PEM file with {what}");
            check.0.note(&field, rule);
        }
        check.path(&field, given, "/")
    };
    let tls = PeersTls {
        certificate: file("certificate", "this host's certificate", given.certificate),
        key: file("key", "its private key", given.key),
        ca: file("ca", "the authorities of all hosts' certificates", given.ca),
    };
    if is_on && token_file.is_none() && !tls_given {
        check.0.note(
            "images.peers.token_file",
            "required with images.peers.listen, unless certificate, key and ca are given: a file with a token that all hosts have",
        );
    }
    let uploads = check.number("images.peers.uploads", given.uploads, 8, 1..=256);
    let bandwidth = match given.bandwidth {
        None => 0,
        given => check.size("images.peers.bandwidth", given, 0, 64 << 10..=1 << 40),
    };
    let slowest = check.size(
        "images.peers.slowest",
        given.slowest,
        256 << 10,
        1..=1 << 40,
    );
    let own = own(given.address, listen, given.zone, given.rack, check);
    let hosts = hosts(given.hosts.unwrap_or_default(), check);
    if let Some(own) = &own
        && let Err(InvalidPeer { value, why }) = check_list(own, &hosts)
    {
        let at = hosts.iter().rposition(|peer| peer.address == value);
        let field = match at {
            Some(at) if value != own.address => format!("images.peers.hosts[{at}].address"),
            _ => "images.peers.address".to_owned(),
        };
        let allowed = format!("host:port, each once ({why}), for example 10.0.0.7:7070");
        check
            .0
            .wrong(&field, crate::document::shown(&value), allowed);
    }
    Some(ImagePeers {
        listen: listen?,
        own: own?,
        hosts,
        uploads: uploads as usize,
        bandwidth,
        slowest,
        token_file,
        tls: tls_given.then_some(tls),
    })
}

/// This host as the others know it: where it listens, unless another address is given.
fn own(
    address: Option<String>,
    listen: Option<SocketAddr>,
    zone: Option<String>,
    rack: Option<String>,
    check: &mut Check<'_>,
) -> Option<Peer> {
    let zone = zone.map(|zone| label("images.peers.zone", zone, check));
    let rack = rack.map(|rack| label("images.peers.rack", rack, check));
    let address = match (address, listen) {
        (Some(address), _) => address,
        (None, Some(listen)) if !listen.ip().is_unspecified() => listen.to_string(),
        (None, Some(_)) => {
            check.0.note(
                "images.peers.address",
                "required, because images.peers.listen is every address: host:port as the other hosts have it in their lists",
            );
            return None;
        }
        (None, None) => return None,
    };
    Some(Peer {
        address,
        zone,
        rack,
    })
}

fn hosts(given: Vec<fragment::ImagePeer>, check: &mut Check<'_>) -> Vec<Peer> {
    let mut hosts = Vec::with_capacity(given.len());
    for (index, given) in given.into_iter().enumerate() {
        let field = |name: &str| format!("images.peers.hosts[{index}].{name}");
        let Some(address) = given.address else {
            let rule = "required: host:port, for example 10.0.0.7:7070";
            check.0.note(&field("address"), rule);
            continue;
        };
        hosts.push(Peer {
            address,
            zone: given.zone.map(|zone| label(&field("zone"), zone, check)),
            rack: given.rack.map(|rack| label(&field("rack"), rack, check)),
        });
    }
    hosts
}

fn label(field: &str, given: String, check: &mut Check<'_>) -> String {
    check.word(field, Some(given), "", "-_.", 63)
}
