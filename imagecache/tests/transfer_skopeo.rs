//! Import of what skopeo writes, and export for skopeo to read. Needs `skopeo` (tests/peers/install).

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod archives;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use archives::{Files, layout};
use imagecache::blobs::Blobs;
use imagecache::memory::MemoryStore;
use imagecache::transfer::{Export, import};
use imagecache::{Digest, Image};

const NAME: &str = "r.example/web:1";

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    /// With a layout of an image of two real layers, in an index of its own.
    fn new() -> Self {
        let bench = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let mut layers = Vec::new();
        for at in 0..2 {
            let mut files = Files::default();
            files.add(&format!("etc/file{at}"), &vec![at; 100_000]);
            layers.push(files.tar());
        }
        layout(&[NAME], &[&layers[0], &layers[1]], true).write_below(&bench.path("layout"));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn skopeo(&self, arguments: &[&str]) -> String {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "--tmpdir"])
            .arg(self.directory.path())
            .args(arguments)
            .output()
            .expect("skopeo, which tests/peers/install installs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "skopeo {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Copies the layout to another kind of place.
    fn copied(&self, kind: &str, name: &str) -> PathBuf {
        let from = format!("oci:{}:{NAME}", self.path("layout").display());
        let to = format!("{kind}:{}:{NAME}", self.path(name).display());
        self.skopeo(&["copy", &from, &to]);
        self.path(name)
    }

    async fn import(&self, store: &str, path: &Path) -> (Image, Blobs, MemoryStore) {
        let blobs = Blobs::open_in_boot(&self.path(store), "boot-1").unwrap();
        let store = MemoryStore::default();
        let mut images = import(path, None, &blobs, &store).await.unwrap();
        assert_eq!(images.len(), 1);
        let image = images.remove(0);
        assert_eq!(image.reference.to_string(), NAME);
        (image, blobs, store)
    }
}

#[tokio::test]
async fn a_layout_and_a_docker_archive_of_skopeo_are_imported() {
    let bench = Bench::new();
    let (ours, ..) = bench.import("a", &bench.path("layout")).await;
    for (kind, name) in [
        ("oci", "directory"),
        ("oci-archive", "layout.tar"),
        ("docker-archive", "docker.tar"),
    ] {
        let path = bench.copied(kind, name);
        let (image, blobs, _) = bench.import(kind, &path).await;
        assert_eq!(image.diff_ids, ours.diff_ids, "{kind}");
        assert_eq!(image.run, ours.run, "{kind}");
        assert_eq!(blobs.list().unwrap().len(), 2, "{kind}");
    }
}

#[tokio::test]
async fn an_export_is_read_by_skopeo_as_a_layout_and_as_a_docker_archive() {
    let bench = Bench::new();
    let (image, blobs, store) = bench.import("a", &bench.path("layout")).await;
    let path = bench.path("out.tar");
    let export = Export::of(std::slice::from_ref(&image), &blobs, &store)
        .await
        .unwrap();
    export.write(File::create(&path).unwrap()).unwrap();
    let target = image.target.digest.as_str();
    let raw = bench.skopeo(&[
        "inspect",
        "--raw",
        &format!("oci-archive:{}", path.display()),
    ]);
    assert_eq!(Digest::of(raw.as_bytes()).as_str(), target);
    for kind in ["oci-archive", "docker-archive"] {
        let from = format!("{kind}:{}", path.display());
        let to = bench.path(&format!("from-{kind}"));
        bench.skopeo(&["copy", &from, &format!("oci:{}:{NAME}", to.display())]);
        let (again, ..) = bench.import(&format!("store-{kind}"), &to).await;
        assert_eq!(again.diff_ids, image.diff_ids, "{kind}");
    }
}
