//! Stable images: which one scale-out uses, and saying so by hand.

use std::sync::Arc;

use imagecache::Reference;
use tokio::sync::oneshot;

use super::answers;
use super::node::{Entry, Node, app_name, stopping, unreadable};
use crate::api::v1::{
    AppImages, Drift, Finding, ListedImage, Problem, ProblemCode, StableEvidence, StableImage,
    StableList, StableRequest,
};
use crate::images;
use crate::instance::Revision;
use crate::pool::{Effects, Evidence, Message, Stable, read_clocks};

impl<E: Effects> Node<E> {
    pub(super) async fn list_stable(&self) -> Result<StableList, Problem> {
        self.observation().await?;
        let (listed, unreadable) = self.executor.images.belongs().listed();
        Ok(StableList {
            apps: self
                .pools
                .all()
                .iter()
                .map(|e| self.app_images(e))
                .collect(),
            listed: listed
                .into_iter()
                .map(|listed| ListedImage {
                    drift: self.drift_of(&listed.image),
                    image: listed.image,
                    reference: listed.reference,
                    ready: listed.ready,
                    error: listed.error,
                })
                .collect(),
            unreadable,
        })
    }

    pub(super) async fn set_stable(&self, request: StableRequest) -> Result<AppImages, Problem> {
        let name = app_name(&request.app)?;
        let entry = self.entry(&name).await?;
        let stable = match &request.image {
            Some(image) => Some(Stable {
                revision: self.revision_with(&entry, image)?,
                evidence: Evidence::ByHand,
                since_ms: read_clocks().wall_ms,
            }),
            None => None,
        };
        let (reply, answer) = oneshot::channel();
        entry
            .handle
            .messages
            .send(Message::Stable(stable, reply))
            .map_err(|_| stopping())?;
        answer
            .await
            .map_err(|_| stopping())?
            .map_err(|refusal| answers::refused(&refusal))?;
        // The snapshot of that turn comes with the next one at the latest.
        let mut snapshot = entry.handle.snapshot.clone();
        let said = |stable: &Option<Stable>| match (&request.image, stable) {
            (Some(_), Some(stable)) => stable.evidence == Evidence::ByHand,
            (None, Some(stable)) => stable.evidence != Evidence::ByHand,
            (image, None) => image.is_none(),
        };
        snapshot
            .wait_for(|snapshot| said(&snapshot.stable))
            .await
            .map_err(|_| stopping())?;
        Ok(self.app_images(&entry))
    }

    /// The newest revision of the app with this image: a name as a manifest has it, a full name, or
    /// a digest.
    fn revision_with(&self, entry: &Entry, image: &str) -> Result<Arc<Revision>, Problem> {
        let snapshot = entry.handle.snapshot.borrow().clone();
        let mut revisions: Vec<Arc<Revision>> = vec![entry.revision.clone()];
        revisions.extend(snapshot.stable.iter().map(|stable| stable.revision.clone()));
        let app = &entry.revision.app.name;
        let stored = self.journal.revisions(app).map_err(|e| unreadable(&e))?;
        revisions.extend(stored.into_iter().filter_map(|row| {
            let app = crate::app::parse(&row.manifest).ok()?;
            Some(Arc::new(Revision {
                id: row.id,
                app,
                manifest: row.manifest,
                image: row.image,
            }))
        }));
        let full = image.parse::<Reference>().map(|image| image.to_string());
        let is_it = |revision: &&Arc<Revision>| {
            let has = &revision.image;
            let by_digest = has.digest == image || digest(&has.reference) == image;
            let by_name = revision.app.image == image
                || full.as_ref().is_ok_and(|full| {
                    *full == has.reference
                        || revision
                            .app
                            .image
                            .parse::<Reference>()
                            .is_ok_and(|name| name.to_string() == *full)
                });
            by_digest || by_name
        };
        if let Some(found) = revisions.iter().find(is_it) {
            return Ok(found.clone());
        }
        let mut known: Vec<&str> = revisions
            .iter()
            .map(|revision| revision.image.reference.as_str())
            .collect();
        known.sort_unstable();
        known.dedup();
        let rule = format!(
            "an image that app {app} has on this host: {}; another one is applied first (app apply)",
            known.join(", ")
        );
        let finding = Finding::new("image", image.to_owned(), rule);
        let detail = "refused: image; nothing was changed";
        Err(Problem::new(ProblemCode::InvalidRequest, detail).with_findings([finding]))
    }

    fn app_images(&self, entry: &Entry) -> AppImages {
        let snapshot = entry.handle.snapshot.borrow().clone();
        let app = &entry.revision.app;
        AppImages {
            app: app.name.to_string(),
            image: app.image.clone(),
            applied: entry.revision.image.reference.clone(),
            scale_out: snapshot.scale_out.clone(),
            stable: snapshot.stable.as_ref().map(stable),
            drift: self.drift_of(&app.image),
        }
    }

    fn drift_of(&self, name: &str) -> Option<Drift> {
        let drift = self.executor.images.belongs().drift(name)?;
        Some(drifted(&drift))
    }
}

fn drifted(drift: &images::Drift) -> Drift {
    Drift {
        digest: digest(&drift.reference).to_owned(),
        seen_at: answers::timestamp(drift.since_ms),
    }
}

fn stable(stable: &Stable) -> StableImage {
    let (evidence, instances, task_id) = match &stable.evidence {
        Evidence::Covered { instances, task_id } => (
            StableEvidence::Covered,
            Some(*instances),
            task_id.as_ref().map(ToString::to_string),
        ),
        Evidence::ByHand => (StableEvidence::ByHand, None, None),
    };
    StableImage {
        reference: stable.revision.image.reference.clone(),
        revision: stable.revision.id.clone(),
        evidence,
        instances,
        task_id,
        since: answers::timestamp(stable.since_ms),
    }
}

/// The digest of a reference by digest.
pub(super) fn digest(reference: &str) -> &str {
    reference
        .rsplit_once('@')
        .map_or(reference, |(_, digest)| digest)
}
