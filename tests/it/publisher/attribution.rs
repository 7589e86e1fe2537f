//! Whether each of very many publishes gets its own outcome: 64 clients at once, over every rpc, everything mixed.
//!
//! What a message's outcome must be follows from where it goes. Afterwards the answers are compared with that, and with what
//! the queues really held: each message that was stored, in each queue that stored it, exactly once, and nothing else.
//! Among them are messages that the broker refuses, by ending the channel on which they come: its user may not write to an exchange
//! or with a key, and the broker takes only so many bytes. Those alone are refused, with the reason, and their neighbours never notice.
//!
//! `COURTIER_ATTRIBUTION` is the number of messages; `make attribution` sets a million.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Instant,
};

use courtier::{
    broker::{
        Broker,
        topology::{Binding, Exchange, ExchangeKind, Queue, QueueKind, Topology},
    },
    grpc::proto::{
        Message, Outcome, PublishBatchRequest, PublishRequest, PublishResult, PublishStreamRequest,
        SubscribeResponse, message::Payload, subscribe_response::Response,
    },
};
use futures::{StreamExt, stream};
use prost_types::{Struct, Value, value::Kind as Json};
use tokio::task::JoinSet;
use tonic_types::RpcStatusExt;

use crate::{
    books::{Consumer, outcome_of, reason_of},
    harness::{Gateway, PATIENCE, connect_to},
    instance::Instance,
};

const CLIENTS: usize = 64;
/// What a client takes from the common pile at a time; also the largest batch.
const CLAIM: usize = 256;
/// Unary calls that one client has open at a time.
const CALLS: usize = 16;

/// The queues that can hold something, as bits.
const QUEUES: [(&str, u8); 3] = [("quorum", QUORUM), ("classic", CLASSIC), ("free", FREE)];
const QUORUM: u8 = 1;
const CLASSIC: u8 = 2;
const FREE: u8 = 4;

/// A way that a message can go, and what must become of it.
struct Way {
    name: &'static str,
    /// Out of the sum of all.
    weight: u32,
    exchange: &'static str,
    /// On the default exchange, the queue's short name.
    key: &'static str,
    outcome: Outcome,
    /// Which queues store it.
    stored: u8,
    allow_unroutable: bool,
    reserved_header: bool,
    /// Larger than [`MAX_MESSAGE_SIZE`].
    too_large: bool,
    /// Of the error, where it is looked at.
    reason: &'static str,
}

const fn way(
    name: &'static str,
    weight: u32,
    to: (&'static str, &'static str),
    outcome: Outcome,
    stored: u8,
) -> Way {
    Way {
        name,
        weight,
        exchange: to.0,
        key: to.1,
        outcome,
        stored,
        allow_unroutable: false,
        reserved_header: false,
        too_large: false,
        reason: "",
    }
}

/// The exchange's user may not, or the broker cannot: never published, whatever is tried.
const fn refused(
    name: &'static str,
    to: (&'static str, &'static str),
    reason: &'static str,
) -> Way {
    Way {
        reason,
        ..way(name, 1, to, Outcome::Invalid, 0)
    }
}

#[rustfmt::skip]
static WAYS: [Way; 19] = [
    way("to a quorum queue", 6, ("orders", "quorum"), Outcome::Confirmed, QUORUM),
    way("to a classic queue", 5, ("events", "order.created"), Outcome::Confirmed, CLASSIC),
    way("to both", 3, ("all", ""), Outcome::Confirmed, QUORUM | CLASSIC),
    way("to a queue by name", 2, ("", "classic"), Outcome::Confirmed, CLASSIC),
    way("to no queue, direct", 3, ("orders", "nobody"), Outcome::Unroutable, 0),
    way("to no queue, topic", 2, ("events", "nobody"), Outcome::Unroutable, 0),
    way("to no queue, by name", 2, ("", "nobody"), Outcome::Unroutable, 0),
    way("to no queue, fanout", 1, ("nothing", ""), Outcome::Unroutable, 0),
    way("to a full queue", 3, ("orders", "full"), Outcome::Rejected, 0),
    way("to a full and a free queue", 3, ("half", ""), Outcome::Rejected, FREE),
    way("to a missing exchange", 1, ("missing", "quorum"), Outcome::Invalid, 0),
    Way { allow_unroutable: true, ..way("may be dropped", 1, ("orders", "nobody"), Outcome::Confirmed, 0) },
    Way { reserved_header: true, ..way("not valid", 1, ("orders", "quorum"), Outcome::Invalid, 0) },
    way("with an allowed key", 2, ("guarded", "order.#"), Outcome::Confirmed, CLASSIC),
    way("the empty key forbidden", 2, ("strict", "order.#"), Outcome::Confirmed, CLASSIC),
    refused("with a forbidden key", ("guarded", "secret.#"), "FORBIDDEN"),
    refused("with a forbidden key, strict", ("strict", "secret.#"), "FORBIDDEN"),
    refused("to a forbidden exchange", ("forbidden", "quorum"), "FORBIDDEN"),
    Way { too_large: true, ..refused("too large for the broker", ("orders", "quorum"), "PAYLOAD_TOO_LARGE") },
];

/// What the broker takes at the most; the gateway's own limit is far above.
const MAX_MESSAGE_SIZE: usize = 256 * 1024;
/// What the user may write to: exchanges, and keys of two of them. The second does not even allow the empty key.
const WRITABLE: &str = "^(?!.*forbidden)";
const KEYS: [(&str, &str); 2] = [("guarded", r"^(order\..*)?$"), ("strict", r"^order\..*")];

fn topology(name: impl Fn(&str) -> String) -> Topology {
    let exchange = |short, kind| Exchange::new(name(short), kind);
    let queue = |short, kind| Queue::bare(&name(short), kind);
    let bind = |exchange, queue, key: &str| Binding {
        exchange: name(exchange),
        queue: name(queue),
        routing_key: key.to_owned(),
        arguments: [].into(),
    };
    let full = Queue {
        max_length: Some(1),
        ..queue("full", QueueKind::Classic)
    };
    Topology {
        exchanges: vec![
            exchange("orders", ExchangeKind::Direct),
            exchange("events", ExchangeKind::Topic),
            exchange("all", ExchangeKind::Fanout),
            exchange("half", ExchangeKind::Fanout),
            exchange("nothing", ExchangeKind::Fanout),
            exchange("guarded", ExchangeKind::Topic),
            exchange("strict", ExchangeKind::Topic),
            exchange("forbidden", ExchangeKind::Topic),
        ],
        queues: vec![
            queue("quorum", QueueKind::Quorum),
            queue("classic", QueueKind::Classic),
            queue("free", QueueKind::Classic),
            full,
        ],
        bindings: vec![
            bind("orders", "quorum", "quorum"),
            bind("orders", "full", "full"),
            bind("events", "classic", "order.*"),
            bind("all", "quorum", ""),
            bind("all", "classic", ""),
            bind("half", "full", ""),
            bind("half", "free", ""),
            bind("guarded", "classic", "#"),
            bind("strict", "classic", "#"),
            bind("forbidden", "quorum", "#"),
        ],
    }
}

/// All messages, by number: what was answered and what was delivered.
struct Trial {
    gateway: Gateway,
    _instance: Instance,
    seed: u64,
    count: usize,
    /// The first that no client took yet.
    next: AtomicUsize,
    /// 0: not answered. Else the outcome's number.
    answers: Vec<AtomicU8>,
    /// The reasons of answers that are not what they must be.
    other: Mutex<HashMap<usize, String>>,
    /// How often it came out of each of [`QUEUES`].
    delivered: [Vec<AtomicU8>; QUEUES.len()],
}

impl Trial {
    async fn prepare(count: usize) -> Arc<Self> {
        let instance =
            Instance::start_with(|_| format!("max_message_size = {MAX_MESSAGE_SIZE}\n")).await;
        let url = instance.url.replace("guest:guest", "limited:limited");
        instance
            .ctl(&["-q", "add_user", "limited", "limited"])
            .await;
        let rights = ["-q", "set_permissions", "limited", ".*", WRITABLE, ".*"];
        instance.ctl(&rights).await;
        let broker = connect_to(&url);
        assert!(broker.connected(PATIENCE).await);
        let gateway = Gateway::start(broker, |_| {}).await;
        // Its user may not bind to what it may not write to.
        let owner = connect_to(&instance.url);
        assert!(owner.connected(PATIENCE).await);
        let topology = topology(|short| gateway.name(short));
        assert_eq!(owner.declare(&topology).await.expect("declared"), []);
        owner.close().await;
        // RabbitMQ 4.3 knows rights only of exchanges that are there.
        for (exchange, keys) in KEYS {
            let exchange = gateway.name(exchange);
            let rights = [
                "-q",
                "set_topic_permissions",
                "limited",
                &exchange,
                keys,
                ".*",
            ];
            instance.ctl(&rights).await;
        }
        let trial = Self {
            gateway,
            _instance: instance,
            seed: fastrand::u64(..),
            count,
            next: AtomicUsize::new(0),
            answers: zeros(count),
            other: Mutex::default(),
            delivered: [zeros(count), zeros(count), zeros(count)],
        };
        assert_eq!(trial.say("full", "fills it").await, Outcome::Confirmed);
        Arc::new(trial)
    }

    /// Publishes a message that is not one of the trial's to a queue.
    async fn say(&self, queue: &str, message_id: &str) -> Outcome {
        let request = PublishRequest {
            routing_key: self.gateway.name(queue),
            message: Some(Message {
                message_id: message_id.to_owned(),
                ..Message::default()
            }),
            ..PublishRequest::default()
        };
        let answer = self.gateway.publisher().await.publish(request).await;
        outcome_of(&answer).expect("the server answers")
    }

    fn random(&self, number: usize) -> fastrand::Rng {
        fastrand::Rng::with_seed(
            self.seed
                .wrapping_add(number as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15),
        )
    }

    fn way(&self, number: usize) -> &'static Way {
        let total: u32 = WAYS.iter().map(|way| way.weight).sum();
        let mut at = self.random(number).u32(..total);
        for way in &WAYS {
            if at < way.weight {
                return way;
            }
            at -= way.weight;
        }
        unreachable!("below the sum of the weights")
    }

    /// The number's own bytes, and zeros up to a size that is mostly small, now and then larger than a frame.
    fn payload(&self, number: usize) -> Vec<u8> {
        let mut random = self.random(!number);
        let size = match random.u32(..1_000) {
            _ if self.way(number).too_large => MAX_MESSAGE_SIZE + random.usize(1..50_000),
            0 => random.usize(100_000..200_000),
            1..50 => random.usize(1_000..10_000),
            _ => random.usize(8..500),
        };
        let mut payload = vec![0; size];
        payload[..8].copy_from_slice(&(number as u64).to_le_bytes());
        payload
    }

    fn request(&self, number: usize) -> PublishRequest {
        let way = self.way(number);
        let (exchange, routing_key) = match way.exchange {
            "" => (String::new(), self.gateway.name(way.key)),
            // A key of its own, where it ends so.
            exchange => (
                self.gateway.name(exchange),
                way.key.replace('#', &number.to_string()),
            ),
        };
        let headers = way.reserved_header.then(|| Struct {
            fields: [(
                "CC".to_owned(),
                Value {
                    kind: Some(Json::BoolValue(true)),
                },
            )]
            .into(),
        });
        PublishRequest {
            exchange,
            routing_key,
            message: Some(Message {
                message_id: number.to_string(),
                payload: Some(Payload::Data(self.payload(number).into())),
                headers,
                ..Message::default()
            }),
            allow_unroutable: way.allow_unroutable,
        }
    }

    /// A share of the messages that nobody took yet; empty when there are none.
    fn claim(&self, size: usize) -> Range<usize> {
        let start = self.next.fetch_add(size, Ordering::Relaxed).min(self.count);
        start..(start + size).min(self.count)
    }

    /// All that this client takes, one by one.
    fn claims(self: &Arc<Self>) -> impl Iterator<Item = usize> + Send + 'static {
        let trial = self.clone();
        std::iter::repeat_with(move || trial.claim(CLAIM))
            .take_while(|claim| !claim.is_empty())
            .flatten()
    }

    fn answered(&self, number: usize, outcome: Outcome, reason: &str) {
        let way = self.way(number);
        let number_of = u8::try_from(outcome as i32).expect("a small number");
        let before = self.answers[number].swap(number_of, Ordering::Relaxed);
        assert_eq!(before, 0, "{number} was answered twice");
        let other = !way.reason.is_empty() && way.reason != reason;
        if other || outcome != way.outcome {
            let mut others = self.other.lock().expect("nobody panics with it");
            others.insert(number, reason.to_owned());
        }
    }

    fn result(&self, number: usize, result: &PublishResult) {
        assert_eq!(result.message_id, number.to_string());
        let error = result.error.as_ref();
        assert_eq!(result.outcome() == Outcome::Confirmed, error.is_none());
        let details = error.and_then(|error| error.get_error_details().error_info().cloned());
        let reason = details.map(|info| info.reason).unwrap_or_default();
        self.answered(number, result.outcome(), &reason);
    }

    async fn client(self: Arc<Self>, number: usize) {
        match number % 3 {
            0 => self.call().await,
            1 => self.batch().await,
            _ => self.stream().await,
        }
    }

    async fn call(self: Arc<Self>) {
        let publisher = self.gateway.publisher().await;
        let calls = stream::iter(self.claims()).map(|number| {
            let (trial, mut publisher) = (self.clone(), publisher.clone());
            async move {
                let answer = publisher.publish(trial.request(number)).await;
                let outcome = outcome_of(&answer).expect("the server answers");
                let reason = answer.err().map(|status| reason_of(&status));
                trial.answered(number, outcome, &reason.unwrap_or_default());
            }
        });
        calls.buffer_unordered(CALLS).collect::<()>().await;
    }

    async fn batch(self: Arc<Self>) {
        let mut publisher = self.gateway.publisher().await;
        loop {
            let claim = self.claim(fastrand::usize(1..=CLAIM));
            if claim.is_empty() {
                return;
            }
            let messages = claim.clone().map(|number| self.request(number)).collect();
            let answer = publisher
                .publish_batch(PublishBatchRequest { messages })
                .await;
            let results = answer.expect("a batch is answered").into_inner().results;
            assert_eq!(results.len(), claim.len());
            for (index, (number, result)) in claim.zip(&results).enumerate() {
                assert_eq!(result.sequence, index as u64);
                self.result(number, result);
            }
        }
    }

    async fn stream(self: Arc<Self>) {
        let mut publisher = self.gateway.publisher().await;
        let trial = self.clone();
        let requests = stream::iter(self.claims()).map(move |number| PublishStreamRequest {
            sequence: number as u64,
            publish: Some(trial.request(number)),
        });
        let responses = publisher.publish_stream(requests).await;
        let mut responses = responses.expect("the stream begins").into_inner();
        while let Some(response) = responses.message().await.expect("the stream ends well") {
            for result in response.results {
                let number = usize::try_from(result.sequence).expect("a number of ours");
                self.result(number, &result);
            }
        }
    }

    /// Notes what comes out of a queue, up to the message whose id is `end`.
    async fn drain(self: Arc<Self>, queue: usize, end: String) {
        let name = self.gateway.name(QUEUES[queue].0);
        let mut consumer = Consumer::start(self.gateway.channel().await, &name, 2_000)
            .await
            .expect("the queue exists");
        loop {
            let response = consumer.next().await.expect("the subscription goes on");
            let Some(SubscribeResponse {
                response: Some(Response::Deliveries(deliveries)),
            }) = response
            else {
                continue;
            };
            let mut over = false;
            let mut ack_ids = Vec::new();
            for delivery in deliveries.deliveries {
                ack_ids.push(delivery.ack_id);
                let message = delivery.message.expect("there is a message");
                assert!(!over, "behind the last one: {}", message.message_id);
                if message.message_id == end {
                    over = true;
                    continue;
                }
                let number: usize = message.message_id.parse().expect("an id of ours");
                let Some(Payload::Data(data)) = message.payload else {
                    panic!("deliveries carry data");
                };
                assert!(
                    data == self.payload(number),
                    "the payload of {number} changed"
                );
                self.delivered[queue][number].fetch_add(1, Ordering::Relaxed);
            }
            consumer.ack(ack_ids);
            if over {
                consumer.finish().await;
                return;
            }
        }
    }

    /// What is wrong with a message, if anything is.
    fn fault(&self, number: usize) -> Option<String> {
        let way = self.way(number);
        let answer = i32::from(self.answers[number].load(Ordering::Relaxed));
        let delivered = self
            .delivered
            .each_ref()
            .map(|of| of[number].load(Ordering::Relaxed));
        let expected = QUEUES.map(|(_, bit)| u8::from(way.stored & bit != 0));
        let other = self.other.lock().expect("nobody panics with it");
        let reason = other.get(&number);
        if answer == way.outcome as i32 && reason.is_none() && delivered == expected {
            return None;
        }
        let answer = Outcome::try_from(answer);
        Some(format!(
            "{number} ({}): answered {answer:?} {reason:?}, expected {:?}; delivered {delivered:?} times, expected {expected:?}",
            way.name, way.outcome
        ))
    }
}

fn zeros(count: usize) -> Vec<AtomicU8> {
    std::iter::repeat_with(AtomicU8::default)
        .take(count)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn each_of_very_many_publishes_gets_its_own_outcome() {
    let count = std::env::var("COURTIER_ATTRIBUTION")
        .map_or(20_000, |count| count.parse().expect("a number"));
    let trial = Trial::prepare(count).await;
    let mut drains = JoinSet::new();
    for queue in 0..QUEUES.len() {
        drains.spawn(trial.clone().drain(queue, "end".to_owned()));
    }
    let begin = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(trial.clone().client(client));
    }
    clients.join_all().await;
    let published = begin.elapsed();
    // Queues keep the order: once this one comes out, all that was before it has.
    for (queue, _) in QUEUES {
        assert_eq!(trial.say(queue, "end").await, Outcome::Confirmed);
    }
    drains.join_all().await;
    let elapsed = begin.elapsed();

    let mut counts = [0; WAYS.len()];
    let mut faults = Vec::new();
    for number in 0..count {
        let way = trial.way(number);
        let index = WAYS.iter().position(|other| std::ptr::eq(other, way));
        counts[index.expect("one of them")] += 1;
        faults.extend(trial.fault(number));
    }
    println!(
        "{count} messages from {CLIENTS} clients in {published:.1?}, drained after {elapsed:.1?}:"
    );
    for (way, count) in WAYS.iter().zip(counts) {
        println!("{count:>9} {:<28} {:?}", way.name, way.outcome);
    }
    println!("{:>9} wrong", faults.len());
    let shown = faults
        .iter()
        .take(20)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        faults.is_empty(),
        "{} of {count} wrong (seed {}):\n{shown}",
        faults.len(),
        trial.seed
    );
}
