//! Images that hold every construct of the layer format (image-spec, "layer.md"), and real files: what
//! one unpacker makes of them is compared with what another makes.
//!
//! Each name is what the image is about. All of them are small; large ones are in
//! [`cached`](super::cached).

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::archive::{self, Entry, Format};
use super::layout::{Compression, Layout, LayoutWriter};

/// Where a layer's archive comes from.
#[derive(Debug, Clone)]
enum Source {
    /// These entries.
    Entries(Format, Vec<Entry>),
    /// The same behind a global PAX header.
    AfterGlobal(Vec<Entry>),
    /// A tree that a script makes in an empty directory, in GNU tar's hands with these options.
    Tree(&'static str, &'static str),
    /// Files of this machine, in GNU tar's hands.
    Machine(&'static [&'static str]),
}

/// A layer to be.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    source: Source,
    compression: Compression,
}

impl LayerSpec {
    fn of(source: Source) -> Self {
        Self {
            source,
            compression: Compression::Gzip,
        }
    }

    fn pax(entries: impl Into<Vec<Entry>>) -> Self {
        Self::of(Source::Entries(Format::Pax, entries.into()))
    }

    fn gnu(entries: impl Into<Vec<Entry>>) -> Self {
        Self::of(Source::Entries(Format::Gnu, entries.into()))
    }

    fn ustar(entries: impl Into<Vec<Entry>>) -> Self {
        Self::of(Source::Entries(Format::Ustar, entries.into()))
    }

    fn compressed(self, compression: Compression) -> Self {
        Self {
            compression,
            ..self
        }
    }

    fn write(&self, file: &Path) -> Result<()> {
        let out = || File::create(file).with_context(|| format!("create {}", file.display()));
        match &self.source {
            Source::Entries(format, entries) => {
                let mut out = BufWriter::new(out()?);
                archive::write(entries, *format, &mut out)
                    .and_then(|()| out.flush())
                    .with_context(|| format!("write {}", file.display()))
            }
            Source::AfterGlobal(entries) => {
                let mut out = BufWriter::new(out()?);
                archive::write_global("0123456789abcdef", &mut out)
                    .and_then(|()| archive::write(entries, Format::Pax, &mut out))
                    .and_then(|()| out.flush())
                    .with_context(|| format!("write {}", file.display()))
            }
            Source::Tree(script, options) => {
                let tree = file.with_extension("tree");
                fs::create_dir(&tree).with_context(|| format!("create {}", tree.display()))?;
                let mut shell = Command::new("/bin/sh");
                shell.args(["-euc", script]).current_dir(&tree);
                succeed(shell)?;
                let mut tar = Command::new("tar");
                tar.args(["--sort=name", "--numeric-owner", "--mtime=@1767225600"])
                    .args(options.split_whitespace())
                    .arg("-cf")
                    .arg(file)
                    .arg("-C")
                    .arg(&tree)
                    .arg(".");
                succeed(tar)?;
                fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))
            }
            Source::Machine(paths) => {
                let mut tar = Command::new("tar");
                tar.args(["--sort=name", "--numeric-owner", "--format=pax", "--xattrs"])
                    // Without them a header has the time of the last reader, and tar's process id.
                    .arg("--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime")
                    .arg("-cf")
                    .arg(file)
                    .args(["-C", "/"])
                    .args(*paths);
                succeed(tar)
            }
        }
    }
}

fn succeed(mut command: Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

/// An image to be.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// What it is about, as a name for a registry.
    pub name: &'static str,
    layers: Vec<LayerSpec>,
}

impl ImageSpec {
    /// Whether it has the same digest whenever it is made: GNU tar puts its process id into the names
    /// of sparse files.
    pub fn is_reproducible(&self) -> bool {
        !self.name.starts_with("sparse")
    }

    /// Builds it as an OCI layout in `directory`, which is made.
    pub fn build(&self, directory: &Path) -> Result<Layout> {
        let mut writer = LayoutWriter::create(directory)?;
        let scratch = directory.join("scratch.tar");
        for layer in &self.layers {
            layer.write(&scratch)?;
            writer.layer(&scratch, layer.compression)?;
        }
        fs::remove_file(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
        writer.finish()
    }
}

/// All of them.
pub fn catalogue() -> Vec<ImageSpec> {
    [
        whiteouts(),
        replacements(),
        metadata(),
        names(),
        forms(),
        real(),
    ]
    .concat()
}

/// Images that containerd refuses and others do not: GNU tar's own sparse entries (type `S`). The
/// tree is that of `sparse-files-in-pax-1.0`.
pub fn refused_by_containerd() -> Vec<ImageSpec> {
    vec![image(
        "sparse-files-in-the-old-format",
        [LayerSpec::of(Source::Tree(SPARSE, "--format=gnu --sparse"))],
    )]
}

fn image(name: &'static str, layers: impl Into<Vec<LayerSpec>>) -> ImageSpec {
    ImageSpec {
        name,
        layers: layers.into(),
    }
}

/// A directory with files and a directory below, for upper layers to change.
fn lower() -> LayerSpec {
    LayerSpec::pax([
        Entry::directory("etc"),
        Entry::file("etc/kept", "of the lowest layer"),
        Entry::file("etc/gone", "hidden above"),
        Entry::directory("var"),
        Entry::directory("var/deep").mode(0o700).owner(7, 8),
        Entry::directory("var/deep/er").mode(0o2775).owner(9, 10),
        Entry::file("var/deep/er/one", "1"),
        Entry::file("var/deep/er/two", "2"),
        Entry::symlink("link", "var/deep"),
    ])
}

fn whiteouts() -> Vec<ImageSpec> {
    vec![
        image(
            "a-whiteout-hides-a-file",
            [
                lower(),
                LayerSpec::pax([Entry::directory("etc"), Entry::whiteout("etc/gone")]),
            ],
        ),
        image(
            "a-whiteout-hides-a-directory-with-all-below",
            [lower(), LayerSpec::pax([Entry::whiteout("var/deep")])],
        ),
        image(
            "a-whiteout-at-the-top-hides-a-link",
            [lower(), LayerSpec::gnu([Entry::whiteout("link")])],
        ),
        image(
            "a-whiteout-of-nothing-hides-nothing",
            [
                lower(),
                LayerSpec::pax([Entry::whiteout("etc/never"), Entry::whiteout("never")]),
            ],
        ),
        image(
            "whiteouts-of-the-lowest-layer-are-gone",
            [LayerSpec::pax([
                Entry::directory("etc"),
                Entry::whiteout("etc/never"),
                Entry::directory("var"),
                Entry::opaque("var"),
                Entry::file("var/own", "own"),
            ])],
        ),
        image(
            "an-opaque-directory-has-only-its-own",
            [
                lower(),
                LayerSpec::pax([
                    Entry::directory("var/deep").mode(0o711),
                    Entry::opaque("var/deep"),
                    Entry::file("var/deep/own", "own"),
                ]),
            ],
        ),
        image(
            "an-opaque-mark-after-its-own-files-spares-them",
            [
                lower(),
                LayerSpec::pax([
                    Entry::directory("var/deep"),
                    Entry::file("var/deep/own", "own"),
                    Entry::opaque("var/deep"),
                ]),
            ],
        ),
        image(
            "an-opaque-directory-below-an-opaque-one",
            [
                lower(),
                LayerSpec::pax([
                    Entry::directory("var"),
                    Entry::opaque("var"),
                    Entry::directory("var/deep"),
                    Entry::opaque("var/deep"),
                    Entry::file("var/deep/own", "own"),
                ]),
            ],
        ),
        image(
            "what-was-hidden-comes-back-two-layers-up",
            [
                lower(),
                LayerSpec::pax([Entry::whiteout("var/deep"), Entry::whiteout("etc/gone")]),
                LayerSpec::pax([
                    Entry::directory("var/deep").mode(0o750),
                    Entry::file("var/deep/new", "new"),
                    Entry::file("etc/gone", "back"),
                ]),
            ],
        ),
        image(
            "a-directory-hidden-and-made-in-one-layer",
            [
                lower(),
                LayerSpec::pax([
                    Entry::whiteout("var/deep"),
                    Entry::directory("var/deep").mode(0o755),
                    Entry::file("var/deep/new", "new"),
                ]),
            ],
        ),
        image(
            "a-file-hidden-and-made-in-one-layer",
            [
                lower(),
                LayerSpec::pax([
                    Entry::whiteout("etc/gone"),
                    Entry::file("etc/gone", "again"),
                ]),
            ],
        ),
    ]
}

fn replacements() -> Vec<ImageSpec> {
    vec![
        image(
            "an-implicit-parent-is-as-the-lower-layer-has-it",
            [
                lower(),
                LayerSpec::pax([Entry::file("var/deep/er/three", "3")]),
            ],
        ),
        image(
            "an-implicit-parent-that-no-layer-has",
            [
                lower(),
                LayerSpec::pax([Entry::file("srv/new/tree/file", "file")]),
            ],
        ),
        image(
            "an-implicit-parent-two-layers-down",
            [
                lower(),
                LayerSpec::pax([Entry::file("etc/more", "more")]),
                LayerSpec::pax([
                    Entry::whiteout("var/deep/er/one"),
                    Entry::file("var/deep/x", "x"),
                ]),
            ],
        ),
        image(
            "an-implicit-parent-that-becomes-a-file",
            [
                lower(),
                LayerSpec::pax([
                    Entry::file("var/deep/er/three", "3"),
                    Entry::file("var/deep", "a file now"),
                ]),
            ],
        ),
        image(
            "an-implicit-parent-that-becomes-a-link",
            [
                lower(),
                LayerSpec::pax([
                    Entry::file("var/deep/er/three", "3"),
                    Entry::symlink("var/deep", "../etc"),
                ]),
            ],
        ),
        image(
            "a-file-in-the-place-of-a-directory",
            [
                lower(),
                LayerSpec::pax([Entry::file("var/deep", "a file now")]),
            ],
        ),
        image(
            "a-directory-in-the-place-of-a-file",
            [
                lower(),
                LayerSpec::pax([
                    Entry::directory("etc/gone"),
                    Entry::file("etc/gone/in", "in"),
                ]),
            ],
        ),
        image(
            "a-directory-in-the-place-of-a-link",
            [
                lower(),
                LayerSpec::pax([Entry::directory("link"), Entry::file("link/in", "in")]),
            ],
        ),
        image(
            "a-link-in-the-place-of-a-directory",
            [
                lower(),
                LayerSpec::pax([Entry::symlink("var/deep", "../etc")]),
            ],
        ),
        image(
            "a-path-through-a-link-of-a-lower-layer",
            [
                lower(),
                LayerSpec::pax([Entry::file("link/new", "where does it go")]),
            ],
        ),
        image(
            "a-directory-whose-mode-alone-changes",
            [
                lower(),
                LayerSpec::pax([Entry::directory("var/deep").mode(0o1777).owner(1, 1)]),
            ],
        ),
        image(
            "the-last-of-two-entries-counts",
            [LayerSpec::pax([
                Entry::file("twice", "first").mode(0o600),
                Entry::file("twice", "second").mode(0o640),
                Entry::directory("again").mode(0o700),
                Entry::file("again/in", "in"),
                Entry::directory("again").mode(0o711),
                Entry::symlink("turned", "twice"),
                Entry::file("turned", "a file in the end"),
            ])],
        ),
        image(
            "twenty-layers-that-change-one-file",
            (0..20_u8)
                .map(|number| {
                    LayerSpec::pax([
                        Entry::file("number", format!("{number}")),
                        Entry::file(format!("dir-{}/file-{number}", number % 3), [number; 40]),
                        Entry::whiteout(&format!("dir-{}/file-{}", number % 3, number / 2)),
                    ])
                })
                .collect::<Vec<_>>(),
        ),
    ]
}

fn metadata() -> Vec<ImageSpec> {
    vec![
        image(
            "hard-links-are-one-file",
            [LayerSpec::gnu([
                Entry::directory("bin"),
                Entry::file("bin/one", "one file").mode(0o4755).owner(5, 6),
                Entry::link("bin/two", "bin/one"),
                Entry::link("three", "bin/two"),
                Entry::symlink("four", "three"),
                Entry::link("five", "four"),
            ])],
        ),
        image(
            "modes-and-owners",
            [LayerSpec::gnu([
                Entry::file("setuid", "s").mode(0o4711),
                Entry::file("setgid", "g").mode(0o2755).owner(1000, 100),
                Entry::directory("sticky").mode(0o1777).owner(65534, 65534),
                Entry::directory("closed").mode(0o555),
                Entry::file("closed/in", "in a directory that is not writable").mode(0o400),
                Entry::directory("none").mode(0),
                Entry::file("none/in", "").mode(0),
                Entry::file("far", "f").owner(3_000_000, 4_000_000),
                Entry::symlink("owned-link", "far").owner(1000, 1000),
            ])],
        ),
        image(
            "times-to-the-nanosecond-and-long-ago",
            [LayerSpec::pax([
                Entry::directory("dir").mtime(1_000_000_000, 5),
                Entry::file("dir/late", "").mtime(1_600_000_000, 999_999_999),
                Entry::file("dir/first", "").mtime(0, 0),
                Entry::file("dir/before", "").mtime(-86_400, 0),
                Entry::file("dir/future", "").mtime(4_102_444_800, 1),
                Entry::symlink("dir/link", "late").mtime(1_234_567_890, 123_456_789),
                Entry::link("dir/hard", "dir/late").mtime(1_600_000_000, 999_999_999),
            ])],
        ),
        image(
            "extended-attributes-and-capabilities",
            [
                LayerSpec::pax([
                    Entry::directory("bin").xattr("user.kind", "directory"),
                    Entry::file("bin/ping", "ping")
                        .mode(0o755)
                        .capabilities(1 << 13),
                    Entry::file("bin/noted", "noted")
                        .xattr("user.note", "a value")
                        .xattr("user.bytes", [0, 255, 10, 61]),
                    Entry::link("bin/ping4", "bin/ping").capabilities(1 << 13),
                ]),
                LayerSpec::pax([Entry::file(
                    "bin/beside",
                    "below a directory with attributes",
                )]),
            ],
        ),
        image(
            "devices-and-pipes",
            [LayerSpec::gnu([
                Entry::directory("dev"),
                Entry::character("dev/null", 1, 3).mode(0o666),
                Entry::block("dev/loop", 7, 0).mode(0o660).owner(0, 6),
                Entry::character("dev/far", 400, 70_000),
                Entry::fifo("dev/pipe").mode(0o622).owner(3, 4),
            ])],
        ),
        image(
            "sparse-files-in-pax-0.1",
            [LayerSpec::of(Source::Tree(
                SPARSE,
                "--format=pax --sparse --sparse-version=0.1",
            ))],
        ),
        image(
            "sparse-files-in-pax-1.0",
            [LayerSpec::of(Source::Tree(
                SPARSE,
                "--format=pax --sparse --sparse-version=1.0",
            ))],
        ),
    ]
}

/// One with a hole at its head, one with holes between, one with nothing but a hole.
const SPARSE: &str = "
    truncate -s 1M hole
    truncate -s 1M head; printf end >>head
    for at in 0 1 2 3 4 5 6 7 8 9; do
        printf part-$at | dd of=parts bs=64K seek=$at conv=notrunc status=none
    done
    truncate -s 2M parts
    printf 'not sparse' >plain
";

fn names() -> Vec<ImageSpec> {
    let long = |letter: &str| {
        let parts = [letter.repeat(90), letter.repeat(91), letter.repeat(92)];
        parts.join("/")
    };
    let entries = |letter: &str| {
        vec![
            Entry::file(long(letter), "at the end of a long path"),
            Entry::directory(format!("{}/directory", long(letter).replace(letter, "z"))),
            Entry::symlink("link", format!("/{}", long(letter))),
            Entry::link("hard", long(letter)),
            Entry::file(letter.repeat(200), "a long name"),
        ]
    };
    let path = format!("{}/{}", "p".repeat(120), "n".repeat(80));
    vec![
        image(
            "long-names-in-the-format-of-gnu",
            [LayerSpec::gnu(entries("g"))],
        ),
        image("long-names-in-pax", [LayerSpec::pax(entries("x"))]),
        image(
            "long-names-in-ustar",
            [LayerSpec::ustar([Entry::file(path, "prefix and name")])],
        ),
        image(
            "names-of-any-bytes",
            [LayerSpec::gnu([
                Entry::file("with space", "1"),
                Entry::file("with\nnewline", "2"),
                Entry::file("üñí", "3"),
                Entry::file(b"not-utf-8-\xff\xfe", "4"),
                Entry::file("-rf", "5"),
                Entry::file(".hidden", "6"),
                Entry::file("back\\slash", "7"),
                Entry::file("wh.not-a-whiteout", "8"),
            ])],
        ),
        image(
            "names-that-are-spelt-otherwise",
            [LayerSpec::gnu([
                Entry::directory("./a"),
                Entry::file("./a/b", "dot"),
                Entry::file("a//c", "two slashes"),
                Entry::file("a/./d", "a dot within"),
                Entry::file("/e", "absolute"),
                Entry::directory("."),
            ])],
        ),
    ]
}

fn forms() -> Vec<ImageSpec> {
    let some = || {
        let numbers = (0..400_u32).flat_map(|number| (number * number).to_le_bytes());
        vec![
            Entry::directory("some"),
            Entry::file(
                "some/file",
                "some text that is long enough to be compressed".repeat(50),
            ),
            Entry::file("some/numbers", numbers.collect::<Vec<u8>>()),
        ]
    };
    vec![
        image(
            "each-compression-in-one-image",
            [
                LayerSpec::gnu(some()).compressed(Compression::None),
                LayerSpec::gnu([Entry::file("gzip", "z".repeat(5000))]),
                LayerSpec::pax([Entry::file("zstd", "s".repeat(5000))])
                    .compressed(Compression::Zstd),
            ],
        ),
        image(
            "gzip-of-two-members",
            [LayerSpec::gnu(some()).compressed(Compression::GzipOfTwo)],
        ),
        image(
            "zstd-of-two-frames",
            [LayerSpec::gnu(some()).compressed(Compression::ZstdOfTwo)],
        ),
        image(
            "a-layer-of-nothing",
            [LayerSpec::gnu([]), LayerSpec::gnu(some())],
        ),
        image(
            "the-same-layer-twice",
            [LayerSpec::gnu(some()), LayerSpec::gnu(some())],
        ),
        image(
            "a-global-header",
            [LayerSpec::of(Source::AfterGlobal(some()))],
        ),
    ]
}

/// Files as Debian has them: hundreds in deep directories, hard links, links, modes.
fn real() -> Vec<ImageSpec> {
    let machine = |paths| LayerSpec::of(Source::Machine(paths));
    vec![
        image(
            "the-time-zones-of-this-machine",
            [machine(&["usr/share/zoneinfo"])],
        ),
        image(
            "perl-and-its-modules-of-this-machine",
            [
                machine(&["usr/bin/perl", "usr/lib/x86_64-linux-gnu/perl-base"]),
                LayerSpec::pax([Entry::whiteout("usr/bin/perl")]),
            ],
        ),
        image(
            "accounts-and-services-of-this-machine",
            [machine(&[
                "etc/alternatives",
                "etc/passwd",
                "etc/group",
                "etc/shadow",
                "usr/lib/systemd",
            ])],
        ),
        image(
            "two-layers-of-this-machine",
            [
                machine(&["usr/share/terminfo", "lib/terminfo", "usr/lib/tmpfiles.d"]),
                machine(&[
                    "usr/lib/tmpfiles.d",
                    "usr/bin/su",
                    "usr/bin/mount",
                    "usr/bin/env",
                ]),
            ],
        ),
    ]
}
