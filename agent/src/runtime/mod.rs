//! Our few containerd verbs: images, snapshots, containers, tasks, exits.
//!
//! [`Containerd`] is the one handle; it is cheap to clone and never dials before the first call, so
//! the daemon starts while containerd is down. Promises: every call has a deadline; every verb may
//! be repeated (what exists already, or is gone already, is success where that means the same);
//! what failed half-way is undone, or the error says that it may remain; the only generated
//! protobuf types of the agent stay in here. Deliberately not here: retries and their pace (the
//! executor's), freezing (behind containerd's back), and anything on the path of an armed or frozen
//! activation.

mod cgroup;
mod connection;
mod container;
mod content;
mod error;
mod events;
mod exec;
mod image;
mod introspect;
mod kubernetes;
mod labels;
mod lease;
mod passwd;
mod shim;
mod snapshot;
mod task;
mod transfer;
mod unpack;
mod unpacked;
mod usage;

pub use container::Observed;
pub use content::{ContainerdStore, ContentWriter};
pub(crate) use error::of_pull;
pub use error::{RuntimeError, Said, Unanswered};
pub use events::TaskExit;
pub use exec::{Exec, Fifos, Pipes, Streams};
pub use image::Image;
pub(crate) use image::{Ready, describe};
pub use introspect::Snapshotter;
pub(crate) use kubernetes::NAMESPACE as KUBERNETES;
pub use labels::{APP, CREATE_GENERATION, INSTANCE, REVISION};
pub use lease::{Collect, Lease};
pub use passwd::{ResolvedUser, UserError, resolve_user};
pub use snapshot::{Mount, RootfsMounts};
pub use task::{ExitStatus, TaskState, TaskStatus};
pub use transfer::TransferError;
pub use unpacked::Fate;
pub(crate) use unpacked::{View, Viewed};
pub use usage::{MemoryUsage, Usage};

use std::sync::Arc;

use containerd_client::services::v1::version_client::VersionClient;

use crate::config;
use connection::Connection;

const SIGKILL: u32 = 9;
/// Type of the spec in a container record (containerd, typeurl of runtime-spec).
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Handle to one namespace of one containerd. Clones share the connection.
#[derive(Clone)]
pub struct Containerd {
    connection: Connection,
    runtime: Arc<config::Runtime>,
    /// Where shims move themselves; with containerd where it is [`None`].
    shim_cgroup: Option<Arc<str>>,
    /// Where layers are extracted, once looked for.
    workplace: Arc<tokio::sync::OnceCell<Option<imagecache::Workplace>>>,
}

impl Containerd {
    /// Makes the handle. Dials nothing: the first call does, and so does the first call after the
    /// connection broke. Shims move themselves into `shim_cgroup`, which has to exist. Fails only
    /// when a setting cannot be used at all.
    pub async fn connect(
        settings: &config::Containerd,
        runtime: &config::Runtime,
        shim_cgroup: Option<&str>,
    ) -> Result<Self, RuntimeError> {
        Ok(Self {
            shim_cgroup: shim_cgroup.map(Arc::from),
            connection: Connection::lazy(settings)?,
            runtime: Arc::new(runtime.clone()),
            workplace: Arc::default(),
        })
    }

    /// containerd's version, for example `1.6.20~ds1`.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let mut client = VersionClient::new(self.connection.channel());
        let answer =
            self.connection
                .call("ask for the version of", "containerd", client.version(()));
        Ok(answer.await?.version)
    }
}
