//! Layers that nobody made in good faith: they are refused or harmless, and nothing outside of
//! their directory is touched.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Cursor;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use imagecache::archive::{Bounds, Reader};
use imagecache::layer::{Applied, LayerError, Limits, Marks, apply};

/// An archive that is written byte by byte.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(path: &str, typeflag: u8, link: &str, size: usize) -> [u8; 512] {
        let mut block = [0; 512];
        let put = |block: &mut [u8; 512], at: usize, text: &str| {
            block[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(&mut block, 0, path);
        put(&mut block, 100, "0000644");
        put(&mut block, 108, "0000000");
        put(&mut block, 116, "0000000");
        put(&mut block, 124, &format!("{size:011o}"));
        put(&mut block, 136, "14000000000");
        block[156] = typeflag;
        put(&mut block, 157, link);
        put(&mut block, 257, "ustar\0");
        put(&mut block, 263, "00");
        put(&mut block, 329, "0000001");
        put(&mut block, 337, "0000003");
        Self::seal(block)
    }

    fn seal(mut block: [u8; 512]) -> [u8; 512] {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn block(mut self, block: [u8; 512]) -> Self {
        self.0.extend_from_slice(&block);
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.block(Self::header(path, b'0', "", data.len()))
            .data(data.as_bytes())
    }

    fn directory(self, path: &str) -> Self {
        self.block(Self::header(path, b'5', "", 0))
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.block(Self::header(path, b'2', target, 0))
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.block(Self::header(path, b'1', target, 0))
    }

    fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..5)
                .map(|digits| rest + digits)
                .find(|n| n.to_string().len() + rest == *n);
            text.push_str(&format!("{} {key}={value}\n", length.unwrap()));
        }
        self.block(Self::header("pax", b'x', "", text.len()))
            .data(text.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory with a neighbour that has to stay as it is.
struct Place {
    around: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let around = tempfile::tempdir().unwrap();
        for directory in ["layer", "outside"] {
            fs::create_dir(around.path().join(directory)).unwrap();
        }
        fs::write(around.path().join("outside/file"), "untouched").unwrap();
        Self { around }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.around.path().join("layer").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn apply_with(&self, tar: Tar, marks: Marks, limits: Limits) -> Result<Applied, LayerError> {
        let archive = tar.end();
        let root = File::open(self.around.path().join("layer")).unwrap();
        let mut reader = Reader::new(Cursor::new(archive), Bounds::default());
        let applied = apply(&mut reader, root.as_fd(), marks, &limits, 2);
        let outside = fs::read_to_string(self.around.path().join("outside/file")).unwrap();
        assert_eq!(outside, "untouched");
        let mut names: Vec<_> = fs::read_dir(self.around.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["layer", "outside"]);
        let outside = fs::read_dir(self.around.path().join("outside")).unwrap();
        assert_eq!(outside.count(), 1);
        applied
    }

    fn apply(&self, tar: Tar) -> Result<Applied, LayerError> {
        self.apply_with(tar, Marks::Overlay, Limits::default())
    }

    fn refusal(&self, tar: Tar) -> String {
        let error: &dyn std::error::Error = &self.apply(tar).unwrap_err();
        match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }
}

#[test]
fn no_way_leads_out_of_the_layer() {
    let place = Place::new();
    let tar = Tar::default()
        .file("../../outside/up", "1")
        .file("/absolute", "2")
        .symlink("root", "/")
        .file("root/through/file", "3")
        .symlink("up", "../../../outside")
        .file("up/new", "4")
        .directory("dir")
        .file("dir/kept", "5")
        .symlink("dir", "/elsewhere")
        .file("dir/moved", "6")
        .symlink("file", "../outside/file")
        .file("file", "7");
    place.apply(tar).unwrap();
    let texts = [
        ("outside/up", "1"),
        ("absolute", "2"),
        ("through/file", "3"),
        ("outside/new", "4"),
        ("elsewhere/moved", "6"),
        ("file", "7"),
    ];
    for (path, text) in texts {
        assert_eq!(place.text(path), text, "{path}");
    }
    assert!(!place.path("dir").join("kept").exists());
}

#[test]
fn a_hard_link_reaches_nothing_outside_of_the_layer() {
    let place = Place::new();
    let outside = place.around.path().join("outside/file");
    let outside = outside.to_str().unwrap();
    for target in ["../outside/file", outside, "up/file", "nothing"] {
        let tar = Tar::default()
            .symlink("up", "../outside")
            .hard_link("stolen", target);
        let said = place.refusal(tar);
        assert!(
            said.contains("hard link to what is not in this layer"),
            "{said}"
        );
    }
    let said = place.refusal(
        Tar::default()
            .file("self", "x")
            .hard_link("./self", "/self"),
    );
    assert!(said.contains("hard link to itself"), "{said}");
    // A link to a link is a second name of the link.
    let tar = Tar::default()
        .symlink("way", "/etc/shadow")
        .hard_link("second", "way");
    place.apply(tar).unwrap();
    assert_eq!(
        fs::read_link(place.path("second")).unwrap(),
        Path::new("/etc/shadow")
    );
}

#[test]
fn the_last_of_equal_names_counts_and_directories_are_merged() {
    let place = Place::new();
    let tar = Tar::default()
        .file("a", "first")
        .file("a", "second")
        .symlink("b", "a")
        .file("b", "not through the link")
        .file("c", "x")
        .directory("c")
        .file("c/below", "y")
        .directory("c")
        .directory("d")
        .file("d/gone", "x")
        .file("d", "a file")
        .symlink("e", "c")
        .file("e/through", "z");
    place.apply(tar).unwrap();
    assert_eq!(place.text("a"), "second");
    assert_eq!(place.text("b"), "not through the link");
    assert_eq!(place.text("c/below"), "y");
    assert_eq!(place.text("d"), "a file");
    assert_eq!(place.text("c/through"), "z");
}

#[test]
fn loops_and_files_on_the_way_are_refused() {
    let place = Place::new();
    let said = place.refusal(
        Tar::default()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", "1"),
    );
    assert!(
        said.contains("\"a/x\": make the directories above failed"),
        "{said}"
    );
    assert!(said.contains("Too many levels"), "{said}");
    let said = Place::new().refusal(
        Tar::default()
            .file("a", "1")
            .directory("b")
            .file("a/x", "1"),
    );
    assert!(said.contains("\"a/x\"") || said.contains("\"a\""), "{said}");
}

#[test]
fn marks_of_deletion_are_those_of_overlayfs_above_and_removals_at_the_bottom() {
    let place = Place::new();
    let marked = || {
        Tar::default()
            .file("kept", "1")
            .directory("d")
            .file("d/mine", "2")
            .file("d/.wh..wh..opq", "")
            .file("d/.wh.theirs", "")
            .file("d/later", "3")
    };
    place.apply(marked()).unwrap();
    let mark = fs::symlink_metadata(place.path("d/theirs")).unwrap();
    assert!(mark.file_type().is_char_device());
    assert_eq!(mark.rdev(), 0);
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(place.path("d"), "trusted.overlay.opaque", &mut value);
    assert_eq!(&value[..length.unwrap()], b"y");
    assert_eq!(
        (place.text("d/mine"), place.text("d/later")),
        ("2".into(), "3".into())
    );

    let lowest = Place::new();
    let tar = Tar::default()
        .file("d/theirs", "0")
        .directory("x")
        .file(".wh.x", "");
    let tar = Tar([tar.0, marked().0].concat());
    let limits = Limits::default();
    lowest.apply_with(tar, Marks::Remove, limits).unwrap();
    assert!(!lowest.path("d/theirs").exists() && !lowest.path("x").exists());
    assert_eq!(lowest.text("d/mine"), "2");

    for name in [".wh.", ".wh..", ".wh...", ".wh..wh.plnk", "d/.wh..wh.x"] {
        let said = Place::new().refusal(Tar::default().file(name, ""));
        assert!(
            said.contains(&format!("entry {name:?} is refused")),
            "{said}"
        );
    }
}

#[test]
fn attributes_of_the_host_are_not_taken_from_a_layer() {
    let place = Place::new();
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", "/etc"),
            ("SCHILY.xattr.user.mine", "kept"),
        ])
        .directory("d");
    place.apply(tar).unwrap();
    let mut value = [0; 16];
    let found = rustix::fs::getxattr(place.path("d"), "trusted.overlay.redirect", &mut value);
    assert_eq!(found, Err(rustix::io::Errno::NODATA));
    let length = rustix::fs::getxattr(place.path("d"), "user.mine", &mut value).unwrap();
    assert_eq!(&value[..length], b"kept");
}

#[test]
fn the_size_of_the_pax_header_finds_the_next_entry() {
    // Read by its header alone, the first file is empty and what it contains is an archive.
    let hidden = Tar::default().file("smuggled", "x").0;
    let place = Place::new();
    let tar = Tar::default().pax(&[("size", &hidden.len().to_string())]);
    let tar = tar.block(Tar::header("blob", b'0', "", 0)).data(&hidden);
    place.apply(tar.file("after", "y")).unwrap();
    assert!(!place.path("smuggled").exists());
    assert_eq!(fs::read(place.path("blob")).unwrap(), hidden);
    assert_eq!(place.text("after"), "y");
}

#[test]
fn what_is_not_whole_or_not_true_is_refused() {
    let mut broken = Tar::header("x", b'0', "", 1);
    broken[0] = b'y';
    let huge = "9".repeat(15);
    let old_sparse = |real: &str, offset: &str, length: &str| {
        let mut block = Tar::header("x", b'S', "", 1);
        block[257..265].copy_from_slice(b"ustar  \0");
        block[345..].fill(0);
        block[386..386 + offset.len()].copy_from_slice(offset.as_bytes());
        block[398..398 + length.len()].copy_from_slice(length.as_bytes());
        block[483..483 + real.len()].copy_from_slice(real.as_bytes());
        Tar::default().block(Tar::seal(block)).data(b"x")
    };
    let cases = [
        (Tar::default().block(broken), "its check sum is"),
        (
            Tar::default().block(Tar::header("x", b'0', "", 4096)),
            "in the middle of a file",
        ),
        (
            Tar::default().pax(&[("path", "x")]),
            "entry of an extended header",
        ),
        (
            Tar::default().pax(&[("size", "-1")]).file("x", ""),
            "PAX record size is \"-1\"",
        ),
        (
            Tar::default().pax(&[("path", "a\0b")]).file("x", ""),
            "contains NUL",
        ),
        (
            Tar::default().pax(&[("uid", &huge)]).file("x", ""),
            "PAX record uid is",
        ),
        (
            Tar::default().pax(&[("mtime", "soon")]).file("x", ""),
            "PAX record mtime",
        ),
        (
            Tar::default().block(Tar::header("x", b'x', "", 2 << 20)),
            "at most 1048576 are allowed",
        ),
        (
            Tar::default().block(Tar::header("x", b'7', "", 0)),
            "it is of type '7'",
        ),
        (
            old_sparse("00000000010", "00000000000", "00000000002"),
            "its map says 2",
        ),
        (
            old_sparse("00000000001", "00000000010", "00000000001"),
            "has a piece of 1 at 8",
        ),
        (Tar(vec![0; 512]).file("x", ""), "one empty block"),
    ];
    for (tar, expected) in cases {
        let said = Place::new().refusal(tar);
        assert!(said.contains(expected), "{said:?} instead of {expected:?}");
    }
}

#[test]
fn limits_are_held_before_anything_is_written() {
    let none = Limits {
        entries: 2,
        bytes: 10,
        path: 16,
        depth: 3,
        directories: 1000,
        devices: false,
    };
    let device = Tar::default().block(Tar::header("null", b'3', "", 0));
    let bomb = Tar::default().pax(&[("GNU.sparse.size", "11"), ("GNU.sparse.map", "0,1")]);
    let cases = [
        (
            Tar::default().file("a", "").file("b", "").file("c", ""),
            "more than 2 entries; entry \"c\"",
        ),
        (
            Tar::default().file("a", "12345").file("b", "123456"),
            "more than 10 bytes; entry \"b\"",
        ),
        (bomb.file("a", "x"), "more than 10 bytes"),
        (
            Tar::default().file("12345678/12345678", ""),
            "its path has 17 bytes; at most 16",
        ),
        (
            Tar::default().symlink("s", "a/b/c").file("s/d/e", ""),
            "entry \"s/d/e\" is refused: with links followed it lies in 4 directories; at most 3",
        ),
        (
            Tar::default()
                .symlink("s", "12345678/1")
                .file("s/123456/x", ""),
            "the path of its directory has 17 bytes; at most 16",
        ),
        (device, "it is a device"),
    ];
    for (tar, expected) in cases {
        let place = Place::new();
        let error = place.apply_with(tar, Marks::Overlay, none).unwrap_err();
        assert!(
            error.to_string().contains(expected),
            "{error} instead of {expected:?}"
        );
    }
}

#[test]
fn what_is_remembered_of_directories_is_bounded() {
    let limits = Limits {
        directories: 1000,
        ..Limits::default()
    };
    let deep = |name: &str| vec![name; 40].join("/");
    let made = Tar::default().file(&deep("a"), "").file(&deep("b"), "");
    // One directory, again and again.
    let named = (0..20).fold(Tar::default(), |tar, _| tar.directory("d"));
    for (tar, entry) in [(made, deep("a")), (named, "d".to_owned())] {
        let applied = Place::new().apply_with(tar, Marks::Overlay, limits);
        let said = applied.unwrap_err().to_string();
        let expected = format!("more than 1000 bytes of paths of directories; entry {entry:?}");
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn links_lead_no_deeper_than_a_path_could() {
    // A name for each of the ways down, each 2000 directories below the one before.
    let down = vec!["a"; 2000].join("/");
    let mut tar = Tar::default();
    let mut way = String::new();
    for _ in 0..10 {
        way = format!("{way}s");
        tar = tar
            .pax(&[("linkpath", &down)])
            .symlink(&way, "")
            .file(&format!("{way}/x"), "");
        way.push('/');
    }
    let place = Place::new();
    let said = place.refusal(tar.file("a", "replaces it"));
    assert_eq!(
        said,
        "entry \"s/s/x\" is refused: with links followed it lies in 2049 directories; at most 2048"
    );
    // What was made before goes as soon as something replaces it.
    place.apply(Tar::default().file("a", "a file")).unwrap();
    assert_eq!(place.text("a"), "a file");
}

#[test]
fn directories_without_an_entry_are_told_and_open_to_all() {
    let place = Place::new();
    let tar = Tar::default()
        .file("a/b/file", "1")
        .directory("a")
        .symlink("way", "a/b")
        .file("way/c/file", "2");
    let applied = place.apply(tar).unwrap();
    assert_eq!(
        applied.implicit,
        BTreeSet::from([PathBuf::from("a/b"), PathBuf::from("a/b/c")])
    );
    assert_eq!((applied.entries, applied.bytes), (4, 2));
    let mode = |name| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/b")), (0o644, 0o755));
}

/// What a tree looks like, without its times.
fn listed(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = match meta.file_type() {
                kind if kind.is_file() => fs::read_to_string(&path).unwrap(),
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                _ => String::new(),
            };
            let name = path.strip_prefix(root).unwrap().display();
            found.push(format!(
                "{name} {:o} {} {content}",
                meta.mode(),
                meta.rdev()
            ));
            if meta.is_dir() {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 400, failure_persistence: None, ..Default::default() })]
    #[test]
    fn however_many_write_the_tree_is_the_same(
        entries in proptest::collection::vec((0..6_u8, "[ab]{1,2}(/[ab]{1,2}){0,2}", "[ab.]{1,2}(/[ab.]{1,2}){0,2}"), 0..25),
    ) {
        let tar = || entries.iter().enumerate().fold(Tar::default(), |tar, (n, (kind, path, other))| match kind {
            0 | 1 => tar.file(path, &n.to_string()),
            2 => tar.directory(path),
            3 => tar.symlink(path, other),
            4 => tar.hard_link(path, other),
            _ => {
                let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
                tar.file(&format!("{above}/.wh.{name}"), "")
            }
        });
        let (one, many) = (Place::new(), Place::new());
        let applied = [(&one, 0), (&many, 4)].map(|(place, writers)| {
            let root = File::open(place.path("")).unwrap();
            let mut reader = Reader::new(Cursor::new(tar().end()), Bounds::default());
            apply(&mut reader, root.as_fd(), Marks::Remove, &Limits::default(), writers)
        });
        let [one_said, many_said] = applied;
        assert_eq!(one_said.is_ok(), many_said.is_ok(), "{one_said:?} {many_said:?}");
        if one_said.is_ok() {
            assert_eq!(listed(&one.path("")), listed(&many.path("")));
            assert_eq!(one_said.unwrap(), many_said.unwrap());
        }
    }
}
