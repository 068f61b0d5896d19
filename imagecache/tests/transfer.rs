//! Import and export: round trips, and archives that mean harm.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod archives;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use archives::{Files, docker_archive, layout, oci_files};
use flate2::Compression;
use flate2::write::GzEncoder;
use imagecache::blobs::{Begun, Blobs};
use imagecache::memory::MemoryStore;
use imagecache::transfer::{Export, ExportError, ImportError, import};
use imagecache::{Descriptor, Digest, Image, PullError, Reference};

struct Host {
    directory: tempfile::TempDir,
    blobs: Blobs,
    store: MemoryStore,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open_in_boot(&directory.path().join("store"), "boot-1").unwrap();
        let store = MemoryStore::default();
        Self {
            directory,
            blobs,
            store,
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn import(&self, path: &Path, name: Option<&str>) -> Result<Vec<Image>, ImportError> {
        let name: Option<Reference> = name.map(|name| name.parse().unwrap());
        import(path, name.as_ref(), &self.blobs, &self.store).await
    }

    async fn import_bytes(&self, bytes: &[u8]) -> Result<Vec<Image>, ImportError> {
        let path = self.file("in.tar", bytes);
        self.import(&path, None).await
    }

    /// Imports what has to be refused, and checks that nothing is recorded.
    async fn refused(&self, bytes: &[u8]) -> ImportError {
        let error = self.import_bytes(bytes).await.unwrap_err();
        assert!(
            self.store.digests().is_empty(),
            "recorded in spite of {error}"
        );
        error
    }

    async fn export(&self, images: &[Image]) -> Result<Vec<u8>, ExportError> {
        let mut bytes = Vec::new();
        let export = Export::of(images, &self.blobs, &self.store).await?;
        export.write(&mut bytes)?;
        Ok(bytes)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn names(images: &[Image]) -> Vec<String> {
    images
        .iter()
        .map(|image| image.reference.to_string())
        .collect()
}

#[tokio::test]
async fn a_layout_is_imported_from_a_directory_a_tar_and_a_compressed_tar() {
    let files = oci_files("r.example/web:1", &[b"lower", b"upper"]);
    let tar = files.tar();
    let mut seen = Vec::new();
    for bytes in [tar.clone(), gzip(&tar)] {
        let host = Host::new();
        seen.push((host.import_bytes(&bytes).await.unwrap(), host));
    }
    let host = Host::new();
    let directory = host.directory.path().join("layout");
    files.write_below(&directory);
    seen.push((host.import(&directory, None).await.unwrap(), host));
    for (images, host) in seen {
        assert_eq!(names(&images), ["r.example/web:1"]);
        let image = &images[0];
        assert_eq!(image.layers.len(), 2);
        for layer in &image.layers {
            assert_eq!(
                host.blobs.find(&layer.digest).unwrap().unwrap().size,
                layer.size
            );
        }
        let mut documents = vec![image.config.digest.clone(), image.target.digest.clone()];
        documents.sort();
        assert_eq!(host.store.digests(), documents);
    }
}

#[tokio::test]
async fn names_with_a_dot_in_front_are_the_same_names() {
    let mut files = Files::default();
    for (name, bytes) in oci_files("r.example/web:1", &[b"layer"]).0 {
        files.add(&format!("./{name}"), &bytes);
    }
    let images = Host::new().import_bytes(&files.tar()).await.unwrap();
    assert_eq!(names(&images), ["r.example/web:1"]);
}

#[tokio::test]
async fn a_docker_archive_gets_a_manifest_of_its_own_which_is_always_the_same() {
    let tar = docker_archive(&["r.example/web:1", "web:2"], &[b"lower", b"upper"]).tar();
    let host = Host::new();
    let images = host.import_bytes(&tar).await.unwrap();
    assert_eq!(
        names(&images),
        ["r.example/web:1", "docker.io/library/web:2"]
    );
    assert_eq!(images[0].target, images[1].target);
    let layers = &images[0].layers;
    assert_eq!(
        layers[1].media_type,
        "application/vnd.oci.image.layer.v1.tar"
    );
    assert_eq!(
        layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>(),
        images[0].diff_ids.iter().collect::<Vec<_>>()
    );
    let again = Host::new().import_bytes(&tar).await.unwrap();
    assert_eq!(again[0].target, images[0].target);
}

#[tokio::test]
async fn a_layer_of_a_docker_archive_may_be_a_link_to_that_of_another_image() {
    let mut files = docker_archive(&["r.example/web:1"], &[b"lower"]);
    let bytes = files.0.remove("layer0/layer.tar").unwrap();
    files.add("shared/layer.tar", &bytes);
    let host = Host::new();
    let images = host
        .import_bytes(&files.tar_with(|tar| {
            archives::link(tar, b"layer0/layer.tar", b"../shared/layer.tar");
        }))
        .await
        .unwrap();
    assert!(
        host.blobs
            .find(&images[0].layers[0].digest)
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn what_was_exported_is_imported_as_the_same_images() {
    let from = Host::new();
    let multi = layout(&["r.example/web:1"], &[b"lower", b"upper"], true);
    let mut images = from.import_bytes(&multi.tar()).await.unwrap();
    assert_ne!(
        images[0].target, images[0].manifest,
        "an index and its manifest"
    );
    let other = docker_archive(&["r.example/other:2"], &[b"lower"]).tar();
    images.extend(from.import_bytes(&other).await.unwrap());
    let bytes = from.export(&images).await.unwrap();
    assert_eq!(
        bytes,
        from.export(&images).await.unwrap(),
        "the same bytes each time"
    );
    let to = Host::new();
    assert_eq!(to.import_bytes(&bytes).await.unwrap(), images);
    assert_eq!(to.blobs.list().unwrap().len(), 2, "one blob for two images");
}

#[tokio::test]
async fn an_export_without_its_blobs_names_them_all() {
    let host = Host::new();
    let tar = oci_files("r.example/web:1", &[b"lower", b"upper"]).tar();
    let images = host.import_bytes(&tar).await.unwrap();
    for layer in &images[0].layers {
        host.blobs.remove(&layer.digest).unwrap();
    }
    let refused = host.export(&images).await.unwrap_err();
    let all: Vec<Digest> = images[0]
        .layers
        .iter()
        .map(|layer| layer.digest.clone())
        .collect();
    assert!(
        matches!(&refused, ExportError::NotKept { missing, .. } if *missing == all),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("not kept on this host"),
        "{refused}"
    );
}

#[tokio::test]
async fn an_export_of_a_damaged_blob_fails() {
    let host = Host::new();
    let tar = oci_files("r.example/web:1", &[b"layer"]).tar();
    let images = host.import_bytes(&tar).await.unwrap();
    let blob = host
        .blobs
        .find(&images[0].layers[0].digest)
        .unwrap()
        .unwrap();
    let file = File::options().write(true).open(&blob.path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"X", 0).unwrap();
    let refused = host.export(&images).await.unwrap_err();
    assert!(matches!(refused, ExportError::Damaged { .. }), "{refused}");
}

#[tokio::test]
async fn a_name_that_is_not_full_has_to_be_given() {
    let tar = oci_files("latest", &[b"layer"]).tar();
    let host = Host::new();
    let refused = host.refused(&tar).await;
    assert!(
        matches!(&refused, ImportError::Unnamed { found, .. } if found.contains("\"latest\"")),
        "{refused}"
    );
    let path = host.file("in.tar", &tar);
    let images = host.import(&path, Some("r.example/web:7")).await.unwrap();
    assert_eq!(names(&images), ["r.example/web:7"]);
}

#[tokio::test]
async fn one_name_is_for_one_image() {
    let host = Host::new();
    let twice = docker_archive(&["r.example/web:1", "r.example/web:2"], &[b"a"]).tar();
    let path = host.file("in.tar", &twice);
    let images = host.import(&path, Some("r.example/web:7")).await.unwrap();
    assert_eq!(names(&images), ["r.example/web:7"]);
    let mut two = layout(&["r.example/a:1"], &[b"a"], false);
    two.merge(layout(&["r.example/b:1"], &[b"b"], false));
    let path = host.file("in.tar", &two.tar());
    let refused = host
        .import(&path, Some("r.example/web:7"))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, ImportError::SeveralImages { count: 2, .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn what_is_no_image_is_refused_with_what_is_allowed() {
    let host = Host::new();
    let mut files = Files::default();
    files.add("README", b"hello");
    let refused = host.refused(&files.tar()).await;
    assert!(matches!(refused, ImportError::NotAnImage), "{refused}");
    assert!(refused.to_string().contains("manifest.json"), "{refused}");
    let missing = host
        .import(Path::new("/nonexistent"), None)
        .await
        .unwrap_err();
    assert!(matches!(missing, ImportError::Io { .. }), "{missing}");
    let pipe = host.directory.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for (path, what) in [(pipe, "neither a file"), (host.file("empty", b""), "empty")] {
        let refused = host.import(&path, None).await.unwrap_err();
        assert!(
            matches!(&refused, ImportError::NotReadable { what: said, .. } if said.contains(what)),
            "{refused}"
        );
    }
    let refused = host.refused(&[b'x'; 2048]).await;
    assert!(matches!(refused, ImportError::Archive(_)), "{refused}");
}

#[tokio::test]
async fn a_missing_blob_is_named() {
    for what in ["config", "layer", "manifest"] {
        let host = Host::new();
        let mut files = oci_files("r.example/web:1", &[b"layer"]);
        let name = files.of(what);
        files.0.remove(&name).unwrap();
        let refused = host.refused(&files.tar()).await;
        assert!(
            matches!(&refused, ImportError::Missing { name: said, .. } if *said == name),
            "{what}: {refused}"
        );
    }
}

#[tokio::test]
async fn a_blob_that_is_not_what_its_name_says_is_refused() {
    for what in ["config", "layer", "manifest"] {
        let host = Host::new();
        let mut files = oci_files("r.example/web:1", &[b"layer"]);
        let name = files.of(what);
        let bytes = files.0.get_mut(&name).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let refused = host.refused(&files.tar()).await;
        assert!(
            matches!(&refused, ImportError::Damaged { name: said, expected, .. }
                if *said == name && expected.starts_with("sha256:")),
            "{what}: {refused}"
        );
        assert!(host.blobs.list().unwrap().is_empty(), "{what}");
        let mut files = oci_files("r.example/web:1", &[b"layer"]);
        files.0.get_mut(&name).unwrap().push(b' ');
        let refused = host.refused(&files.tar()).await;
        assert!(
            matches!(&refused, ImportError::Damaged { got, .. } if got.ends_with("bytes")),
            "{what}: {refused}"
        );
    }
}

#[tokio::test]
async fn one_bad_image_keeps_all_others_out() {
    let host = Host::new();
    let mut files = layout(&["r.example/a:1"], &[b"good"], false);
    let mut bad = layout(&["r.example/b:1"], &[b"bad"], false);
    let name = bad.of("layer");
    bad.0.get_mut(&name).unwrap()[0] ^= 1;
    files.merge(bad);
    let refused = host.refused(&files.tar()).await;
    assert!(matches!(refused, ImportError::Damaged { .. }), "{refused}");
}

#[tokio::test]
async fn a_layer_of_a_docker_archive_has_to_be_its_diff_id() {
    let host = Host::new();
    let mut files = docker_archive(&["r.example/web:1"], &[b"layer"]);
    files.0.get_mut("layer0/layer.tar").unwrap()[0] ^= 1;
    let refused = host.refused(&files.tar()).await;
    assert!(matches!(refused, ImportError::Damaged { .. }), "{refused}");
    let mut files = docker_archive(&["r.example/web:1"], &[b"layer"]);
    let compressed = gzip(&files.0["layer0/layer.tar"]);
    files.add("layer0/layer.tar", &compressed);
    let refused = host.refused(&files.tar()).await;
    assert!(
        matches!(&refused, ImportError::Entry { why, .. } if why.contains("compressed")),
        "{refused}"
    );
}

#[tokio::test]
async fn an_image_for_another_platform_is_refused_with_what_there_is() {
    let host = Host::new();
    for tar in [
        archives::for_platform("r.example/web:1", "s390x").tar(),
        archives::listed_for_platform("r.example/web:1", "s390x").tar(),
    ] {
        let refused = host.refused(&tar).await;
        assert!(
            matches!(&refused, ImportError::Image(PullError::UnsupportedPlatform { offered, .. })
                if offered == "linux/s390x"),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn names_that_lead_out_are_refused() {
    let files = oci_files("r.example/web:1", &[b"layer"]);
    let long = [b'a'; 300];
    for (name, why) in [
        (&b"/etc/passwd"[..], "absolute"),
        (b"../index.json", "leads out"),
        (b"blobs/../../x", "leads out"),
        (b"blobs/\xff", "UTF-8"),
        (&long, "too long"),
    ] {
        let host = Host::new();
        let refused = host
            .refused(&files.tar_with(|tar| archives::file(tar, name, b"x")))
            .await;
        assert!(
            matches!(&refused, ImportError::Entry { why: said, .. } if said.contains(why)),
            "{name:?}: {refused}"
        );
    }
}

#[tokio::test]
async fn two_of_one_name_are_refused_and_so_are_links_that_lead_nowhere() {
    let files = oci_files("r.example/web:1", &[b"layer"]);
    let host = Host::new();
    let twice = files.tar_with(|tar| archives::file(tar, b"./index.json", b"{}"));
    let refused = host.refused(&twice).await;
    assert!(
        matches!(&refused, ImportError::Entry { why, .. } if why.contains("two of that name")),
        "{refused}"
    );
    let out = files.tar_with(|tar| archives::link(tar, b"x", b"../../etc/shadow"));
    let refused = host.refused(&out).await;
    assert!(
        matches!(&refused, ImportError::Entry { why, .. } if why.contains("leads out")),
        "{refused}"
    );
    let mut docker = docker_archive(&["r.example/web:1"], &[b"layer"]);
    docker.0.remove("layer0/layer.tar");
    for (target, missing) in [(&b"nothing"[..], true), (b"layer.tar", false)] {
        let tar = docker.tar_with(|tar| archives::link(tar, b"layer0/layer.tar", target));
        let refused = host.refused(&tar).await;
        assert_eq!(
            matches!(refused, ImportError::Missing { .. }),
            missing,
            "{refused}"
        );
        assert_eq!(
            matches!(refused, ImportError::Entry { .. }),
            !missing,
            "{refused}"
        );
    }
}

#[tokio::test]
async fn devices_and_pipes_are_refused() {
    let files = oci_files("r.example/web:1", &[b"layer"]);
    for kind in [
        tar::EntryType::Char,
        tar::EntryType::Block,
        tar::EntryType::Fifo,
    ] {
        let host = Host::new();
        let tar = files.tar_with(|tar| archives::special(tar, b"blobs/x", kind));
        let refused = host.refused(&tar).await;
        assert!(
            matches!(&refused, ImportError::Entry { why, .. } if why.contains("only files")),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn links_in_a_directory_are_refused() {
    let host = Host::new();
    let files = oci_files("r.example/web:1", &[b"layer"]);
    let directory = host.directory.path().join("layout");
    files.write_below(&directory);
    let layer = directory.join(files.of("layer"));
    let elsewhere = host.directory.path().join("elsewhere");
    fs::rename(&layer, &elsewhere).unwrap();
    symlink(&elsewhere, &layer).unwrap();
    let refused = host.import(&directory, None).await.unwrap_err();
    assert!(
        matches!(&refused, ImportError::Entry { why, .. } if why.contains("symbolic link")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_bomb_is_bounded() {
    let host = Host::new();
    let many = |tar: &mut Vec<u8>| {
        for at in 0..66_000 {
            archives::file(tar, format!("f{at}").as_bytes(), b"");
        }
    };
    let refused = host.refused(&gzip(&Files::default().tar_with(many))).await;
    assert!(
        matches!(
            refused,
            ImportError::TooLarge {
                what: "entries",
                ..
            }
        ),
        "{refused}"
    );
    let mut document = vec![b' '; 8 << 20];
    document[0] = b'{';
    let heavy = |tar: &mut Vec<u8>| {
        for at in 0..7 {
            archives::file(tar, format!("f{at}").as_bytes(), &document);
        }
    };
    let refused = host.refused(&gzip(&Files::default().tar_with(heavy))).await;
    assert!(
        matches!(
            refused,
            ImportError::TooLarge {
                what: "bytes of documents",
                ..
            }
        ),
        "{refused}"
    );
    // A header that promises more than is there.
    let mut cut = oci_files("r.example/web:1", &[b"layer"]).tar();
    cut.truncate(1024 + 100);
    let refused = host.refused(&cut).await;
    assert!(
        matches!(refused, ImportError::Archive(_) | ImportError::Read { .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn documents_that_are_none_are_refused() {
    for (name, text, why) in [
        ("oci-layout", r#"{"imageLayoutVersion":"2.0.0"}"#, "2.0.0"),
        ("oci-layout", "[", "EOF"),
        (
            "index.json",
            r#"{"schemaVersion":2,"manifests":[]}"#,
            "names no image",
        ),
        ("index.json", "{}", "missing field"),
    ] {
        let host = Host::new();
        let mut files = oci_files("r.example/web:1", &[b"layer"]);
        files.add(name, text.as_bytes());
        let refused = host.refused(&files.tar()).await;
        assert!(
            matches!(&refused, ImportError::Malformed { name: said, why: because }
                if said == name && because.contains(why)),
            "{text}: {refused}"
        );
    }
}

#[tokio::test]
async fn what_another_pull_left_wrong_is_written_anew() {
    let host = Host::new();
    let bytes = vec![7_u8; 3 << 20];
    let tar = oci_files("r.example/web:1", &[&bytes]).tar();
    let layer = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    match host.blobs.begin(&layer).unwrap() {
        Begun::Partial(partial) => partial.write_at(0, &vec![8; 1 << 20]).unwrap(),
        other => panic!("{other:?}"),
    }
    let images = host.import_bytes(&tar).await.unwrap();
    assert_eq!(images[0].layers[0].digest, layer.digest);
}

#[tokio::test]
async fn a_blob_that_another_writes_is_waited_for() {
    let host = Host::new();
    let bytes = b"layer".to_vec();
    let tar = oci_files("r.example/web:1", &[&bytes]).tar();
    let layer = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    let Begun::Partial(partial) = host.blobs.begin(&layer).unwrap() else {
        panic!("busy")
    };
    let path = host.file("in.tar", &tar);
    let importing = host.import(&path, None);
    let writing = async {
        tokio::task::yield_now().await;
        tokio::task::spawn_blocking(move || {
            partial.write_at(0, &bytes).unwrap();
            partial.commit().unwrap();
        })
        .await
        .unwrap();
    };
    let (imported, ()) = tokio::join!(importing, writing);
    assert_eq!(names(&imported.unwrap()), ["r.example/web:1"]);
}

#[tokio::test]
async fn an_image_with_more_layers_than_can_be_used_is_refused() {
    let layers = vec![&b"layer"[..]; 501];
    for archive in [
        docker_archive(&["r.example/web:1"], &layers),
        oci_files("r.example/web:1", &layers),
    ] {
        let said = Host::new().refused(&archive.tar()).await.to_string();
        assert!(
            said.contains("malformed: it has 501 layers; at most 500"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn an_archive_with_more_names_than_anybody_needs_is_refused() {
    let names = |count: usize| -> Vec<String> {
        let names = (0..count).map(|n| format!("r.example/web:{n}"));
        names.collect()
    };
    let archives = |names: &[String]| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        [
            docker_archive(&names, &[b"layer"]),
            layout(&names, &[b"layer"], false),
        ]
    };
    for archive in archives(&names(1001)) {
        let said = Host::new().refused(&archive.tar()).await.to_string();
        let expected = "malformed: it has 1001 names of images; at most 1000";
        assert!(said.contains(expected), "{said}");
    }
    for archive in archives(&names(1000)) {
        let images = Host::new().import_bytes(&archive.tar()).await.unwrap();
        assert_eq!(images.len(), 1000);
    }
}
