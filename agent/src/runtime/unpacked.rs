//! Unpacked layers of images that are here: looked at, and made anew.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Info, Kind, ViewSnapshotRequest};
use imagecache::{Cache, ContentStore as _, Digest, Image, PullOptions, Reference, Workplace};

use super::Containerd;
use super::error::{Answer, RuntimeError, of_pull};
use super::lease::{Collect, Lease, unique};
use super::unpack::directories_of_view;

/// Longest that one image is looked at; what is left of a killed agent goes after it.
const LONGEST: Duration = Duration::from_secs(3600);

/// Result of [`Containerd::view`].
pub(crate) enum Viewed {
    /// Its layers.
    Here(Box<View>),
    /// It is not unpacked.
    Absent,
    /// Its trees are not ours to read: another snapshotter than overlayfs, or its directory is not
    /// visible from here.
    OutOfSight,
}

/// The unpacked layers of an image, which stay as long as the view. It ends by
/// [`Containerd::end_view`], or by itself when the agent died.
pub(crate) struct View {
    lease: Lease,
    key: String,
    /// One for each layer, the topmost first.
    pub directories: Vec<PathBuf>,
    /// Where a layer can be extracted beside them.
    pub workplace: Workplace,
}

/// What became of an unpacked chain that was to be made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// These snapshots stand on it, or something else keeps it: it stays.
    Used(Vec<String>),
    /// It was unpacked anew from verified blobs.
    Anew,
    /// It is gone. The images that have it are unpacked when they are pulled; why not now.
    Gone(String),
}

impl Containerd {
    /// What containerd has of an image: its documents; none when one is missing.
    pub(crate) async fn documents_of(
        &self,
        reference: &Reference,
        target: &Digest,
    ) -> Result<Option<Image>, RuntimeError> {
        let found = imagecache::local(reference, target, &self.documents()).await;
        found.map_err(|error| of_pull(&reference.to_string(), error))
    }

    /// The unpacked layers of an image.
    pub(crate) async fn view(&self, chain_id: &Digest) -> Result<Viewed, RuntimeError> {
        let Some(workplace) = self.workplace().await? else {
            return Ok(Viewed::OutOfSight);
        };
        let lease = self.lease("verify", LONGEST).await?;
        let key = unique("verify");
        let request = lease.request(ViewSnapshotRequest {
            snapshotter: self.connection.snapshotter(),
            key: key.clone(),
            parent: chain_id.to_string(),
            ..ViewSnapshotRequest::default()
        });
        let mut client = SnapshotsClient::new(self.connection.channel());
        let asked = client.view(request);
        let (found, mounts) = match self.connection.answer(self.connection.slow(), asked).await {
            Ok(response) => (Ok(Viewed::OutOfSight), response.into_inner().mounts),
            Err(Answer::NotFound) => (Ok(Viewed::Absent), Vec::new()),
            Err(said) => {
                let error = said.into_error("view", chain_id.as_str());
                (Err(error), Vec::new())
            }
        };
        if let Some(directories) = directories_of_view(&mounts) {
            return Ok(Viewed::Here(Box::new(View {
                lease,
                key,
                directories,
                workplace: workplace.clone(),
            })));
        }
        self.end(lease).await;
        found
    }

    /// Whether the layers of a view were there until now.
    pub(crate) async fn is_in_view(&self, view: &View) -> Result<bool, RuntimeError> {
        self.has_snapshot(&view.key).await
    }

    /// Ends a view.
    pub(crate) async fn end_view(&self, view: Box<View>) {
        if let Err(error) = self.remove_snapshot(&view.key).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "a view of an image stays until its lease ends");
        }
        self.end(view.lease).await;
    }

    async fn end(&self, lease: Lease) {
        if let Err(error) = lease.release(Collect::Now).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "a lease stays until it ends by itself");
        }
    }

    /// Removes unpacked chains on which nothing stands, and unpacks `images` anew, from the bottom
    /// up: those that have one of the chains, with their documents. What became of each chain.
    pub(crate) async fn unpack_anew(
        &self,
        chains: &[Digest],
        images: &[Image],
        cache: &Cache,
        options: &PullOptions,
    ) -> Result<BTreeMap<Digest, Fate>, RuntimeError> {
        let snapshots = self.connection.snapshots(Vec::new()).await?;
        let mut fates = BTreeMap::new();
        let mut unused = Vec::new();
        for chain in chains {
            match standing_on(chain.as_str(), &snapshots) {
                users if users.is_empty() => unused.push(chain),
                users => {
                    fates.insert(chain.clone(), Fate::Used(users));
                }
            }
        }
        let affected = |image: &&Image| {
            let own = image.chain();
            own.iter().any(|layer| unused.contains(&&layer.chain_id))
        };
        let affected: Vec<&Image> = images.iter().filter(affected).collect();
        let removed = self.remove(&affected, &unused).await;
        // Whatever came of that: what was untied is tied again.
        let mut failed: BTreeMap<Digest, String> = BTreeMap::new();
        for image in affected {
            if let Err(error) = self.unpack_again(image, cache, options).await {
                let why = crate::chain::chain(&error);
                let own = image.chain().into_iter();
                failed.extend(own.map(|layer| (layer.chain_id, why.clone())));
            }
        }
        for (chain, is_removed) in removed? {
            let fate = match (is_removed, failed.remove(&chain)) {
                (false, _) => Fate::Used(Vec::new()),
                (true, Some(why)) if !self.has_snapshot(chain.as_str()).await? => Fate::Gone(why),
                (true, _) => Fate::Anew,
            };
            fates.insert(chain, fate);
        }
        Ok(fates)
    }

    /// Has the collector take what is unpacked of images and nothing else needs; whether each of
    /// the chains went. Records and documents stay.
    async fn remove(
        &self,
        images: &[&Image],
        chains: &[&Digest],
    ) -> Result<Vec<(Digest, bool)>, RuntimeError> {
        if chains.is_empty() {
            return Ok(Vec::new());
        }
        let lease = self.lease("unpack", LONGEST).await?;
        for image in images {
            let nothing = BTreeMap::from([(self.tie_to_snapshot(), String::new())]);
            let untied = self.documents().label(&image.config.digest, nothing).await;
            untied.map_err(|error| of_pull(&image.reference.to_string(), error.into()))?;
        }
        // Its end is what the collector comes for.
        lease.release(Collect::Now).await?;
        let mut removed = Vec::with_capacity(chains.len());
        for chain in chains {
            let is_removed = !self.has_snapshot(chain.as_str()).await?;
            removed.push(((*chain).clone(), is_removed));
        }
        Ok(removed)
    }

    async fn unpack_again(
        &self,
        image: &Image,
        cache: &Cache,
        options: &PullOptions,
    ) -> Result<(), RuntimeError> {
        let lease = self.lease("unpack", options.deadline).await?;
        let work = async {
            let unpacker = self.unpacker(&lease, options).await?;
            let unpacked = cache.unpack(image, &unpacker, options).await;
            unpacked.map_err(|error| of_pull(&image.reference.to_string(), error))?;
            self.keep(&lease, image).await
        };
        let unpacked = work.await;
        self.end(lease).await;
        unpacked
    }
}

/// Keys of what stands on a snapshot and is no layer of an image: root file systems and views.
fn standing_on(name: &str, snapshots: &[Info]) -> Vec<String> {
    let mut above: BTreeMap<&str, Vec<&Info>> = BTreeMap::new();
    for info in snapshots {
        above.entry(&info.parent).or_default().push(info);
    }
    let (mut users, mut pending) = (Vec::new(), vec![name]);
    while let Some(name) = pending.pop() {
        for info in above.get(name).into_iter().flatten() {
            match info.kind() {
                Kind::Committed => pending.push(&info.name),
                _ => users.push(info.name.clone()),
            }
        }
    }
    users.sort();
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_on_a_layer_is_found_through_the_layers_above_it() {
        let snapshot = |name: &str, parent: &str, kind: Kind| Info {
            name: name.to_owned(),
            parent: parent.to_owned(),
            kind: kind.into(),
            ..Info::default()
        };
        let snapshots = [
            snapshot("base", "", Kind::Committed),
            snapshot("web", "base", Kind::Committed),
            snapshot("api", "base", Kind::Committed),
            snapshot("web-1", "web", Kind::Active),
            snapshot("look", "web", Kind::View),
            snapshot("other", "", Kind::Active),
        ];
        assert_eq!(standing_on("base", &snapshots), ["look", "web-1"]);
        assert_eq!(standing_on("web", &snapshots), ["look", "web-1"]);
        assert_eq!(standing_on("api", &snapshots), Vec::<String>::new());
    }
}
