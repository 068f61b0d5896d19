//! Images on a host of the kubelet's: what it finds by which name, and does not collect.
//!
//! In the namespace `k8s.io` the kubelet sees images through containerd's CRI plugin, which keeps a
//! list by what containerd tells of images that are made and changed. An image has three names
//! there: the one that was asked for, the one by digest, and its id, the digest of its config
//! (containerd, `internal/cri/server/images/image_pull.go`, `PullImage`). We make all three, the one
//! that was asked for last: where it is, all are. An image that the kubelet made stays the
//! kubelet's: it is labelled as pinned, and when it is forgotten, that label goes and the image
//! stays.

use std::collections::{BTreeSet, HashMap};

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{Image as Record, ListImagesRequest, UpdateImageRequest};
use imagecache::Image;
use prost_types::FieldMask;

use super::error::RuntimeError;
use super::{Containerd, labels};

/// The namespace that the kubelet looks at.
pub const NAMESPACE: &str = "k8s.io";

/// The names that the kubelet may look for an image by, beside the one that was asked for.
pub(super) fn derived_names(image: &Image) -> Vec<String> {
    let by_digest = image
        .reference
        .with_digest(&image.target.digest)
        .to_string();
    let mut names = vec![image.config.digest.to_string()];
    if by_digest != image.reference.to_string() {
        names.push(by_digest);
    }
    names
}

/// Labels of a name that we make there.
pub(super) fn labels_of(kind: &str) -> HashMap<String, String> {
    let cri = labels::CRI.iter();
    let cri = cri.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    cri.chain([(labels::IMAGE.to_owned(), kind.to_owned())])
        .collect()
}

/// Whether the kubelet sees the image of this record and does not collect it.
pub(super) fn is_kept(record: &Record) -> bool {
    let has = |(key, value): &(&str, &str)| record.labels.get(*key).is_some_and(|v| v == value);
    labels::CRI.iter().all(has)
}

/// What becomes of the names of an image that is forgotten.
#[derive(Debug, PartialEq)]
pub(super) enum Forget {
    /// The kubelet's: it may collect it from now on.
    GiveBack(Box<Record>),
    /// Ours: these names go, the last one at the end.
    Remove(Vec<String>),
}

/// What to do with `name`, of all records with the same target. The names that we made beside it
/// go with the last one that was asked for.
pub(super) fn forget(name: &str, records: &[Record]) -> Forget {
    let kind = |record: &Record| record.labels.get(labels::IMAGE).cloned();
    let own = records.iter().find(|record| record.name == name);
    if let Some(theirs) = own.filter(|record| kind(record).is_none()) {
        return Forget::GiveBack(Box::new(theirs.clone()));
    }
    let others = records.iter().filter(|record| record.name != name);
    let (derived, needed): (Vec<&Record>, Vec<&Record>) =
        others.partition(|record| kind(record).as_deref() == Some(labels::DERIVED));
    let mut names = Vec::new();
    if needed.is_empty() {
        names.extend(derived.into_iter().map(|record| record.name.clone()));
    }
    names.push(name.to_owned());
    Forget::Remove(names)
}

impl Containerd {
    pub(super) fn is_kubernetes(&self) -> bool {
        self.connection.namespace() == NAMESPACE
    }

    /// Records of the images with one of these targets; of all images without targets.
    pub(super) async fn images_of(&self, targets: &[String]) -> Result<Vec<Record>, RuntimeError> {
        let filters = targets
            .iter()
            .map(|digest| format!("target.digest=={digest}"));
        let request = self.connection.request(ListImagesRequest {
            filters: filters.collect(),
        });
        let mut client = ImagesClient::new(self.connection.channel());
        let listed = self.connection.call("list", "images", client.list(request));
        Ok(listed.await?.images)
    }

    /// Every name of the images that have one of `names`: who uses an image by one name, uses it.
    pub(super) async fn all_names(
        &self,
        mut names: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, RuntimeError> {
        if names.is_empty() {
            return Ok(names);
        }
        let images = self.images_of(&[]).await?;
        let digest = |image: &Record| image.target.as_ref().map(|target| target.digest.clone());
        let used = images.iter().filter(|image| names.contains(&image.name));
        let used: BTreeSet<String> = used.filter_map(digest).collect();
        let also = images
            .into_iter()
            .filter(|image| digest(image).is_some_and(|digest| used.contains(&digest)));
        names.extend(also.map(|image| image.name));
        Ok(names)
    }

    /// Keeps the kubelet from collecting the image of a record that it made, or no longer does.
    pub(super) async fn label_pinned(
        &self,
        record: Record,
        kept: bool,
    ) -> Result<(), RuntimeError> {
        let name = record.name.clone();
        let labels = labels::CRI.iter().map(|(key, value)| match kept {
            true => ((*key).to_owned(), (*value).to_owned()),
            // An empty value removes a label (containerd, `core/metadata/boltutil`).
            false => ((*key).to_owned(), String::new()),
        });
        let pinned = |key: &str| kept || key == labels::PINNED;
        let labels: HashMap<String, String> = labels.filter(|(key, _)| pinned(key)).collect();
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = self.connection.request(UpdateImageRequest {
            // With the target that it has: containerd 2.2 dies of a record without one.
            image: Some(Record { labels, ..record }),
            update_mask: Some(FieldMask { paths }),
            ..UpdateImageRequest::default()
        });
        let mut client = ImagesClient::new(self.connection.channel());
        let updated = client.update(request);
        let updated = self.connection.call("label image", &name, updated);
        updated.await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, kind: Option<&str>) -> Record {
        let labels = kind.map(labels_of).unwrap_or_default();
        Record {
            name: name.to_owned(),
            labels,
            ..Record::default()
        }
    }

    fn removed(name: &str, records: &[Record]) -> Vec<String> {
        match forget(name, records) {
            Forget::Remove(names) => names,
            Forget::GiveBack(record) => panic!("{record:?} is given back"),
        }
    }

    #[test]
    fn names_beside_the_one_asked_for_go_with_the_last_that_was() {
        let asked = [labels::ASKED, labels::DERIVED].map(Some);
        let [asked, derived] = asked;
        let mut records = vec![
            record("sha256:ab", derived),
            record("r/web@sha256:cd", derived),
            record("r/web:1", asked),
            record("r/web:2", asked),
        ];
        assert_eq!(removed("r/web:1", &records), ["r/web:1"]);
        records.remove(2);
        assert_eq!(
            removed("r/web:2", &records),
            ["sha256:ab", "r/web@sha256:cd", "r/web:2"]
        );
    }

    #[test]
    fn what_the_kubelet_made_is_given_back_and_what_it_needs_stays() {
        let records = [
            record("sha256:ab", Some(labels::DERIVED)),
            record("r/web:1", Some(labels::ASKED)),
            record("r/other:1", None),
        ];
        let theirs = Box::new(records[2].clone());
        assert_eq!(forget("r/other:1", &records), Forget::GiveBack(theirs));
        assert_eq!(removed("r/web:1", &records), ["r/web:1"]);
    }

    #[test]
    fn only_both_labels_keep_an_image() {
        let mut kept = record("r/web:1", Some(labels::ASKED));
        assert!(is_kept(&kept));
        kept.labels.remove(labels::PINNED);
        assert!(!is_kept(&kept));
        assert!(!is_kept(&record("r/web:1", None)));
    }
}
