//! Steady work for a gateway that something happens to: publishers over every rpc and subscribers, which go on whatever comes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use courtier::grpc::proto::{
    Message, Outcome, PublishBatchRequest, PublishRequest, PublishStreamRequest, Start,
    message::Payload, publisher_client::PublisherClient, subscribe_response::Response,
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::{
    books::{Books, Consumer, outcome_named, outcome_of, reason_of},
    harness::eventually,
    instance::Instance,
    patient::Patient,
    process::Process,
};

/// The one exchange of a load, direct; every queue is bound under its own name.
const EXCHANGE: &str = "work";
pub const QUEUES: [&str; 2] = ["left", "right"];
/// What a gateway declares for a load: quorum queues, without limits.
pub const TOPOLOGY: &str = r#"
exchanges = [{ name = "work", type = "direct" }]
queues = [
    { name = "left", message_ttl = "none", max_length = 0, dead_letter = false },
    { name = "right", message_ttl = "none", max_length = 0, dead_letter = false },
]
bindings = [
    { exchange = "work", queue = "left", routing_key = "left" },
    { exchange = "work", queue = "right", routing_key = "right" },
]
"#;

/// What every unary call and every batch allows for its answer.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// How much later than its deadline an answer may come.
pub const LATE: Duration = Duration::from_secs(1);

/// Bound to nothing.
const UNROUTABLE: &str = "nobody";

/// Publishers and subscribers at work.
pub struct Load {
    shared: Arc<Shared>,
    publishing: (CancellationToken, JoinSet<()>),
    subscribing: (CancellationToken, JoinSet<()>),
}

struct Shared {
    patient: Patient,
    channel: Box<dyn Fn() -> Channel + Send + Sync>,
    books: Mutex<Books>,
    /// How subscriptions ended or were refused.
    ends: Mutex<Vec<Status>>,
    /// Unary calls and batches that were answered later than a second after their deadline.
    late: Mutex<Vec<Duration>>,
}

impl Load {
    /// Begins.
    pub fn start(gateway: &Process) -> Self {
        let shared = Arc::new(Shared {
            patient: gateway.patient(),
            channel: Box::new(gateway.channels()),
            books: Mutex::default(),
            ends: Mutex::default(),
            late: Mutex::default(),
        });
        let stops = [CancellationToken::new(), CancellationToken::new()];
        let [mut publishers, mut subscribers] = [JoinSet::new(), JoinSet::new()];
        for _ in 0..4 {
            publishers.spawn(shared.clone().call(stops[0].clone()));
        }
        for _ in 0..2 {
            publishers.spawn(shared.clone().stream(stops[0].clone()));
            publishers.spawn(shared.clone().batch(stops[0].clone()));
        }
        for queue in QUEUES {
            subscribers.spawn(shared.clone().subscribe(queue, stops[1].clone()));
            subscribers.spawn(shared.clone().subscribe(queue, stops[1].clone()));
        }
        let [publishing, subscribing] = stops;
        Self {
            shared,
            publishing: (publishing, publishers),
            subscribing: (subscribing, subscribers),
        }
    }

    pub fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.shared.books)
    }

    /// How subscriptions ended since the last look.
    pub fn ends(&self) -> Vec<Status> {
        std::mem::take(&mut lock(&self.shared.ends))
    }

    /// Waits until so many more messages are confirmed and so many more delivered.
    pub async fn progress(&self, count: u64) {
        let begin = self.books().progress();
        eventually("messages are confirmed and delivered", || async {
            let now = self.books().progress();
            now.0 >= begin.0 + count && now.1 >= begin.1 + count
        })
        .await;
    }

    /// Waits until so many more messages have this outcome.
    pub async fn outcomes(&self, outcome: Outcome, count: usize) {
        let begin = self.books().count(outcome);
        eventually(&format!("{count} are {outcome:?}"), || async {
            self.books().count(outcome) >= begin + count
        })
        .await;
    }

    /// Publishes no more, and waits until every call is answered.
    pub async fn stop_publishing(&mut self) {
        self.publishing.0.cancel();
        while let Some(ended) = self.publishing.1.join_next().await {
            ended.expect("publishers do not panic");
        }
    }

    /// Stops all, once the broker's queues are empty, and checks the books: nothing that was confirmed is lost, and nothing
    /// came that was said not to be there.
    pub async fn check(mut self, instance: &Instance) -> Books {
        self.stop_publishing().await;
        instance.emptied(&QUEUES).await;
        self.subscribing.0.cancel();
        while let Some(ended) = self.subscribing.1.join_next().await {
            ended.expect("subscribers do not panic");
        }
        let books = std::mem::take(&mut *self.books());
        println!("{}", books.summary());
        let (missing, ghosts) = (books.missing(), books.ghosts());
        assert!(
            missing.is_empty(),
            "confirmed and lost: {} {:?}",
            missing.len(),
            missing.first()
        );
        assert!(
            ghosts.is_empty(),
            "denied and delivered: {} {:?}",
            ghosts.len(),
            ghosts.first()
        );
        let late = std::mem::take(&mut *lock(&self.shared.late));
        assert!(late.is_empty(), "answered late, after {late:?}");
        books
    }
}

/// A message of its own, mostly to a queue, now and then to none.
pub fn request() -> PublishRequest {
    to_queue(match fastrand::u32(..10) {
        0 => UNROUTABLE,
        n => QUEUES[n as usize % QUEUES.len()],
    })
}

/// A message of its own to one of the queues.
pub fn to_queue(queue: &str) -> PublishRequest {
    PublishRequest {
        exchange: EXCHANGE.to_owned(),
        routing_key: queue.to_owned(),
        message: Some(Message {
            message_id: Uuid::now_v7().to_string(),
            payload: Some(Payload::Data(vec![0; fastrand::usize(..1_000)].into())),
            ..Message::default()
        }),
        allow_unroutable: false,
    }
}

fn id(request: &PublishRequest) -> String {
    request.message.clone().unwrap_or_default().message_id
}

impl Shared {
    fn publisher(&self) -> PublisherClient<Patient> {
        self.patient.publisher()
    }

    fn note(&self, id: &str, outcome: Option<Outcome>) {
        lock(&self.books).published(id, outcome);
    }

    /// A request with a deadline, and a clock that notes whether it was met.
    fn timed<T>(&self, message: T) -> (Request<T>, impl FnOnce()) {
        let mut request = Request::new(message);
        request.set_timeout(DEADLINE);
        let begin = Instant::now();
        let stop = move || {
            let took = begin.elapsed();
            if took > DEADLINE + LATE {
                lock(&self.late).push(took);
            }
        };
        (request, stop)
    }

    async fn call(self: Arc<Self>, stop: CancellationToken) {
        let mut publisher = self.publisher();
        while pause(20, &stop).await {
            let request = request();
            let id = id(&request);
            let (request, answered) = self.timed(request);
            let answer = publisher.publish(request).await;
            answered();
            self.note(&id, outcome_of(&answer));
        }
    }

    async fn batch(self: Arc<Self>, stop: CancellationToken) {
        let mut publisher = self.publisher();
        while pause(100, &stop).await {
            let messages: Vec<_> = (0..fastrand::usize(1..40)).map(|_| request()).collect();
            let ids: Vec<_> = messages.iter().map(id).collect();
            let (request, answered) = self.timed(PublishBatchRequest { messages });
            let answer = publisher.publish_batch(request).await;
            answered();
            for (index, id) in ids.iter().enumerate() {
                let outcome = match &answer {
                    Ok(response) => Some(response.get_ref().results[index].outcome()),
                    Err(status) => outcome_named(status),
                };
                self.note(id, outcome);
            }
        }
    }

    /// Streams, one after the other, each as long as the gateway lives.
    async fn stream(self: Arc<Self>, stop: CancellationToken) {
        let mut publisher = self.publisher();
        while pause(50, &stop).await {
            let open: Arc<Mutex<HashMap<u64, String>>> = Arc::default();
            let (requests, receiver) = mpsc::channel(1);
            let feeding = tokio::spawn(feed(requests, open.clone(), stop.clone()));
            if let Ok(responses) = publisher
                .publish_stream(ReceiverStream::new(receiver))
                .await
            {
                let mut responses = responses.into_inner();
                while let Ok(Some(response)) = responses.message().await {
                    for result in response.results {
                        let id = lock(&open).remove(&result.sequence);
                        self.note(&id.expect("answered once"), Some(result.outcome()));
                    }
                }
            }
            feeding.abort();
            let _ = feeding.await;
            for (_, id) in lock(&open).drain() {
                self.note(&id, None);
            }
        }
    }

    /// Acks most of what comes and counts that as delivered. Some goes back at once, and some is forgotten, so that it goes
    /// back when its ack deadline comes: neither may be lost.
    async fn subscribe(self: Arc<Self>, queue: &'static str, stop: CancellationToken) {
        while pause(50, &stop).await {
            let start = Start {
                queues: vec![queue.to_owned()],
                max_outstanding: 500,
                ack_deadline: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 0,
                }),
                ..Start::default()
            };
            match Consumer::open((self.channel)(), start).await {
                Err(status) => lock(&self.ends).push(status),
                Ok(consumer) => {
                    let ended = stop.run_until_cancelled(self.consume(consumer)).await;
                    lock(&self.ends).extend(ended);
                }
            }
        }
    }

    async fn consume(&self, mut consumer: Consumer) -> Status {
        loop {
            let response = match consumer.next().await {
                Ok(Some(response)) => response.response,
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            };
            let Some(Response::Deliveries(deliveries)) = response else {
                continue;
            };
            let (mut done, mut back) = (Vec::new(), Vec::new());
            for delivery in deliveries.deliveries {
                match fastrand::u32(..50) {
                    0 => back.push(delivery.ack_id),
                    1 => {}
                    _ => {
                        let id = delivery.message.unwrap_or_default().message_id;
                        lock(&self.books).delivered(&id);
                        done.push(delivery.ack_id);
                    }
                }
            }
            consumer.ack(done);
            consumer.requeue(back);
        }
    }
}

/// Bursts of requests; `open` holds the unanswered ones.
async fn feed(
    requests: mpsc::Sender<PublishStreamRequest>,
    open: Arc<Mutex<HashMap<u64, String>>>,
    stop: CancellationToken,
) {
    let mut sequences = 0..;
    while pause(200, &stop).await {
        for sequence in sequences.by_ref().take(50) {
            let request = request();
            lock(&open).insert(sequence, id(&request));
            let publish = Some(request);
            if requests
                .send(PublishStreamRequest { sequence, publish })
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

/// Paces a loop; `false` when it is to end.
async fn pause(ms: u64, stop: &CancellationToken) -> bool {
    let pace = tokio::time::sleep(Duration::from_millis(ms));
    stop.run_until_cancelled(pace).await.is_some()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// That a subscription ended as one does when the broker is lost: try again soon.
pub fn assert_broker_down(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(reason_of(status), "BROKER_DOWN", "{status:?}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
}
