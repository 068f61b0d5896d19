//! Layers that are extracted into a workplace: nothing of what fails, or of what nobody waits for
//! any more, stays in it.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod archives;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use imagecache::blobs::Blob;
use imagecache::fetch::FetchOptions;
use imagecache::layer::Limits;
use imagecache::memory::MemoryStore;
use imagecache::transfer::import;
use imagecache::{
    Cache, Digest, Extraction, Image, Layer, Prepared, PullError, PullOptions, Receipt, Retry,
    Snapshot, UnpackError, Unpacker, Workplace,
};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

/// Places trees as directories that have the names of their chains.
struct Trees {
    root: PathBuf,
    workplace: Workplace,
}

impl Unpacker for Trees {
    async fn unpacked(&self, chain_id: &Digest) -> Result<bool, UnpackError> {
        Ok(self.root.join(chain_id.hex()).exists())
    }

    fn workplace(&self) -> Option<&Workplace> {
        Some(&self.workplace)
    }

    async fn prepare(&self, layer: &Layer) -> Result<Snapshot, UnpackError> {
        let target = self.root.join(layer.chain_id.hex());
        fs::create_dir(&target).unwrap();
        let key = layer.chain_id.hex().to_owned();
        let lower = layer.parent.iter();
        let lower = lower.map(|chain| self.root.join(chain.hex())).collect();
        Ok(Snapshot::Prepared(Prepared { key, target, lower }))
    }

    async fn commit(&self, _: &Layer, _: &Prepared) -> Result<(), UnpackError> {
        Ok(())
    }

    async fn discard(&self, prepared: &Prepared) {
        fs::remove_dir_all(&prepared.target).unwrap();
    }

    async fn apply(&self, layer: &Layer, _: &Blob) -> Result<(), UnpackError> {
        panic!("{} is to be placed as a tree", layer.chain_id)
    }
}

/// A host with a store, and a place for snapshots.
struct Host {
    _directory: tempfile::TempDir,
    cache: Cache,
    unpacker: Trees,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("snapshots")).unwrap();
        let extraction = Extraction::new(1, 0, Limits::default());
        let options = FetchOptions::default();
        Self {
            cache: Cache::open(&at("store"), &options, extraction).unwrap(),
            unpacker: Trees {
                root: at("snapshots"),
                workplace: Workplace::open(&at("work")).unwrap(),
            },
            _directory: directory,
        }
    }

    /// Brings the layers of an image here, packed.
    async fn image(&self, name: &str, layers: &[&[u8]]) -> Image {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tar = archives::oci_files(name, layers).tar();
        fs::write(file.path(), tar).unwrap();
        let (blobs, store) = (self.cache.blobs(), MemoryStore::default());
        let images = import(file.path(), None, blobs, &store).await;
        images.unwrap().remove(0)
    }

    async fn unpack(&self, image: &Image) -> Result<Receipt, PullError> {
        let options = PullOptions::default();
        self.cache.unpack(image, &self.unpacker, &options).await
    }

    /// Trees that are being extracted, or removed.
    fn at_work(&self) -> usize {
        let trees = fs::read_dir(self.unpacker.workplace.path()).unwrap();
        trees.count()
    }
}

/// Looks until it is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        let waited = begin.elapsed();
        assert!(
            waited < Duration::from_secs(180),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All causes of an error.
fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(chain);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// An archive of files, named as told.
fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, bytes) in files {
        archives::file(&mut tar, name.as_bytes(), bytes);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// Makes a directory in a directory, again and again.
fn dig(below: &Path, levels: usize) {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut at = openat(CWD, below, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "a", Mode::RWXU).unwrap();
        at = openat(&at, "a", flags, Mode::empty()).unwrap();
    }
}

#[tokio::test]
async fn layers_are_placed_one_on_the_other() {
    let host = Host::new();
    let (lower, upper) = (layer(&[("a/x", b"1")]), layer(&[("a/y", b"2")]));
    let image = host.image("r.example/web:1", &[&lower, &upper]).await;
    host.unpack(&image).await.unwrap();
    let top = host.unpacker.root.join(image.chain_id.hex());
    assert_eq!(fs::read_to_string(top.join("a/y")).unwrap(), "2");
    assert_eq!(host.at_work(), 0);
}

#[tokio::test]
async fn a_layer_that_is_not_here_is_named_when_no_registry_may_be_asked() {
    let host = Host::new();
    let layer = layer(&[("a", b"1")]);
    let image = host.image("r.example/web:1", &[&layer]).await;
    let digest = Digest::of(&layer);
    host.cache.blobs().remove(&digest).unwrap();
    let error = host.unpack(&image).await.unwrap_err();
    assert!(matches!(error, PullError::NotHere { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Never);
    let expected = "is not in this host's store, and no registry may be asked for it";
    assert_eq!(error.to_string(), format!("layer {digest} {expected}"));
}

#[tokio::test]
async fn a_layer_that_digs_too_deep_is_refused_and_leaves_nothing() {
    let host = Host::new();
    // 45 directories each: what the name of a link has room for.
    let down = vec!["a"; 45].join("/");
    let mut deep = Vec::new();
    let mut way = String::new();
    for _ in 0..60 {
        way.push('s');
        archives::link(&mut deep, way.as_bytes(), down.as_bytes());
        archives::file(&mut deep, format!("{way}/x").as_bytes(), b"");
        way.push('/');
    }
    archives::file(&mut deep, b"a", b"replaces it");
    deep.resize(deep.len() + 1024, 0);
    let image = host.image("r.example/deep:1", &[&deep]).await;
    let said = chain(&host.unpack(&image).await.unwrap_err());
    let expected = "is refused: with links followed it lies in 2049 directories; at most 2048";
    assert!(said.contains(expected), "{said}");
    until("the tree to be removed", || host.at_work() == 0);
    assert_eq!(fs::read_dir(&host.unpacker.root).unwrap().count(), 0);
}

/// Replaces a file of 300 KB by itself for minutes, in a blob of some megabytes: each piece is a
/// frame of zstd, and frames can be strung together.
fn endless() -> Vec<u8> {
    let file = layer(&[("f", &[0; 300_000])]);
    let entry = &file[..file.len() - 1024];
    let frame = zstd::encode_all(&entry.repeat(64)[..], 1).unwrap();
    frame.repeat(6_000)
}

#[tokio::test]
async fn an_extraction_that_nobody_waits_for_ends_and_gives_its_place_back() {
    let host = Host::new();
    let image = host.image("r.example/endless:1", &[&endless()]).await;
    let first = host.unpacker.workplace.path().join("0/f");
    let begun = async {
        while !first.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = host.unpack(&image) => panic!("it ended by itself: {ended:?}"),
        () = begun => {}
    }
    // There is one place.
    let small = layer(&[("a", b"1")]);
    let small = host.image("r.example/small:1", &[&small]).await;
    let unpacked = tokio::time::timeout(Duration::from_secs(20), host.unpack(&small)).await;
    unpacked.expect("the place was not given back").unwrap();
    until("the tree to be removed", || host.at_work() == 0);
}

#[test]
fn a_tree_of_any_depth_that_a_process_left_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path().join("work");
    let left = work.join("1-0");
    fs::create_dir_all(left.join("0/etc")).unwrap();
    fs::write(left.join("0/etc/file"), "x").unwrap();
    dig(&left.join("0"), 20_000);
    let _workplace = Workplace::open(&work).unwrap();
    until("the sweep", || !left.exists());
}
