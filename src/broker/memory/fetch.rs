//! Messages fetched one by one.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Shared, queue::Entry, subscriber::Taken, subscription::delivery};
use crate::broker::{Delivery, Entity, Error, Tag, admin::Fetch};

pub(super) struct MemoryFetch {
    shared: Arc<Shared>,
    queue: String,
    unsettled: BTreeMap<Tag, Entry>,
    last_tag: Tag,
}

impl MemoryFetch {
    pub(super) fn new(shared: &Arc<Shared>, queue: &str) -> Self {
        Self {
            shared: shared.clone(),
            queue: queue.to_owned(),
            unsettled: BTreeMap::new(),
            last_tag: 0,
        }
    }
}

#[async_trait]
impl Fetch for MemoryFetch {
    async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(Error::Down);
        }
        let fetched = state.fetch(&self.queue, Instant::now());
        drop(state);
        let Some(entry) = fetched.ok_or_else(|| Error::NotFound {
            what: Entity::Queue,
            name: self.queue.clone(),
        })?
        else {
            return Ok(None);
        };
        self.last_tag += 1;
        let taken = Taken {
            tag: self.last_tag,
            feed: 0,
            redelivered: entry.redelivered,
            returns: entry.returns,
            envelope: entry.envelope.clone(),
        };
        self.unsettled.insert(self.last_tag, entry);
        Ok(Some(delivery(taken)))
    }

    async fn ack(&mut self, tags: &[Tag]) -> Result<(), Error> {
        let done = tags
            .iter()
            .filter(|tag| self.unsettled.remove(tag).is_some())
            .count();
        self.shared.lock().fetched(&self.queue, done as u64);
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        // Dropping it is all there is to do.
        Ok(())
    }
}

impl Drop for MemoryFetch {
    fn drop(&mut self) {
        let entries = std::mem::take(&mut self.unsettled).into_values().collect();
        let now = Instant::now();
        self.shared.lock().give_back(&self.queue, entries, now);
    }
}
