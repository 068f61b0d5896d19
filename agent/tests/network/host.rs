//! A host of a test's own: a network namespace, a runtime directory, and what to look at there.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use nodeagent::config;
use nodeagent::instance::InstanceName;
use nodeagent::network::{Network, SlotGrant};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// An address of the host itself, outside of the pool.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Loopback and veth answer at once; this only bounds a failure.
pub const TCP_DEADLINE: Duration = Duration::from_secs(5);

pub fn settings() -> config::Network {
    config::defaults("test").network
}

pub fn at(n: u32) -> SlotGrant {
    SlotGrant {
        address: address(n),
        host_ports: Vec::new(),
    }
}

pub fn web(ordinal: u32) -> InstanceName {
    InstanceName::new("web".parse().unwrap(), ordinal)
}

pub fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 88, 0, 1).to_bits() + n)
}

/// A host of the test's own.
pub struct Host {
    pub netlink: Handle,
    pub runtime: tempfile::TempDir,
}

impl Host {
    pub fn netns_dir(&self) -> PathBuf {
        self.runtime.path().join("netns")
    }

    pub fn network(&self) -> Network {
        Network::new(&settings(), self.netns_dir()).unwrap()
    }

    /// Links of the group 7017.
    pub async fn links(&self) -> Vec<LinkMessage> {
        let links: Vec<LinkMessage> = self
            .netlink
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .unwrap();
        let ours = |link: &LinkMessage| link.attributes.contains(&LinkAttribute::Group(7017));
        links.into_iter().filter(ours).collect()
    }

    /// IPv4 routes into the pool, as link index and address.
    pub async fn routes(&self) -> Vec<(u32, Ipv4Addr)> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<_> = self
            .netlink
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .unwrap();
        let mut found = Vec::new();
        for route in routes {
            let mut oif = 0;
            let mut to = None;
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => oif = index,
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(address),
                    _ => {}
                }
            }
            found.extend(
                to.filter(|to| to.octets()[..2] == [10, 88])
                    .map(|to| (oif, to)),
            );
        }
        found
    }

    /// Number of permanent neighbours.
    pub async fn neighbours(&self) -> usize {
        let all: Vec<NeighbourMessage> = self
            .netlink
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .unwrap();
        all.iter()
            .filter(|n| n.header.state == NeighbourState::Permanent)
            .count()
    }

    /// Mounts below the netns directory.
    pub fn mounts(&self) -> usize {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let below = self.netns_dir().display().to_string();
        table.lines().filter(|line| line.contains(&below)).count()
    }

    pub async fn assert_nothing_is_left(&self) {
        assert_eq!(
            fs::read_dir(self.netns_dir()).unwrap().count(),
            0,
            "netns files"
        );
        assert_eq!(self.mounts(), 0, "mounts");
        assert_eq!(self.links().await.len(), 0, "veths");
        assert_eq!(self.routes().await, [], "routes");
        assert_eq!(self.neighbours().await, 0, "neighbours");
    }

    pub async fn index_of(&self, link: &str) -> u32 {
        let mut found = self
            .netlink
            .link()
            .get()
            .match_name(link.to_owned())
            .execute();
        found.try_next().await.unwrap().unwrap().header.index
    }

    pub async fn delete_link(&self, link: &str) {
        self.netlink
            .link()
            .del(self.index_of(link).await)
            .execute()
            .await
            .unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.netns_dir())
            .into_iter()
            .flatten()
            .flatten()
        {
            while unmount(entry.path(), UnmountFlags::DETACH).is_ok() {}
        }
    }
}

/// Runs a test in a network namespace of its own: the thread moves there first, and all that it
/// starts (runtime, netlink, the network's threads) begins there.
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send + 'static) {
    thread::spawn(move || {
        #[allow(
            deprecated,
            reason = "its unsafe successor warns of CLONE_FILES, which is not used"
        )]
        rustix::thread::unshare(UnshareFlags::NEWNET).expect("these tests need root");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (connection, netlink, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            netlink
                .link()
                .set(LinkUnspec::new_with_index(1).up().build())
                .execute()
                .await
                .unwrap();
            netlink
                .address()
                .add(1, HOST.into(), 32)
                .execute()
                .await
                .unwrap();
            let runtime = tempfile::tempdir().unwrap();
            test(Host { netlink, runtime }).await;
        });
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs `work` on a thread inside the namespace at `netns`.
pub fn inside<T: Send + 'static>(netns: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(netns).unwrap();
    thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    })
    .join()
    .unwrap()
}

/// Listens there. A process that another test starts at this moment has a copy of a listener that
/// was closed before, until it executes: so long the port is taken.
pub fn listen(at: (Ipv4Addr, u16)) -> TcpListener {
    let deadline = Instant::now() + TCP_DEADLINE;
    loop {
        match TcpListener::bind(at) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::yield_now();
            }
            bound => return bound.unwrap(),
        }
    }
}

pub fn connect(to: SocketAddr) -> TcpStream {
    TcpStream::connect_timeout(&to, TCP_DEADLINE).unwrap()
}

/// One byte through a connection, both ways; says who connected.
pub fn exchange(
    listener: TcpListener,
    connect: impl FnOnce(SocketAddr) -> TcpStream,
) -> SocketAddr {
    let at = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
        from
    });
    let mut client = connect(at);
    client.set_read_timeout(Some(TCP_DEADLINE)).unwrap();
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
    server.join().unwrap()
}

pub fn assert_reachable(netns: &Path, address: Ipv4Addr) {
    let listener = inside(netns, move || listen((address, 0)));
    assert_eq!(
        exchange(listener, connect).ip(),
        HOST,
        "the host connects to the instance"
    );
    let listener = listen((HOST, 0));
    let netns = netns.to_owned();
    let from = exchange(listener, move |to| inside(&netns, move || connect(to)));
    assert_eq!(from.ip(), address, "the instance connects to the host");
}
