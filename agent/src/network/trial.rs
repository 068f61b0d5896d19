//! Trying out what slots are made of, where nobody can see it.

use std::io;
use std::path::PathBuf;
use std::thread;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};

use super::error::NetworkError;
use super::netlink::{Netlink, Request};
use crate::sys;

/// Makes a veth pair in a network namespace of a thread's own; both are gone when it returns.
///
/// # Errors
/// Why this process can make no network namespace, or the kernel no veth.
pub fn try_veth() -> Result<(), NetworkError> {
    let namespace = |source| NetworkError::Netns {
        operation: "make a network namespace",
        path: PathBuf::from("/proc/self/ns/net"),
        source,
    };
    thread::spawn(move || {
        sys::unshare_network().map_err(namespace)?;
        let refused = |operation, source| NetworkError::Kernel {
            operation,
            object: "in a namespace for trial".to_owned(),
            source,
        };
        let mut netlink = Netlink::open().map_err(|e| refused("open a routing socket", e))?;
        netlink
            .apply(vec![pair()])
            .map_err(|failed| refused(failed.what, failed.error))
    })
    .join()
    .unwrap_or_else(|_| Err(namespace(io::Error::other("the thread ended by a panic"))))
}

fn pair() -> Request {
    let named = |name: &str| {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        message
    };
    let mut one = named("trial0");
    one.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named("trial1")))),
    ]));
    Request {
        what: "make a veth pair",
        message: RouteNetlinkMessage::NewLink(one),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_no_link_behind() {
        try_veth().unwrap();
        let links = std::fs::read_to_string("/proc/self/net/dev").unwrap();
        assert!(!links.contains("trial0"), "{links}");
    }
}
