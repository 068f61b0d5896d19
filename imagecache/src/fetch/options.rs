//! Settings of fetching.

use std::path::PathBuf;
use std::time::Duration;

/// How registries are spoken to and blobs are brought here.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchOptions {
    /// Registries (`host[:port]`) spoken to by plain HTTP; loopback registries always are.
    pub insecure_registries: Vec<String>,
    /// docker's `config.json` with credentials, when there is one.
    pub auth_file: Option<PathBuf>,
    /// Where the credential helpers that this file names are; `PATH` says it when this does not.
    pub credential_helpers: Option<PathBuf>,
    /// containerd's directory of hosts (`/etc/containerd/certs.d`), when there is one.
    pub hosts_dir: Option<PathBuf>,
    /// Certificates (PEM) trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Which proxy is used.
    pub proxy: ProxySettings,
    /// A connection that brings no byte for this long has failed.
    pub stall_timeout: Duration,
    /// A connection that brings no byte for this long gets a second one beside it, where another
    /// source or a free connection is; whichever is faster wins.
    pub hedge_after: Duration,
    /// Connections at a time of all pulls of the process.
    pub connections: usize,
    /// Connections at a time of one blob.
    pub connections_per_blob: usize,
    /// Bytes asked for at a time of a large blob.
    pub chunk: u64,
    /// How often one pull tries again after what may pass.
    pub retries: u32,
    /// Bytes per second of all pulls of the process; 0 is no limit.
    pub bandwidth: u64,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            auth_file: None,
            credential_helpers: None,
            hosts_dir: None,
            ca_file: None,
            proxy: ProxySettings::Environment,
            stall_timeout: Duration::from_secs(30),
            hedge_after: Duration::from_secs(3),
            connections: 12,
            connections_per_blob: 4,
            chunk: 16 << 20,
            retries: 32,
            bandwidth: 0,
        }
    }
}

/// Which proxy is used. Loopback is never asked by way of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxySettings {
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` of the environment.
    Environment,
    /// None.
    Direct,
    /// This one.
    Url {
        /// `http://[user:password@]host:port`.
        url: String,
        /// Hosts, domains and networks asked directly, separated by commas.
        except: String,
    },
}
