//! Reading a log piece by piece, and waiting for more.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::gate::{UntrustedError, open_untrusted};
use crate::sys;

/// Bytes of one piece.
const PIECE: usize = 32 * 1024;
/// Between two looks at a log that is written to all the time.
const PACE: Duration = Duration::from_millis(50);
/// How often a file without a name is looked for: rotation gives it another soon, and the end of
/// the instance takes its directory.
const NAMELESS: Duration = Duration::from_millis(500);

type Pieces = mpsc::Sender<io::Result<Bytes>>;

/// A place in a log.
pub(super) struct Reader {
    directory: PathBuf,
    name: String,
    /// `None` until there is one.
    file: Option<Arc<File>>,
    at: u64,
}

/// What a look at the file's name found.
enum Named {
    /// The file that is read, of so many bytes.
    Same { length: u64 },
    /// Another one: rotation.
    Other(File),
    /// Nothing, or nothing that is read.
    Nothing,
    /// The directory is gone, and the instance with it.
    Gone,
}

impl Reader {
    pub fn new(directory: &Path, name: String, file: Option<File>, at: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            name,
            file: file.map(Arc::new),
            at,
        }
    }

    /// Up to `end` and no further: a process that writes faster than we read keeps nobody.
    pub async fn read_to(mut self, end: u64, pieces: &Pieces) -> io::Result<()> {
        while self.at < end {
            let left = usize::try_from(end - self.at).unwrap_or(PIECE);
            let piece = self.piece(left.min(PIECE)).await?;
            if piece.is_empty() || pieces.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Until the instance is gone or nobody reads any more.
    pub async fn follow(mut self, pieces: &Pieces) -> io::Result<()> {
        // Before the first read, so that nothing written meanwhile is missed.
        let watch = self.watch()?;
        loop {
            if !self.read_all(pieces).await? {
                return Ok(());
            }
            let nameless = match self.look().await? {
                Named::Gone => {
                    self.read_all(pieces).await?;
                    return Ok(());
                }
                Named::Other(file) => {
                    // What was written between the last read and the rotation.
                    if !self.read_all(pieces).await? {
                        return Ok(());
                    }
                    self.file = Some(Arc::new(file));
                    self.at = 0;
                    continue;
                }
                Named::Same { length } if length < self.at => {
                    self.at = 0;
                    continue;
                }
                Named::Same { .. } => false,
                Named::Nothing => true,
            };
            tokio::select! {
                () = pieces.closed() => return Ok(()),
                changed = changed(&watch, nameless) => changed?,
            }
            sleep(PACE).await;
        }
    }

    /// Everything up to the present end; false when nobody reads.
    async fn read_all(&mut self, pieces: &Pieces) -> io::Result<bool> {
        loop {
            let piece = self.piece(PIECE).await?;
            if piece.is_empty() {
                return Ok(true);
            }
            if pieces.send(Ok(piece)).await.is_err() {
                return Ok(false);
            }
        }
    }

    async fn piece(&mut self, most: usize) -> io::Result<Bytes> {
        let Some(file) = self.file.clone() else {
            return Ok(Bytes::new());
        };
        let at = self.at;
        let read = move || {
            let mut piece = vec![0; most];
            let length = file.read_at(&mut piece, at)?;
            piece.truncate(length);
            Ok::<_, io::Error>(piece)
        };
        let piece = blocking(read).await??;
        self.at += piece.len() as u64;
        Ok(piece.into())
    }

    async fn look(&self) -> io::Result<Named> {
        let (directory, name) = (self.directory.clone(), self.name.clone());
        let file = self.file.clone();
        let look = move || match open_untrusted(&directory, &name) {
            Ok(found) => {
                let other = found.metadata()?;
                let one = file.map(|file| file.metadata()).transpose()?;
                let same = |one: Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
                Ok(if one.is_some_and(same) {
                    let length = other.len();
                    Named::Same { length }
                } else {
                    Named::Other(found)
                })
            }
            Err(UntrustedError::Open(_) | UntrustedError::Forged(_)) => {
                Ok(match directory.try_exists() {
                    Ok(false) => Named::Gone,
                    _ => Named::Nothing,
                })
            }
        };
        blocking(look).await?
    }

    fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let events = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::DONT_FOLLOW
            | WatchFlags::ONLYDIR;
        add_watch(&inotify, self.directory.as_path(), events)?;
        sys::watch_readable(inotify)
    }
}

/// Returns when something in the directory changed; when the file has no name, after a while too.
async fn changed(watch: &AsyncFd<OwnedFd>, nameless: bool) -> io::Result<()> {
    let readable = watch.readable();
    let mut ready = match nameless {
        false => readable.await?,
        true => match timeout(NAMELESS, readable).await {
            Ok(ready) => ready?,
            Err(_) => return Ok(()),
        },
    };
    // That something changed is all that is wanted to know of it.
    let mut events = [0_u8; 4096];
    loop {
        match rustix::io::read(watch.get_ref(), &mut events) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    ready.clear_ready();
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}
