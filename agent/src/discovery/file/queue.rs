//! How jobs reach the writer, and where it works.
//!
//! On a file system in memory (`/run`) a write cannot block, and the hand-over to a thread and back
//! costs more than the write: there the writer works in a task of the runtime, behind everything
//! that is ready to run at that moment, so that what is registered at one time goes into one write.
//! Elsewhere it has a thread.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::{io, thread};

use rustix::fs::statfs;

use super::writer::{Job, Writer};

/// File systems that live in memory: `TMPFS_MAGIC` and `RAMFS_MAGIC` of statfs(2).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The way to the one writer.
pub(super) enum Queue {
    Task(Arc<Tray>),
    Thread(mpsc::Sender<Job>),
}

/// Jobs that wait for the writer's task. It runs when there are any, and there is only one.
pub(super) struct Tray {
    jobs: Mutex<Vec<Job>>,
    writer: Mutex<Writer>,
}

/// The writer has ended.
pub(super) struct Ended;

impl Queue {
    /// Gives the writer of `directory` its place.
    pub(super) fn open(mut writer: Writer, directory: &Path) -> io::Result<Self> {
        if is_in_memory(directory) {
            return Ok(Self::Task(Arc::new(Tray {
                jobs: Mutex::default(),
                writer: Mutex::new(writer),
            })));
        }
        let (jobs, to_do) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("discovery-file".to_owned())
            .spawn(move || {
                while let Ok(first) = to_do.recv() {
                    writer.work(std::iter::once(first).chain(to_do.try_iter()));
                }
            })?;
        Ok(Self::Thread(jobs))
    }

    /// Puts a job in line; jobs are done in the order of these calls.
    pub(super) fn put(&self, job: Job) -> Result<(), Ended> {
        match self {
            Self::Thread(jobs) => jobs.send(job).map_err(|_| Ended),
            Self::Task(tray) => {
                let waiting = {
                    let mut jobs = locked(&tray.jobs);
                    jobs.push(job);
                    jobs.len()
                };
                if waiting == 1 {
                    let tray = Arc::clone(tray);
                    tokio::spawn(async move { tray.empty() });
                }
                Ok(())
            }
        }
    }
}

impl Tray {
    fn empty(&self) {
        // The writer first: jobs that are taken in order are done in order.
        let mut writer = locked(&self.writer);
        let jobs = std::mem::take(&mut *locked(&self.jobs));
        writer.work(jobs);
    }
}

/// A writer that panicked over one job answers the next as well as before.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_in_memory(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|found| IN_MEMORY.contains(&found.f_type))
}
