//! The one task that lets messages expire where nobody publishes or consumes.

use std::sync::Arc;

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::Shared;

/// When the timer is to look next. Expiry mostly comes in order, so that it is seldom moved forward.
pub(super) struct Alarm {
    at: Option<Instant>,
    moved: Arc<Notify>,
}

impl Alarm {
    pub(super) fn new(moved: Arc<Notify>) -> Self {
        Self { at: None, moved }
    }

    /// Moves the alarm forward to `expiry`, if that is earlier.
    pub(super) fn set(&mut self, expiry: Instant) {
        if self.at.is_none_or(|at| expiry < at) {
            self.at = Some(expiry);
            self.moved.notify_one();
        }
    }

    /// Says what the timer sleeps for from now on.
    pub(super) fn reset(&mut self, at: Option<Instant>) {
        self.at = at;
    }
}

/// Never ends; aborted with the broker.
pub(super) async fn run(shared: Arc<Shared>, moved: Arc<Notify>) {
    loop {
        let next = shared.lock().expire(Instant::now());
        let expiry = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expiry => {}
            () = moved.notified() => {}
        }
    }
}
