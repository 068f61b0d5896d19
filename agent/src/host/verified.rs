//! What a look at the disk found, as the API says it.

use crate::api::v1::{
    DamagedBlob, DamagedLayer, DamagedState, NotCompared, UnpackedResult, VerificationDocument,
    VerifyResult, WhyNotCompared,
};
use crate::images::{self, DamagedTree, Verification, Verified};
use crate::runtime::Fate;

pub(super) fn result(verified: Verified) -> VerifyResult {
    let blobs = verified.damaged.into_iter().map(|blob| DamagedBlob {
        digest: blob.digest.to_string(),
        got: blob.got.to_string(),
        images: blob.images,
    });
    let not_compared = verified.trees_not_compared.into_iter();
    let trees = verified.trees_damaged.into_iter();
    VerifyResult {
        right: verified.right,
        bytes: verified.bytes,
        absent: verified.absent,
        damaged: blobs.collect(),
        unpacked: UnpackedResult {
            right: verified.trees_right,
            not_compared: not_compared
                .map(|(why, layers)| reason(why, layers))
                .collect(),
            damaged: trees.map(damaged).collect(),
        },
    }
}

pub(super) fn under_way(verification: Verification) -> VerificationDocument {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    VerificationDocument {
        image: verification.image,
        done: count(verification.done),
        of: count(verification.of),
    }
}

fn reason(why: images::NotCompared, layers: u32) -> NotCompared {
    let (why, error) = match why {
        images::NotCompared::BlobAbsent => (WhyNotCompared::BlobAbsent, None),
        images::NotCompared::NotUnpacked => (WhyNotCompared::NotUnpacked, None),
        images::NotCompared::OutOfSight => (WhyNotCompared::OutOfSight, None),
        images::NotCompared::Failed(error) => (WhyNotCompared::Failed, Some(error)),
    };
    NotCompared { why, layers, error }
}

fn damaged(tree: DamagedTree) -> DamagedLayer {
    let (state, used_by, error) = match tree.fate {
        Ok(Fate::Used(by)) => (DamagedState::Used, by, None),
        Ok(Fate::Anew) => (DamagedState::UnpackedAnew, Vec::new(), None),
        Ok(Fate::Gone(error)) => (DamagedState::Gone, Vec::new(), Some(error)),
        Err(error) => (DamagedState::Kept, Vec::new(), Some(error)),
    };
    DamagedLayer {
        chain_id: tree.chain_id.to_string(),
        layer: tree.layer.to_string(),
        images: tree.images,
        differences: tree.differences,
        more: tree.is_cut,
        state,
        used_by,
        error,
    }
}
