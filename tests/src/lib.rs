//! The harness: real containerd, real registry, the real agent, each test on a host of its own.
//!
//! A [`TestHost`] is a directory below [`BASE`], a network namespace with only loopback, and a
//! cgroup parent `/nodeagent-<id>`. Everything that a test starts lives in these three, so that
//! hosts run beside each other and beside the machine's own services without meeting them.
//!
//! Promises: traffic stays inside the host's network namespace; only processes that the host
//! started are ended, by pid; a host is removed when it is dropped, and what a killed run left is
//! removed by the next one. The mount namespace is the machine's: containerd and the agent have to
//! share one.
//!
//! Deliberately not here: asynchronous code. Scenarios are blocking and read from top to bottom.

pub mod agent;
pub mod authority;
pub mod bench;
pub mod cli;
pub mod containerd;
pub mod crash;
pub mod cri;
pub mod cri_images;
pub mod ctr;
pub mod documents;
pub mod etcd;
pub mod events;
pub mod exactly;
pub mod exposition;
pub mod faults;
pub mod fleet;
pub mod ground;
pub mod host;
pub mod http;
pub mod image;
pub mod init;
pub mod kubelet;
pub mod leaks;
pub mod manager;
pub mod manifest;
pub mod neighbour;
pub mod netns;
pub mod nspawn;
pub mod peers;
pub mod process;
pub mod pull;
pub mod reboot;
pub mod registry;
pub mod server;
pub mod swarm;
pub mod teardown;
pub mod tree;
pub mod vm;
pub mod wait;

pub use agent::Agent;
pub use cli::{Answer, Cli};
pub use containerd::Containerd;
pub use etcd::Etcd;
pub use fleet::Fleet;
pub use ground::{BASE, Ground};
pub use host::TestHost;
pub use image::Image;
pub use kubelet::Kubelet;
pub use manifest::Manifest;
pub use registry::Registry;
pub use vm::Vm;
