//! [`imagecache::Unpacker`] on containerd's snapshot and diff services: containerd's own unpack.
//!
//! Per layer: Prepare on the parent, Diff.Apply, compare the diff id, Commit under the chain id.
//! containerd answers `AlreadyExists` to the Prepare of a chain that is there, and puts it under
//! our lease: a skip without a race.

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::types::{Descriptor, Mount};
use imagecache::{Digest, Layer, UnpackError, Unpacker};
use tonic::transport::Channel;

use super::connection::{Connection, Deadline};
use super::error::{Answer, RuntimeError};
use super::labels;
use super::lease::{Lease, unique};

/// Unpacks below a lease.
pub(super) struct ContainerdUnpacker<'l> {
    pub lease: &'l Lease,
    /// Of applying one layer, which is as long as its files are many.
    pub apply_deadline: Deadline,
}

impl ContainerdUnpacker<'_> {
    fn connection(&self) -> &Connection {
        self.lease.connection()
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.connection().channel())
    }

    async fn fill(&self, layer: &Layer, key: &str, mounts: Vec<Mount>) -> Result<(), UnpackError> {
        let request = self.lease.request(ApplyRequest {
            diff: Some(Descriptor {
                media_type: layer.blob.media_type.clone(),
                digest: layer.blob.digest.to_string(),
                size: i64::try_from(layer.blob.size).unwrap_or(i64::MAX),
                ..Descriptor::default()
            }),
            mounts,
            ..ApplyRequest::default()
        });
        let mut diff = DiffClient::new(self.connection().channel());
        let applied = self
            .connection()
            .answer(self.apply_deadline, diff.apply(request))
            .await;
        let applied = applied
            .map_err(|said| unpack_error(said, "apply layer", &layer.blob.digest))?
            .into_inner()
            .applied;
        let got = applied
            .map(|descriptor| descriptor.digest)
            .unwrap_or_default();
        if got != layer.diff_id.as_str() {
            return Err(UnpackError::DiffId {
                layer: layer.blob.digest.clone(),
                expected: layer.diff_id.clone(),
                got,
            });
        }
        let request = self.lease.request(CommitSnapshotRequest {
            snapshotter: self.connection().snapshotter(),
            name: layer.chain_id.to_string(),
            key: key.to_owned(),
            labels: labels::map([(labels::SNAPSHOT_REF, layer.chain_id.to_string())]),
        });
        let mut snapshots = self.snapshots();
        // Commit measures the tree: as long as its files are many, too.
        match self
            .connection()
            .answer(self.apply_deadline, snapshots.commit(request))
            .await
        {
            Ok(_) => Ok(()),
            Err(Answer::Exists) => {
                self.remove(key).await;
                Ok(())
            }
            Err(said) => Err(unpack_error(said, "commit layer", &layer.blob.digest)),
        }
    }

    async fn remove(&self, key: &str) {
        let request = self.lease.request(RemoveSnapshotRequest {
            snapshotter: self.connection().snapshotter(),
            key: key.to_owned(),
        });
        let mut snapshots = self.snapshots();
        match self
            .connection()
            .answer(self.connection().slow(), snapshots.remove(request))
            .await
        {
            Ok(_) | Err(Answer::NotFound) => {}
            Err(said) => {
                let error: &dyn std::error::Error = &said.into_error("remove snapshot", key);
                tracing::warn!(error, "half a layer stays until its lease ends");
            }
        }
    }
}

impl Unpacker for ContainerdUnpacker<'_> {
    async fn unpacked(&self, chain_id: &Digest) -> Result<bool, UnpackError> {
        let snapshotter = self.connection().snapshotter();
        // First under the lease, then asked for: what is found there stays there.
        let kind = format!("snapshots/{snapshotter}");
        self.lease
            .cover(&kind, chain_id.as_str())
            .await
            .map_err(of_runtime)?;
        let found = self.connection().snapshot(chain_id.as_str()).await;
        found.map(|info| info.is_some()).map_err(of_runtime)
    }

    async fn apply(&self, layer: &Layer) -> Result<(), UnpackError> {
        let key = unique("unpack");
        let request = self.lease.request(PrepareSnapshotRequest {
            snapshotter: self.connection().snapshotter(),
            key: key.clone(),
            parent: layer
                .parent
                .as_ref()
                .map(Digest::to_string)
                .unwrap_or_default(),
            labels: labels::map([(labels::SNAPSHOT_REF, layer.chain_id.to_string())]),
        });
        let mut snapshots = self.snapshots();
        let prepared = self
            .connection()
            .answer(self.connection().plain(), snapshots.prepare(request))
            .await;
        let mounts = match prepared {
            Ok(response) => response.into_inner().mounts,
            Err(Answer::Exists) => return Ok(()),
            Err(said) => return Err(unpack_error(said, "prepare layer", &layer.blob.digest)),
        };
        let filled = self.fill(layer, &key, mounts).await;
        if filled.is_err() {
            self.remove(&key).await;
        }
        filled
    }
}

fn unpack_error(said: Answer, operation: &'static str, digest: &Digest) -> UnpackError {
    of_runtime(said.into_error(operation, digest.as_str()))
}

fn of_runtime(error: RuntimeError) -> UnpackError {
    match error {
        RuntimeError::Unavailable {
            operation,
            object,
            source,
        } => UnpackError::Unavailable {
            operation,
            object,
            source: Box::new(source),
        },
        RuntimeError::Failed {
            operation,
            object,
            source,
        } => UnpackError::Failed {
            operation,
            object,
            source: Box::new(source),
        },
        other => UnpackError::Failed {
            operation: "unpack",
            object: "a layer".to_owned(),
            source: Box::new(other),
        },
    }
}
