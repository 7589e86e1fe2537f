//! A retry's ack of which the broker never hears.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use async_trait::async_trait;
use courtier::{
    broker::{
        Broker, Checked, Delivery, Ended, Error, Lane, Links, Publish, PublishReply, Subscribe,
        Subscription, Tag, Target,
        admin::Admin,
        memory::MemoryBroker,
        topology::{Difference, Topology},
    },
    grpc::proto::{
        failed_message::Status, failed_messages_client::FailedMessagesClient, nack::Action,
    },
};
use tokio::{sync::watch, time::Instant};
use tonic::Code;

use crate::{
    desk::{Desk, refuse, slow},
    front::{Front, ack, from, refusal, refused, text},
};

/// An embedded broker whose link breaks at an ack, when it is told to.
struct Losing {
    memory: Arc<MemoryBroker>,
    acks: Arc<AtomicBool>,
}

struct LosingSubscription {
    inner: Box<dyn Subscription>,
    acks: Arc<AtomicBool>,
}

#[async_trait]
impl Subscription for LosingSubscription {
    async fn next(&mut self) -> Result<Delivery, Ended> {
        self.inner.next().await
    }

    fn try_next(&mut self) -> Option<Result<Delivery, Ended>> {
        self.inner.try_next()
    }

    async fn ack(&mut self, tags: &[Tag]) -> Result<(), Ended> {
        match self.acks.load(SeqCst) {
            true => Err(Ended::BrokerDown),
            false => self.inner.ack(tags).await,
        }
    }

    async fn requeue(&mut self, tags: &[Tag]) -> Result<(), Ended> {
        self.inner.requeue(tags).await
    }

    async fn stop(&mut self) {
        self.inner.stop().await;
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}

#[async_trait]
impl Broker for Losing {
    async fn check(&self, target: Target<'_>, deadline: Instant) -> Result<Checked, Error> {
        self.memory.check(target, deadline).await
    }

    fn lane(&self) -> Lane {
        self.memory.lane()
    }

    fn publish(&self, lane: Lane, publish: Publish, reply: PublishReply) {
        self.memory.publish(lane, publish, reply);
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>, Error> {
        let inner = self.memory.subscribe(subscribe).await?;
        let acks = self.acks.clone();
        Ok(Box::new(LosingSubscription { inner, acks }))
    }

    async fn declare(&self, topology: &Topology) -> Result<Vec<Difference>, Error> {
        self.memory.declare(topology).await
    }

    fn admin(&self) -> &dyn Admin {
        self.memory.admin()
    }

    fn links(&self) -> watch::Receiver<Links> {
        self.memory.links()
    }

    async fn close(&self) {
        self.memory.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_a_retry_counts_when_its_ack_was_lost() {
    let memory = MemoryBroker::new();
    let losing = Arc::new(AtomicBool::new(false));
    let broker = Arc::new(Losing {
        memory: memory.clone(),
        acks: losing.clone(),
    });
    let front = Front::of(broker, Some(memory), slow).await;
    let queue = front.queue("work").await;
    let failed = FailedMessagesClient::new(front.channel().await);
    let desk = Desk {
        front,
        queue,
        failed,
    };
    let id = desk.refused(text("a"), Action::DeadLetter).await.id;
    desk.retry(&id).await.expect("sent");

    let mut first = desk.front.subscribe(from(&[&desk.queue])).await;
    let delivery = first.delivery().await;
    losing.store(true, SeqCst);
    first.send(ack(&[&delivery.ack_id]));
    let ended = first.end().await;
    assert_eq!(refusal(ended), refused(Code::Unavailable, "BROKER_DOWN"));
    losing.store(false, SeqCst);

    // It comes again, and its consumer refuses it.
    let mut second = desk.front.subscribe(from(&[&desk.queue])).await;
    let delivery = second.delivery().await;
    assert_eq!((delivery.attempt, &delivery.failed_message_id), (2, &id));
    refuse(&mut second, &delivery.ack_id, Action::DeadLetter).await;
    desk.becomes(&id, Status::Failed).await;
}
