//! Users of an image by name: its `/etc/passwd` and `/etc/group`, read from its layers.
//!
//! The layers are looked through from the top as overlayfs would show them (whiteouts, opaque
//! directories, links into other layers), each opened with `openat2(IN_ROOT, NO_MAGICLINKS)`: a
//! link in an image never leads out of it. What an instance wrote to its own rootfs is not looked
//! at: the image decides who its users are, not whoever ran in it before.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
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
    let entry = passwd.lines().filter_map(PasswdEntry::read).find(|entry| match number {
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
        (None, Some(uid)) => {
            ResolvedUser { uid, gid: 0, additional_gids: Vec::new(), home: None }
        }
        (None, None) => return Err(UserError::UnknownUser { name: user.to_owned() }),
    };
    let numeric_group = group.and_then(|group| group.parse().ok());
    match (group, numeric_group, entry) {
        (Some(_), Some(gid), _) => resolved.gid = gid,
        (Some(name), None, _) => {
            let groups = read(&layers, "etc/group")?;
            let found = groups.lines().filter_map(GroupEntry::read).find(|entry| entry.name == name);
            let unknown = || UserError::UnknownGroup { name: name.to_owned() };
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
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
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
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }

    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member == user)
    }
}

/// Directories of the image's layers, the topmost first.
fn layers(rootfs: &RootfsMounts) -> Result<Vec<PathBuf>, UserError> {
    let Some(mount) = rootfs.mounts.first() else {
        return Err(UserError::Mounts { kind: "none".to_owned() });
    };
    match mount.kind.as_str() {
        "overlay" => {
            let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
            Ok(lower.into_iter().flat_map(|dirs| dirs.split(':')).map(PathBuf::from).collect())
        }
        "bind" => Ok(vec![PathBuf::from(&mount.source)]),
        other => Err(UserError::Mounts { kind: other.to_owned() }),
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
        let root = open(CWD, layer, OFlags::DIRECTORY, ResolveFlags::empty()).map_err(failed)?;
        match open(&root, sought, OFlags::empty(), ResolveFlags::IN_ROOT) {
            Ok(opened) => {
                return match kind(&opened).map_err(failed)? {
                    FileType::RegularFile => Ok(Found::File(layer, File::from(opened))),
                    // Neither a directory nor a device tells names.
                    _ => Err(failed(Errno::INVAL)),
                };
            }
            // A whiteout cannot be opened: its device has no driver.
            Err(Errno::NXIO | Errno::NODEV) => return Ok(Found::Nothing),
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
        let opened = open(root, &here, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::IN_ROOT);
        match opened {
            Ok(opened) if kind(&opened)? == FileType::Symlink => {
                let target = rustix::fs::readlinkat(&opened, "", Vec::new())?;
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
    let mut way = if target.is_absolute() { PathBuf::new() } else { from.to_owned() };
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
        match open(root, &way, OFlags::NOFOLLOW, ResolveFlags::IN_ROOT) {
            Ok(opened) if kind(&opened)? == FileType::Directory => {
                let mut value = [0; 1];
                let opaque = rustix::fs::fgetxattr(&opened, "trusted.overlay.opaque", &mut value);
                if opaque == Ok(1) && value == *b"y" {
                    return Ok(true);
                }
            }
            Ok(_) | Err(Errno::NXIO | Errno::NODEV) => return Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}

fn open(
    at: impl std::os::fd::AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    // Never waits for the other end of a pipe, never becomes a controlling terminal. (A path
    // descriptor does neither, and openat2 refuses the flags for it.)
    let calm = match flags.contains(OFlags::PATH) {
        true => flags,
        false => flags | OFlags::NONBLOCK | OFlags::NOCTTY,
    };
    rustix::fs::openat2(at, path, calm, Mode::empty(), resolve | ResolveFlags::NO_MAGICLINKS)
}

fn kind(opened: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(opened)?.st_mode))
}
