//! A supervised connection: when it breaks, the supervisor builds a fresh one, for ever.
//!
//! Users watch [`State`] and take what they need from the connection of the moment; nothing survives a generation.
//! The client library's own recovery is left off: each user must know exactly which generation its work was on.
//!
//! A connection also wears out. lapin 4.12 keeps the error with which the broker ended a channel under that channel's number, and a
//! later channel of the same number fails with it at once. Numbers are few (2,047) and come again, so that a connection on which
//! questions keep being refused runs out of usable ones. It is therefore renewed in time: when half of its numbers are spoilt, a
//! fresh connection takes its place, and the old one serves whoever still uses it until nobody does ([`super::supervise`]).

use std::{sync::Arc, time::Duration};

use lapin::Connection;
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{endpoint::Endpoint, wire::Notes};
use crate::{broker::Error, metrics::Metrics};

/// The connection of the moment.
#[derive(Clone)]
pub(super) enum State {
    Down,
    Up(Up),
}

#[derive(Clone)]
pub(super) struct Up {
    pub(super) line: Arc<Line>,
    /// The broker takes no messages from this connection (<https://www.rabbitmq.com/docs/connection-blocked>).
    pub(super) blocked: bool,
    /// It stands, and does not do its work ([`super::selfcheck`]).
    pub(super) failing: bool,
}

/// One connection, for as long as somebody uses it.
pub(super) struct Line {
    pub(super) connection: Connection,
    /// Counts connections of this link, from 1.
    pub(super) generation: u64,
    pub(super) notes: Arc<Notes>,
    /// Cancelled when the connection is over.
    pub(super) ended: CancellationToken,
}

impl Up {
    pub(super) fn connection(&self) -> &Connection {
        &self.line.connection
    }

    pub(super) fn generation(&self) -> u64 {
        self.line.generation
    }

    pub(super) fn notes(&self) -> &Notes {
        &self.line.notes
    }

    /// Whether the connection stands; it may have been replaced all the same.
    pub(super) fn stands(&self) -> bool {
        !self.line.ended.is_cancelled() && self.line.connection.status().connected()
    }

    /// Does what needs this connection, as long as it lasts. On one that is about to end, the client library may wait for an answer
    /// for ever.
    pub(super) async fn while_up<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            () = self.line.ended.cancelled() => Err(Error::Down),
        }
    }
}

impl State {
    pub(super) fn up(&self) -> Option<&Up> {
        match self {
            Self::Down => None,
            Self::Up(up) => Some(up),
        }
    }
}

/// A supervised connection. Closed by its token.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
}

/// What all links are made with.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) endpoint: Endpoint,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) metrics: Metrics,
}

impl Link {
    pub(super) fn following(state: watch::Receiver<State>) -> Self {
        Self { state }
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    pub(super) fn up(&self) -> Option<Up> {
        self.state.borrow().up().cloned()
    }

    /// Waits until the broker takes no messages from this link, maybe for ever.
    pub(super) async fn blocked(&self) {
        let mut state = self.watch();
        let blocked = |state: &State| state.up().is_some_and(|up| up.blocked);
        if state.wait_for(blocked).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the first attempt to connect succeeded, at most for `patience`.
    pub(super) async fn ready(&self, patience: Duration) -> Option<Up> {
        let mut state = self.watch();
        let up = timeout(patience, state.wait_for(|state| state.up().is_some())).await;
        up.ok()?.ok()?.up().cloned()
    }
}
