//! After a loss of power: unpacked layers that may not have been on the disk are looked at before
//! anything is made from them.
//!
//! Images that have one are going until then, for whoever wants to hold them, and pulls wait. What
//! is right is trusted; what is not, or cannot be compared, is unpacked anew where nothing stands on
//! it. A damaged layer on which something stands is told, and nothing more is made from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imagecache::{Cache, Digest, Record, chain_mark, marked_chain};
use tokio::sync::watch;

use super::keep::chains;
use super::{Going, Holds, Images, KeepError};
use crate::chain::chain;
use crate::runtime::{Fate, RuntimeError};

/// Between two tries while containerd is away.
const PAUSE: Duration = Duration::from_secs(1);

/// What is known of what power was lost over. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Examination {
    is_over: watch::Sender<bool>,
    /// Until it is over.
    going: Arc<Mutex<Option<Going>>>,
    /// Chains from which nothing is made, with the reason.
    refused: Arc<Mutex<BTreeMap<Digest, String>>>,
}

impl Examination {
    /// Over at once where no chain is suspect; else images that have one are going from now on.
    pub fn begin(cache: &Cache, holds: &Holds) -> Self {
        let suspects = suspects(cache);
        let mut going = None;
        if !suspects.is_empty() {
            let records = cache.records().list().unwrap_or_default();
            let has_one = |record: &&Record| chains(record).iter().any(|c| suspects.contains(c));
            let names = records.iter().filter(has_one).map(|r| r.reference.as_str());
            going = holds.let_go(names);
        }
        Self {
            is_over: watch::Sender::new(suspects.is_empty()),
            going: Arc::new(Mutex::new(going)),
            refused: Arc::default(),
        }
    }

    /// Waits for its end.
    pub async fn over(&self) {
        // Its sender is here.
        let _ = self.is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    fn end(&self) {
        self.is_over.send_replace(true);
        let mut going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        going.take();
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<Digest, String>> {
        // Every change leaves it whole.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chains that a former boot left, and nobody looked at since.
fn suspects(cache: &Cache) -> Vec<Digest> {
    let names = cache.blobs().unsettled().all_suspects();
    let chains = names.iter().filter_map(|name| marked_chain(name));
    chains.collect()
}

impl Images {
    /// Looks at what power was lost over, once after a start. Tries again while containerd is away.
    pub async fn examine(&self) {
        while !*self.examination.is_over.borrow() {
            match self.look_at_suspects().await {
                Ok(()) => self.examination.end(),
                Err(KeepError::Runtime(error)) if error.is_retryable() => {
                    tracing::debug!(error = chain(&error), "what power was lost over waits");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "it is not known what is damaged of what power was lost over: nodeagent image verify"
                    );
                    self.examination.end();
                }
            }
        }
    }

    async fn look_at_suspects(&self) -> Result<(), KeepError> {
        // What a pull had done when power was lost is kept by its lease only.
        self.containerd.end_leases_of_former_boots().await?;
        let mut here = Vec::new();
        for chain in suspects(&self.cache) {
            if self.containerd.has_snapshot(chain.as_str()).await? {
                here.push(chain);
            }
        }
        if here.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            layers = here.len(),
            "power was lost before they were on the disk: they are looked at"
        );
        let _alone = self.alone_in_removing().await;
        let records = self.records().await?;
        let mut compared = self.compare(&records, &here).await?;
        let unsettled = self.cache.blobs().unsettled();
        here.retain(|chain| unsettled.is_suspect(&chain_mark(chain)));
        let mut fates = self.unpack_anew(&here, &records).await?;
        for chain_id in here {
            let differences = compared.remove(&chain_id);
            match (fates.remove(&chain_id), differences) {
                (Some(Fate::Anew), _) => {
                    tracing::warn!(%chain_id, "it is unpacked anew");
                }
                (Some(Fate::Gone(why)), _) => {
                    tracing::warn!(%chain_id, error = why, "it is not here any more, and pulled when it is needed");
                }
                (Some(Fate::Used(by)), Some(differences)) => {
                    let by = by.join(", ");
                    tracing::error!(%chain_id, by, differences, "it is damaged, and used: nothing more is made from it");
                    let why = format!(
                        "its layer {chain_id} is damaged ({differences}), because power was lost before it was on the disk, and {by} stand on it; end those, then nodeagent image verify"
                    );
                    self.examination.refused().insert(chain_id, why);
                }
                (Some(Fate::Used(by)), None) if !by.is_empty() => {
                    let by = by.join(", ");
                    tracing::error!(%chain_id, by, "it is used and cannot be compared: it may be damaged");
                }
                (Some(Fate::Used(_)) | None, _) => {
                    tracing::error!(%chain_id, "it may be damaged, and something else keeps it: nothing is made from it");
                    let why = format!(
                        "its layer {chain_id} may be damaged, because power was lost before it was on the disk; an image that is not the agent's has it: remove that from containerd"
                    );
                    self.examination.refused().insert(chain_id, why);
                }
            }
        }
        self.settle_in_background();
        Ok(())
    }

    /// Refuses an image with a layer that is known to be damaged and could not be made anew.
    pub(super) fn refuse_damaged(
        &self,
        reference: &str,
        mut chains: impl Iterator<Item = Digest>,
    ) -> Result<(), RuntimeError> {
        let refused = self.examination.refused();
        let unsettled = self.cache.blobs().unsettled();
        let is_refused = |chain: &Digest| {
            let why = refused.get(chain)?;
            // Otherwise it was made anew, or found right, since.
            unsettled.is_suspect(&chain_mark(chain)).then_some(why)
        };
        match chains.find_map(|chain| is_refused(&chain).cloned()) {
            None => Ok(()),
            Some(why) => Err(RuntimeError::Conflict {
                operation: "use image",
                object: reference.to_owned(),
                why,
            }),
        }
    }

    /// Whether there is any such layer.
    pub(super) fn has_damaged(&self) -> bool {
        !self.examination.refused().is_empty()
    }
}
