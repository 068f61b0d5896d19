//! Users of an image by name: its `/etc/passwd` and `/etc/group`, read from its layers.
//!
//! The layers are looked through from the top as overlayfs would show them (whiteouts, opaque
//! directories, links into other layers), by `openat2(IN_ROOT, NO_MAGICLINKS)`: a link in an image
//! never leads out of it, and nothing but a directory or a regular file is ever opened. What an
//! instance wrote to its own rootfs is not looked at: the image decides who its users are, not
//! whoever ran in it before.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::snapshot::RootfsMounts;

/// Largest passwd or group file that is read, bytes.
const LARGEST: u64 = 1 << 20;
/// Links followed from layer to layer.
const LINKS: usize = 8;

/// Who a process runs as, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups that list the user as a member; none when a group was asked for.
    pub additional_gids: Vec<u32>,
    /// Home directory, where the image says one.
    pub home: Option<String>,
}

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The image has no such user.
    #[error("user {name:?} is not in the image's /etc/passwd; a number needs no entry")]
    UnknownUser {
        /// As asked for.
        name: String,
    },
    /// The image has no such group.
    #[error("group {name:?} is not in the image's /etc/group; a number needs no entry")]
    UnknownGroup {
        /// As asked for.
        name: String,
    },
    /// A file of the image cannot be read.
    #[error("{path} of the image cannot be read from {}", .layer.display())]
    Unreadable {
        /// Path inside the image.
        path: &'static str,
        /// Layer in which it was found.
        layer: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The mounts have no layers that we know how to read.
    #[error("the rootfs has mounts of type {kind:?}: overlay or bind is allowed")]
    Mounts {
        /// The type found.
        kind: String,
    },
}

/// Resolves `user` and `group` (numbers or names, as docker does) against the image below `rootfs`.
/// A number without an entry is taken as it is, with group 0. Reads small files: blocks shortly.
pub fn resolve_user(
    rootfs: &RootfsMounts,
    user: &str,
    group: Option<&str>,
) -> Result<ResolvedUser, UserError> {
    let layers = layers(rootfs)?;
    let passwd = read(&layers, "etc/passwd")?;
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .filter_map(PasswdEntry::read)
        .find(|entry| match number {
            Some(uid) => entry.uid == uid,
            None => entry.name == user,
        });
    let mut resolved = match (&entry, number) {
        (Some(entry), _) => ResolvedUser {
            uid: entry.uid,
            gid: entry.gid,
            additional_gids: Vec::new(),
            home: Some(entry.home.to_owned()).filter(|home| !home.is_empty()),
        },
        (None, Some(uid)) => ResolvedUser {
            uid,
            gid: 0,
            additional_gids: Vec::new(),
            home: None,
        },
        (None, None) => {
            return Err(UserError::UnknownUser {
                name: user.to_owned(),
            });
        }
    };
    let numeric_group = group.and_then(|group| group.parse().ok());
    match (group, numeric_group, entry) {
        (Some(_), Some(gid), _) => resolved.gid = gid,
        (Some(name), None, _) => {
            let groups = read(&layers, "etc/group")?;
            let found = groups
                .lines()
                .filter_map(GroupEntry::read)
                .find(|entry| entry.name == name);
            let unknown = || UserError::UnknownGroup {
                name: name.to_owned(),
            };
            resolved.gid = found.ok_or_else(unknown)?.gid;
        }
        (None, _, Some(entry)) => {
            let groups = read(&layers, "etc/group")?;
            resolved.additional_gids = groups
                .lines()
                .filter_map(GroupEntry::read)
                .filter(|group| group.gid != entry.gid && group.has(entry.name))
                .map(|group| group.gid)
                .collect();
        }
        (None, _, None) => {}
    }
    Ok(resolved)
}

/// A line of passwd(5).
struct PasswdEntry<'l> {
    name: &'l str,
    uid: u32,
    gid: u32,
    home: &'l str,
}

impl<'l> PasswdEntry<'l> {
    fn read(line: &'l str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or_default(),
        })
    }
}

/// A line of group(5).
struct GroupEntry<'l> {
    name: &'l str,
    gid: u32,
    members: &'l str,
}

impl<'l> GroupEntry<'l> {
    fn read(line: &'l str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }

    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member == user)
    }
}

/// Directories of the image's layers, the topmost first.
fn layers(rootfs: &RootfsMounts) -> Result<Vec<PathBuf>, UserError> {
    let Some(mount) = rootfs.mounts.first() else {
        return Err(UserError::Mounts {
            kind: "none".to_owned(),
        });
    };
    match mount.kind.as_str() {
        "overlay" => {
            let lower = mount
                .options
                .iter()
                .find_map(|option| option.strip_prefix("lowerdir="));
            Ok(lower
                .into_iter()
                .flat_map(|dirs| dirs.split(':'))
                .map(PathBuf::from)
                .collect())
        }
        "bind" => Ok(vec![PathBuf::from(&mount.source)]),
        other => Err(UserError::Mounts {
            kind: other.to_owned(),
        }),
    }
}

/// Content of a file of the image; empty when there is none. What is not UTF-8 is no name of ours.
fn read(layers: &[PathBuf], path: &'static str) -> Result<String, UserError> {
    let unreadable = |layer: &Path, source: std::io::Error| UserError::Unreadable {
        path,
        layer: layer.to_owned(),
        source,
    };
    let mut sought = PathBuf::from(path);
    for _ in 0..LINKS {
        let (layer, file) = match find(layers, &sought) {
            Ok(Found::File(layer, file)) => (layer, file),
            Ok(Found::LinkTo(target)) => {
                sought = target;
                continue;
            }
            Ok(Found::Nothing) => return Ok(String::new()),
            Err((layer, errno)) => return Err(unreadable(layer, errno.into())),
        };
        let mut content = Vec::new();
        let read = file.take(LARGEST + 1).read_to_end(&mut content);
        let size = read.map_err(|error| unreadable(layer, error))?;
        if size as u64 > LARGEST {
            return Err(unreadable(layer, Errno::FBIG.into()));
        }
        return Ok(String::from_utf8_lossy(&content).into_owned());
    }
    let top = layers.first().map_or(Path::new("/"), PathBuf::as_path);
    Err(unreadable(top, Errno::LOOP.into()))
}

enum Found<'l> {
    File(&'l Path, File),
    /// Followed inside its own layer it led nowhere; in the whole image it may.
    LinkTo(PathBuf),
    Nothing,
}

type LayerError<'l> = (&'l Path, Errno);

fn find<'l>(layers: &'l [PathBuf], sought: &Path) -> Result<Found<'l>, LayerError<'l>> {
    for layer in layers {
        let failed = |errno| (layer.as_path(), errno);
        let root = directory(CWD, layer, ResolveFlags::empty()).map_err(failed)?;
        match locate(&root, sought, OFlags::empty()) {
            Ok(located) => {
                let file = rustix::fs::fstat(&located).map_err(failed)?;
                return match FileType::from_raw_mode(file.st_mode) {
                    FileType::RegularFile => {
                        let opened = reopen(&located).map_err(failed)?;
                        Ok(Found::File(layer, File::from(opened)))
                    }
                    // A whiteout (kernel, overlayfs.rst): the layers below have it, the image not.
                    FileType::CharacterDevice if file.st_rdev == 0 => Ok(Found::Nothing),
                    _ => Err(failed(Errno::INVAL)),
                };
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        if let Some(target) = link(&root, sought).map_err(failed)? {
            return Ok(Found::LinkTo(target));
        }
        if hides_below(&root, sought).map_err(failed)? {
            return Ok(Found::Nothing);
        }
    }
    Ok(Found::Nothing)
}

/// Where the first link on the way to `sought` leads, with the rest of the way: absolute in the
/// image.
fn link(root: &OwnedFd, sought: &Path) -> Result<Option<PathBuf>, Errno> {
    let mut way = PathBuf::new();
    let mut parts = sought.components();
    while let Some(part) = parts.next() {
        let here = way.join(part);
        match locate(root, &here, OFlags::NOFOLLOW) {
            Ok(located) if kind(&located)? == FileType::Symlink => {
                let target = rustix::fs::readlinkat(&located, "", Vec::new())?;
                let target = PathBuf::from(target.to_string_lossy().into_owned());
                return Ok(Some(within(&way, &target.join(parts.as_path()))));
            }
            Ok(_) => way = here,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// `target` seen from the directory `from`, `..` ending at the root, without its leading slash.
fn within(from: &Path, target: &Path) -> PathBuf {
    let mut way = if target.is_absolute() {
        PathBuf::new()
    } else {
        from.to_owned()
    };
    for part in target.components() {
        match part {
            Component::Normal(name) => way.push(name),
            Component::ParentDir => {
                way.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    way
}

/// Whether a directory on the way replaces those of the layers below: it is opaque, or no directory.
fn hides_below(root: &OwnedFd, sought: &Path) -> Result<bool, Errno> {
    let mut way = PathBuf::new();
    for part in sought.parent().into_iter().flat_map(Path::components) {
        way.push(part);
        match directory(root, &way, ResolveFlags::IN_ROOT) {
            Ok(opened) => {
                let mut value = [0; 1];
                let opaque = rustix::fs::fgetxattr(&opened, "trusted.overlay.opaque", &mut value);
                if opaque == Ok(1) && value == *b"y" {
                    return Ok(true);
                }
            }
            // Every part before it is a directory, so it is this one that is none: a whiteout, or
            // a file in place of a directory.
            Err(Errno::NOTDIR) => return Ok(true),
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}

/// Finds without opening: a device or pipe in an image notices nothing.
fn locate(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// Opens for reading what was located and found to be a regular file.
fn reopen(located: &OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", located.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn directory(at: impl AsFd, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(
        at,
        path,
        flags,
        Mode::empty(),
        resolve | ResolveFlags::NO_MAGICLINKS,
    )
}

fn kind(located: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(located)?.st_mode))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::XattrFlags;

    use super::super::snapshot::Mount;
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/www:/bin/sh\nbroken\n";

    /// Layers of an image, the topmost first.
    struct Layers(tempfile::TempDir, Vec<&'static str>);

    impl Layers {
        fn new(names: &[&'static str]) -> Self {
            let layers = Self(tempfile::tempdir().unwrap(), names.to_vec());
            for name in names {
                fs::create_dir_all(layers.at(name, "etc")).unwrap();
            }
            layers
        }

        fn at(&self, layer: &str, path: &str) -> PathBuf {
            self.0.path().join(layer).join(path)
        }

        fn write(&self, layer: &str, path: &str, content: &str) {
            fs::create_dir_all(self.at(layer, path).parent().unwrap()).unwrap();
            fs::write(self.at(layer, path), content).unwrap();
        }

        fn rootfs(&self) -> RootfsMounts {
            let lower: Vec<String> = self
                .1
                .iter()
                .map(|name| self.at(name, "").display().to_string())
                .collect();
            RootfsMounts {
                mounts: vec![Mount {
                    kind: "overlay".to_owned(),
                    source: "overlay".to_owned(),
                    options: vec![
                        "index=off".to_owned(),
                        format!("lowerdir={}", lower.join(":")),
                    ],
                }],
            }
        }

        fn resolve(&self, user: &str) -> Result<ResolvedUser, UserError> {
            resolve_user(&self.rootfs(), user, None)
        }

        fn has_no_web(&self, why: &str) {
            let resolved = self.resolve("web");
            assert!(
                matches!(&resolved, Err(UserError::UnknownUser { .. })),
                "{why}: {resolved:?}"
            );
        }
    }

    #[test]
    fn numbers_and_names_mean_what_docker_means() {
        let image = Layers::new(&["one"]);
        image.write("one", "etc/passwd", PASSWD);
        image.write("one", "etc/group", "web:x:44:\nlogs:x:4:web,joe\n");
        let web = ResolvedUser {
            uid: 33,
            gid: 44,
            additional_gids: vec![4],
            home: Some("/www".to_owned()),
        };
        assert_eq!(image.resolve("web").unwrap(), web);
        assert_eq!(image.resolve("33").unwrap(), web);
        let nobody = image.resolve("1000").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.home), (1000, 0, None));
        let with = |group| resolve_user(&image.rootfs(), "web", Some(group));
        let logs = with("logs").unwrap();
        assert_eq!((logs.gid, logs.additional_gids), (4, vec![]));
        assert_eq!(with("7").unwrap().gid, 7);
        assert!(
            matches!(with("nogroup"), Err(UserError::UnknownGroup { name }) if name == "nogroup")
        );
        let empty = Layers::new(&["none"]);
        empty.has_no_web("no passwd at all");
        assert_eq!(empty.resolve("5").unwrap().uid, 5, "a number needs no file");
    }

    #[test]
    fn layers_hide_each_other_as_overlayfs_has_it() {
        let image = Layers::new(&["top", "base"]);
        image.write("base", "etc/passwd", PASSWD);
        assert_eq!(image.resolve("web").unwrap().uid, 33, "shines through");
        let opaque = b"y";
        rustix::fs::setxattr(
            image.at("top", "etc"),
            "trusted.overlay.opaque",
            opaque,
            XattrFlags::empty(),
        )
        .unwrap();
        image.has_no_web("an opaque directory");
        let whited = Layers::new(&["top", "base"]);
        whited.write("base", "etc/passwd", PASSWD);
        rustix::fs::mknodat(
            CWD,
            whited.at("top", "etc/passwd"),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();
        whited.has_no_web("a whiteout");
    }

    #[test]
    fn links_stay_inside_the_image() {
        // Absolute links are the image's, `..` ends at its root, and other layers are looked at.
        for target in [
            "/usr/lib/passwd",
            "../usr/lib/passwd",
            "../../../../usr/lib/passwd",
        ] {
            let image = Layers::new(&["top", "base"]);
            symlink(target, image.at("top", "etc/passwd")).unwrap();
            image.write("base", "usr/lib/passwd", PASSWD);
            assert_eq!(image.resolve("web").unwrap().uid, 33, "{target}");
        }
        let outside = Layers::new(&["one"]);
        fs::write(outside.0.path().join("passwd"), PASSWD).unwrap();
        symlink("../../passwd", outside.at("one", "etc/passwd")).unwrap();
        outside.has_no_web("a link out of the image");
        let circle = Layers::new(&["one"]);
        symlink("/etc/passwd", circle.at("one", "etc/passwd")).unwrap();
        let looped = circle.resolve("web");
        assert!(
            matches!(
                &looped,
                Err(UserError::Unreadable {
                    path: "etc/passwd",
                    ..
                })
            ),
            "{looped:?}"
        );
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let image = Layers::new(&["one"]);
        let path = image.at("one", "etc/passwd");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let refused = image.resolve("web");
        assert!(
            matches!(&refused, Err(UserError::Unreadable { .. })),
            "{refused:?}"
        );
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b'x'; (LARGEST + 1) as usize]).unwrap();
        let refused = image.resolve("web");
        assert!(
            matches!(&refused, Err(UserError::Unreadable { source, .. })
                if source.raw_os_error() == Some(Errno::FBIG.raw_os_error())),
            "{refused:?}"
        );
    }
}
