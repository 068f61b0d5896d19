//! Layers as real archives, applied to real directories as root.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod shell;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Cursor;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use imagecache::archive::{Bounds, Reader};
use imagecache::layer::{Applied, LayerError, Limits, Marks, apply};
use shell::sh;

/// What a tree looks like: for each path all that can be asked of it.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    look(root, root, &mut found);
    found
}

fn look(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let content = if kind.is_file() {
            let sum = imagecache::Digest::of(&fs::read(&path).unwrap());
            format!("{sum} {} links {}", meta.len(), meta.nlink())
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {:x} {}", meta.rdev(), kind.is_char_device())
        } else {
            String::new()
        };
        let xattrs = Command::new("getfattr")
            .args(["--absolute-names", "-h", "-d", "-m", "-", "-e", "hex"])
            .arg(&path)
            .output()
            .unwrap();
        let xattrs = String::from_utf8(xattrs.stdout).unwrap();
        let xattrs: Vec<_> = xattrs
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        let said = format!(
            "{:o} {}:{} {}.{} {content} {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            xattrs.join(" "),
        );
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        found.insert(name, said);
        if kind.is_dir() {
            look(root, &path, found);
        }
    }
}

fn applied(archive: &[u8], root: &Path, marks: Marks) -> Result<Applied, LayerError> {
    fs::create_dir_all(root).unwrap();
    let root = File::open(root).unwrap();
    let mut reader = Reader::new(Cursor::new(archive), Bounds::default());
    apply(&mut reader, root.as_fd(), marks, &Limits::default(), 2)
}

/// A tree with everything that layers have.
const EVERYTHING: &str = r#"
    mkdir -p tree/etc/deep/er tree/dev tree/bin tree/private
    cd tree
    echo hello >etc/motd; chmod 640 etc/motd; chown 33:44 etc/motd
    : >etc/empty
    head -c 3000000 /dev/urandom >bin/large; chmod 4755 bin/large
    ln bin/large bin/linked; ln etc/motd etc/deep/er/motd
    ln -s ../etc/motd bin/motd; ln -s /nowhere bin/dangling
    ln -s deep etc/way; chown -h 7:8 bin/motd
    mknod dev/null c 1 3; mknod dev/disk b 8 300; mkfifo dev/pipe; chmod 600 dev/pipe
    chmod 1777 private; chmod 0 etc/deep/er
    setfattr -n user.note -v "of a file" etc/motd; setfattr -n user.note -v dir etc/deep
    setcap cap_net_bind_service=ep bin/large
    truncate -s 20M etc/holes; printf x | dd of=etc/holes bs=1 seek=5000000 conv=notrunc 2>/dev/null
    name=$(printf 'n%.0s' $(seq 200)); mkdir -p long/$name/$name; echo 1 >long/$name/$name/$name
    ln -s $name/$name/$name long/link; ln long/$name/$name/$name long/hard
    touch -d '1999-12-31 23:59:59.123456789' etc/empty bin; touch -h -d '2001-01-01' bin/dangling
    i=0; while [ $i -lt 300 ]; do echo $i >etc/deep/$i; i=$((i+1)); done
"#;

#[test]
fn a_tree_comes_out_as_tar_put_it_in_in_every_format() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    sh(EVERYTHING, place);
    let formats = [
        ("pax", "--format=posix --xattrs --xattrs-include=*", true),
        (
            "pax-sparse",
            "--format=posix --xattrs --xattrs-include=* -S",
            true,
        ),
        (
            "pax-sparse-0.1",
            "--format=posix --xattrs --xattrs-include=* -S --sparse-version=0.1",
            true,
        ),
        (
            "pax-sparse-0.0",
            "--format=posix --xattrs --xattrs-include=* -S --sparse-version=0.0",
            true,
        ),
        ("gnu", "--format=gnu", false),
        ("gnu-sparse", "--format=gnu -S", false),
    ];
    for (name, options, is_exact) in formats {
        sh(
            &format!("tar {options} --numeric-owner -cf {name}.tar -C tree ."),
            place,
        );
        let archive = fs::read(place.join(format!("{name}.tar"))).unwrap();
        let (ours, theirs) = (
            place.join(format!("{name}-ours")),
            place.join(format!("{name}-tar")),
        );
        applied(&archive, &ours, Marks::Overlay).unwrap();
        fs::create_dir(&theirs).unwrap();
        sh(
            &format!(
                "tar --xattrs --xattrs-include=* --numeric-owner -xpf {name}.tar -C {name}-tar"
            ),
            place,
        );
        let (ours_tree, theirs_tree) = (tree(&ours), tree(&theirs));
        for (path, said) in &theirs_tree {
            assert_eq!(ours_tree.get(path), Some(said), "{name}: {path}");
        }
        assert_eq!(ours_tree.len(), theirs_tree.len(), "{name}");
        if is_exact {
            assert_eq!(ours_tree, tree(&place.join("tree")), "{name}");
        }
        let blocks = fs::metadata(ours.join("etc/holes")).unwrap().blocks();
        assert_eq!(
            name.contains("sparse"),
            blocks < 100,
            "{name}: {blocks} blocks"
        );
    }
}
