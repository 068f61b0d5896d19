//! Labels by which we find our own things, and those that containerd's collector understands
//! (containerd docs/garbage-collection.md).

use std::collections::HashMap;

/// Name of the app, on containers.
pub const APP: &str = "nodeagent/app";
/// Name of the instance, on containers.
pub const INSTANCE: &str = "nodeagent/instance";
/// Revision that the container was made from.
pub const REVISION: &str = "nodeagent/revision";
/// Generation of the container's create.
pub const CREATE_GENERATION: &str = "nodeagent/create-generation";

/// Digest of the image, on our prepared snapshots.
pub(super) const ROOTFS: &str = "nodeagent/rootfs";
/// What a lease of ours is for.
pub(super) const LEASE: &str = "nodeagent/lease";

/// The boot in which a lease of ours was taken.
pub(super) const BOOT: &str = "nodeagent/boot";

/// A thing with this label is not collected.
pub(super) const GC_ROOT: &str = "containerd.io/gc.root";
/// A lease ends at this time (RFC 3339).
pub(super) const GC_EXPIRE: &str = "containerd.io/gc.expire";
/// Prefix of references from content to content.
pub(super) const GC_REF_CONTENT: &str = "containerd.io/gc.ref.content";
/// Prefix of references from content to a snapshot; the snapshotter's name follows.
pub(super) const GC_REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";
/// On Prepare: the committed snapshot that this one shall become.
pub(super) const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// On an image that the kubelet shall not collect.
pub(super) const PINNED: &str = "io.cri-containerd.pinned";
/// Images of the `k8s.io` namespace that the kubelet shall see, and shall not collect.
pub(super) const CRI: [(&str, &str); 2] =
    [("io.cri-containerd.image", "managed"), (PINNED, "pinned")];
/// On names of images that we made in that namespace: [`ASKED`] or [`DERIVED`].
pub(super) const IMAGE: &str = "nodeagent/image";
/// Somebody asked for the image by this name.
pub(super) const ASKED: &str = "asked";
/// Made beside a name that was asked for.
pub(super) const DERIVED: &str = "derived";

/// Now, as containerd writes times.
pub(super) fn rfc3339(time: std::time::SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(time).to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

pub(super) fn map<const N: usize>(pairs: [(&str, String); N]) -> HashMap<String, String> {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
