//! Leases: what keeps content and snapshots from containerd's collector while they are nobody's
//! yet. A lease ends with [`Lease::release`], or by itself when the agent died.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, Resource,
};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

use super::connection::Connection;
use super::error::{Answer, RuntimeError};
use super::{Containerd, labels};
use crate::sys;

/// A lease outlives the work that it covers by this much before it ends by itself.
const MARGIN: Duration = Duration::from_secs(300);

/// A lease in containerd. Dropping it does not release it: releasing is a call.
pub struct Lease {
    connection: Connection,
    id: String,
    header: MetadataValue<Ascii>,
}

/// When what only a lease kept is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collect {
    /// Before the release returns: something was left half-done.
    Now,
    /// At containerd's leisure.
    Later,
}

impl Containerd {
    /// Takes a lease for work that lasts at most `longest`.
    pub async fn lease(&self, purpose: &str, longest: Duration) -> Result<Lease, RuntimeError> {
        let connection = self.connection.clone();
        let id = unique(purpose);
        let header = id.parse().map_err(|_| RuntimeError::Setting {
            setting: "lease purpose",
            value: purpose.to_owned(),
            allowed: "visible ASCII",
        })?;
        let expires = labels::rfc3339(SystemTime::now() + longest + MARGIN);
        let request = connection.request(CreateRequest {
            id: id.clone(),
            labels: labels::map([
                (labels::LEASE, purpose.to_owned()),
                (labels::BOOT, sys::boot_id()),
                (labels::GC_EXPIRE, expires),
            ]),
        });
        let mut client = LeasesClient::new(connection.channel());
        connection
            .call("take lease", &id, client.create(request))
            .await?;
        Ok(Lease {
            connection,
            id,
            header,
        })
    }

    /// Ends what leases of former boots kept, before it returns: nobody goes on with that.
    pub(crate) async fn end_leases_of_former_boots(&self) -> Result<(), RuntimeError> {
        let present = sys::boot_id();
        let filter = format!("labels.\"{}\",labels.\"{}\"", labels::LEASE, labels::BOOT);
        let request = self.connection.request(ListRequest {
            filters: vec![filter],
        });
        let mut client = LeasesClient::new(self.connection.channel());
        let listed = self
            .connection
            .call("list", "leases", client.list(request))
            .await?;
        let former = listed.leases.into_iter().filter(|lease| {
            let boot = lease.labels.get(labels::BOOT);
            boot.is_some_and(|boot| *boot != present)
        });
        for lease in former {
            let request = self.connection.request(DeleteRequest {
                id: lease.id.clone(),
                sync: true,
            });
            let deadline = self.connection.slow();
            let deleted = client.delete(request);
            match self.connection.answer(deadline, deleted).await {
                Ok(_) | Err(Answer::NotFound) => {}
                Err(said) => return Err(said.into_error("release lease", &lease.id)),
            }
        }
        Ok(())
    }
}

impl Lease {
    /// Id of the lease.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Ends the lease. One that is gone is fine.
    pub async fn release(self, collect: Collect) -> Result<(), RuntimeError> {
        let request = self.connection.request(DeleteRequest {
            id: self.id.clone(),
            sync: collect == Collect::Now,
        });
        let mut client = LeasesClient::new(self.connection.channel());
        let deadline = self.connection.slow();
        match self
            .connection
            .answer(deadline, client.delete(request))
            .await
        {
            Ok(_) | Err(Answer::NotFound) => Ok(()),
            Err(said) => Err(said.into_error("release lease", &self.id)),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A request whose results belong to the lease.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.connection.request(message);
        request
            .metadata_mut()
            .insert("containerd-lease", self.header.clone());
        request
    }

    /// Puts a thing under the lease, whether it exists or not: asked for afterwards, it stays.
    pub(super) async fn cover(&self, kind: &str, id: &str) -> Result<(), RuntimeError> {
        let request = self.connection.request(AddResourceRequest {
            id: self.id.clone(),
            resource: Some(Resource {
                id: id.to_owned(),
                r#type: kind.to_owned(),
            }),
        });
        let mut client = LeasesClient::new(self.connection.channel());
        self.connection
            .call("cover by lease", id, client.add_resource(request))
            .await?;
        Ok(())
    }
}

/// A name that no other call, process or boot uses.
pub(super) fn unique(purpose: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    format!(
        "nodeagent-{purpose}-{now:x}-{:x}-{count:x}",
        std::process::id()
    )
}
