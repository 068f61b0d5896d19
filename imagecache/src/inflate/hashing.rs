//! The digest of what is read, computed by a thread beside the reader.
//!
//! ```text
//! source -> piece -> reader
//!             '----> hash (its own thread)
//! ```
//! Hashing takes a third of the time of inflating; on its own thread a layer that is alone, or the
//! last one, does not wait for it. A piece is read once and lent to both: nothing is copied.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::digest::{Digest, Hasher};

/// Bytes of a piece: fits the cache of one core together with its input.
const PIECE: usize = 256 * 1024;
/// Pieces there are: one that is filled or read, the others wait to be hashed.
const PIECES: usize = 4;

/// Reads on, buffered, and knows the digest of everything at the end. 1 MiB.
#[derive(Debug)]
pub struct Hashing<R> {
    from: R,
    /// What is being read: this piece, from here on.
    piece: Arc<Vec<u8>>,
    at: usize,
    /// Pieces that were made.
    pieces: usize,
    to_hash: Option<SyncSender<Arc<Vec<u8>>>>,
    hashed: Receiver<Arc<Vec<u8>>>,
    hasher: Option<JoinHandle<Digest>>,
}

impl<R: Read> Hashing<R> {
    /// Hashes what is read of `from` through this. Fails when there can be no more threads.
    pub fn new(from: R) -> io::Result<Self> {
        // Neither channel ever holds more than all pieces, so that no send waits.
        let (to_hash, work) = sync_channel::<Arc<Vec<u8>>>(PIECES);
        let (back, hashed) = sync_channel(PIECES);
        let hasher = std::thread::Builder::new()
            .name("diff-id".to_owned())
            .spawn(move || {
                let mut hasher = Hasher::default();
                for piece in work {
                    hasher.update(&piece);
                    // Nobody takes it back any more when the reader went away.
                    if back.send(piece).is_err() {
                        break;
                    }
                }
                hasher.finish()
            })?;
        Ok(Self {
            from,
            piece: Arc::default(),
            at: 0,
            pieces: 0,
            to_hash: Some(to_hash),
            hashed,
            hasher: Some(hasher),
        })
    }

    /// Reads what is left, and gives the digest of everything from the first byte to the last.
    pub fn finish(mut self) -> io::Result<Digest> {
        loop {
            match self.fill_buf() {
                Ok([]) => break,
                Ok(rest) => {
                    let rest = rest.len();
                    self.consume(rest);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.to_hash = None;
        self.hasher
            .take()
            .and_then(|hasher| hasher.join().ok())
            .ok_or_else(gone)
    }

    /// A piece that nobody has any more.
    fn free(&mut self) -> io::Result<Vec<u8>> {
        if self.pieces < PIECES {
            self.pieces += 1;
            return Ok(vec![0; PIECE]);
        }
        let piece = self.hashed.recv().map_err(|_| gone())?;
        // The reader has let go of the piece before it asks for another.
        Ok(Arc::try_unwrap(piece).unwrap_or_else(|_| vec![0; PIECE]))
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that computes the digest ended early")
}

impl<R: Read> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            self.piece = Arc::default();
            self.at = 0;
            let mut piece = self.free()?;
            piece.resize(PIECE, 0);
            let mut filled = 0;
            while filled < PIECE {
                match self.from.read(&mut piece[filled..]) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        // This piece is gone; another may be made.
                        self.pieces -= 1;
                        return Err(error);
                    }
                }
            }
            piece.truncate(filled);
            self.piece = Arc::new(piece);
            if let Some(to_hash) = &self.to_hash {
                to_hash.send(Arc::clone(&self.piece)).map_err(|_| gone())?;
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, taken: usize) {
        self.at = (self.at + taken).min(self.piece.len());
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}
