//! The texts of `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` in a container, as Kubernetes
//! has them: [`hosts`] as the kubelet writes it, [`Resolver`] by `dnsPolicy` and `dnsConfig`.
//!
//! Pure: what the host has comes in as text. Which files these are, and where they lie, is not
//! known here.

mod hosts;
mod resolver;

pub use hosts::{hosts, hosts_of_the_host};
pub use resolver::Resolver;
