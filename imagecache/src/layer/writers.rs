//! Threads that write files beside the one that reads the archive: creating a file costs several
//! system calls, and a layer has tens of thousands.

use std::collections::VecDeque;
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use super::metadata::Metadata;
use super::place;
use super::tree::Spot;
use super::{LayerError, shown};
use crate::archive::Reader;

/// Files that wait for a writer. With the largest that is read ahead, 16 MiB.
const QUEUE: usize = 64;

/// A file to write, in memory.
pub(super) struct File {
    spot: Spot,
    metadata: Metadata,
    data: Vec<u8>,
    /// As the archive names it.
    path: Vec<u8>,
}

impl File {
    /// Reads the present entry of `archive` ahead.
    pub fn read<R: Read>(
        spot: Spot,
        metadata: Metadata,
        size: u64,
        archive: &mut Reader<R>,
        path: &[u8],
    ) -> Result<Self, LayerError> {
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < data.len() {
            match archive.read_data(&mut data[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(Self {
            spot,
            metadata,
            data,
            path: path.to_vec(),
        })
    }

    fn write(&self) -> io::Result<()> {
        let mut file = place::new_file(&self.spot)?;
        file.write_all(&self.data)?;
        self.metadata.set_open(file.as_fd())
    }
}

/// A file that could not be written.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub source: io::Error,
    path: Vec<u8>,
}

impl Unwritten {
    pub fn into_error(self) -> LayerError {
        LayerError::Io {
            path: shown(&self.path),
            operation: "write",
            source: self.source,
        }
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<File>,
    /// Files that a writer has taken and not finished.
    taken: usize,
    failed: Option<Unwritten>,
    /// Nobody adds any more.
    over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is work, or it is over.
    work: Condvar,
    /// There is room, or nothing is left to do.
    room: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writers of one layer. Dropped, they end behind what was added.
pub(super) struct Writers<'scope> {
    shared: Arc<Shared>,
    number: usize,
    _scope: std::marker::PhantomData<&'scope ()>,
}

impl<'scope> Writers<'scope> {
    /// Starts them; with none, whoever adds writes.
    pub fn start(scope: &'scope Scope<'scope, '_>, number: usize) -> Self {
        let shared = Arc::new(Shared::default());
        for _ in 0..number {
            let shared = Arc::clone(&shared);
            scope.spawn(move || work(&shared));
        }
        Self {
            shared,
            number,
            _scope: std::marker::PhantomData,
        }
    }

    /// Has a file written, sooner or later. An error may be that of a file before.
    pub fn write(&self, file: File) -> Result<(), Unwritten> {
        if self.number == 0 {
            return file.write().map_err(|source| Unwritten {
                source,
                path: file.path,
            });
        }
        let mut state = self.shared.state();
        while state.waiting.len() >= QUEUE && state.failed.is_none() {
            state = self
                .shared
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(failed) = state.failed.take() {
            return Err(failed);
        }
        state.waiting.push_back(file);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Waits until all that was added is written.
    pub fn wait(&self) -> Result<(), Unwritten> {
        let mut state = self.shared.state();
        while state.failed.is_none() && state.taken + state.waiting.len() > 0 {
            state = self
                .shared
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.take().map_or(Ok(()), Err)
    }
}

impl Drop for Writers<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.over = true;
        // What was not begun is not wanted any more: all is written, or the layer has failed.
        state.waiting.clear();
        drop(state);
        self.shared.work.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state();
    loop {
        if let Some(file) = state.waiting.pop_front() {
            state.taken += 1;
            drop(state);
            let written = file.write();
            state = shared.state();
            state.taken -= 1;
            if let Err(source) = written {
                let path = file.path;
                state.failed.get_or_insert(Unwritten { source, path });
                state.waiting.clear();
            }
            shared.room.notify_one();
        } else if state.over {
            return;
        } else {
            state = shared
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
