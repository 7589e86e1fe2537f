//! The figures as they are read: what is not counted when it happens is looked up when somebody asks.

use tokio::sync::watch;

use super::{Gateway, message_log::MessageLog};
use crate::{
    broker::{LinkState, Links},
    metrics::{Link, Metrics},
    store::Store,
};

/// Reads the figures.
#[derive(Clone)]
pub struct Exposition {
    pub metrics: Metrics,
    pub links: watch::Receiver<Links>,
    pub store: Store,
    pub log: MessageLog,
    pub gateway: Gateway,
}

impl Exposition {
    /// All figures as text.
    pub fn text(&self) -> String {
        let links = *self.links.borrow();
        self.metrics.link("publish", links.publish.into());
        self.metrics.link("consume", links.consume.into());
        self.metrics.dropped(self.log.dropped());
        self.metrics
            .database(self.store.is_up(), self.store.connections());
        self.metrics.memory(self.gateway.shares());
        self.metrics.exposition()
    }
}

impl From<LinkState> for Link {
    fn from(state: LinkState) -> Self {
        match state {
            LinkState::Up => Self::Up,
            LinkState::Blocked => Self::Blocked,
            LinkState::Down => Self::Down,
            LinkState::Failing => Self::Failing,
        }
    }
}
