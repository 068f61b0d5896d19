//! Images from files and into files, for hosts without a registry.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use imagecache::transfer::{Archive, Export};
use rustix::fs::RenameFlags;

use super::{Held, Images, KeepError, parse};
use crate::runtime::{RuntimeError, TransferError, Unanswered};

/// Bytes written at a time.
const BUFFER: usize = 1 << 20;

/// Whether a file that is there may be replaced by an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// It stays, and nothing is exported.
    Never,
    /// It is replaced when the export is whole.
    Allowed,
}

/// Why an export has no file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is one of that name.
    #[error("{} exists: another name, or force, is needed", .path.display())]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was asked for.
        operation: &'static str,
        /// Of which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Images {
    /// Makes the images of an archive ready: those of an OCI layout (a directory or a tar) or of a
    /// docker-archive. `name` is for an archive with one image without a full name, or for another
    /// one. The images, in the order of the archive, held.
    pub async fn import(&self, path: &Path, name: Option<&str>) -> Result<Vec<Held>, KeepError> {
        let name = name.map(parse).transpose()?;
        let (images, path) = (self.clone(), path.to_owned());
        let work = async move {
            let archive = Archive::open(&path, name.as_ref()).await;
            let archive = archive.map_err(TransferError::from)?;
            let mut held = Vec::new();
            for (reference, _) in archive.images() {
                held.push(images.holds.hold(&reference.to_string()).await);
            }
            let ready = images
                .containerd
                .import_images(archive, &images.cache, &images.options)
                .await?;
            for ready in ready {
                images.record(ready).await;
            }
            images.settle_in_background();
            Ok(held)
        };
        self.at_work("import images", "archive", work).await
    }

    /// Writes images as a tar of an OCI layout that docker reads, too; bytes of the file. It is
    /// there whole or not at all.
    pub async fn export(
        &self,
        references: &[String],
        path: &Path,
        overwrite: Overwrite,
    ) -> Result<u64, KeepError> {
        let references: Result<Vec<_>, _> = references.iter().map(|name| parse(name)).collect();
        let (images, references, path) = (self.clone(), references?, path.to_owned());
        let work = async move {
            let export = images
                .containerd
                .export_images(&references, &images.cache)
                .await?;
            let export = export.map_err(|reference| KeepError::NotFound {
                reference: reference.to_string(),
            })?;
            let written = move || write(export, &path, overwrite);
            images.blocking(written).await
        };
        self.at_work("export images", "archive", work).await
    }

    /// On the threads of pulls.
    pub(super) async fn at_work<T: Send + 'static>(
        &self,
        operation: &'static str,
        object: &str,
        work: impl Future<Output = Result<T, KeepError>> + Send + 'static,
    ) -> Result<T, KeepError> {
        let ended = |why: String| {
            KeepError::Runtime(RuntimeError::Unavailable {
                operation,
                object: object.to_owned(),
                source: Unanswered::Ended(why),
            })
        };
        let work = self.workers.spawn(work);
        let work = work.map_err(|error| ended(format!("no threads for it: {error}")))?;
        work.await
            .unwrap_or_else(|error| Err(ended(error.to_string())))
    }
}

fn write(export: Export, path: &Path, overwrite: Overwrite) -> Result<u64, KeepError> {
    let io = |operation, source| FileError::Io {
        operation,
        path: path.to_owned(),
        source,
    };
    let exists = || FileError::Exists {
        path: path.to_owned(),
    };
    if overwrite == Overwrite::Never && fs::symlink_metadata(path).is_ok() {
        return Err(exists().into());
    }
    let part = Part::new(path).map_err(|source| io("create a file beside", source))?;
    let written = export.write(BufWriter::with_capacity(BUFFER, &part.file));
    written.map_err(TransferError::Export)?;
    let bytes = part
        .file
        .metadata()
        .map_err(|source| io("look at", source))?;
    part.file.sync_all().map_err(|source| io("write", source))?;
    match part.becomes(path, overwrite) {
        Ok(()) => Ok(bytes.len()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists().into()),
        Err(source) => Err(io("write", source).into()),
    }
}

/// A file beside the one that it is to become; gone when it does not.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn new(target: &Path) -> io::Result<Self> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:08x}.part", rand()?));
        let path = target.with_file_name(name);
        let mut options = OpenOptions::new();
        // Nobody else's file, and no link, is written into.
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self { path, file })
    }

    fn becomes(self, target: &Path, overwrite: Overwrite) -> io::Result<()> {
        let flags = match overwrite {
            Overwrite::Never => RenameFlags::NOREPLACE,
            Overwrite::Allowed => RenameFlags::empty(),
        };
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &self.path, here, target, flags)?;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Gone already, when it became what it was to become.
        fs::remove_file(&self.path).ok();
    }
}

fn rand() -> io::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}
