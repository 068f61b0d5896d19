//! Host ports and masquerade, looked at by `nft` and by a client in a second network namespace.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nodeagent::app::Protocol;
use nodeagent::config::{AddressRange, Forwarding};
use nodeagent::network::{Forwards, HostPort, Network, NetworkError, SlotGrant, forwarding};
use rustix::thread::UnshareFlags;

use crate::host::*;

/// The host's and the client's address on the wire between them (TEST-NET-2 of RFC 5737).
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Runs a program where the caller is; its output.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn nft(rules: &str) -> String {
    run("nft", &[rules])
}

/// A second network namespace, on a wire with the host, which forwards.
struct Client {
    held: File,
}

impl Client {
    fn connect() -> Self {
        let held = thread::spawn(|| {
            #[allow(
                deprecated,
                reason = "its unsafe successor warns of CLONE_FILES, which is not used"
            )]
            rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let client = Self { held };
        let netns = client.netns().display().to_string();
        for words in [
            "link add wire0 type veth peer name wire1".to_owned(),
            format!("link set wire1 netns {netns}"),
            format!("address add {OUTSIDE}/24 dev wire0"),
            "link set wire0 up".to_owned(),
        ] {
            run("ip", &words.split(' ').collect::<Vec<_>>());
        }
        inside(&client.netns(), || {
            for words in [
                format!("address add {CLIENT}/24 dev wire1"),
                "link set wire1 up".to_owned(),
                format!("route add default via {OUTSIDE}"),
            ] {
                run("ip", &words.split(' ').collect::<Vec<_>>());
            }
        });
        let switched = forwarding(Forwarding::Enable).unwrap();
        assert_eq!(switched, Forwards::SwitchedOn);
        assert_eq!(forwarding(Forwarding::Check).unwrap(), Forwards::Already);
        client
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.held.as_raw_fd()).into()
    }
}

fn tcp(port: u16, container_port: u16) -> HostPort {
    HostPort {
        protocol: Protocol::Tcp,
        address: None,
        port,
        container_port,
    }
}

fn with(n: u32, host_ports: &[HostPort]) -> SlotGrant {
    SlotGrant {
        host_ports: host_ports.to_vec(),
        ..at(n)
    }
}

/// `netns` connects to `to`, which leads to the instance of `listener`; says where from, as seen
/// there.
fn reaches(netns: &Path, to: (Ipv4Addr, u16), listener: TcpListener) -> Ipv4Addr {
    let netns = netns.to_owned();
    let dial = move |_| inside(&netns, move || connect(SocketAddr::from(to)));
    match exchange(listener, dial) {
        SocketAddr::V4(from) => *from.ip(),
        other => panic!("{other}"),
    }
}

fn serve(netns: &Path, address: Ipv4Addr, port: u16) -> TcpListener {
    inside(netns, move || listen((address, port)))
}

/// Host ports in the packet filter.
fn elements() -> usize {
    let rules = nft("list ruleset");
    ["tcp . ", "udp . "]
        .map(|key| rules.matches(key).count())
        .iter()
        .sum()
}

#[test]
fn a_host_port_leads_to_its_instance_from_everywhere() {
    on_a_host(|host| async move {
        let client = Client::connect();
        let network = host.network();
        network.restore_ports(Vec::new()).await.unwrap();
        let slot = network
            .ensure_slot(&web(0), with(0, &[tcp(8080, 80)]))
            .await
            .unwrap();
        let other = network.ensure_slot(&web(1), at(1)).await.unwrap();
        let here = PathBuf::from("/proc/thread-self/ns/net");
        let listener = || serve(&slot.netns, address(0), 80);

        let outside = reaches(&client.netns(), (OUTSIDE, 8080), listener());
        assert_eq!(outside, CLIENT, "the instance sees who it is");
        let directly = reaches(&client.netns(), (address(0), 80), listener());
        assert_eq!(directly, CLIENT);
        let from_here = reaches(&here, (OUTSIDE, 8080), listener());
        assert_eq!(from_here, OUTSIDE, "the host itself");
        reaches(&here, (HOST, 8080), listener());
        reaches(&other.netns, (OUTSIDE, 8080), listener());
        reaches(&slot.netns, (OUTSIDE, 8080), listener());

        // What passes through to another host is none of ours.
        let there = serve(&client.netns(), CLIENT, 8080);
        assert_eq!(reaches(&slot.netns, (CLIENT, 8080), there), OUTSIDE);

        network.remove_slot(&web(0), None).await.unwrap();
        network.remove_slot(&web(1), None).await.unwrap();
        assert_eq!(elements(), 0, "{}", nft("list ruleset"));
    });
}

#[test]
fn a_host_port_on_one_address_leaves_the_others_alone() {
    on_a_host(|host| async move {
        let client = Client::connect();
        let network = host.network();
        let port = HostPort {
            address: Some(OUTSIDE),
            ..tcp(8080, 80)
        };
        let slot = network
            .ensure_slot(&web(0), with(0, &[port]))
            .await
            .unwrap();
        let listener = serve(&slot.netns, address(0), 80);
        reaches(&client.netns(), (OUTSIDE, 8080), listener);
        let own = listen((HOST, 8080));
        assert_eq!(reaches(&client.netns(), (HOST, 8080), own), CLIENT);
        network.remove_slot(&web(0), None).await.unwrap();
        assert_eq!(elements(), 0, "{}", nft("list ruleset"));
    });
}

#[test]
fn udp_flows_follow_a_host_port_at_once() {
    on_a_host(|host| async move {
        let client = Client::connect();
        let network = host.network();
        let port = HostPort {
            protocol: Protocol::Udp,
            ..tcp(5353, 53)
        };
        let flow = inside(&client.netns(), || {
            let socket = UdpSocket::bind((CLIENT, 4000)).unwrap();
            socket.connect((OUTSIDE, 5353)).unwrap();
            socket.set_read_timeout(Some(TCP_DEADLINE)).unwrap();
            socket
        });
        // Tracked before anything answers there: the host says that the port is closed.
        network.restore_ports(Vec::new()).await.unwrap();
        flow.send(b"x").unwrap();
        for n in 0..2 {
            let slot = network
                .ensure_slot(&web(n), with(n, &[port]))
                .await
                .unwrap();
            let address = address(n);
            let server = inside(&slot.netns, move || UdpSocket::bind((address, 53)).unwrap());
            server.set_read_timeout(Some(TCP_DEADLINE)).unwrap();
            // A refusal from before may be waiting.
            while flow.send(b"x").is_err() {}
            let mut byte = [0];
            let (_, from) = server.recv_from(&mut byte).unwrap();
            assert_eq!(from.ip(), CLIENT, "web-{n} gets the flow");
            server.send_to(b"y", from).unwrap();
            flow.recv(&mut byte).unwrap();
            assert_eq!(&byte, b"y");
            let freed = Some(address);
            network.remove_slot(&web(n), freed).await.unwrap();
        }
    });
}

#[test]
fn what_leaves_the_host_comes_from_the_host_unless_excepted() {
    on_a_host(|host| async move {
        let client = Client::connect();
        let except = AddressRange {
            base: [198, 51, 100, 0].into(),
            prefix: 24,
        };
        for (masquerade, excepted, wanted) in [
            (true, vec![], OUTSIDE),
            (true, vec![except], address(0)),
            (false, vec![], address(0)),
        ] {
            let mut settings = settings();
            settings.masquerade = masquerade;
            settings.masquerade_except = excepted;
            let network = Network::new(&settings, host.netns_dir()).unwrap();
            network.restore_ports(Vec::new()).await.unwrap();
            let slot = network.ensure_slot(&web(0), at(0)).await.unwrap();
            let other = network.ensure_slot(&web(1), at(1)).await.unwrap();
            let there = serve(&client.netns(), CLIENT, 7000);
            assert_eq!(reaches(&slot.netns, (CLIENT, 7000), there), wanted);
            let beside = serve(&other.netns, address(1), 7000);
            let seen = reaches(&slot.netns, (address(1), 7000), beside);
            assert_eq!(seen, address(0), "instances see each other");
            network
                .remove_slot(&web(0), Some(address(0)))
                .await
                .unwrap();
            network
                .remove_slot(&web(1), Some(address(1)))
                .await
                .unwrap();
        }
        let left = nft("list ruleset");
        assert!(!left.contains("nodeagent"), "nothing is needed: {left}");
    });
}

#[test]
fn the_table_is_what_nft_prints() {
    on_a_host(|host| async move {
        let mut settings = settings();
        settings.masquerade_except = vec![AddressRange {
            base: [10, 88, 0, 0].into(),
            prefix: 13,
        }];
        let network = Network::new(&settings, host.netns_dir()).unwrap();
        let at_one = HostPort {
            address: Some(OUTSIDE),
            ..tcp(8081, 81)
        };
        let ports = vec![(web(0), address(0), vec![tcp(8080, 80), at_one])];
        network.restore_ports(ports).await.unwrap();
        let printed = nft("list ruleset");
        let printed: Vec<&str> = printed
            .lines()
            .filter(|line| !line.contains("comment"))
            .collect();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nft.txt");
        let printed = printed.join("\n") + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &printed).unwrap();
        }
        assert_eq!(printed, std::fs::read_to_string(&golden).unwrap());
    });
}

#[test]
fn what_another_start_left_is_replaced_and_strangers_are_not_touched() {
    on_a_host(|host| async move {
        let foreign = "table ip others {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tcounter packets 0 bytes 0 accept\n\t}\n}\n";
        nft(
            "add table ip others; add chain ip others input { type filter hook input priority 0; }; add rule ip others input counter accept",
        );
        let network = host.network();
        let stale = vec![(web(7), address(7), vec![tcp(8087, 80)])];
        network.restore_ports(stale).await.unwrap();
        assert_eq!(elements(), 1);
        let again = host.network();
        let known = vec![(web(0), address(0), vec![tcp(8080, 80)])];
        again.restore_ports(known).await.unwrap();
        let listed = nft("list table inet nodeagent");
        assert!(
            listed.contains("tcp . 8080") && !listed.contains("8087"),
            "{listed}"
        );

        // Somebody flushed everything: the next change puts it back.
        nft("delete table inet nodeagent");
        again
            .ensure_slot(&web(1), with(1, &[tcp(8081, 80)]))
            .await
            .unwrap();
        let listed = nft("list table inet nodeagent");
        assert!(
            listed.contains("8080") && listed.contains("8081"),
            "{listed}"
        );
        again.remove_slot(&web(1), None).await.unwrap();
        assert!(run("nft", &["list", "ruleset"]).contains(foreign));

        // A table of that name that is somebody else's.
        nft("delete table inet nodeagent; add table inet nodeagent { comment \"mine\"; }");
        let refused = host.network().restore_ports(Vec::new()).await.unwrap_err();
        assert!(
            matches!(refused, NetworkError::TableTaken { .. }),
            "{refused:?}"
        );
        assert_eq!(
            refused.to_string(),
            "the table inet nodeagent of the packet filter is not ours, but says \"mine\""
        );
    });
}

#[test]
fn a_port_that_a_process_has_is_refused_and_nothing_is_made() {
    on_a_host(|host| async move {
        let network = host.network();
        let process = listen((HOST, 8080));
        let refused = network
            .ensure_slot(&web(0), with(0, &[tcp(8080, 80)]))
            .await
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "host port tcp 8080 is in use by a process of this host"
        );
        host.assert_nothing_is_left().await;
        drop(process);
        network
            .ensure_slot(&web(0), with(0, &[tcp(8080, 80)]))
            .await
            .unwrap();
        network.remove_slot(&web(0), None).await.unwrap();
    });
}
