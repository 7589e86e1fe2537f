//! Somebody else's service: publishes, receives and acks what it published, and is probed on fresh connections. It lives on a thread
//! of its own, so that it waits for the gateway and not for the attacker's share of the test.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use courtier::grpc::proto::{
    Message, PublishRequest, publisher_client::PublisherClient, subscribe_response::Response,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Channel};
use uuid::Uuid;

use crate::{books::Consumer, harness::eventually, process::get};

/// Calls of a phase that are enough for a p99.
pub const ENOUGH: usize = 200;
const PACE: Duration = Duration::from_millis(10);
/// No call may need longer; generous, for busy machines.
const DEADLINE: Duration = Duration::from_secs(10);
/// Probes are made at every so many calls.
const PROBE: usize = 5;

pub struct Neighbour {
    waits: Arc<Mutex<Waits>>,
    stop: CancellationToken,
    working: Option<JoinHandle<()>>,
}

/// How long it waited, since the phase began.
#[derive(Default)]
pub struct Waits {
    publish: Vec<Duration>,
    deliver: Vec<Duration>,
    probe: Vec<Duration>,
    faults: Vec<String>,
}

/// Of a phase.
pub struct Summary {
    /// p99.
    pub late: Duration,
    pub worst: Duration,
}

impl Waits {
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    pub const KINDS: [&str; 3] = ["publish", "deliver", "livez"];

    /// Of each kind.
    pub fn summaries(&self) -> [Summary; 3] {
        [&self.publish, &self.deliver, &self.probe].map(|waits| summary(waits))
    }
}

fn summary(waits: &[Duration]) -> Summary {
    let mut waits = waits.to_vec();
    waits.sort_unstable();
    let at = |percent: usize| {
        let index = (waits.len() * percent / 100).min(waits.len().saturating_sub(1));
        waits.get(index).copied().unwrap_or_default()
    };
    Summary {
        late: at(99),
        worst: at(100),
    }
}

impl Neighbour {
    pub fn start(address: String, queue: String) -> Self {
        let waits = Arc::<Mutex<Waits>>::default();
        let stop = CancellationToken::new();
        let working = thread::spawn({
            let (waits, stop) = (waits.clone(), stop.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let work = Work {
                    address,
                    queue,
                    waits,
                    under_way: Arc::default(),
                };
                let runtime = runtime.expect("a runtime");
                runtime.block_on(stop.run_until_cancelled(work.all()));
            }
        });
        Self {
            waits,
            stop,
            working: Some(working),
        }
    }

    /// Waits until it made so many calls since the phase began, and ends the phase.
    pub async fn work(&self, calls: usize) -> Waits {
        self.worked(calls).await;
        std::mem::take(&mut *self.waits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until it made so many calls since the phase began, or one failed.
    pub async fn worked(&self, calls: usize) {
        eventually("the neighbour works", || async {
            let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
            let done = waits.publish.len().min(waits.deliver.len());
            done >= calls || !waits.faults.is_empty()
        })
        .await;
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(working) = self.working.take() {
            let _ = working.join();
        }
    }
}

struct Work {
    address: String,
    queue: String,
    waits: Arc<Mutex<Waits>>,
    /// What was published and has not come yet.
    under_way: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Work {
    async fn all(self) {
        let channel = Channel::from_shared(format!("http://{}", self.address));
        let channel = channel
            .expect("a valid URL")
            .connect()
            .await
            .expect("it listens");
        tokio::join!(
            self.publish(channel.clone()),
            self.consume(channel),
            self.probe()
        );
    }

    fn note(&self, note: impl FnOnce(&mut Waits)) {
        note(&mut self.waits.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn fault(&self, what: &str, fault: &dyn std::fmt::Display) {
        self.note(|waits| waits.faults.push(format!("{what}: {fault}")));
    }

    async fn publish(&self, channel: Channel) {
        let mut publisher = PublisherClient::new(channel);
        loop {
            tokio::time::sleep(PACE).await;
            let id = Uuid::now_v7().to_string();
            let message = Message {
                message_id: id.clone(),
                ..Message::default()
            };
            let mut request = Request::new(PublishRequest {
                routing_key: self.queue.clone(),
                message: Some(message),
                ..PublishRequest::default()
            });
            request.set_timeout(DEADLINE);
            let begin = Instant::now();
            let under_way = || {
                self.under_way
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
            };
            under_way().insert(id, begin);
            match publisher.publish(request).await {
                Ok(_) => self.note(|waits| waits.publish.push(begin.elapsed())),
                Err(status) => return self.fault("publish", &status),
            }
        }
    }

    async fn consume(&self, channel: Channel) {
        let mut consumer = match Consumer::start(channel, &self.queue, 100).await {
            Ok(consumer) => consumer,
            Err(status) => return self.fault("subscribe", &status),
        };
        loop {
            let said = match timeout(DEADLINE, consumer.next()).await {
                Ok(Ok(Some(said))) => said.response,
                Ok(Ok(None)) => return self.fault("subscription", &"it ended"),
                Ok(Err(status)) => return self.fault("subscription", &status),
                Err(_) => return self.fault("subscription", &"nothing comes"),
            };
            let Some(Response::Deliveries(deliveries)) = said else {
                continue;
            };
            let mut ack_ids = Vec::new();
            for delivery in deliveries.deliveries {
                ack_ids.push(delivery.ack_id);
                let id = delivery.message.unwrap_or_default().message_id;
                let mut under_way = self
                    .under_way
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some(begin) = under_way.remove(&id) {
                    self.note(|waits| waits.deliver.push(begin.elapsed()));
                }
            }
            consumer.ack(ack_ids);
        }
    }

    /// On a connection of its own each time, as an orchestrator does.
    async fn probe(&self) {
        loop {
            tokio::time::sleep(PACE * u32::try_from(PROBE).expect("few")).await;
            let begin = Instant::now();
            match timeout(DEADLINE, get(&self.address, "/livez")).await {
                Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => {
                    self.note(|waits| waits.probe.push(begin.elapsed()));
                }
                Ok(Ok(answer)) => return self.fault("livez", &answer),
                Ok(Err(error)) => return self.fault("livez", &error),
                Err(_) => return self.fault("livez", &"no answer"),
            }
        }
    }
}
