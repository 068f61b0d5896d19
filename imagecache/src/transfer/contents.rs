//! The files of a layout, wherever they are: in a directory or in a tar, compressed or not.
//!
//! Visits them one after the other, in any order, as often as wanted. Follows no link, opens
//! nothing outside of the directory, and refuses names that mean to lead out.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::ImportError;
use crate::archive::{Bounds, Entry, Kind, Reader};
use crate::inflate;

/// Longest name; those of docker and OCI have less than 80 bytes.
const LONGEST_NAME: usize = 255;
/// Bytes read from a disk at a time.
const BUFFER: usize = 256 * 1024;
/// Where blobs are in a layout (image-spec, image-layout.md).
pub(super) const BLOBS: &str = "blobs/sha256";

/// What is to be imported.
#[derive(Debug)]
pub(super) enum Contents {
    /// A layout as a directory.
    Directory { root: OwnedFd, path: PathBuf },
    /// A tar of files.
    Archive { file: File, path: PathBuf },
}

/// What has a name.
pub(super) enum Item<'a> {
    File {
        size: u64,
        data: &'a mut dyn Read,
    },
    /// A link to another name of the archive.
    Link(String),
}

/// Whether the visit goes on.
pub(super) type Go = Result<ControlFlow<()>, ImportError>;

impl Contents {
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let fail = |operation| io_error(operation, path);
        // Not blocking: the open of a pipe would wait for whoever writes it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty());
        let fd = fd.map_err(|errno| fail("open")(errno.into()))?;
        let file = File::from(fd);
        let kind = file.metadata().map_err(fail("look at"))?.file_type();
        if kind.is_dir() {
            let (root, path) = (file.into(), path.to_owned());
            return Ok(Self::Directory { root, path });
        }
        let not_readable = |what| ImportError::NotReadable {
            path: path.to_owned(),
            what,
        };
        if !kind.is_file() {
            return Err(not_readable("neither a file nor a directory"));
        }
        if file.metadata().map_err(fail("look at"))?.len() == 0 {
            return Err(not_readable("empty"));
        }
        let path = path.to_owned();
        Ok(Self::Archive { file, path })
    }

    /// Shows every file until `each` breaks off or fails. Blocks.
    pub fn visit(&self, each: &mut dyn FnMut(&str, Item<'_>) -> Go) -> Result<(), ImportError> {
        match self {
            Self::Directory { root, path } => visit_directory(root, path, each),
            Self::Archive { file, path } => {
                let mut file = file.try_clone().map_err(io_error("open", path))?;
                file.rewind().map_err(io_error("read", path))?;
                let archive = inflate::open(file).map_err(io_error("read", path))?;
                visit_archive(BufReader::with_capacity(BUFFER, archive), each)
            }
        }
    }
}

fn visit_archive<R: Read>(
    from: R,
    each: &mut dyn FnMut(&str, Item<'_>) -> Go,
) -> Result<(), ImportError> {
    let mut archive = Reader::new(from, Bounds::default());
    while let Some(entry) = archive.next_entry()? {
        let Some(name) = name_of(&entry)? else {
            continue;
        };
        let refuse = |why: &str| ImportError::Entry {
            name: name.clone(),
            why: why.to_owned(),
        };
        let flow = match &entry.kind {
            Kind::Directory => ControlFlow::Continue(()),
            Kind::File {
                extents: Some(_), ..
            } => return Err(refuse("it is a sparse file, and what it holds is none")),
            Kind::File { size, .. } => {
                let (size, mut data) = (*size, Data(&mut archive));
                each(
                    &name,
                    Item::File {
                        size,
                        data: &mut data,
                    },
                )?
            }
            Kind::Symlink(target) => {
                let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                let target = text(target).and_then(|target| within(above, target));
                each(&name, Item::Link(target.map_err(|why| refuse(&why))?))?
            }
            Kind::HardLink(target) => {
                let target = text(target).and_then(|target| within("", target));
                each(&name, Item::Link(target.map_err(|why| refuse(&why))?))?
            }
            Kind::CharacterDevice(..) | Kind::BlockDevice(..) | Kind::Fifo | Kind::Unknown(_) => {
                return Err(refuse("only files, directories and links are allowed"));
            }
        };
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

/// The name of an entry without detours; none for the root itself.
fn name_of(entry: &Entry) -> Result<Option<String>, ImportError> {
    let name = text(&entry.path).and_then(|name| match name.starts_with('/') {
        true => Err("it is absolute".to_owned()),
        false => within("", name),
    });
    match name {
        Ok(name) if name.is_empty() => Ok(None),
        Ok(name) => Ok(Some(name)),
        Err(why) => Err(ImportError::Entry {
            name: String::from_utf8_lossy(&entry.path)
                .chars()
                .take(LONGEST_NAME)
                .collect(),
            why,
        }),
    }
}

fn text(name: &[u8]) -> Result<&str, String> {
    if name.len() > LONGEST_NAME {
        return Err(format!(
            "{} bytes are too long: {LONGEST_NAME} are allowed",
            name.len()
        ));
    }
    std::str::from_utf8(name).map_err(|_| "it is not UTF-8".to_owned())
}

/// `name` seen from the directory `above`, which must not lead out of the archive.
fn within(above: &str, name: &str) -> Result<String, String> {
    let absolute = name.starts_with('/');
    let mut names: Vec<&str> = above.split('/').filter(|name| !name.is_empty()).collect();
    for name in name.split('/') {
        match name {
            "" | "." => {}
            ".." if names.pop().is_some() => {}
            ".." => return Err("it leads out of the archive".to_owned()),
            name => names.push(name),
        }
    }
    match absolute {
        true => Err("it leads out of the archive".to_owned()),
        false => Ok(names.join("/")),
    }
}

/// Data of the present entry.
struct Data<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_data(buffer).map_err(io::Error::other)
    }
}

fn visit_directory(
    root: &OwnedFd,
    path: &Path,
    each: &mut dyn FnMut(&str, Item<'_>) -> Go,
) -> Result<(), ImportError> {
    let mut names = vec!["oci-layout".to_owned(), "index.json".to_owned()];
    let blobs = open_within(root, path, BLOBS, OFlags::DIRECTORY)?;
    if let Some(blobs) = blobs {
        let fail = |errno: Errno| io_error("list", &path.join(BLOBS))(errno.into());
        for entry in Dir::read_from(&blobs).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                let name = text(entry.file_name().to_bytes()).map_err(|why| {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    ImportError::Entry { name, why }
                })?;
                names.push(format!("{BLOBS}/{name}"));
            }
        }
    }
    for name in names {
        let Some(fd) = open_within(root, path, &name, OFlags::NONBLOCK)? else {
            continue;
        };
        let mut file = File::from(fd);
        let metadata = file.metadata();
        let metadata = metadata.map_err(io_error("look at", &path.join(&name)))?;
        if !metadata.is_file() {
            let why = "only files are allowed here".to_owned();
            return Err(ImportError::Entry { name, why });
        }
        let size = metadata.len();
        let data = &mut file;
        if each(&name, Item::File { size, data })?.is_break() {
            break;
        }
    }
    Ok(())
}

/// Opens what has this name below the directory; none when there is nothing.
fn open_within(
    root: &OwnedFd,
    path: &Path,
    name: &str,
    flags: OFlags,
) -> Result<Option<OwnedFd>, ImportError> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, name, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP) => Err(ImportError::Entry {
            name: name.to_owned(),
            why: "it is a symbolic link, or lies behind one".to_owned(),
        }),
        Err(errno) => Err(io_error("open", &path.join(name))(errno.into())),
    }
}

/// For `map_err`: what was being done, to which path.
pub(super) fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> ImportError {
    let path = path.to_owned();
    move |source| ImportError::Io {
        operation,
        path,
        source,
    }
}
