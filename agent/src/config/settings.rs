//! What the agent runs with: validated, complete, absolute paths only.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use imagecache::fetch::ProxySettings;
use imagecache::peers::Peer;
use imagecache::policy::PolicySettings;

use crate::app::CapabilitySet;

/// Validated agent configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `[host]`
    pub host: Host,
    /// `[paths]`
    pub paths: Paths,
    /// `[api]`
    pub api: Api,
    /// `[containerd]`
    pub containerd: Containerd,
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[network]`
    pub network: Network,
    /// `[images]`
    pub images: Images,
    /// `[volumes]`
    pub volumes: Volumes,
    /// `[logs]`
    pub logs: Logs,
    /// `[security]`
    pub security: Security,
    /// `[discovery]`
    pub discovery: Discovery,
    /// `[tasks]`
    pub tasks: Tasks,
    /// `[refill]`
    pub refill: Refill,
}

/// Who this host is.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Stable id of the host; default: `/etc/machine-id`.
    pub id: String,
    /// Fleet that the host belongs to; default `default`.
    pub fleet: String,
}

/// Where the agent keeps things. Every path is absolute, so that several agents fit one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Paths {
    /// Durable state, default `/var/lib/nodeagent`: `journal.db`, `instances/<container-id>/{bin,log}`, `init/<sha256>`.
    pub state: PathBuf,
    /// Volatile state, default `/run/nodeagent`: `ctl/gate.sock`, `netns/<instance>`.
    pub runtime: PathBuf,
    /// The API's unix socket, default `<runtime>/api.sock`.
    pub api_socket: PathBuf,
}

/// Who may use the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// Mode of the unix socket's file: `0o600`, `0o660` or `0o666`; default `0o600`, and `0o666`
    /// where somebody beside root has a role.
    pub socket_mode: u32,
    /// Group of the unix socket's file; root's when absent.
    pub socket_group: Option<Account>,
    /// Who has the role `view`.
    pub view: Members,
    /// Who has the role `operate`.
    pub operate: Members,
    /// Who has the role `admin` beside root.
    pub admin: Members,
    /// Where callers from other hosts are served; nowhere when absent.
    pub tls: Option<ApiTls>,
}

/// The API by TCP, with certificates on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiTls {
    /// Address and port.
    pub listen: SocketAddr,
    /// The agent's certificate and those that lead to its authority, as PEM.
    pub certificate: PathBuf,
    /// The certificate's private key, as PEM.
    pub key: PathBuf,
    /// Authorities of clients' certificates, as PEM.
    pub client_ca: PathBuf,
    /// Names with the role `view`: `cn:NAME`, `dns:NAME` or `uri:URI`.
    pub view: Vec<String>,
    /// Names with the role `operate`.
    pub operate: Vec<String>,
    /// Names with the role `admin`.
    pub admin: Vec<String>,
}

impl Default for Api {
    /// Root alone.
    fn default() -> Self {
        Self {
            socket_mode: 0o600,
            socket_group: None,
            view: Members::default(),
            operate: Members::default(),
            admin: Members::default(),
            tls: None,
        }
    }
}

/// Who has a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Users.
    pub users: Vec<Account>,
    /// Groups whose members have it, by primary or supplementary membership of the process.
    pub groups: Vec<Account>,
}

impl Members {
    /// Whether nobody is a member.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By its name in `/etc/passwd` or `/etc/group`.
    Name(String),
    /// By its number.
    Id(u32),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}

/// How containerd is reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Containerd {
    /// gRPC socket, default `/run/containerd/containerd.sock`.
    pub socket: PathBuf,
    /// Namespace, default `nodeagent`; fixed at first start.
    pub namespace: String,
    /// Snapshotter, default `overlayfs`.
    pub snapshotter: String,
    /// Deadline of one call, default 10 s (creates: four times that).
    pub timeout: Duration,
}

/// How containers are run.
#[derive(Debug, Clone, PartialEq)]
pub struct Runtime {
    /// Shim, default `io.containerd.runc.v2`.
    pub shim: String,
    /// OCI runtime binary handed to the shim; the shim's own default when absent.
    pub binary: Option<PathBuf>,
    /// Absolute cgroup below which containers live, the same in every hierarchy, default `/nodeagent`.
    pub cgroup_parent: String,
    /// Whether containers live below a transient scope of systemd instead; default `auto`, or
    /// `never` where `cgroup_parent` is set.
    pub scope: UseScope,
    /// The static container-init on this host, default `/usr/lib/nodeagent/container-init`.
    pub container_init: PathBuf,
}

/// Whether containers live below `nodeagent-instances.scope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseScope {
    /// Where systemd is PID 1 and starts one; else below `cgroup_parent`.
    Auto,
    /// The agent does not start without.
    Always,
    /// Below `cgroup_parent`.
    Never,
}

impl UseScope {
    /// Every value with its spelling.
    pub const ALL: [(Self, &str); 3] = [
        (Self::Auto, "auto"),
        (Self::Always, "always"),
        (Self::Never, "never"),
    ];

    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        let [(_, auto), (_, always), (_, never)] = Self::ALL;
        match self {
            Self::Auto => auto,
            Self::Always => always,
            Self::Never => never,
        }
    }
}

/// Addresses and links.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// How instances with an address of their own are connected to the host, default routed.
    pub mode: Connects,
    /// Most ports of one bridge, default 900 (the kernel's limit is 1023).
    pub bridge_ports: u32,
    /// Ranges that instances get addresses from, default `10.88.0.0/16`.
    pub pools: Vec<AddressRange>,
    /// Link-local gateway seen from inside, default `169.254.1.1`.
    pub gateway: Ipv4Addr,
    /// Link group of our veths (`ip link … group N`), default 7017.
    pub link_group: u32,
    /// MTU of the veths, default 1500.
    pub mtu: u32,
    /// How long a freed address is kept from other instances; default 120 s or the longest
    /// propagation bound, whichever is longer, and never below the latter.
    pub quarantine: Duration,
    /// Whether clients on other hosts reach the addresses of `pools`, because somebody routes them
    /// here; default false.
    pub reachable: bool,
    /// Address under which clients reach this host; the address of the default route's interface
    /// when absent.
    pub host_address: Option<Ipv4Addr>,
    /// Range of the host ports that `hostPort: auto` takes from, default 20000-29999.
    pub host_ports: RangeInclusive<u16>,
    /// Whether connections of instances that leave the host come from the host's address; default:
    /// where the instances' own are not `reachable`.
    pub masquerade: bool,
    /// Destinations that see the instances' own addresses all the same.
    pub masquerade_except: Vec<AddressRange>,
    /// What is done about IPv4 forwarding that is off; default [`Forwarding::Check`].
    pub forwarding: Forwarding,
    /// The agent's table (family inet) in the packet filter, default `nodeagent`.
    pub table: String,
    /// The host's resolver configuration, default `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// What is done about IPv4 forwarding (`net.ipv4.ip_forward`) that is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// It is said.
    Check,
    /// It is switched on at start, and that is said.
    Enable,
}

/// How instances with an address of their own are connected to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connects {
    /// Each by a veth with a host route, without a bridge.
    Routed,
    /// Each as an isolated port of a bridge.
    Bridge,
}

impl Connects {
    /// Every value with its spelling.
    pub const ALL: [(Self, &str); 2] = [(Self::Routed, "routed"), (Self::Bridge, "bridge")];

    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        let [(_, routed), (_, bridge)] = Self::ALL;
        match self {
            Self::Routed => routed,
            Self::Bridge => bridge,
        }
    }
}

/// An IPv4 range in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// First address (host bits zero).
    pub base: Ipv4Addr,
    /// Prefix length, 8..=32.
    pub prefix: u8,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// Registries (`host:port`) spoken to by plain HTTP; loopback registries always are.
    pub insecure_registries: Vec<String>,
    /// Deadline of a whole pull, default 10 min.
    pub pull_timeout: Duration,
    /// A pull without a byte for this long has failed, default 30 s.
    pub stall_timeout: Duration,
    /// `config.json` of docker with credentials, when there is one.
    pub auth_file: Option<PathBuf>,
    /// Our own store of layers, default `images` in the state directory.
    pub root: PathBuf,
    /// containerd's directory of registry hosts (`hosts.toml`), when there is one.
    pub hosts_dir: Option<PathBuf>,
    /// Certificates trusted beside the system's, when there are some.
    pub ca_file: Option<PathBuf>,
    /// Bytes per second of all pulls together; 0, the default, is no limit.
    pub bandwidth: u64,
    /// Whether layers stay in the store when they are unpacked, default true.
    pub keep_blobs: bool,
    /// File that names images which belong on this host, one a line, when there is one.
    pub stable_file: Option<PathBuf>,
    /// How often that file and the names of images are looked at, default 10 min.
    pub check_interval: Duration,
    /// Bytes that images may take on the disk; 0, the default, is no limit.
    pub max_size: u64,
    /// Files and directories that images may have on the disk; 0, the default, is no limit.
    pub max_files: u64,
    /// Configuration of the kubelet, which `nodeagent check` reads, default
    /// `/var/lib/kubelet/config.yaml`.
    pub kubelet_config: PathBuf,
    /// Connections at a time of all pulls together, default 12.
    pub connections: usize,
    /// Connections at a time of one layer, default 4.
    pub connections_per_blob: usize,
    /// Bytes of a large layer that are asked for at a time, default 16 MiB.
    pub chunk: u64,
    /// How often one pull tries again, default 32.
    pub retries: u32,
    /// A connection without a byte for this long gets another beside it, default 3 s.
    pub hedge_after: Duration,
    /// Which proxy is asked, default that of the environment.
    pub proxy: ProxySettings,
    /// Where docker's credential helpers are; `PATH` when it is not said.
    pub credential_helpers: Option<PathBuf>,
    /// What may be pulled, default everything.
    pub policy: PolicySettings,
    /// Who shares layers with this host, when somebody does.
    pub peers: Option<ImagePeers>,
}

/// Hosts that share layers.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePeers {
    /// Where this host serves its layers.
    pub listen: SocketAddr,
    /// This host as the others know it.
    pub own: Peer,
    /// All hosts; this one may be among them.
    pub hosts: Vec<Peer>,
    /// Uploads at a time, default 8.
    pub uploads: usize,
    /// Bytes per second of all uploads; 0, the default, is no limit.
    pub bandwidth: u64,
    /// Bytes per second of a connection below which a peer is given up, default 256 KiB.
    pub slowest: u64,
    /// The file with the token that all hosts have.
    pub token_file: Option<PathBuf>,
    /// Certificates on both sides.
    pub tls: Option<PeersTls>,
}

/// Files for TLS between peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeersTls {
    /// This host's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of all hosts' certificates.
    pub ca: PathBuf,
}

/// What of the host apps may mount.
#[derive(Debug, Clone, PartialEq)]
pub struct Volumes {
    /// Directories below which `hostPath` volumes may lie; default none.
    pub allowed_host_paths: Vec<PathBuf>,
}

/// How much is kept of what processes in instances write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// Bytes of a file after which the next begins, default 10 MiB.
    pub max_size: u64,
    /// Files of a process, the one that is written included, default 5.
    pub max_files: u8,
}

/// What apps may ask for beyond what every container has.
#[derive(Debug, Clone, PartialEq)]
pub struct Security {
    /// Capabilities beside the standard ones; default none.
    pub allowed_capabilities: CapabilitySet,
    /// Sysctls beside the safe ones, or patterns that end in `*`; default none.
    pub allowed_sysctls: Vec<String>,
    /// Directory of the profiles of `seccompProfile: {type: Localhost}`, default
    /// `/etc/nodeagent/seccomp`.
    pub seccomp_profiles: PathBuf,
    /// Directories below which the files of `envFrom` may lie; default none.
    pub allowed_env_file_paths: Vec<PathBuf>,
}

/// Discovery backends.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// `[discovery.file]`, the embedded default.
    pub file: Option<FileDiscovery>,
    /// `[discovery.etcd]`
    pub etcd: Option<EtcdDiscovery>,
}

impl Discovery {
    /// The longest that clients of any backend may go on using what was removed.
    pub fn propagation_bound(&self) -> Duration {
        let file = self.file.as_ref().map(|file| file.propagation_bound);
        let etcd = self.etcd.as_ref().map(|etcd| etcd.propagation_bound);
        file.into_iter().chain(etcd).max().unwrap_or_default()
    }
}

/// What an instance's being in service depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// It is active when this backend, too, has acknowledged it.
    Required,
    /// The backend is told and not waited for.
    Optional,
}

/// Prometheus file_sd and Envoy EDS files.
#[derive(Debug, Clone, PartialEq)]
pub struct FileDiscovery {
    /// Whether an instance is active only with it, default yes.
    pub requirement: Requirement,
    /// Directory of the files, default `<runtime>/discovery`.
    pub directory: PathBuf,
    /// How long clients may still use what was removed, default 5 s.
    pub propagation_bound: Duration,
}

/// Keys in etcd, one for each instance, all on one lease of the host.
#[derive(Debug, Clone, PartialEq)]
pub struct EtcdDiscovery {
    /// Whether an instance is active only with it, default yes.
    pub requirement: Requirement,
    /// `http://host:port` or `https://host:port` of the members, never empty.
    pub endpoints: Vec<String>,
    /// First part of every key, default `/nodeagent`.
    pub prefix: String,
    /// Time to live of the host's lease in whole seconds, default 60 s.
    pub ttl: Duration,
    /// Deadline of a connection to one member, default 2 s.
    pub dial_timeout: Duration,
    /// Deadline of one request, default 5 s.
    pub request_timeout: Duration,
    /// How long clients may still use what was removed, default 5 s.
    pub propagation_bound: Duration,
    /// User and the file with the password; without, no authentication.
    pub user: Option<EtcdUser>,
    /// Certificates; without, the endpoints are plain HTTP.
    pub tls: Option<EtcdTls>,
}

/// Who the agent is to etcd.
#[derive(Debug, Clone, PartialEq)]
pub struct EtcdUser {
    /// Name of the user.
    pub name: String,
    /// File with the password, read at every connection.
    pub password_file: PathBuf,
}

/// How etcd's certificates are checked, and ours. Read at every connection.
#[derive(Debug, Clone, PartialEq)]
pub struct EtcdTls {
    /// PEM file of the authorities that etcd's certificate is signed by.
    pub ca_file: PathBuf,
    /// PEM files of our certificate and its key, where etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Deadlines of tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Tasks {
    /// Deadline of an activation, default 60 s.
    pub activation_deadline: Duration,
    /// How long task results are kept, default 30 days.
    pub keep_results: Duration,
    /// Consecutive failures after which a task of the pool gives up, default 3.
    pub give_up_after: u32,
}

/// Background work.
#[derive(Debug, Clone, PartialEq)]
pub struct Refill {
    /// Creations at a time for warm targets, default 2.
    pub concurrency: usize,
}
