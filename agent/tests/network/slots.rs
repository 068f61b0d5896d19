//! Slots: made, mended, observed, removed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nodeagent::network::{NetnsFile, Network, NetworkError, host_address};
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{LinkBridge, LinkUnspec, RouteMessageBuilder};
use rustix::mount::{UnmountFlags, unmount};

use crate::host::*;

#[test]
fn host_and_instance_reach_each_other_through_a_slot() {
    on_a_host(|host| async move {
        let network = host.network();
        let slot = network.ensure_slot(&web(0), at(0)).await.unwrap();
        assert_eq!(slot.netns, host.netns_dir().join("web-0"));
        assert_reachable(&slot.netns, address(0));
        let on_loopback = inside(&slot.netns, || listen((Ipv4Addr::LOCALHOST, 0)));
        let netns = slot.netns.clone();
        exchange(on_loopback, move |to| inside(&netns, move || connect(to)));
        network.remove_slot(&web(0), None).await.unwrap();
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn the_hosts_address_is_that_of_the_default_route_unless_configured() {
    on_a_host(|host| async move {
        let mut settings = settings();
        assert_eq!(host_address(&settings).unwrap(), None);
        let route = |metric: u32| {
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
                .output_interface(1)
                .priority(metric)
        };
        let add = |route| host.netlink.route().add(route).execute();
        add(route(200).build()).await.unwrap();
        let loopback = Ipv4Addr::LOCALHOST;
        assert_eq!(host_address(&settings).unwrap(), Some(loopback));
        add(route(100).pref_source(HOST).build()).await.unwrap();
        assert_eq!(host_address(&settings).unwrap(), Some(HOST));
        settings.host_address = Some(address(0));
        assert_eq!(host_address(&settings).unwrap(), Some(address(0)));
    });
}

#[test]
fn no_neighbour_is_learnt_on_either_side() {
    on_a_host(|host| async move {
        /// ATF_COM | ATF_PERM in the flags column of proc_pid_net(5)'s `arp`.
        const PERMANENT: &str = " 0x6 ";
        let network = host.network();
        let slot = network.ensure_slot(&web(0), at(0)).await.unwrap();
        assert_reachable(&slot.netns, address(0));
        let table = || fs::read_to_string("/proc/thread-self/net/arp").unwrap();
        for table in [table(), inside(&slot.netns, table)] {
            let entries: Vec<_> = table.lines().skip(1).collect();
            assert!(
                matches!(entries[..], [only] if only.contains(PERMANENT)),
                "{table}"
            );
        }
        network.remove_slot(&web(0), None).await.unwrap();
    });
}

#[test]
fn a_slot_that_is_right_is_left_alone() {
    on_a_host(|host| async move {
        let network = host.network();
        let first = network.ensure_slot(&web(0), at(0)).await.unwrap();
        let index = host.index_of(&first.host_link).await;
        let listener = inside(&first.netns, || listen((address(0), 0)));
        for _ in 0..3 {
            assert_eq!(network.ensure_slot(&web(0), at(0)).await.unwrap(), first);
        }
        // Another agent process with the same directory, after a crash of the first.
        assert_eq!(
            host.network().ensure_slot(&web(0), at(0)).await.unwrap(),
            first
        );
        assert_eq!(
            host.index_of(&first.host_link).await,
            index,
            "the veth is the same one"
        );
        assert_eq!(host.routes().await, [(index, address(0))]);
        exchange(listener, connect);
        network.remove_slot(&web(0), None).await.unwrap();
        network.remove_slot(&web(0), None).await.unwrap();
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn a_slot_that_is_wrong_is_put_right() {
    on_a_host(|host| async move {
        let network = host.network();
        let slot = network.ensure_slot(&web(0), at(0)).await.unwrap();

        // Down, with another MTU and in another group.
        let index = host.index_of(&slot.host_link).await;
        let spoilt = LinkUnspec::new_with_index(index)
            .down()
            .mtu(1400)
            .link_group(3)
            .build();
        host.netlink.link().set(spoilt).execute().await.unwrap();
        network.ensure_slot(&web(0), at(0)).await.unwrap();
        assert_eq!(
            host.index_of(&slot.host_link).await,
            index,
            "it was mended, not replaced"
        );
        assert!(
            host.links().await[0]
                .attributes
                .contains(&LinkAttribute::Mtu(1500))
        );
        assert_reachable(&slot.netns, address(0));

        // Without its veth.
        host.delete_link(&slot.host_link).await;
        network.ensure_slot(&web(0), at(0)).await.unwrap();
        assert_reachable(&slot.netns, address(0));

        // With another address.
        network.ensure_slot(&web(0), at(7)).await.unwrap();
        assert_reachable(&slot.netns, address(7));
        let routed: Vec<_> = host.routes().await.into_iter().map(|(_, to)| to).collect();
        assert_eq!(routed, [address(7)]);
        assert_eq!(host.neighbours().await, 1);

        // Without its namespace, whose veth lives on because somebody holds it open.
        let held = File::open(&slot.netns).unwrap();
        unmount(&slot.netns, UnmountFlags::DETACH).unwrap();
        network.ensure_slot(&web(0), at(7)).await.unwrap();
        assert_reachable(&slot.netns, address(7));
        drop(held);

        network.remove_slot(&web(0), None).await.unwrap();
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn halves_of_slots_are_seen_and_can_be_removed() {
    on_a_host(|host| async move {
        let network = host.network();
        for n in 0..4 {
            network.ensure_slot(&web(n), at(n)).await.unwrap();
        }
        let whole = network.slots().await.unwrap();
        let addresses: Vec<_> = whole.iter().map(|slot| slot.address()).collect();
        assert_eq!(
            addresses,
            (0..4).map(|n| Some(address(n))).collect::<Vec<_>>()
        );

        // web-1 loses its veth, web-2 its namespace file, web-3 is a file from a start cut off.
        host.delete_link(&whole[1].link.as_ref().unwrap().name)
            .await;
        let held = File::open(&whole[2].netns).unwrap();
        unmount(&whole[2].netns, UnmountFlags::DETACH).unwrap();
        fs::remove_file(&whole[2].netns).unwrap();
        host.delete_link(&whole[3].link.as_ref().unwrap().name)
            .await;
        unmount(&whole[3].netns, UnmountFlags::DETACH).unwrap();

        // Neither a stranger's file nor a stranger's link is ours.
        fs::write(host.netns_dir().join("README"), "mine").unwrap();
        let stranger = LinkBridge::new("br0").link_group(7017).build();
        host.netlink.link().add(stranger).execute().await.unwrap();

        let after = network.slots().await.unwrap();
        let halves: Vec<_> = after
            .iter()
            .map(|slot| (slot.file, slot.link.is_some()))
            .collect();
        assert_eq!(
            halves,
            [
                (NetnsFile::Mounted, true),
                (NetnsFile::Mounted, false),
                (NetnsFile::Absent, true),
                (NetnsFile::Empty, false),
            ]
        );
        assert_eq!(
            after.iter().filter(|slot| slot.address().is_some()).count(),
            1
        );

        for slot in &after {
            network
                .remove_slot(&slot.instance, slot.address())
                .await
                .unwrap();
        }
        drop(held);
        host.delete_link("br0").await;
        fs::remove_file(host.netns_dir().join("README")).unwrap();
        assert_eq!(network.slots().await.unwrap(), []);
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn a_veth_that_was_cut_off_before_it_was_signed_is_recognised() {
    on_a_host(|host| async move {
        /// `IFLA_IFALIAS` of linux/if_link.h; an empty one removes the alias.
        const ALIAS: u16 = 20;
        let network = host.network();
        let slot = network.ensure_slot(&web(0), at(0)).await.unwrap();
        let index = host.index_of(&slot.host_link).await;
        let unsigned = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::Other(DefaultNla::new(ALIAS, Vec::new())))
            .build();
        let unsign = || host.netlink.link().set(unsigned.clone()).execute();
        let signed = |links: Vec<LinkMessage>| {
            let is_alias = |a: &LinkAttribute| matches!(a, LinkAttribute::IfAlias(_));
            links
                .iter()
                .any(|link| link.attributes.iter().any(is_alias))
        };
        unsign().await.unwrap();
        assert!(!signed(host.links().await));
        assert_eq!(
            network.slots().await.unwrap()[0].address(),
            Some(address(0))
        );
        network.ensure_slot(&web(0), at(0)).await.unwrap();
        assert!(signed(host.links().await));
        assert_eq!(host.index_of(&slot.host_link).await, index);
        unsign().await.unwrap();
        network.remove_slot(&web(0), None).await.unwrap();
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn an_address_is_not_taken_from_its_holder() {
    on_a_host(|host| async move {
        let network = host.network();
        let holder = network.ensure_slot(&web(0), at(0)).await.unwrap();
        let index = host.index_of(&holder.host_link).await;
        let refused = network.ensure_slot(&web(1), at(0)).await.unwrap_err();
        assert!(
            matches!(refused, NetworkError::AddressTaken { link, .. } if link == index),
            "{refused:?}"
        );
        assert_eq!(
            refused.to_string(),
            format!("the address 10.88.0.1 of web-1 is routed to another link (index {index})")
        );
        assert!(!refused.is_retryable());
        assert_eq!(
            network.slots().await.unwrap().len(),
            1,
            "nothing is left of web-1"
        );
        assert_reachable(&holder.netns, address(0));

        // Nor by a slot that works with another one, which it keeps.
        let mover = network.ensure_slot(&web(1), at(1)).await.unwrap();
        let refused = network.ensure_slot(&web(1), at(0)).await.unwrap_err();
        assert!(
            matches!(refused, NetworkError::AddressTaken { .. }),
            "{refused:?}"
        );
        assert_reachable(&holder.netns, address(0));
        assert_reachable(&mover.netns, address(1));
        network.remove_slot(&web(1), None).await.unwrap();
        network.remove_slot(&web(0), None).await.unwrap();
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn a_link_name_that_somebody_else_has_is_refused_and_not_touched() {
    on_a_host(|host| async move {
        let network = host.network();
        let slot = network.ensure_slot(&web(0), at(0)).await.unwrap();
        network.remove_slot(&web(0), None).await.unwrap();
        let stranger = LinkBridge::new(&slot.host_link).build();
        host.netlink.link().add(stranger).execute().await.unwrap();
        let refused = network.ensure_slot(&web(0), at(0)).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!(
                "the link name {} of web-0 is taken by a link without alias",
                slot.host_link
            )
        );
        network.remove_slot(&web(0), None).await.unwrap();
        host.delete_link(&slot.host_link).await;
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    on_a_host(|host| async move {
        let missing = host.runtime.path().join("missing/netns");
        let Err(refused) = Network::new(&settings(), missing.clone()) else {
            panic!("it was made")
        };
        assert!(
            matches!(&refused, NetworkError::Netns { path, .. } if *path == missing),
            "{refused:?}"
        );
        let text = format!("cannot make the netns directory {}", missing.display());
        assert_eq!(refused.to_string(), text);
        let cause = std::error::Error::source(&refused).unwrap().to_string();
        assert!(cause.contains("No such file or directory"), "{cause}");
    });
}

#[test]
fn calls_for_one_instance_at_once_end_in_one_slot_or_none() {
    on_a_host(|host| async move {
        let network = host.network();
        let one = web(0);
        let made = join_all((0..20).map(|_| network.ensure_slot(&one, at(0)))).await;
        let links: BTreeSet<_> = made
            .into_iter()
            .map(|slot| slot.unwrap().host_link)
            .collect();
        assert_eq!(links.len(), 1);
        assert_eq!(host.links().await.len(), 1);
        let (made, removed) = tokio::join!(
            network.ensure_slot(&one, at(0)),
            network.remove_slot(&one, None)
        );
        made.unwrap();
        removed.unwrap();
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn two_agents_on_one_host_leave_each_others_slots_alone() {
    on_a_host(|host| async move {
        let one = host.network();
        let other_dir = tempfile::tempdir().unwrap();
        let other = Network::new(&settings(), other_dir.path().join("netns")).unwrap();
        let mine = one.ensure_slot(&web(0), at(0)).await.unwrap();
        let yours = other.ensure_slot(&web(0), at(1)).await.unwrap();
        assert_ne!(mine.host_link, yours.host_link);
        assert_eq!(one.slots().await.unwrap().len(), 1);
        other.remove_slot(&web(0), None).await.unwrap();
        assert_reachable(&mine.netns, address(0));
        one.remove_slot(&web(0), None).await.unwrap();
        host.assert_nothing_is_left().await;
    });
}

#[test]
fn a_hundred_slots_are_made_at_two_milliseconds_each_and_removed_together() {
    const SLOTS: u32 = 100;
    const ALONE: u32 = 5;
    on_a_host(|host| async move {
        let network = host.network();
        let names: Vec<_> = (0..SLOTS).map(web).collect();

        // What one costs on this machine just now, most of it to wait for the kernel at its removal.
        let mut alone = Duration::ZERO;
        for _ in 0..ALONE {
            let begun = Instant::now();
            network.ensure_slot(&names[0], at(0)).await.unwrap();
            network.remove_slot(&names[0], None).await.unwrap();
            alone += begun.elapsed() / ALONE;
        }

        // The best of three: a moment in which the machine was busy says nothing.
        let (mut made_in, mut removed_in) = (Duration::MAX, Duration::MAX);
        for _ in 0..3 {
            let begun = Instant::now();
            let made = join_all(names.iter().map(|n| network.ensure_slot(n, at(n.ordinal)))).await;
            let making = begun.elapsed();
            let slots: Vec<_> = made.into_iter().map(Result::unwrap).collect();

            let begun = Instant::now();
            for name in &names {
                network.ensure_slot(name, at(name.ordinal)).await.unwrap();
            }
            let checking = begun.elapsed();

            let begun = Instant::now();
            assert_eq!(network.slots().await.unwrap().len(), SLOTS as usize);
            let listing = begun.elapsed();
            assert_reachable(&slots[99].netns, address(99));

            let begun = Instant::now();
            for removed in join_all(names.iter().map(|name| network.remove_slot(name, None))).await
            {
                removed.unwrap();
            }
            let removing = begun.elapsed();
            println!(
                "{SLOTS} slots: made in {making:?} ({:?} each), seen to be right in {checking:?}, \
                 listed in {listing:?}, removed in {removing:?}; one alone made and removed in {alone:?}",
                making / SLOTS
            );
            (made_in, removed_in) = (made_in.min(making), removed_in.min(removing));
        }
        host.assert_nothing_is_left().await;
        // Many are no slower to make than one, and do not wait for the kernel one after another.
        assert!(made_in < alone * SLOTS, "{made_in:?}, {alone:?}");
        assert!(removed_in < alone * SLOTS / 2, "{removed_in:?}, {alone:?}");
    });
}
