//! Who may have a connection: a bounded number of all pulls together, and pre-pulls none while an
//! activation waits for bytes.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

/// What a pull is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody may want it later.
    PrePull,
    /// Somebody waits for it.
    Activation,
}

/// The connections of all pulls.
#[derive(Debug)]
pub(super) struct Lanes {
    free: Mutex<usize>,
    /// A lane is free, or somebody became urgent, or nobody is any more.
    changed: Notify,
    /// Activations that want bytes.
    activations: watch::Sender<usize>,
}

/// A connection that may be used. Given back when dropped.
#[derive(Debug)]
pub(super) struct Lane(Arc<Lanes>);

/// As long as it lives, pre-pulls of the same fetcher ask for nothing.
#[derive(Debug)]
pub(super) struct Passing(Arc<Lanes>);

impl Lanes {
    pub fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(connections.max(1)),
            changed: Notify::new(),
            activations: watch::Sender::new(0),
        })
    }

    /// Waits for a lane. `urgency` is asked again whenever something changes: a pre-pull for which
    /// an activation has come to wait is none any more.
    pub async fn take(self: &Arc<Self>, urgency: impl Fn() -> Urgency) -> Lane {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(lane) = self.try_take(urgency()) {
                return lane;
            }
            changed.await;
        }
    }

    /// A lane, when there is one now.
    pub fn try_take(self: &Arc<Self>, urgency: Urgency) -> Option<Lane> {
        if self.must_yield(urgency) {
            return None;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Lane(Arc::clone(self)))
    }

    /// Whether a pull of this urgency is to stop and let others pass.
    pub fn must_yield(&self, urgency: Urgency) -> bool {
        urgency == Urgency::PrePull && *self.activations.borrow() > 0
    }

    /// Returns when pre-pulls are to stop.
    pub async fn activation(&self) {
        let mut activations = self.activations.subscribe();
        // The sender lives as long as this does.
        drop(activations.wait_for(|activations| *activations > 0).await);
    }

    /// An activation begins to want bytes.
    pub fn pass(self: &Arc<Self>) -> Passing {
        self.activations
            .send_modify(|activations| *activations += 1);
        Passing(Arc::clone(self))
    }

    /// The urgency of somebody has changed.
    pub fn look_again(&self) {
        self.changed.notify_waiters();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_waiters();
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.0
            .activations
            .send_modify(|activations| *activations = activations.saturating_sub(1));
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_lane_is_waited_for_until_one_is_given_back() {
        let lanes = Lanes::new(1);
        let first = lanes.take(|| Urgency::PrePull).await;
        let mut second = std::pin::pin!(lanes.take(|| Urgency::PrePull));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(second.now_or_never().is_some());
    }

    #[tokio::test]
    async fn pre_pulls_wait_while_an_activation_passes() {
        let lanes = Lanes::new(2);
        let passing = lanes.pass();
        assert!(lanes.must_yield(Urgency::PrePull));
        assert!(lanes.activation().now_or_never().is_some());
        assert!(lanes.take(|| Urgency::Activation).now_or_never().is_some());
        let mut waiting = std::pin::pin!(lanes.take(|| Urgency::PrePull));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(passing);
        assert!(waiting.now_or_never().is_some());
        assert!(lanes.activation().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_pre_pull_that_becomes_urgent_passes() {
        let lanes = Lanes::new(1);
        let _passing = lanes.pass();
        let urgency = Cell::new(Urgency::PrePull);
        let mut waiting = std::pin::pin!(lanes.take(|| urgency.get()));
        assert!(waiting.as_mut().now_or_never().is_none());
        urgency.set(Urgency::Activation);
        lanes.look_again();
        assert!(waiting.now_or_never().is_some());
    }
}
