//! Looking after images in the background: what power was lost over is examined, those that belong
//! here are made ready, names that mean something else now are told, and what is too much goes.
//!
//! Runs every `images.check_interval`, the budget after each pull as well. What an app or a container
//! needs, what is pinned, stable or listed never goes.

use std::sync::Arc;
use std::time::Duration;

use imagecache::Reference;
use imagecache::evict::Size;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::stable::digest;
use crate::alarm::{AlarmCode, Subject};
use crate::api::v1::ProblemCode;
use crate::chain::chain;
use crate::images::{Drift, Room, listed};
use crate::pool::{Effects, read_clocks};

/// How long a registry may take to say what a name means.
const DRIFT_DEADLINE: Duration = Duration::from_secs(30);

/// Runs until `shutdown`; begins once the host was observed. The budget waits for no registry.
pub(super) async fn run<E: Effects>(node: Arc<Node<E>>, shutdown: CancellationToken) {
    let interval = node.settings.images.check_interval;
    let look = async {
        node.executor.images.examine().await;
        loop {
            node.bring_listed().await;
            node.look_for_drift().await;
            node.remove_unnamed().await;
            tokio::time::sleep(interval).await;
        }
    };
    let keep = async {
        let mut pulled = node.executor.images.pulled();
        loop {
            node.keep_budget().await;
            // Its sender lives as long as the images; what is needed changes without a pull, too.
            let _ = tokio::time::timeout(interval, pulled.changed()).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = look => {}
        () = keep => {}
    }
}

impl<E: Effects> Node<E> {
    /// Makes the images ready that the file names.
    async fn bring_listed(&self) {
        let Some(path) = self.settings.images.stable_file.clone() else {
            return;
        };
        let belongs = self.executor.images.belongs();
        let read = tokio::task::spawn_blocking(move || listed::read(&path)).await;
        let images = match read {
            Ok(Ok(images)) => images,
            Ok(Err(error)) => {
                let why = chain(&error);
                if belongs.say_unreadable(why.clone()) {
                    tracing::warn!(
                        error = why,
                        "images.stable_file is not used; what it said before holds"
                    );
                }
                return;
            }
            Err(error) => {
                tracing::error!(%error, "images.stable_file was not read");
                return;
            }
        };
        // They must not go from the moment on that they are listed.
        belongs.say_listed(images.iter().map(ToString::to_string));
        for image in &images {
            let name = image.to_string();
            match self.executor.images.bring(image).await {
                Ok(reference) => belongs.say_ready(&name, reference),
                Err(error) => {
                    let why = chain(&error);
                    if belongs.say_not_ready(&name, &why) {
                        tracing::warn!(
                            image = name,
                            error = why,
                            "a listed image is not ready; it is tried again"
                        );
                    }
                }
            }
        }
    }

    /// Asks the registries what the names mean now that apps and the file were resolved from.
    async fn look_for_drift(&self) {
        let images = &self.executor.images;
        let belongs = images.belongs();
        let mut names: Vec<(String, String)> = Vec::new();
        for entry in self.pools.all() {
            let revision = &entry.revision;
            names.push((revision.app.image.clone(), revision.image.reference.clone()));
        }
        for listed in belongs.listed().0 {
            names.extend(listed.reference.map(|meant| (listed.image, meant)));
        }
        names.sort();
        names.dedup();
        for (name, meant) in &names {
            let is_tag = name
                .parse::<Reference>()
                .is_ok_and(|reference| reference.digest().is_none());
            if !is_tag {
                continue;
            }
            // Otherwise nothing is known, and what is told stays.
            let now = match tokio::time::timeout(DRIFT_DEADLINE, images.resolve(name)).await {
                Ok(Ok(now)) => now,
                Ok(Err(error)) => {
                    tracing::debug!(image = name, error = chain(&error), "not resolved");
                    continue;
                }
                Err(_) => {
                    tracing::debug!(image = name, "not resolved in time");
                    continue;
                }
            };
            let drifted = (digest(&now) != digest(meant)).then(|| Drift {
                reference: now.clone(),
                since_ms: read_clocks().wall_ms,
            });
            if belongs.say_drift(name, drifted) {
                tracing::info!(
                    image = name,
                    meant,
                    now,
                    "the name means another image now; app apply uses it"
                );
            }
        }
        let names: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
        belongs.forget_drift_but_of(&names);
    }

    /// Removes what pulls and imports left that never ended.
    async fn remove_unnamed(&self) {
        match self.executor.images.remove_unnamed().await {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "layers that no image names are removed"),
            Err(error) => tracing::warn!(error = chain(&error), "layers that no image names stay"),
        }
    }

    /// Evicts what exceeds the budget.
    async fn keep_budget(&self) {
        let settings = &self.settings.images;
        let budget = imagecache::evict::Budget {
            bytes: settings.max_size,
            inodes: settings.max_files,
        };
        if budget == imagecache::evict::Budget::default() {
            return;
        }
        match self.evict(Room::Within(budget)).await {
            Ok(plan) => {
                for eviction in &plan.evictions {
                    tracing::info!(
                        image = eviction.name,
                        bytes = eviction.frees.bytes,
                        files = eviction.frees.inodes,
                        "evicted for the budget"
                    );
                }
                let short = (plan.short != Size::default()).then(|| {
                    format!(
                        "images take {} bytes and {} files more than images.max_size and images.max_files allow, \
                         and each that is left is needed, pinned, stable or listed: allow more, or unpin some",
                        plan.short.bytes, plan.short.inodes
                    )
                });
                self.shared.alarms.set(
                    AlarmCode::ImagesOverBudget,
                    Subject::Host,
                    short.as_deref(),
                );
            }
            Err(problem) if problem.code == ProblemCode::Unavailable => {
                let problem = problem.detail;
                tracing::debug!(problem, "nothing is evicted: what is needed is not known");
            }
            Err(problem) => {
                let problem = problem.detail;
                tracing::warn!(problem, "the budget of images is not kept");
            }
        }
    }
}
