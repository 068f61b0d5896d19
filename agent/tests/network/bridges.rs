//! The mode `bridge`: ports and bridges made, found again, and gone.

use std::collections::BTreeSet;
use std::fs;

use nodeagent::config::{self, Connects, Forwarding};
use nodeagent::network::{Network, NetworkError, forwarding};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::host::*;

/// Two ports a bridge.
fn small() -> config::Network {
    config::Network {
        mode: Connects::Bridge,
        bridge_ports: 2,
        ..settings()
    }
}

fn bridged(host: &Host) -> Network {
    Network::new(&small(), host.netns_dir()).unwrap()
}

async fn bridges(host: &Host) -> BTreeSet<String> {
    let is_bridge = |link: &LinkMessage| {
        link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::LinkInfo(infos)
                if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)))
        })
    };
    let name = |link: &LinkMessage| {
        link.attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })
    };
    let links = host.links().await.into_iter();
    links
        .filter(is_bridge)
        .filter_map(|link| name(&link))
        .collect()
}

#[test]
fn instances_reach_the_host_and_each_other_whichever_bridge_they_are_on() {
    on_a_host(|host| async move {
        forwarding(Forwarding::Enable).unwrap();
        let network = bridged(&host);
        let mut slots = Vec::new();
        for n in 0..3 {
            slots.push(network.ensure_slot(&web(n), at(n)).await.unwrap());
            assert_reachable(&slots[n as usize].netns, address(n));
        }
        assert_eq!(bridges(&host).await.len(), 2);
        // Within one bridge, and from one to the other.
        for (from, to) in [(0, 1), (0, 2), (2, 1)] {
            let listener = inside(&slots[to as usize].netns, move || listen((address(to), 0)));
            let netns = slots[from].netns.clone();
            let seen = exchange(listener, move |to| inside(&netns, move || connect(to)));
            assert_eq!(seen.ip(), slots[from].address);
        }
        for n in 0..3 {
            network
                .remove_slot(&web(n), Some(address(n)))
                .await
                .unwrap();
        }
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn a_bridge_goes_with_its_last_port_and_its_room_is_used_again() {
    on_a_host(|host| async move {
        let network = bridged(&host);
        for n in 0..5 {
            network.ensure_slot(&web(n), at(n)).await.unwrap();
        }
        let three = bridges(&host).await;
        assert_eq!(three.len(), 3);
        for n in [2, 3] {
            network
                .remove_slot(&web(n), Some(address(n)))
                .await
                .unwrap();
        }
        let two = bridges(&host).await;
        assert_eq!(two.len(), 2, "{two:?}");
        assert!(two.is_subset(&three));
        // One more fits beside the fifth, the next makes the second bridge anew.
        network.ensure_slot(&web(5), at(5)).await.unwrap();
        network.ensure_slot(&web(6), at(6)).await.unwrap();
        assert_eq!(bridges(&host).await, three);
        for n in [0, 1, 4, 5, 6] {
            network.remove_slot(&web(n), None).await.unwrap();
        }
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn another_agent_process_finds_ports_and_addresses_and_leaves_them_alone() {
    on_a_host(|host| async move {
        let first = bridged(&host);
        let slot = first.ensure_slot(&web(0), at(0)).await.unwrap();
        first.ensure_slot(&web(1), at(1)).await.unwrap();
        let index = host.index_of(&slot.host_link).await;
        let listener = inside(&slot.netns, || listen((address(0), 0)));
        drop(first);
        let second = bridged(&host);
        let seen = second.slots().await.unwrap();
        let addresses: Vec<_> = seen.iter().map(|slot| slot.address()).collect();
        assert_eq!(addresses, [Some(address(0)), Some(address(1))]);
        assert_eq!(second.ensure_slot(&web(0), at(0)).await.unwrap(), slot);
        assert_eq!(host.index_of(&slot.host_link).await, index);
        assert_eq!(host.routes().await.len(), 2);
        exchange(listener, connect);
        second.remove_slot(&web(0), None).await.unwrap();
        second.remove_slot(&web(1), None).await.unwrap();
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn an_address_is_not_taken_from_its_holder_on_the_same_bridge_or_another() {
    on_a_host(|host| async move {
        let network = bridged(&host);
        for n in 0..2 {
            network.ensure_slot(&web(n), at(n)).await.unwrap();
        }
        // The third is on the second bridge, the fourth beside it.
        network.ensure_slot(&web(2), at(2)).await.unwrap();
        for taken in [0, 2] {
            let refused = network.ensure_slot(&web(3), at(taken)).await.unwrap_err();
            assert!(
                matches!(refused, NetworkError::AddressTaken { address: a, .. } if a == address(taken)),
                "{refused}"
            );
        }
        let whole: Vec<_> = network.slots().await.unwrap();
        let addresses: Vec<_> = whole.iter().map(|slot| slot.address()).collect();
        assert_eq!(addresses, [0, 1, 2].map(|n| Some(address(n))));
        for n in 0..3 {
            network.remove_slot(&web(n), None).await.unwrap();
        }
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn a_slot_gets_another_address_and_the_former_one_is_free() {
    on_a_host(|host| async move {
        let network = bridged(&host);
        network.ensure_slot(&web(0), at(0)).await.unwrap();
        let slot = network.ensure_slot(&web(0), at(7)).await.unwrap();
        assert_reachable(&slot.netns, address(7));
        network.ensure_slot(&web(1), at(0)).await.unwrap();
        let seen = network.slots().await.unwrap();
        let addresses: Vec<_> = seen.iter().map(|slot| slot.address()).collect();
        assert_eq!(addresses, [Some(address(7)), Some(address(0))]);
        for n in 0..2 {
            network.remove_slot(&web(n), None).await.unwrap();
        }
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn the_mode_is_not_changed_under_instances_and_the_refusal_names_one() {
    on_a_host(|host| async move {
        for (before, after) in [(small(), settings()), (settings(), small())] {
            let network = Network::new(&before, host.netns_dir()).unwrap();
            network.ensure_slot(&web(0), at(0)).await.unwrap();
            let Err(refused) = Network::new(&after, host.netns_dir()) else {
                panic!("the mode was changed");
            };
            assert_eq!(
                refused.to_string(),
                format!(
                    "network.mode is {:?}, but 1 instances are connected otherwise (the first: web-0); it can be changed when the last instance has gone",
                    after.mode.as_str()
                )
            );
            network.remove_slot(&web(0), None).await.unwrap();
            drop(Network::new(&after, host.netns_dir()).unwrap());
        }
    });
}

#[test]
fn what_a_crash_left_of_a_bridge_is_removed_at_the_next_start() {
    on_a_host(|host| async move {
        let network = bridged(&host);
        let slot = network.ensure_slot(&web(0), at(0)).await.unwrap();
        // The port goes behind the agent's back; the bridge stays.
        host.delete_link(&slot.host_link).await;
        assert_eq!(bridges(&host).await.len(), 1);
        drop(network);
        let next = bridged(&host);
        assert!(bridges(&host).await.is_empty());
        next.remove_slot(&web(0), None).await.unwrap();
        assert_eq!(fs::read_dir(host.netns_dir()).unwrap().count(), 0);
        host.assert_nothing_is_left().await;
    });
}
