//! Reading a log piece by piece from file to file, and waiting for more.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::files::{Files, MOST_FILES, Newer, are_one};
use super::records::Text;
use crate::sys;

/// Bytes that are read at once.
const PIECE: usize = 32 * 1024;
/// Between two looks at a log that is written to all the time.
const PACE: Duration = Duration::from_millis(50);
/// How often a file without a name is looked for: rotation gives it another soon, and the end of
/// the instance takes its directory.
const NAMELESS: Duration = Duration::from_millis(500);
/// Said in the place of what was removed before it was read.
const GAP: &str =
    "nodeagent: lines may be missing here: the log was rotated faster than it was read";

type Pieces = mpsc::Sender<io::Result<Bytes>>;

/// A place in a log.
pub(super) struct Reader {
    files: Files,
    text: Text,
    /// `None` until there is one.
    file: Option<Arc<File>>,
    at: u64,
    pieces: Pieces,
}

/// Why reading ends before the log does.
enum Ended {
    /// Nobody reads any more.
    Left,
    Failed(io::Error),
}

type Reading = Result<(), Ended>;

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Reader {
    pub fn new(files: Files, text: Text, file: Option<File>, at: u64, pieces: Pieces) -> Self {
        Self {
            files,
            text,
            file: file.map(Arc::new),
            at,
            pieces,
        }
    }

    /// Up to the end that was there and no further: a process that writes faster than we read
    /// keeps nobody.
    pub async fn read_to(mut self, end: Option<(File, u64)>) -> io::Result<()> {
        let Some((end, length)) = end else {
            return Ok(());
        };
        finished(self.up_to(Arc::new(end), length).await)
    }

    async fn up_to(&mut self, end: Arc<File>, length: u64) -> Reading {
        // Who moves files about in circles does not keep us longer than who moves them once.
        for _ in 0..MOST_FILES {
            let Some(file) = self.file.clone() else { break };
            if are_one(&file, &end)? {
                return self.rest_of(length).await;
            }
            let most = file.metadata()?.len();
            self.read(most).await?;
            let files = self.files.clone();
            let last = Arc::clone(&end);
            // What comes after, and whether the end is still ahead of it.
            let next = blocking(move || match files.newer(&file)? {
                Newer::Unknown(found) => Ok((Newer::Unknown(found), files.has(&last)?)),
                newer => Ok::<_, io::Error>((newer, true)),
            });
            match next.await?? {
                (Newer::File(newer), _) => self.go_to(newer),
                (Newer::Unknown(Some(oldest)), true) => {
                    self.tell_gap().await?;
                    self.go_to(oldest);
                }
                _ => break,
            }
        }
        self.tell_gap().await?;
        self.file = Some(end);
        self.at = 0;
        self.rest_of(length).await
    }

    async fn rest_of(&mut self, length: u64) -> Reading {
        self.read(length).await?;
        self.tell_rest().await
    }

    /// Until the instance is gone or nobody reads any more.
    pub async fn follow(mut self) -> io::Result<()> {
        finished(self.on_and_on().await)
    }

    async fn on_and_on(&mut self) -> Reading {
        // Before the first read, so that nothing written meanwhile is missed.
        let watch = watch(self.files.directory())?;
        while !self.pieces.is_closed() {
            self.read(u64::MAX).await?;
            let nameless = match self.next().await? {
                Newer::Gone => {
                    self.read(u64::MAX).await?;
                    return self.tell_rest().await;
                }
                Newer::File(newer) => {
                    // What was written between the last read and the rotation.
                    self.read(u64::MAX).await?;
                    self.go_to(newer);
                    continue;
                }
                Newer::Unknown(Some(oldest)) => {
                    if self.file.is_some() {
                        self.read(u64::MAX).await?;
                        self.tell_gap().await?;
                    }
                    self.go_to(oldest);
                    continue;
                }
                Newer::None { length } if length < self.at => {
                    self.at = 0;
                    continue;
                }
                Newer::None { .. } => false,
                Newer::Unknown(None) => true,
            };
            tokio::select! {
                () = self.pieces.closed() => return Err(Ended::Left),
                changed = changed(&watch, nameless) => changed?,
            }
            sleep(PACE).await;
        }
        Err(Ended::Left)
    }

    async fn next(&self) -> io::Result<Newer> {
        let (files, file) = (self.files.clone(), self.file.clone());
        let look = move || match file {
            Some(file) => files.newer(&file),
            None => match files.oldest(None)? {
                None if !files.directory().try_exists()? => Ok(Newer::Gone),
                found => Ok(Newer::Unknown(found)),
            },
        };
        blocking(look).await?
    }

    fn go_to(&mut self, file: File) {
        self.file = Some(Arc::new(file));
        self.at = 0;
    }

    /// The present file up to its end, at most to `end`.
    async fn read(&mut self, end: u64) -> Reading {
        while self.at < end {
            let left = usize::try_from(end - self.at).unwrap_or(PIECE);
            let piece = self.piece(left.min(PIECE)).await?;
            if piece.is_empty() {
                break;
            }
            let text = self.text.push(&piece);
            self.tell(text).await?;
        }
        Ok(())
    }

    async fn piece(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let Some(file) = self.file.clone() else {
            return Ok(Vec::new());
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
        Ok(piece)
    }

    async fn tell(&self, text: Vec<u8>) -> Reading {
        // Much may be read of which nothing is shown: a reader that left is noticed all the same.
        if text.is_empty() {
            return match self.pieces.is_closed() {
                true => Err(Ended::Left),
                false => Ok(()),
            };
        }
        let told = self.pieces.send(Ok(text.into())).await;
        told.map_err(|_| Ended::Left)
    }

    async fn tell_rest(&mut self) -> Reading {
        let rest = self.text.finish();
        self.tell(rest).await
    }

    async fn tell_gap(&mut self) -> Reading {
        let gap = self.text.gap(GAP);
        self.tell(gap).await
    }
}

/// A reader that left has what it wanted.
fn finished(reading: Reading) -> io::Result<()> {
    match reading {
        Ok(()) | Err(Ended::Left) => Ok(()),
        Err(Ended::Failed(error)) => Err(error),
    }
}

fn watch(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let events = WatchFlags::MODIFY
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::DONT_FOLLOW
        | WatchFlags::ONLYDIR;
    add_watch(&inotify, directory, events)?;
    sys::watch_readable(inotify)
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
