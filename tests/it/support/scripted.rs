//! A broker that does as it is told, for what a real one does only in bad times.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use async_trait::async_trait;
use courtier::broker::{
    Broker, Checked, Error, Fate, InDoubt, Lane, Links, Publish, PublishReply, Subscribe,
    Subscription, Target,
    admin::Admin,
    memory::MemoryBroker,
    topology::{Difference, Topology},
};
use tokio::{sync::watch, time::Instant};

/// A broker with one fate for every publish; and when none is set, one that stays silent until the deadline.
pub struct Scripted {
    fate: Option<Fate>,
    memory: Arc<MemoryBroker>,
    /// Unanswered publishes: now, and at the most.
    unanswered: Arc<AtomicUsize>,
    pub most: Arc<AtomicUsize>,
}

impl Scripted {
    pub fn new(fate: Option<Fate>) -> Self {
        Self {
            fate,
            memory: MemoryBroker::new(),
            unanswered: Arc::default(),
            most: Arc::default(),
        }
    }
}

#[async_trait]
impl Broker for Scripted {
    async fn check(&self, target: Target<'_>, deadline: Instant) -> Result<Checked, Error> {
        self.memory.check(target, deadline).await
    }

    fn lane(&self) -> Lane {
        self.memory.lane()
    }

    fn publish(&self, _: Lane, publish: Publish, mut reply: PublishReply) {
        reply.handed_over();
        let now = self.unanswered.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        let (fate, unanswered) = (self.fate, self.unanswered.clone());
        tokio::spawn(async move {
            if fate.is_none() {
                tokio::time::sleep_until(publish.deadline).await;
            }
            unanswered.fetch_sub(1, SeqCst);
            reply.answer(fate.unwrap_or(Fate::InDoubt(InDoubt::ConfirmTimeout)));
        });
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>, Error> {
        self.memory.subscribe(subscribe).await
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
