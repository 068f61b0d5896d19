//! A look at what lies on the disk: layers are hashed again, unpacked layers compared with them,
//! and what is damaged and nobody uses is made anew.
//!
//! One layer at a time, behind the pulls, and not for ever: who no longer waits for the answer ends
//! it after the layer that is being looked at.

use std::collections::{BTreeMap, BTreeSet};

use imagecache::blobs::Check;
use imagecache::{Digest, Layer, Recheck, Record, Reference};
use tokio_util::sync::CancellationToken;

use super::keep::{blobs, chains};
use super::{Images, KeepError, parse};
use crate::chain::chain;
use crate::runtime::{Fate, RuntimeError, View, Viewed};

/// Differences of one layer that are told.
const DIFFERENCES: usize = 10;

/// Why an unpacked layer is not made anew for now.
const IN_HAND: &str = "an image that has it is being pulled, or an instance made from it";

/// What was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Blobs that are right.
    pub right: u32,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Blobs that are not in our store.
    pub absent: u32,
    /// Blobs that were damaged and are gone.
    pub damaged: Vec<DamagedBlob>,
    /// Unpacked layers that are what their blobs say.
    pub trees_right: u32,
    /// Unpacked layers that were not compared, by the reason.
    pub trees_not_compared: BTreeMap<NotCompared, u32>,
    /// Unpacked layers that are not what their blobs say.
    pub trees_damaged: Vec<DamagedTree>,
}

/// A blob that was damaged and is gone.
#[derive(Debug)]
pub struct DamagedBlob {
    /// What it should have been.
    pub digest: Digest,
    /// What it was.
    pub got: Digest,
    /// The images that have it.
    pub images: Vec<String>,
}

/// An unpacked layer that is not what its blob says.
#[derive(Debug)]
pub struct DamagedTree {
    /// Its name in containerd.
    pub chain_id: Digest,
    /// The blob.
    pub layer: Digest,
    /// The images that have it.
    pub images: Vec<String>,
    /// The first differences: what should be there, and what is.
    pub differences: Vec<String>,
    /// Whether there are more.
    pub is_cut: bool,
    /// What became of it; or it stays, and why it was not made anew.
    pub fate: Result<Fate, String>,
}

/// Why an unpacked layer was not compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotCompared {
    /// Its blob is not in our store.
    BlobAbsent,
    /// containerd does not have it.
    NotUnpacked,
    /// It is not overlayfs's, or not visible from here.
    OutOfSight,
    /// This failed.
    Failed(String),
}

/// How far a look is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// The image that is looked at; none while blobs are hashed.
    pub image: Option<String>,
    /// Blobs and unpacked layers that were looked at.
    pub done: usize,
    /// Of so many.
    pub of: usize,
}

impl Images {
    /// Looks at what lies on the disk, of one image or of all. What is damaged goes; unpacked
    /// layers that nobody uses are unpacked anew.
    pub async fn verify(&self, reference: Option<&str>) -> Result<Verified, KeepError> {
        let only = reference.map(parse).transpose()?;
        let only = only.map(|reference| reference.to_string());
        let records = self.records().await?;
        let is_meant = |record: &&Record| only.as_ref().is_none_or(|o| *o == record.reference);
        let chosen: Vec<Record> = records.iter().filter(is_meant).cloned().collect();
        match only {
            Some(reference) if chosen.is_empty() => return Err(KeepError::NotFound { reference }),
            _ => {}
        }
        let unwanted = CancellationToken::new();
        let _wanted = unwanted.clone().drop_guard();
        let look = Look {
            unwanted,
            chosen,
            ..self.look(records)
        };
        self.at_work("verify", "images", look.run()).await
    }

    /// How far the look is that is under way.
    pub fn verification(&self) -> Option<Verification> {
        self.verification.borrow().clone()
    }

    /// Compares unpacked layers of the images that have one of `chains` with their blobs; what is
    /// different in those that are damaged. What is right is trusted from then on.
    pub(super) async fn compare(
        &self,
        records: &[Record],
        of: &[Digest],
    ) -> Result<BTreeMap<Digest, String>, KeepError> {
        let has_one = |record: &&Record| chains(record).iter().any(|chain| of.contains(chain));
        let chosen: Vec<Record> = records.iter().filter(has_one).cloned().collect();
        let mut look = self.look(records.to_vec());
        let work = async move {
            for record in &chosen {
                look.image(record).await?;
            }
            let damaged = look.found.trees_damaged.into_iter();
            Ok(damaged
                .map(|tree| (tree.chain_id, tree.differences.join("; ")))
                .collect())
        };
        self.at_work("compare", "images", work).await
    }

    fn look(&self, records: Vec<Record>) -> Look {
        Look {
            images: self.clone(),
            unwanted: CancellationToken::new(),
            records,
            chosen: Vec::new(),
            compared: BTreeSet::new(),
            not_compared: BTreeMap::new(),
            found: Verified::default(),
        }
    }

    /// Unpacks chains anew that may be damaged, with all images that have them. What became of
    /// each; one that is used stays.
    pub(super) async fn unpack_anew(
        &self,
        damaged: &[Digest],
        records: &[Record],
    ) -> Result<BTreeMap<Digest, Fate>, RuntimeError> {
        let mut images = Vec::new();
        for record in records {
            let has_one = chains(record).iter().any(|chain| damaged.contains(chain));
            let (true, Some((reference, target))) = (has_one, named(record)) else {
                continue;
            };
            images.extend(self.containerd.documents_of(&reference, &target).await?);
        }
        let (cache, options) = (&self.cache, &self.options);
        let anew = self
            .containerd
            .unpack_anew(damaged, &images, cache, options);
        anew.await
    }
}

/// A look that is under way.
struct Look {
    images: Images,
    /// Nobody waits for the answer any more.
    unwanted: CancellationToken,
    /// All of them.
    records: Vec<Record>,
    /// Those that are looked at.
    chosen: Vec<Record>,
    /// Chains that were compared.
    compared: BTreeSet<Digest>,
    /// Chains that were not, for now: another image may have them all the same.
    not_compared: BTreeMap<Digest, NotCompared>,
    found: Verified,
}

impl Look {
    async fn run(mut self) -> Result<Verified, KeepError> {
        let turn = self.images.verifying.clone();
        let _turn = turn.lock().await;
        let images = self.images.clone();
        let told = &images.verification;
        let digests: BTreeSet<Digest> = self.chosen.iter().flat_map(blobs).collect();
        let trees: BTreeSet<Digest> = self.chosen.iter().flat_map(chains).collect();
        told.send_replace(Some(Verification {
            image: None,
            done: 0,
            of: digests.len() + trees.len(),
        }));
        let looked = self.look(digests).await;
        told.send_replace(None);
        looked.map(|()| self.found)
    }

    async fn look(&mut self, digests: BTreeSet<Digest>) -> Result<(), KeepError> {
        for digest in digests {
            if self.unwanted.is_cancelled() {
                return Ok(());
            }
            self.blob(digest).await?;
            self.tell(|told| told.done += 1);
        }
        for record in std::mem::take(&mut self.chosen) {
            if self.unwanted.is_cancelled() {
                break;
            }
            self.tell(|told| told.image = Some(record.reference.clone()));
            self.image(&record).await?;
        }
        for why in std::mem::take(&mut self.not_compared).into_values() {
            *self.found.trees_not_compared.entry(why).or_default() += 1;
        }
        self.make_anew().await;
        Ok(())
    }

    fn tell(&self, change: impl FnOnce(&mut Verification)) {
        let verification = &self.images.verification;
        verification.send_modify(|told| {
            if let Some(told) = told {
                change(told);
            }
        });
    }

    async fn blob(&mut self, digest: Digest) -> Result<(), KeepError> {
        let (store, asked) = (self.images.cache.blobs().clone(), digest.clone());
        let checked = self.images.blocking(move || Ok(store.check(&asked)?));
        match checked.await? {
            Check::Absent => self.found.absent += 1,
            Check::Right { size } => {
                self.found.right += 1;
                self.found.bytes += size;
            }
            Check::Damaged { got } => {
                let images = self.images_with(|record| blobs(record).any(|blob| blob == digest));
                tracing::error!(%digest, %got, images = images.join(", "), "a damaged layer is removed");
                let damaged = DamagedBlob {
                    digest,
                    got,
                    images,
                };
                self.found.damaged.push(damaged);
            }
        }
        Ok(())
    }

    async fn image(&mut self, record: &Record) -> Result<(), KeepError> {
        let chains = chains(record);
        let is_compared = |chain: &Digest| self.compared.contains(chain);
        let (Some(top), false) = (chains.last(), chains.iter().all(is_compared)) else {
            return Ok(());
        };
        let image = match named(record) {
            Some((reference, target)) => {
                let containerd = &self.images.containerd;
                containerd.documents_of(&reference, &target).await?
            }
            None => None,
        };
        let layers = image.map(|image| image.chain()).unwrap_or_default();
        let viewed = match layers.last().is_some_and(|layer| layer.chain_id == *top) {
            true => self.images.containerd.view(top).await?,
            false => Viewed::Absent,
        };
        match viewed {
            Viewed::Here(view) => {
                let compared = self.layers(&layers, &view).await;
                self.images.containerd.end_view(view).await;
                compared
            }
            Viewed::Absent => {
                self.not_compared(&chains, &NotCompared::NotUnpacked);
                Ok(())
            }
            Viewed::OutOfSight => {
                self.not_compared(&chains, &NotCompared::OutOfSight);
                Ok(())
            }
        }
    }

    /// The layers of an image, from the bottom up.
    async fn layers(&mut self, layers: &[Layer], view: &View) -> Result<(), KeepError> {
        if view.directories.len() != layers.len() {
            let chains: Vec<Digest> = layers.iter().map(|layer| layer.chain_id.clone()).collect();
            self.not_compared(&chains, &NotCompared::OutOfSight);
            return Ok(());
        }
        for (position, layer) in layers.iter().enumerate() {
            if self.unwanted.is_cancelled() {
                return Ok(());
            }
            if self.compared.contains(&layer.chain_id) {
                continue;
            }
            let directories = &view.directories[layers.len() - 1 - position..];
            let cache = &self.images.cache;
            let compared = cache
                .recheck(layer, directories, &view.workplace, DIFFERENCES)
                .await;
            let chain_id = std::slice::from_ref(&layer.chain_id);
            match compared {
                Ok(Recheck::Right) => {
                    self.compared(&layer.chain_id);
                    self.found.trees_right += 1;
                }
                Ok(Recheck::Absent) => self.not_compared(chain_id, &NotCompared::BlobAbsent),
                Err(error) => self.not_compared(chain_id, &NotCompared::Failed(chain(&error))),
                // What was removed meanwhile is not damaged.
                Ok(_) if !self.images.containerd.is_in_view(view).await? => {
                    self.not_compared(chain_id, &NotCompared::NotUnpacked);
                }
                Ok(Recheck::Damaged {
                    differences,
                    is_cut,
                }) => {
                    self.compared(&layer.chain_id);
                    self.damaged(layer, differences, is_cut);
                }
            }
        }
        Ok(())
    }

    fn compared(&mut self, chain_id: &Digest) {
        self.compared.insert(chain_id.clone());
        if self.not_compared.remove(chain_id).is_none() {
            self.tell(|told| told.done += 1);
        }
    }

    fn not_compared(&mut self, chains: &[Digest], why: &NotCompared) {
        for chain in chains {
            if self.compared.contains(chain) {
                continue;
            }
            if self
                .not_compared
                .insert(chain.clone(), why.clone())
                .is_none()
            {
                self.tell(|told| told.done += 1);
            }
        }
    }

    fn damaged(&mut self, layer: &Layer, differences: Vec<String>, is_cut: bool) {
        let images = self.images_with(|record| chains(record).contains(&layer.chain_id));
        tracing::error!(
            layer = %layer.blob.digest,
            chain_id = %layer.chain_id,
            images = images.join(", "),
            differences = differences.join("; "),
            "an unpacked layer is damaged"
        );
        self.found.trees_damaged.push(DamagedTree {
            chain_id: layer.chain_id.clone(),
            layer: layer.blob.digest.clone(),
            images,
            differences,
            is_cut,
            fate: Err("the look was ended".to_owned()),
        });
    }

    fn images_with(&self, has: impl Fn(&Record) -> bool) -> Vec<String> {
        let with = self.records.iter().filter(|record| has(record));
        with.map(|record| record.reference.clone()).collect()
    }

    /// Also when nobody waits for the answer: what is known to be damaged is not left like that.
    /// Images that something is made from at the moment are.
    async fn make_anew(&mut self) {
        if self.found.trees_damaged.is_empty() {
            return;
        }
        let _alone = self.images.alone_in_removing().await;
        // Pulls may have brought more images that have them.
        let records = match self.images.records().await {
            Ok(records) => records,
            Err(error) => return self.all_stay(&chain(&error)),
        };
        let (mut damaged, mut going, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
        for tree in &mut self.found.trees_damaged {
            let has_it = |record: &&Record| chains(record).contains(&tree.chain_id);
            let with = records.iter().filter(has_it).map(|r| r.reference.as_str());
            let with: BTreeSet<&str> = with.filter(|name| !names.contains(name)).collect();
            match self.images.holds.let_go(with.iter().copied()) {
                Some(images) => {
                    going.push(images);
                    names.extend(with);
                    damaged.push(tree.chain_id.clone());
                }
                None => tree.fate = Err(IN_HAND.to_owned()),
            }
        }
        let anew = self.images.unpack_anew(&damaged, &records).await;
        drop(going);
        let mut fates = match anew {
            Ok(fates) => fates,
            Err(error) => return self.all_stay(&chain(&error)),
        };
        let is_anew = fates.values().any(|fate| *fate == Fate::Anew);
        for tree in &mut self.found.trees_damaged {
            if let Some(fate) = fates.remove(&tree.chain_id) {
                tree.fate = Ok(fate);
            }
            tracing::info!(chain_id = %tree.chain_id, fate = ?tree.fate, "a damaged layer");
        }
        if is_anew {
            self.images.settle_in_background();
        }
    }

    fn all_stay(&mut self, why: &str) {
        for tree in &mut self.found.trees_damaged {
            tree.fate = Err(why.to_owned());
        }
    }
}

/// How an image is asked for; none when its record is somebody else's.
fn named(record: &Record) -> Option<(Reference, Digest)> {
    Some((record.reference.parse().ok()?, record.target.parse().ok()?))
}
