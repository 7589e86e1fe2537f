//! Deliveries of stream queues that are to come again. A stream takes nothing back: to a `basic.nack` RabbitMQ answers by ending the
//! whole connection (540, NOT_IMPLEMENTED), with every other subscription on it. What was delivered stays in the stream; so it is
//! given to the same subscriber again from here, and acked only when it is done
//! (<https://www.rabbitmq.com/docs/streams#consuming>).

use std::collections::{BTreeMap, VecDeque};

use crate::broker::{Delivery, Tag};

/// The unsettled deliveries of stream queues, and those that come next.
#[derive(Debug, Default)]
pub(super) struct StreamQueue {
    unsettled: BTreeMap<Tag, Delivery>,
    again: VecDeque<Tag>,
}

impl StreamQueue {
    /// A delivery came from the broker.
    pub(super) fn note(&mut self, delivery: &Delivery) {
        if delivery.message.is_of_stream() {
            self.unsettled.insert(delivery.tag, copy(delivery));
        }
    }

    /// Takes the deliveries that are to come again out of `tags`; what is left goes back to its queue at the broker.
    pub(super) fn keep(&mut self, tags: &[Tag]) -> Vec<Tag> {
        let (ours, others) = tags
            .iter()
            .partition(|tag| self.unsettled.contains_key(tag));
        let ours: Vec<Tag> = ours;
        self.again.extend(ours);
        others
    }

    /// These are done.
    pub(super) fn settled(&mut self, tags: &[Tag]) {
        if !self.unsettled.is_empty() {
            for tag in tags {
                self.unsettled.remove(tag);
            }
        }
    }

    /// The next that comes again.
    pub(super) fn next(&mut self) -> Option<Delivery> {
        let tag = self.again.pop_front()?;
        let delivery = self.unsettled.get(&tag)?;
        Some(Delivery {
            redelivered: true,
            ..copy(delivery)
        })
    }
}

/// The payload is shared.
fn copy(delivery: &Delivery) -> Delivery {
    Delivery {
        tag: delivery.tag,
        queue: delivery.queue,
        exchange: delivery.exchange.clone(),
        routing_key: delivery.routing_key.clone(),
        redelivered: delivery.redelivered,
        message: delivery.message.clone(),
    }
}
