//! The queues and exchanges that the gateway has heard of: all that can be listed where the management API does not answer.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use moka::sync::Cache;

use crate::broker::topology::Topology;

/// Names beyond which nothing is remembered any more.
const MOST: usize = 10_000;

#[derive(Clone)]
pub struct Known {
    names: Arc<Mutex<Names>>,
    /// Queues that go by themselves when nobody uses them. They are not asked about with the others: over AMQP that is a use,
    /// and keeps them.
    temporary: Cache<String, ()>,
}

impl Default for Known {
    fn default() -> Self {
        let most = u64::try_from(MOST).unwrap_or(u64::MAX);
        Self {
            names: Arc::default(),
            temporary: Cache::new(most),
        }
    }
}

#[derive(Default)]
struct Names {
    /// The topology file's: they are looked for also after somebody deleted them.
    file: Topology,
    queues: BTreeSet<String>,
    exchanges: BTreeSet<String>,
}

impl Known {
    /// Knows what the topology file says.
    pub fn new(topology: Option<&Topology>) -> Self {
        let known = Self::default();
        if let Some(topology) = topology {
            known.add(topology);
            known.names().file.clone_from(topology);
        }
        known
    }

    /// All of a topology that was declared.
    pub fn add(&self, topology: &Topology) {
        for queue in &topology.queues {
            if queue.is_temporary() {
                self.temporary(&queue.name);
            } else {
                self.temporary.invalidate(&queue.name);
                self.queue(&queue.name);
            }
        }
        for exchange in &topology.exchanges {
            self.exchange(&exchange.name);
        }
    }

    /// A queue that exists.
    pub fn queue(&self, name: &str) {
        if !self.is_temporary(name) {
            remember(&mut self.names().queues, name);
        }
    }

    /// A queue that exists for a time.
    pub fn temporary(&self, name: &str) {
        self.temporary.insert(name.to_owned(), ());
        self.names().queues.remove(name);
    }

    /// Whether a queue is known to be one that goes by itself.
    pub fn is_temporary(&self, name: &str) -> bool {
        self.temporary.contains_key(name)
    }

    /// An exchange that exists.
    pub fn exchange(&self, name: &str) {
        remember(&mut self.names().exchanges, name);
    }

    /// A queue that does not exist.
    pub fn forget_queue(&self, name: &str) {
        self.temporary.invalidate(name);
        let mut names = self.names();
        if !names.file.queues.iter().any(|queue| queue.name == name) {
            names.queues.remove(name);
        }
    }

    /// An exchange that does not exist.
    pub fn forget_exchange(&self, name: &str) {
        let mut names = self.names();
        if !names.file.exchanges.iter().any(|one| one.name == name) {
            names.exchanges.remove(name);
        }
    }

    pub fn queues(&self) -> Vec<String> {
        self.names().queues.iter().cloned().collect()
    }

    pub fn exchanges(&self) -> Vec<String> {
        self.names().exchanges.iter().cloned().collect()
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(names: &mut BTreeSet<String>, name: &str) {
    if names.len() < MOST && !names.contains(name) {
        names.insert(name.to_owned());
    }
}
