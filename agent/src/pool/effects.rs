//! The seam between deciding and doing: the only two things that a driver has done to the world.
//!
//! Tests put faults here (a crash before or after any effect) without a seam in the product.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::Effect;
use crate::instance::Failure;
use crate::journal::Write;

/// Makes durable and performs. Both are idempotent: twice is the same as once.
pub trait Effects: Send + Sync + 'static {
    /// Makes `writes` durable in one transaction. The order of the calls is the order in the
    /// journal, whoever polls the futures when: a later row never loses against an earlier one.
    ///
    /// # Errors
    /// A failure with its code; nothing of it is durable.
    fn commit(
        &self,
        writes: Vec<Write>,
    ) -> impl Future<Output = Result<(), Failure>> + Send + 'static;

    /// Waits for what an effect needs and this host may have to get from elsewhere. Called before
    /// the effect's turn: it takes nothing of what creations share. `cancel` ends it.
    ///
    /// # Errors
    /// A failure with its code; the effect is not performed.
    fn get_ready(
        &self,
        _effect: &Effect,
        _cancel: &CancellationToken,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        std::future::ready(Ok(()))
    }

    /// Performs one effect. `cancel` ends waiting, not work: what was begun on the host is finished
    /// or taken back first.
    ///
    /// # Errors
    /// A failure with its code; what is true on the host is then observed by the next effect.
    fn perform(
        &self,
        effect: &Effect,
        cancel: &CancellationToken,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}
