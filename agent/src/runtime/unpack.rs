//! [`imagecache::Unpacker`] on containerd's snapshot and diff services.
//!
//! With overlayfs, per layer: Prepare on the parent, our tree over the empty directory, Commit under
//! the chain id. With other snapshotters containerd applies the layer itself, from its own content
//! store. containerd answers `AlreadyExists` to the Prepare of a chain that is there, and puts it
//! under our lease: a skip without a race.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::types::{Descriptor, Mount};
use imagecache::blobs::Blob;
use imagecache::{
    Begun, BlobWriter as _, ContentStore as _, Digest, Layer, Prepared, Snapshot, StoreError,
    UnpackError, Unpacker, Workplace,
};
use tonic::transport::Channel;

use super::connection::{Connection, Deadline};
use super::content::ContainerdStore;
use super::error::{Answer, RuntimeError};
use super::labels;
use super::lease::{Lease, unique};

/// Unpacks below a lease.
pub(super) struct ContainerdUnpacker<'l> {
    pub lease: &'l Lease,
    /// Of applying one layer, which is as long as its files are many.
    pub apply_deadline: Deadline,
    /// Where trees are extracted; [`None`] where containerd applies layers itself.
    pub workplace: Option<&'l Workplace>,
}

/// Bytes of a blob handed to containerd at a time.
const CHUNK: usize = 1 << 20;

impl ContainerdUnpacker<'_> {
    fn connection(&self) -> &Connection {
        self.lease.connection()
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.connection().channel())
    }

    async fn is_there(&self, chain_id: &Digest) -> Result<bool, UnpackError> {
        let found = self.connection().snapshot(chain_id.as_str()).await;
        found.map(|info| info.is_some()).map_err(of_runtime)
    }

    /// Prepares the snapshot of a layer; none when its chain is there.
    async fn begin(&self, layer: &Layer, key: &str) -> Result<Option<Vec<Mount>>, UnpackError> {
        let request = self.lease.request(PrepareSnapshotRequest {
            snapshotter: self.connection().snapshotter(),
            key: key.to_owned(),
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
        match prepared {
            Ok(response) => Ok(Some(response.into_inner().mounts)),
            Err(Answer::Exists) => Ok(None),
            Err(said) => Err(unpack_error(said, "prepare layer", &layer.blob.digest)),
        }
    }

    /// Gives containerd the blob, from which it applies the layer itself.
    async fn hand_over(&self, layer: &Layer, blob: &Blob) -> Result<(), UnpackError> {
        let store = ContainerdStore::new(self.lease);
        let stored = |source: StoreError| UnpackError::Unavailable {
            operation: "hand over layer",
            object: layer.blob.digest.to_string(),
            source: source.into(),
        };
        let Begun::Writer(mut writer) = store.begin(&layer.blob).await.map_err(stored)? else {
            return Ok(());
        };
        let mut at = 0;
        while at < blob.size {
            let mut chunk = vec![0; CHUNK.min(usize::try_from(blob.size - at).unwrap_or(CHUNK))];
            if let Err(source) = blob.file.read_exact_at(&mut chunk, at) {
                writer.abort().await;
                let layer = layer.blob.digest.clone();
                return Err(UnpackError::Read { layer, source });
            }
            at += chunk.len() as u64;
            if let Err(error) = writer.write(chunk.into()).await {
                writer.abort().await;
                return Err(stored(error));
            }
        }
        writer.commit().await.map_err(stored)
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
        self.name(layer, key).await
    }

    async fn name(&self, layer: &Layer, key: &str) -> Result<(), UnpackError> {
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
        // A lease is a write to containerd's database: only what is there is worth one.
        if !self.is_there(chain_id).await? {
            return Ok(false);
        }
        // First under the lease, then asked for: what is found there stays there.
        let kind = format!("snapshots/{}", self.connection().snapshotter());
        self.lease
            .cover(&kind, chain_id.as_str())
            .await
            .map_err(of_runtime)?;
        self.is_there(chain_id).await
    }

    fn workplace(&self) -> Option<&Workplace> {
        self.workplace
    }

    async fn prepare(&self, layer: &Layer) -> Result<Snapshot, UnpackError> {
        let key = unique("unpack");
        let Some(mounts) = self.begin(layer, &key).await? else {
            return Ok(Snapshot::Present);
        };
        match directories(&mounts) {
            Some((target, lower)) => Ok(Snapshot::Prepared(Prepared { key, target, lower })),
            None => {
                self.remove(&key).await;
                Err(UnpackError::Failed {
                    operation: "prepare layer",
                    object: layer.blob.digest.to_string(),
                    source: format!("containerd mounts it in a way we do not know: {mounts:?}")
                        .into(),
                })
            }
        }
    }

    async fn commit(&self, layer: &Layer, prepared: &Prepared) -> Result<(), UnpackError> {
        self.name(layer, &prepared.key).await
    }

    async fn discard(&self, prepared: &Prepared) {
        self.remove(&prepared.key).await;
    }

    async fn apply(&self, layer: &Layer, blob: &Blob) -> Result<(), UnpackError> {
        self.hand_over(layer, blob).await?;
        let key = unique("unpack");
        let Some(mounts) = self.begin(layer, &key).await? else {
            return Ok(());
        };
        let filled = self.fill(layer, &key, mounts).await;
        if filled.is_err() {
            self.remove(&key).await;
        }
        filled
    }
}

/// The directory that a prepared snapshot writes to, and those below it, the topmost first.
fn directories(mounts: &[Mount]) -> Option<(PathBuf, Vec<PathBuf>)> {
    match Mounted::of(mounts)? {
        Mounted::One(directory) => Some((directory, Vec::new())),
        Mounted::Overlay { upper, lower } => Some((upper?, lower)),
    }
}

/// The directories of a view, the topmost first: one for each layer.
pub(super) fn directories_of_view(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    match Mounted::of(mounts)? {
        Mounted::One(directory) => Some(vec![directory]),
        Mounted::Overlay { lower, .. } => Some(lower),
    }
}

/// What containerd's overlayfs mounts (`snapshots/overlay/overlay.go`, `mounts`).
enum Mounted {
    /// One directory.
    One(PathBuf),
    /// Several: the one that is written to, where there is one, and those below it, the topmost
    /// first.
    Overlay {
        upper: Option<PathBuf>,
        lower: Vec<PathBuf>,
    },
}

impl Mounted {
    fn of(mounts: &[Mount]) -> Option<Self> {
        let [mount] = mounts else { return None };
        let options = || mount.options.iter();
        let option = |name: &str| options().find_map(|option| option.strip_prefix(name));
        // Marks of deletion would be other attributes.
        if options().any(|option| option == "userxattr") {
            return None;
        }
        match mount.r#type.as_str() {
            "bind" => Some(Self::One(PathBuf::from(&mount.source))),
            "overlay" => Some(Self::Overlay {
                upper: option("upperdir=").map(PathBuf::from),
                lower: option("lowerdir=")?.split(':').map(PathBuf::from).collect(),
            }),
            _ => None,
        }
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
