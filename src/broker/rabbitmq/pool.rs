//! The connections that subscriptions share. A new one is opened when all are well used, so that no connection's socket or
//! channel limit holds the streams back.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    connect::Role,
    link::{Connector, Link, Up},
    supervise,
};
use crate::{broker::Error, metrics::Metrics};

/// RabbitMQ allows 2,047 channels a connection by default (<https://www.rabbitmq.com/docs/channels#channel-max>);
/// far fewer share one socket fairly.
const CHANNELS_PER_LINK: usize = 256;
const LINKS_MAX: usize = 40;
/// How long a subscriber waits for a link that is down before it is told so.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Pool {
    connector: Connector,
    links: Mutex<Vec<Shared>>,
}

#[derive(Clone)]
struct Shared {
    link: Link,
    used: Arc<AtomicUsize>,
}

/// A channel's place on a connection, given back on drop.
pub(super) struct Place {
    pub(super) up: Up,
    pub(super) metrics: Metrics,
    _seat: Seat,
}

struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// `first` carries subscriptions until it is full.
    pub(super) fn new(first: Link, connector: Connector) -> Self {
        let links = Mutex::new(vec![Shared {
            link: first,
            used: Arc::default(),
        }]);
        Self { connector, links }
    }

    pub(super) async fn place(&self, deadline: Instant) -> Result<Place, Error> {
        let (link, seat) = self.seat()?;
        let patience = deadline
            .saturating_duration_since(Instant::now())
            .min(PATIENCE);
        let up = link.ready(patience).await.ok_or(Error::Down)?;
        Ok(Place {
            up,
            metrics: self.connector.metrics.clone(),
            _seat: seat,
        })
    }

    fn seat(&self) -> Result<(Link, Seat), Error> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let free = links
            .iter()
            .position(|shared| shared.used.load(Ordering::Relaxed) < CHANNELS_PER_LINK);
        let shared = match free {
            Some(index) => links[index].clone(),
            None if links.len() < LINKS_MAX => {
                let link = supervise::start(&self.connector, Role::Consume);
                let used = Arc::default();
                let shared = Shared { link, used };
                links.push(shared.clone());
                shared
            }
            None => return Err(Error::TooManySubscriptions),
        };
        shared.used.fetch_add(1, Ordering::Relaxed);
        Ok((shared.link, Seat(shared.used)))
    }
}
