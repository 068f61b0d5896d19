//! Work that blocks, done on a thread of its own as long as somebody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinError;

/// Whether anybody still waits for the work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

/// Nobody waits for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody waits for it any more")]
pub(crate) struct GivenUp;

impl Cancel {
    /// To be asked again and again, in steps that take less than a second or so.
    pub fn check(&self) -> Result<(), GivenUp> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(GivenUp),
            false => Ok(()),
        }
    }
}

struct OnDrop(Cancel);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Does what blocks elsewhere. When this future is dropped, `work` is told so; what it owns is
/// given back when it has ended.
pub(crate) async fn while_waited_for<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> T + Send + 'static,
) -> Result<T, JoinError> {
    let cancel = Cancel::default();
    let _told = OnDrop(cancel.clone());
    tokio::task::spawn_blocking(move || work(&cancel)).await
}
