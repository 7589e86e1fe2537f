//! A subscription: one channel, a consumer a queue, manual acknowledgement.
//!
//! The channel is closed at the end, not only the consumers: what was pushed and never taken returns to its queue only then.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    FutureExt, StreamExt, TryFutureExt,
    future::{BoxFuture, Shared, join_all, lazy},
    stream::{BoxStream, Peekable},
};
use lapin::{
    Channel,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions,
        BasicQosOptions, BasicRejectOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

use super::{channel, convert, error, link::Up, pool::Place, stream_queue::StreamQueue, wire};
use crate::broker::{Delivery, Ended, Entity, Error, StreamOffset, Subscribe, Subscription, Tag};

/// For steps that wait for the broker's answer once a subscription stands.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at a queue that may be about to go.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A consumer whose delivery is unsettled for so long may have been cancelled for that. RabbitMQ supports no timeout under a minute
/// (<https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>); it counts from when it sent what is taken later here.
const HELD_LONG: Duration = Duration::from_secs(45);

/// Arguments of a consumer.
const STREAM_OFFSET: &str = "x-stream-offset";
const PRIORITY: &str = "x-priority";

/// What a consumer is sent, once the broker begins.
type Consumer = Peekable<BoxStream<'static, lapin::Result<lapin::message::Delivery>>>;

pub(super) struct Running {
    channel: Channel,
    client_id: String,
    consumers: Vec<Consumer>,
    queues: Vec<String>,
    unsettled: Unsettled,
    streams: StreamQueue,
    /// Why the broker cancelled a consumer, once it did. Shared, so that a `next` that is dropped loses no answer.
    cancelled: Option<Shared<BoxFuture<'static, Ended>>>,
    /// Gives the channel's place on its connection back.
    place: Place,
}

pub(super) async fn subscribe(place: Place, subscribe: Subscribe) -> Result<Running, Error> {
    let (channel, consumers) = place.up.while_up(open(&place.up, &subscribe)).await?;
    Ok(Running {
        channel,
        client_id: subscribe.client_id,
        consumers,
        queues: subscribe.queues,
        unsettled: Unsettled::default(),
        streams: StreamQueue::default(),
        cancelled: None,
        place,
    })
}

/// Asks for all consumers at once, and returns when the broker has accepted them.
///
/// The answer to `basic.consume` is not waited for: RabbitMQ puts it behind what the consumers before it are sent, a prefetch of each,
/// and nobody takes that before the subscription stands. So each is followed by a `basic.qos`, whose answer overtakes deliveries, and
/// does not come when what was before it is refused.
async fn open(up: &Up, subscribe: &Subscribe) -> Result<(Channel, Vec<Consumer>), Error> {
    let channel = channel::open(up).await?;
    // Per consumer, not per channel: quorum queues refuse a limit for the whole channel
    // (https://www.rabbitmq.com/docs/quorum-queues#global-qos).
    let qos = || channel.basic_qos(subscribe.prefetch, BasicQosOptions::default());
    error::open(qos().await)?;
    let mut consumers: Vec<Consumer> = (0..)
        .zip(&subscribe.queues)
        .map(|(index, queue)| {
            let tag = tag(&subscribe.client_id, index);
            consume(&channel, queue, tag, arguments(subscribe))
        })
        .collect();
    let accepted = join_all(consumers.iter_mut().map(|consumer| async {
        // To poll is to send.
        let _ = lazy(|context| Pin::new(consumer).poll_peek(context).is_ready()).await;
        qos().await
    }));
    // The broker answers in order, and nothing after what it refuses.
    let accepted = accepted.await.into_iter().zip(&mut consumers);
    for ((accepted, consumer), queue) in accepted.zip(&subscribe.queues) {
        if let Err(closed) = accepted {
            // Should the channel have been closed before `basic.qos` was sent, only the consumer is told why.
            let told = match Pin::new(consumer).peek().await {
                Some(Err(why)) => error::classify(why, Entity::Queue, queue),
                _ => error::classify(&closed, Entity::Queue, queue),
            };
            return Err(of_arguments(told, subscribe));
        }
    }
    Ok((channel, consumers))
}

/// Nothing that is usual is said: a stream refuses every priority, and other queues every offset.
fn arguments(subscribe: &Subscribe) -> FieldTable {
    let mut arguments = FieldTable::default();
    if let Some(offset) = subscribe.offset {
        let offset = match offset {
            StreamOffset::First => AMQPValue::LongString("first".into()),
            StreamOffset::Last => AMQPValue::LongString("last".into()),
            StreamOffset::Next => AMQPValue::LongString("next".into()),
            StreamOffset::At(offset) => AMQPValue::LongLongInt(offset),
            StreamOffset::Time(seconds) => AMQPValue::Timestamp(seconds),
        };
        arguments.insert(STREAM_OFFSET.into(), offset);
    }
    if subscribe.priority != 0 {
        let priority = AMQPValue::LongInt(subscribe.priority);
        arguments.insert(PRIORITY.into(), priority);
    }
    arguments
}

/// RabbitMQ has one code (406) for arguments of a consumer that the queue does not take, and for a stream that cannot be read now. What
/// names the argument is about it; anything else stays what it is.
fn of_arguments(error: Error, subscribe: &Subscribe) -> Error {
    match error {
        Error::Differs { name, detail, .. }
            if subscribe.offset.is_some() && detail.contains(STREAM_OFFSET) =>
        {
            Error::NotAStream { name }
        }
        Error::Differs { name, detail, .. }
            if subscribe.priority != 0 && detail.contains(PRIORITY) =>
        {
            Error::IsAStream { name }
        }
        error => error,
    }
}

fn consume(channel: &Channel, queue: &str, tag: String, arguments: FieldTable) -> Consumer {
    let (channel, queue) = (channel.clone(), queue.to_owned());
    let consumer = async move {
        let options = BasicConsumeOptions::default();
        channel
            .basic_consume(queue.into(), tag.into(), options, arguments)
            .await
    };
    consumer.try_flatten_stream().boxed().peekable()
}

/// Of the consumer of the queue with this index.
fn tag(client_id: &str, index: usize) -> String {
    format!("{client_id}#{index}")
}

impl Running {
    fn take(&mut self, queue: usize, received: lapin::message::Delivery) -> Delivery {
        let tag = received.delivery_tag;
        self.unsettled.push(tag, queue);
        let delivery = convert::delivery(queue, received);
        if self.place.up.notes().take_repaired(self.channel.id(), tag)
            && let Some(queue) = self.queues.get(queue)
        {
            wire::note_repaired(&self.place.metrics, queue, &delivery.message);
        }
        self.streams.note(&delivery);
        delivery
    }

    /// `Ready(None)`: the broker cancelled a consumer, as `cancelled` then says.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delivery, Ended>>> {
        if let Some(again) = self.streams.next() {
            return Poll::Ready(Some(Ok(again)));
        }
        for queue in 0..self.consumers.len() {
            let received = match self.consumers[queue].poll_next_unpin(context) {
                Poll::Pending => continue,
                Poll::Ready(received) => received,
            };
            return Poll::Ready(match received {
                Some(Ok(received)) => Some(Ok(self.take(queue, received))),
                Some(Err(cause)) => {
                    debug!(%cause, "subscription lost");
                    Some(Err(error::ended(&cause)))
                }
                None => {
                    let name = self.queues.get(queue).cloned().unwrap_or_default();
                    let otherwise = match self.unsettled.holds_longer_than(HELD_LONG, queue) {
                        true => Ended::ConsumerTimeout(Some(queue)),
                        false => Ended::BrokerDown,
                    };
                    let look = why_cancelled(self.place.up.clone(), queue, name, otherwise);
                    self.cancelled = Some(look.boxed().shared());
                    None
                }
            });
        }
        Poll::Pending
    }

    /// In as few frames as can be.
    async fn settle<F>(
        &mut self,
        tags: &[Tag],
        send: impl Fn(Channel, Tag, bool) -> F,
    ) -> Result<(), Ended>
    where
        F: Future<Output = lapin::Result<()>>,
    {
        let (prefix, singles) = self.unsettled.remove(tags);
        let frames = prefix.map(|tag| (tag, true)).into_iter();
        let frames = frames.chain(singles.into_iter().map(|tag| (tag, false)));
        self.send(frames, send).await
    }

    async fn send<F>(
        &mut self,
        frames: impl Iterator<Item = (Tag, bool)>,
        send: impl Fn(Channel, Tag, bool) -> F,
    ) -> Result<(), Ended>
    where
        F: Future<Output = lapin::Result<()>>,
    {
        for (tag, multiple) in frames {
            let sent = timeout(STEP_TIMEOUT, send(self.channel.clone(), tag, multiple)).await;
            if !matches!(sent, Ok(Ok(()))) || !self.channel.status().connected() {
                return Err(self.why_closed().await);
            }
        }
        Ok(())
    }

    /// Why the channel is closed. The consumers are told, behind what they were sent before.
    async fn why_closed(&mut self) -> Ended {
        let told = async {
            for consumer in &mut self.consumers {
                while let Some(received) = consumer.next().await {
                    if let Err(cause) = received {
                        return error::ended(&cause);
                    }
                }
            }
            Ended::BrokerDown
        };
        match self.channel.status().connected() {
            true => Ended::BrokerDown,
            false => timeout(STEP_TIMEOUT, told)
                .await
                .unwrap_or(Ended::BrokerDown),
        }
    }
}

#[async_trait]
impl Subscription for Running {
    async fn next(&mut self) -> Result<Delivery, Ended> {
        loop {
            if let Some(why) = &self.cancelled {
                return Err(why.clone().await);
            }
            let ready = std::future::poll_fn(|context| self.poll_ready(context)).await;
            if let Some(delivery) = ready {
                return delivery;
            }
        }
    }

    fn try_next(&mut self) -> Option<Result<Delivery, Ended>> {
        match self.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ready) => ready,
            Poll::Pending => None,
        }
    }

    async fn ack(&mut self, tags: &[Tag]) -> Result<(), Ended> {
        self.streams.settled(tags);
        self.settle(tags, |channel, tag, multiple| async move {
            channel.basic_ack(tag, BasicAckOptions { multiple }).await
        })
        .await
    }

    /// One by one, as AMQP has no `basic.reject` for several. From RabbitMQ 4.3 on `basic.nack` would not count
    /// (<https://www.rabbitmq.com/docs/4.3/nack>); before, the two are the same.
    async fn requeue(&mut self, tags: &[Tag]) -> Result<(), Ended> {
        let mut tags = self.streams.keep(tags);
        // They come again in the order in which they are returned.
        tags.sort_unstable();
        self.unsettled.take_out(&tags);
        let frames = tags.into_iter().map(|tag| (tag, false));
        self.send(frames, |channel, tag, _| async move {
            let options = BasicRejectOptions { requeue: true };
            channel.basic_reject(tag, options).await
        })
        .await
    }

    async fn give_back(&mut self, tags: &[Tag]) -> Result<(), Ended> {
        let tags = self.streams.keep(tags);
        self.settle(&tags, |channel, tag, multiple| async move {
            let options = BasicNackOptions {
                multiple,
                requeue: true,
            };
            channel.basic_nack(tag, options).await
        })
        .await
    }

    async fn stop(&mut self) {
        for index in 0..self.consumers.len() {
            let tag = tag(&self.client_id, index);
            let options = BasicCancelOptions::default();
            let cancel = self.channel.basic_cancel(tag.into(), options);
            let _ = timeout(STEP_TIMEOUT, cancel).await;
        }
    }

    async fn close(self: Box<Self>) {
        let closing = self.channel.close(200, "subscription ended".into());
        let _ = timeout(STEP_TIMEOUT, closing).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.channel.status().connected()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let channel = self.channel.clone();
            runtime.spawn(async move {
                let closing = channel.close(200, "subscription dropped".into());
                let _ = timeout(STEP_TIMEOUT, closing).await;
            });
        }
    }
}

/// The broker cancels a consumer when its queue is deleted, and also when the queue only moves to another node; from RabbitMQ 4.3 on, a
/// quorum queue's when it keeps a delivery for too long. `otherwise` is the answer when the queue stays.
///
/// A quorum queue that is being deleted tells its consumers before it is gone: the broker forgets its name only when all of its
/// members have stopped (`delete/4` in
/// <https://github.com/rabbitmq/rabbitmq-server/blob/v4.3.5/deps/rabbit/src/rabbit_quorum_queue.erl>). From RabbitMQ 4.3 on the name is
/// regularly found once more. So a queue that is there is looked at again for a while.
async fn why_cancelled(up: Up, queue: usize, name: String, otherwise: Ended) -> Ended {
    let until = Instant::now() + STEP_TIMEOUT;
    let look = channel::to_the_end(async move {
        let channel = channel::open(&up).await?;
        loop {
            channel::see_queue(&channel, &name).await?;
            if Instant::now() >= until {
                break;
            }
            sleep(LOOK_AGAIN).await;
        }
        let _ = channel.close(200, "seen".into()).await;
        Ok(())
    });
    match timeout_at(until + STEP_TIMEOUT, look).await {
        Ok(Err(Error::NotFound { .. })) => Ended::QueueDeleted(queue),
        Ok(Ok(())) => otherwise,
        _ => Ended::BrokerDown,
    }
}

/// The tags that the broker waits for. Tags of one channel count up from 1 without gaps, over all its consumers.
#[derive(Debug, Default)]
struct Unsettled {
    /// Of which queue, and since when.
    taken: BTreeMap<Tag, (usize, Instant)>,
    /// Pushed by the broker and not taken yet, although a higher one was: of a queue that comes later in preference.
    skipped: BTreeSet<Tag>,
    highest: Tag,
}

impl Unsettled {
    fn push(&mut self, tag: Tag, queue: usize) {
        self.skipped.remove(&tag);
        self.skipped.extend(self.highest + 1..tag);
        self.highest = self.highest.max(tag);
        self.taken.insert(tag, (queue, Instant::now()));
    }

    fn holds_longer_than(&self, time: Duration, queue: usize) -> bool {
        let mut taken = self.taken.values();
        taken.any(|(of, since)| *of == queue && since.elapsed() > time)
    }

    fn take_out(&mut self, tags: &[Tag]) {
        for tag in tags {
            self.taken.remove(tag);
        }
    }

    /// Takes `tags` out. The first part of the answer settles them and all before in one frame; the second, one each.
    /// AMQP's `multiple` would also settle whatever else is lower, so it serves only below everything that stays open.
    fn remove(&mut self, tags: &[Tag]) -> (Option<Tag>, Vec<Tag>) {
        self.take_out(tags);
        let first = self.taken.first_key_value().map(|(tag, _)| tag);
        let open = first.into_iter().chain(self.skipped.first());
        let lowest_open = open.min().copied().unwrap_or(Tag::MAX);
        let (prefix, singles): (Vec<Tag>, _) = tags.iter().partition(|tag| **tag < lowest_open);
        (prefix.into_iter().max(), singles)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the order of taking and settling, the broker sees settled what was settled, and nothing else.
        #[test]
        fn what_is_settled_in_one_frame_is_what_was_asked_for(
            order in Just((1..=30_u64).collect::<Vec<_>>()).prop_shuffle(),
            steps in prop::collection::vec((any::<bool>(), 1..6_usize, any::<prop::sample::Index>()), 60),
        ) {
            let mut order = order.into_iter();
            let (mut unsettled, mut taken, mut settled) = (Unsettled::default(), Vec::new(), BTreeSet::new());
            for (take, count, index) in steps {
                if take || taken.is_empty() {
                    for tag in order.by_ref().take(count) {
                        unsettled.push(tag, 0);
                        taken.push(tag);
                    }
                    continue;
                }
                let at = index.index(taken.len());
                let end = (at + count).min(taken.len());
                let tags: Vec<Tag> = taken.drain(at..end).collect();
                let before = settled.clone();
                let (prefix, singles) = unsettled.remove(&tags);
                settled.extend(singles);
                if let Some(prefix) = prefix {
                    prop_assert!(tags.contains(&prefix), "the broker refuses a tag that it does not wait for");
                    settled.extend(1..=prefix);
                }
                let mut expected = before;
                expected.extend(tags);
                prop_assert_eq!(&settled, &expected);
            }
        }
    }
}
