//! Threads for pulls: made for the first, gone after the last.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// The threads. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Workers(Arc<Mutex<Weak<Threads>>>);

struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        // The last work drops it on one of its own threads, where waiting for them is not allowed.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Workers {
    /// Does `work` on one of them. It goes on when the handle is dropped.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = match shared.upgrade() {
            Some(threads) => threads,
            None => {
                let runtime = Builder::new_multi_thread()
                    .thread_name("images")
                    .enable_all()
                    .build()?;
                let threads = Arc::new(Threads(Some(runtime)));
                *shared = Arc::downgrade(&threads);
                threads
            }
        };
        let handle = threads.0.as_ref().map(|runtime| runtime.handle().clone());
        let handle = handle.ok_or_else(|| io::Error::other("they are ending"))?;
        Ok(handle.spawn(async move {
            let done = work.await;
            drop(threads);
            done
        }))
    }
}
