//! What is kept of images, and what goes: pins, verification, eviction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use imagecache::blobs::BlobsError;
use imagecache::evict::{self, Budget, Candidate, Kept, Part, Plan, Size};
use imagecache::{Digest, Record, RecordsError, Reference, chain_ids};

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinError;

use super::transfer::FileError;
use super::{Going, Images, parse};
use crate::runtime::{RuntimeError, TransferError};

/// Why something about images was not done. What was there before is there.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// There is no image of that name.
    #[error("no image {reference} was made ready on this host")]
    NotFound {
        /// Full name.
        reference: String,
    },
    /// The name is no name, or containerd did not do its part.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The records.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The blobs.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    /// An archive of images.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The file of an export.
    #[error(transparent)]
    File(#[from] FileError),
    /// The work ended by a defect.
    #[error("the work ended: {0}")]
    Ended(String),
}

/// A layer that no image names is kept for this long: a pull that goes on needs it.
const UNNAMED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Images that somebody needs, by full name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Needs {
    /// An app's current revision or a container was made from it.
    pub in_use: BTreeSet<String>,
    /// It is the stable image of an app, or the host's file names it.
    pub stable: BTreeSet<String>,
}

/// How much room is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Whatever may go goes.
    All,
    /// So many bytes, at least.
    Bytes(u64),
    /// What all images together exceed this by.
    Within(Budget),
}

impl Images {
    /// Records of all images that were made ready, by name, each with whether it still is.
    pub async fn list(&self) -> Result<Vec<(Record, bool)>, KeepError> {
        let records = self.records().await?;
        let mut list = Vec::with_capacity(records.len());
        for record in records {
            let ready = self.is_ready(&record).await?;
            list.push((record, ready));
        }
        Ok(list)
    }

    /// The record of one, by its full name.
    pub async fn recorded(&self, name: &str) -> Result<Record, KeepError> {
        let (records, name) = (self.cache.records().clone(), name.to_owned());
        self.blocking(move || {
            let record = records.get(&name)?;
            record.ok_or(KeepError::NotFound { reference: name })
        })
        .await
    }

    /// Whether what a record is about is still there.
    pub async fn is_ready(&self, record: &Record) -> Result<bool, KeepError> {
        match record.reference.parse::<Reference>() {
            Ok(reference) => Ok(self.containerd.is_ready(&reference).await?),
            Err(_) => Ok(false),
        }
    }

    pub(super) async fn records(&self) -> Result<Vec<Record>, KeepError> {
        let records = self.cache.records().clone();
        self.blocking(move || Ok(records.list()?)).await
    }

    /// Keeps an image that is ready, whatever happens; or no longer.
    pub async fn pin(&self, reference: &str, pinned: bool) -> Result<Record, KeepError> {
        let name = parse(reference)?.to_string();
        let _held = self.holds.hold(&name).await;
        let records = self.cache.records().clone();
        self.blocking(move || {
            let changed = records.change(&name, |record| record.pinned = pinned)?;
            changed.ok_or(KeepError::NotFound { reference: name })
        })
        .await
    }

    /// Which images would go to make room. Nothing is done.
    pub async fn plan_eviction(&self, room: Room, needs: &Needs) -> Result<Plan, KeepError> {
        let records = self.records().await?;
        let (candidates, sizes) = self.candidates(&records, needs).await?;
        let need = match room {
            Room::All => Size {
                bytes: u64::MAX,
                inodes: 0,
            },
            Room::Bytes(bytes) => Size { bytes, inodes: 0 },
            Room::Within(budget) => budget.excess(evict::used(&candidates, &sizes)),
        };
        let mut plan = evict::plan(&candidates, &sizes, need);
        if room == Room::All {
            plan.short = Size::default();
        }
        Ok(plan)
    }

    /// Who has it removes images, or what is unpacked of them: what another one plans would go
    /// meanwhile.
    pub async fn alone_in_removing(&self) -> OwnedMutexGuard<()> {
        self.removing.clone().lock_owned().await
    }

    /// Evicts what is planned; its images are going, and this is what is needed since they are.
    /// `false`, and nothing is done, when one of them was taken after it was planned. Who no longer
    /// waits for it does not stop it half-way.
    pub async fn evict(&self, plan: &Plan, going: Going, needs: Needs) -> Result<bool, KeepError> {
        let names = plan.evictions.iter().map(|eviction| eviction.name.clone());
        let (images, names) = (self.clone(), names.collect());
        let work = async move { images.evict_going(names, going, &needs).await };
        let ended = |error: JoinError| Err(KeepError::Ended(error.to_string()));
        tokio::spawn(work).await.unwrap_or_else(ended)
    }

    async fn evict_going(
        &self,
        names: Vec<String>,
        mut going: Going,
        needs: &Needs,
    ) -> Result<bool, KeepError> {
        let records = self.records().await?;
        let may_go = |name: &String| {
            let record = records.iter().find(|record| record.reference == *name);
            record.is_some_and(|record| kept(record, needs, &[]).is_none())
        };
        if !names.iter().all(may_go) {
            return Ok(false);
        }
        for name in &names {
            self.remove(name).await?;
            going.gone(name);
        }
        Ok(true)
    }

    /// Images with what they take on the disk: blobs in our store, and unpacked layers.
    async fn candidates(
        &self,
        records: &[Record],
        needs: &Needs,
    ) -> Result<(Vec<Candidate>, BTreeMap<Part, Size>), KeepError> {
        let store = self.cache.blobs().clone();
        let listed = self.blocking(move || Ok(store.list()?)).await?;
        let blob = |(digest, bytes)| (Part::Blob(digest), Size { bytes, inodes: 1 });
        let mut sizes: BTreeMap<Part, Size> = listed.into_iter().map(blob).collect();
        let held = self.holds.held();
        let mut candidates = Vec::with_capacity(records.len());
        for record in records {
            let unpacked = chains(record).into_iter().map(Part::Unpacked);
            let unpacked: Vec<Part> = unpacked.collect();
            for (part, chain) in unpacked.iter().zip(chains(record)) {
                if !sizes.contains_key(part)
                    && let Some(size) = self.containerd.snapshot_usage(&chain.to_string()).await?
                {
                    sizes.insert(part.clone(), size);
                }
            }
            candidates.push(Candidate {
                name: record.reference.clone(),
                kept: kept(record, needs, &held),
                last_used: UNIX_EPOCH + Duration::from_secs(record.used_at),
                parts: blobs(record).map(Part::Blob).chain(unpacked).collect(),
            });
        }
        Ok((candidates, sizes))
    }

    /// Removes layers that no image names and that nobody has touched for long: of pulls and imports
    /// that never ended. Bytes that went.
    pub async fn remove_unnamed(&self) -> Result<u64, KeepError> {
        let (records, store) = (self.cache.records().clone(), self.cache.blobs().clone());
        self.blocking(move || {
            let named = records.list()?.iter().flat_map(blobs).collect();
            Ok(store.remove_unnamed(&named, UNNAMED_FOR)?)
        })
        .await
    }

    /// Removes an image: containerd's record first, so that nobody starts from it any more, ours
    /// last, so that a kill in between leaves something to go on with.
    async fn remove(&self, name: &str) -> Result<(), KeepError> {
        self.containerd.forget_image(name).await?;
        let (records, store) = (self.cache.records().clone(), self.cache.blobs().clone());
        let name = name.to_owned();
        self.blocking(move || {
            let mut gone: BTreeSet<Digest> = BTreeSet::new();
            let mut needed: BTreeSet<Digest> = BTreeSet::new();
            for record in records.list()? {
                match record.reference == name {
                    true => gone.extend(blobs(&record)),
                    false => needed.extend(blobs(&record)),
                }
            }
            for digest in gone.difference(&needed) {
                store.remove(digest)?;
            }
            records.remove(&name)?;
            Ok(())
        })
        .await
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, KeepError> + Send + 'static,
    ) -> Result<T, KeepError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(KeepError::Ended(error.to_string())),
        }
    }
}

/// Blobs of an image's layers.
pub(super) fn blobs(record: &Record) -> impl Iterator<Item = Digest> {
    let digests = record.layers.iter().map(|layer| layer.digest.parse());
    digests.filter_map(Result::ok)
}

fn kept(record: &Record, needs: &Needs, held: &[String]) -> Option<Kept> {
    let name = &record.reference;
    if record.pinned {
        Some(Kept::Pinned)
    } else if needs.in_use.contains(name) || held.contains(name) {
        Some(Kept::InUse)
    } else if needs.stable.contains(name) {
        Some(Kept::Stable)
    } else {
        None
    }
}

/// Names of an image's unpacked layers from the bottom up.
pub(super) fn chains(record: &Record) -> Vec<Digest> {
    let diff_ids: Result<Vec<Digest>, _> = record
        .layers
        .iter()
        .map(|layer| layer.diff_id.parse())
        .collect();
    diff_ids.map(|ids| chain_ids(&ids)).unwrap_or_default()
}
