//! One subscription's side of the state: what it was handed, and how much more it may get.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::Notify;

use super::queue::{Entry, Envelope};
use crate::broker::{Ended, Tag};

pub(super) struct Subscriber {
    pub(super) feeds: Vec<Feed>,
    pub(super) ended: Option<Ended>,
    /// Set: it gets no more, whatever credit it has.
    pub(super) stopped: bool,
    pub(super) priority: i32,
    wake: Arc<Notify>,
    prefetch: usize,
    unsettled: BTreeMap<Tag, Unsettled>,
    last_tag: Tag,
}

/// One of its queues.
pub(super) struct Feed {
    pub(super) queue: Arc<str>,
    /// Handed out and not yet taken.
    inbox: VecDeque<Tag>,
    unsettled: usize,
}

impl Feed {
    /// Handed out and not settled.
    pub(super) fn unsettled(&self) -> usize {
        self.unsettled
    }
}

struct Unsettled {
    feed: usize,
    entry: Entry,
}

/// A delivery as the subscription takes it.
pub(super) struct Taken {
    pub(super) tag: Tag,
    pub(super) feed: usize,
    pub(super) redelivered: bool,
    pub(super) returns: u32,
    pub(super) envelope: Arc<Envelope>,
}

/// What is no longer the subscriber's.
pub(super) struct Released {
    pub(super) feed: usize,
    pub(super) entry: Entry,
    /// It had no credit on this queue before and has some now.
    pub(super) credit_is_back: bool,
}

impl Subscriber {
    /// A `prefetch` of 0 is no limit, as in AMQP.
    pub(super) fn new(
        queues: Vec<Arc<str>>,
        prefetch: u16,
        priority: i32,
        wake: Arc<Notify>,
    ) -> Self {
        let feed = |queue| Feed {
            queue,
            inbox: VecDeque::new(),
            unsettled: 0,
        };
        Self {
            feeds: queues.into_iter().map(feed).collect(),
            ended: None,
            stopped: false,
            priority,
            wake,
            prefetch: if prefetch == 0 {
                usize::MAX
            } else {
                prefetch.into()
            },
            unsettled: BTreeMap::new(),
            last_tag: 0,
        }
    }

    /// Hands it a message. Answers whether it has credit for another one.
    pub(super) fn hand(&mut self, feed: usize, entry: Entry) -> bool {
        self.last_tag += 1;
        self.unsettled
            .insert(self.last_tag, Unsettled { feed, entry });
        let feed = &mut self.feeds[feed];
        feed.inbox.push_back(self.last_tag);
        feed.unsettled += 1;
        self.wake.notify_one();
        feed.unsettled < self.prefetch
    }

    /// The next delivery of the earliest queue that has one.
    pub(super) fn take(&mut self) -> Option<Result<Taken, Ended>> {
        if let Some(ended) = &self.ended {
            return Some(Err(ended.clone()));
        }
        let tag = self
            .feeds
            .iter_mut()
            .find_map(|feed| feed.inbox.pop_front())?;
        let Unsettled { feed, entry } = self.unsettled.get(&tag)?;
        Some(Ok(Taken {
            tag,
            feed: *feed,
            redelivered: entry.redelivered,
            returns: entry.returns,
            envelope: entry.envelope.clone(),
        }))
    }

    /// Takes a delivery from it; `None` for a tag that is settled already.
    pub(super) fn release(&mut self, tag: Tag) -> Option<Released> {
        let Unsettled { feed, entry } = self.unsettled.remove(&tag)?;
        let limits = &mut self.feeds[feed];
        let credit_is_back = limits.unsettled == self.prefetch && !self.stopped;
        limits.unsettled -= 1;
        Some(Released {
            feed,
            entry,
            credit_is_back,
        })
    }

    /// Empties the inboxes; the deliveries stay unsettled.
    pub(super) fn unread(&mut self) -> Vec<Tag> {
        let inboxes = self.feeds.iter_mut().map(|feed| &mut feed.inbox);
        inboxes.flat_map(|inbox| inbox.drain(..)).collect()
    }

    pub(super) fn unsettled(&self) -> Vec<Tag> {
        self.unsettled.keys().copied().collect()
    }

    /// Loses all deliveries of a queue that is no more. Answers which one of its queues that was.
    pub(super) fn forget(&mut self, queue: &str) -> Option<usize> {
        let first = self.feeds.iter().position(|feed| *feed.queue == *queue)?;
        let feeds = &self.feeds;
        self.unsettled
            .retain(|_, held| *feeds[held.feed].queue != *queue);
        for feed in self.feeds.iter_mut().filter(|feed| *feed.queue == *queue) {
            feed.inbox.clear();
            feed.unsettled = 0;
        }
        Some(first)
    }

    /// Ends it: whoever waits for a delivery gets the reason.
    pub(super) fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.wake.notify_one();
    }
}
