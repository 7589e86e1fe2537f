//! Steady work that fails: publishers through the gateways and past them, consumers that ack, refuse and forget, a native
//! consumer that rejects, and a queue whose messages only expire. All of them go on whatever comes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use courtier::grpc::proto::{
    Delivery, ErrorDetail, Message, Nack, Outcome, PublishRequest, Settle, Start, message::Payload,
    nack::Action, publisher_client::PublisherClient, settle_result::Result as Settled,
    subscribe_response::Response,
};
use prost_types::{ListValue, Struct, Value, value::Kind};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Channel};
use uuid::Uuid;

use crate::{
    books::{Consumer, outcome_of},
    failed_books::{FailedBooks, payload},
    failed_native,
    instance::Instance,
    process::Process,
    store::database::Raw,
};

/// Consumed through the gateways.
pub const WORK: [&str; 2] = ["orders", "mails"];
/// Consumed by a service that speaks AMQP itself.
pub const NATIVE: &str = "native";
/// Consumed by nobody: everything expires.
pub const BRIEF: &str = "brief";
pub const QUEUES: [&str; 4] = [WORK[0], WORK[1], NATIVE, BRIEF];
/// The file of a topology with these queues, and more.
pub fn topology(more: &[&str]) -> String {
    let queue = |name: &&str| {
        let ttl = if *name == BRIEF { "300ms" } else { "none" };
        // With a limit: of other queues RabbitMQ itself may lose what it moves to the dead-letter queue.
        format!("[[queues]]\nname = {name:?}\nmessage_ttl = {ttl:?}\nmax_length = 100000\n")
    };
    QUEUES.iter().chain(more).map(queue).collect()
}

/// How long anything may take while other things are broken, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until something happens.
pub async fn waits(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const DEADLINE: Duration = Duration::from_secs(4);

/// Publishers and consumers at work.
pub struct FailedLoad {
    pub shared: Arc<Shared>,
    publishing: (CancellationToken, JoinSet<()>),
    consuming: (CancellationToken, JoinSet<()>),
}

pub struct Shared {
    books: Mutex<FailedBooks>,
    /// From now on everything succeeds.
    calm: AtomicBool,
    /// Subscriptions that were refused, or ended by themselves.
    ends: AtomicUsize,
}

impl FailedLoad {
    /// Begins, through all of these gateways, and past them at this URL.
    pub fn start(gateways: &[Process], broker: &str) -> Self {
        let shared = Arc::new(Shared {
            books: Mutex::default(),
            calm: AtomicBool::new(false),
            ends: AtomicUsize::new(0),
        });
        let stops = [CancellationToken::new(), CancellationToken::new()];
        let [mut publishers, mut consumers] = [JoinSet::new(), JoinSet::new()];
        for gateway in gateways {
            for _ in 0..2 {
                publishers.spawn(shared.clone().publish(gateway.channel(), stops[0].clone()));
            }
            for queue in WORK {
                let channels = gateway.channels();
                consumers.spawn(shared.clone().consume(queue, channels, stops[1].clone()));
            }
        }
        let url = broker.to_owned();
        publishers.spawn(failed_native::publish(
            shared.clone(),
            url,
            stops[0].clone(),
        ));
        let url = broker.to_owned();
        consumers.spawn(failed_native::consume(
            shared.clone(),
            url,
            stops[1].clone(),
        ));
        let [publishing, consuming] = stops;
        Self {
            shared,
            publishing: (publishing, publishers),
            consuming: (consuming, consumers),
        }
    }

    pub fn books(&self) -> MutexGuard<'_, FailedBooks> {
        self.shared.books()
    }

    /// How many publishes were confirmed, and how many retries came.
    pub fn progress(&self) -> (u64, u64) {
        let books = self.books();
        (books.confirmed, books.retries)
    }

    /// How many subscriptions were refused, or ended by themselves.
    pub fn ends(&self) -> usize {
        self.shared.ends.load(Ordering::Relaxed)
    }

    /// Publishes no more, and waits until nothing moves any more and the queues are empty. `raw`: the gateways' database.
    pub async fn rest(&mut self, broker: &Instance, raw: &Raw) {
        self.calm().await;
        let queues = QUEUES.map(|queue| [queue.to_owned(), format!("{queue}.dlq")]);
        let queues: Vec<_> = queues.as_flattened().iter().map(String::as_str).collect();
        waits("all is settled", async || {
            if moving(raw).await > 0 {
                return false;
            }
            broker.emptied(&queues).await;
            moving(raw).await == 0
        })
        .await;
        self.stop().await;
    }

    /// Publishes no more; everything that is consumed from now on succeeds.
    async fn calm(&mut self) {
        self.shared.calm.store(true, Ordering::Relaxed);
        end(&mut self.publishing).await;
    }

    /// Ends the consumers too.
    async fn stop(&mut self) {
        end(&mut self.consuming).await;
    }
}

async fn moving(raw: &Raw) -> i64 {
    let sql = "SELECT COUNT(*) FROM failed_messages WHERE status IN ('pending', 'retrying')";
    raw.number(sql).await
}

async fn end((stop, tasks): &mut (CancellationToken, JoinSet<()>)) {
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("it does not panic");
    }
}

impl Shared {
    pub fn books(&self) -> MutexGuard<'_, FailedBooks> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    async fn publish(self: Arc<Self>, channel: Channel, stop: CancellationToken) {
        let mut publisher = PublisherClient::new(channel);
        while pause(40, &stop).await {
            let (id, queue) = (Uuid::new_v4(), any_queue());
            self.books().sending(id, queue, false);
            let mut request = Request::new(request(id, queue));
            request.set_timeout(DEADLINE);
            let answer = publisher.publish(request).await;
            let publish_id = answer.as_ref().map(|answer| &*answer.get_ref().publish_id);
            let publish_id = publish_id.unwrap_or_default();
            self.books().published(id, outcome_of(&answer), publish_id);
        }
    }

    async fn consume(
        self: Arc<Self>,
        queue: &'static str,
        channels: impl Fn() -> Channel,
        stop: CancellationToken,
    ) {
        while pause(50, &stop).await {
            let start = Start {
                queues: vec![queue.to_owned()],
                max_outstanding: 100,
                ack_deadline: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 0,
                }),
                ..Start::default()
            };
            let working = async {
                if let Ok(consumer) = Consumer::open(channels(), start).await {
                    self.work(queue, consumer).await;
                }
            };
            if stop.run_until_cancelled(working).await.is_some() {
                self.ends.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn work(&self, queue: &str, mut consumer: Consumer) {
        // Refusals that are not answered yet.
        let mut open = HashMap::new();
        while let Ok(Some(response)) = consumer.next().await {
            match response.response {
                Some(Response::Deliveries(deliveries)) => {
                    for delivery in deliveries.deliveries {
                        self.settle(queue, delivery, &consumer, &mut open);
                    }
                }
                Some(Response::Results(results)) => {
                    for result in results.results {
                        let refused = open.remove(&result.ack_id);
                        if let Some(id) = refused.filter(|_| result.result() == Settled::Ok) {
                            self.books().refused(id);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn settle(
        &self,
        queue: &str,
        delivery: Delivery,
        consumer: &Consumer,
        open: &mut HashMap<String, Uuid>,
    ) {
        let message = delivery.message.expect("there is one");
        let id = Uuid::parse_str(&message.message_id).expect("one of ours");
        let Some(Payload::Data(data)) = message.payload else {
            panic!("{:?}", message.payload);
        };
        assert!(data == payload(id), "{id}: other bytes");
        let expected = if message.app_id == failed_native::APP {
            failed_native::headers_as_struct(id)
        } else {
            headers(id)
        };
        assert_eq!(message.headers, Some(expected), "{id}: other headers");
        let row = Uuid::parse_str(&delivery.failed_message_id).ok();
        let retry = row.map(|row| (row, delivery.attempt));
        self.books()
            .delivered(id, queue, retry, delivery.redelivered);
        let nack = |action: Action| Nack {
            ack_id: delivery.ack_id.clone(),
            action: action.into(),
            error: Some(ErrorDetail {
                r#type: "Trial".to_owned(),
                message: format!("attempt {} failed \0", delivery.attempt),
                stack: String::new(),
            }),
            ..Nack::default()
        };
        let nack = match fastrand::u32(..100) {
            _ if self.is_calm() => None,
            0..45 => None,
            45..65 => Some(nack(Action::Retry)),
            65..85 => Some(Nack {
                delay: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: fastrand::i32(..400_000_000),
                }),
                ..nack(Action::Retry)
            }),
            85..90 => Some(nack(Action::DeadLetter)),
            90..95 => Some(nack(Action::Requeue)),
            95..97 => Some(nack(Action::Discard)),
            // Forgotten: its ack deadline comes.
            _ => return,
        };
        let mut settle = Settle::default();
        match nack {
            None => settle.ack_ids.push(delivery.ack_id),
            Some(nack) => settle.nacks.push(nack),
        }
        let action = settle.nacks.first().map(Nack::action);
        match action {
            None | Some(Action::Discard) => self.books().acked(id, delivery.attempt),
            Some(Action::Retry | Action::DeadLetter) => {
                open.insert(settle.nacks[0].ack_id.clone(), id);
            }
            Some(_) => {}
        }
        consumer.settle(settle);
    }
}

fn any_queue() -> &'static str {
    match fastrand::u32(..100) {
        0..40 => WORK[0],
        40..75 => WORK[1],
        75..85 => NATIVE,
        _ => BRIEF,
    }
}

fn request(id: Uuid, queue: &str) -> PublishRequest {
    PublishRequest {
        routing_key: queue.to_owned(),
        message: Some(Message {
            message_id: id.to_string(),
            payload: Some(Payload::Data(payload(id).into())),
            headers: Some(headers(id)),
            ..Message::default()
        }),
        ..PublishRequest::default()
    }
}

/// Of what is published through a gateway.
fn headers(id: Uuid) -> Struct {
    let text = |text: String| Kind::StringValue(text);
    let deep = table([
        ("id", text(id.to_string())),
        ("nothing", Kind::NullValue(0)),
    ]);
    let list = [Kind::NumberValue(-1.5), Kind::StructValue(deep.clone())];
    let values = list.map(|kind| Value { kind: Some(kind) }).to_vec();
    table([
        ("plain", text("Grüße".to_owned())),
        ("list", Kind::ListValue(ListValue { values })),
        ("nested", Kind::StructValue(deep)),
        ("yes", Kind::BoolValue(true)),
    ])
}

fn table<const N: usize>(fields: [(&str, Kind); N]) -> Struct {
    let field = |(name, kind): (&str, Kind)| (name.to_owned(), Value { kind: Some(kind) });
    Struct {
        fields: fields.map(field).into(),
    }
}

/// Paces a loop; `false` when it is to end.
pub async fn pause(ms: u64, stop: &CancellationToken) -> bool {
    let pace = tokio::time::sleep(Duration::from_millis(ms));
    stop.run_until_cancelled(pace).await.is_some()
}

/// An outcome, unless it takes too long to be waited for.
pub async fn in_time<T>(future: impl Future<Output = T>) -> Option<T> {
    timeout(DEADLINE, future).await.ok()
}

/// What a confirm by the broker itself is called here.
pub const CONFIRMED: Option<Outcome> = Some(Outcome::Confirmed);
