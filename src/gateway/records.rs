//! What is noted of every publish, whether or not anybody waits for its outcome: the figures and the message log.

use tokio::time::Instant;

use super::{Gateway, publish::Outcome};
use crate::{
    broker::{Fate, Publish, Witness},
    metrics,
};

impl Gateway {
    /// Whoever notes what becomes of a publish, begun at this time, that is about to be handed over.
    pub(super) fn witness(&self, publish: &Publish, named: bool, since: Instant) -> Witness {
        let exchange = self.metrics.exchange(&publish.exchange);
        let bytes = publish.message.payload.len();
        let publishing = self.metrics.publishing(exchange, bytes, since);
        let log = self.log.witness(publish, named);
        Witness::new(move |fate| {
            publishing.ended(fate.into());
            if let Some(log) = log {
                log(fate);
            }
        })
    }

    /// Notes a publish, begun at this time, that was refused before its exchange was found.
    pub(super) fn note_refused(&self, outcome: &Outcome, since: Instant) {
        self.metrics.refused(outcome.into(), since);
    }

    /// Notes a publish to this exchange, begun at this time, for which there is no room.
    pub(super) fn note_overloaded(&self, exchange: &str, since: Instant) {
        let exchange = self.metrics.exchange(exchange);
        let outcome = metrics::Outcome::NotSent;
        self.metrics.published(&exchange, outcome, since);
    }
}

impl From<Fate> for metrics::Outcome {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Confirmed => Self::Confirmed,
            Fate::Unroutable => Self::Unroutable,
            Fate::Rejected => Self::Rejected,
            Fate::NotSent(_) => Self::NotSent,
            Fate::InDoubt(_) => Self::InDoubt,
        }
    }
}

impl From<&Outcome> for metrics::Outcome {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Fate(fate) => (*fate).into(),
            Outcome::Invalid(_) => Self::Invalid,
        }
    }
}
