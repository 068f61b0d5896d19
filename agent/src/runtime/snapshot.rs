//! Root file systems: a writable snapshot per instance on top of its image.
//!
//! Ours carry `containerd.io/gc.root`, so that they outlive their container (shelved, reused) and
//! end only by [`Containerd::remove_snapshot`].

use std::time::SystemTime;

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    Info, Kind, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest, UsageRequest,
};
use containerd_client::types;
use imagecache::evict::Size;

use super::connection::Connection;
use super::error::{Answer, RuntimeError};
use super::image::Image;
use super::{Containerd, labels};

/// How a rootfs is mounted: what the shim is told at task creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsMounts {
    /// Mounts in order; one for overlayfs.
    pub mounts: Vec<Mount>,
}

/// One mount, in mount(8)'s words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `overlay`, or `bind` where there is only one layer.
    pub kind: String,
    /// Source; the directory of a bind mount.
    pub source: String,
    /// Options; `lowerdir=`, `upperdir=` of overlayfs are here.
    pub options: Vec<String>,
}

impl Containerd {
    /// Makes the writable rootfs `key` on top of `image`. One that exists on the same image is
    /// returned as it is, with whatever was written to it.
    pub async fn prepare_snapshot(
        &self,
        key: &str,
        image: &Image,
    ) -> Result<RootfsMounts, RuntimeError> {
        let operation = "prepare snapshot";
        let request = self.connection.request(PrepareSnapshotRequest {
            snapshotter: self.connection.snapshotter(),
            key: key.to_owned(),
            parent: image.chain_id.clone(),
            labels: labels::map([
                (labels::GC_ROOT, labels::rfc3339(SystemTime::now())),
                (labels::ROOTFS, image.digest.clone()),
            ]),
        });
        let mut client = SnapshotsClient::new(self.connection.channel());
        let prepared = self
            .connection
            .answer(self.connection.slow(), client.prepare(request))
            .await;
        match prepared {
            Ok(response) => return Ok(rootfs(response.into_inner().mounts)),
            Err(Answer::Exists) => {}
            Err(Answer::NotFound) => {
                let object = format!("unpacked image {}", image.chain_id);
                return Err(RuntimeError::NotFound { operation, object });
            }
            Err(said) => return Err(said.into_error(operation, key)),
        }
        let conflict = |why: String| RuntimeError::Conflict {
            operation,
            object: key.to_owned(),
            why,
        };
        match self.connection.snapshot(key).await? {
            Some(info) if info.kind() != Kind::Active => Err(conflict(
                "a snapshot of that name exists and is not writable".to_owned(),
            )),
            Some(info) if info.parent != image.chain_id => Err(conflict(format!(
                "it exists on {}, not on {}",
                info.parent, image.chain_id
            ))),
            Some(_) => self.rootfs_mounts(key).await,
            None => Err(conflict("it was removed at the same time".to_owned())),
        }
    }

    /// How the rootfs `key` is mounted.
    pub async fn rootfs_mounts(&self, key: &str) -> Result<RootfsMounts, RuntimeError> {
        self.mounts(key).await.map(rootfs)
    }

    pub(super) async fn mounts(&self, key: &str) -> Result<Vec<types::Mount>, RuntimeError> {
        let request = self.connection.request(MountsRequest {
            snapshotter: self.connection.snapshotter(),
            key: key.to_owned(),
        });
        let mut client = SnapshotsClient::new(self.connection.channel());
        let answer = self
            .connection
            .call("ask for mounts of", key, client.mounts(request));
        Ok(answer.await?.mounts)
    }

    /// Removes a rootfs with all that was written to it. One that is gone is fine.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), RuntimeError> {
        let request = self.connection.request(RemoveSnapshotRequest {
            snapshotter: self.connection.snapshotter(),
            key: key.to_owned(),
        });
        let mut client = SnapshotsClient::new(self.connection.channel());
        match self
            .connection
            .answer(self.connection.slow(), client.remove(request))
            .await
        {
            Ok(_) | Err(Answer::NotFound) => Ok(()),
            Err(said) => Err(said.into_error("remove snapshot", key)),
        }
    }

    /// What a committed snapshot takes on the disk, as it was counted when it was committed; none
    /// when there is none.
    pub async fn snapshot_usage(&self, key: &str) -> Result<Option<Size>, RuntimeError> {
        let request = self.connection.request(UsageRequest {
            snapshotter: self.connection.snapshotter(),
            key: key.to_owned(),
        });
        let mut client = SnapshotsClient::new(self.connection.channel());
        let asked = client.usage(request);
        match self.connection.answer(self.connection.plain(), asked).await {
            Ok(response) => {
                let usage = response.into_inner();
                Ok(Some(Size {
                    bytes: u64::try_from(usage.size).unwrap_or(0),
                    inodes: u64::try_from(usage.inodes).unwrap_or(0),
                }))
            }
            Err(Answer::NotFound) => Ok(None),
            Err(said) => Err(said.into_error("ask for the size of snapshot", key)),
        }
    }

    /// Keys of all rootfs that [`Self::prepare_snapshot`] made and nobody removed.
    pub async fn list_snapshots(&self) -> Result<Vec<String>, RuntimeError> {
        let ours = format!("labels.{:?}", labels::ROOTFS);
        let listed = self.connection.snapshots(vec![ours]).await?;
        Ok(listed.into_iter().map(|info| info.name).collect())
    }
}

impl Connection {
    /// What containerd knows of a snapshot; none when there is none.
    pub(super) async fn snapshot(&self, key: &str) -> Result<Option<Info>, RuntimeError> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: self.snapshotter(),
            key: key.to_owned(),
        });
        let mut client = SnapshotsClient::new(self.channel());
        match self.answer(self.plain(), client.stat(request)).await {
            Ok(response) => Ok(response.into_inner().info),
            Err(Answer::NotFound) => Ok(None),
            Err(said) => Err(said.into_error("ask for snapshot", key)),
        }
    }

    /// The snapshots that one of `filters` is for; all when there are none.
    pub(super) async fn snapshots(&self, filters: Vec<String>) -> Result<Vec<Info>, RuntimeError> {
        let request = self.request(ListSnapshotsRequest {
            snapshotter: self.snapshotter(),
            filters,
        });
        let mut client = SnapshotsClient::new(self.channel());
        let list = async {
            let mut pages = client.list(request).await?.into_inner();
            let mut found = Vec::new();
            while let Some(page) = pages.message().await? {
                found.extend(page.info);
            }
            Ok(found)
        };
        let listed = self.answer(self.slow(), list).await;
        listed.map_err(|said| said.into_error("list", "snapshots"))
    }
}

fn rootfs(mounts: Vec<types::Mount>) -> RootfsMounts {
    RootfsMounts {
        mounts: mounts
            .into_iter()
            .map(|mount| Mount {
                kind: mount.r#type,
                source: mount.source,
                options: mount.options,
            })
            .collect(),
    }
}
