//! What an app's containers are told about names: their own, and where to ask for others.

use std::net::IpAddr;

/// Names beside those of DNS: entries of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAlias {
    /// Address that the names stand for.
    pub ip: IpAddr,
    /// At least one.
    pub hostnames: Vec<String>,
}

/// Where a container asks for names: `dnsPolicy` and `dnsConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// What is taken from the host.
    pub policy: DnsPolicy,
    /// Name servers, after the host's.
    pub nameservers: Vec<IpAddr>,
    /// Search domains, after the host's.
    pub searches: Vec<String>,
    /// Options of resolv.conf(5); one of the same name replaces the host's.
    pub options: Vec<DnsOption>,
}

/// What is taken from the host's resolver configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsPolicy {
    /// All of it (Kubernetes' `Default`).
    #[default]
    Host,
    /// Nothing.
    None,
}

/// `name` or `name:value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOption {
    /// For example `ndots`.
    pub name: String,
    /// For example `2`.
    pub value: Option<String>,
}

impl Dns {
    /// The most name servers that a resolver asks (`MAXNS` of resolv.conf(5)).
    pub const MAX_NAMESERVERS: usize = 3;
    /// The most search domains, as in Kubernetes.
    pub const MAX_SEARCHES: usize = 32;
    /// The most characters of search domains with the spaces between them, as in Kubernetes.
    pub const MAX_SEARCH_CHARACTERS: usize = 2048;
}
