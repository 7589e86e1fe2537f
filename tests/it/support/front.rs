//! The front door: what a test says to a gateway as a gRPC client, and how it reads the answers.
//!
//! A test is a function over [`On`], the broker behind the gateway; [`on_both!`] makes a test of it for each.

use std::{
    net::{Shutdown, TcpStream},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use courtier::{
    broker::{
        Broker,
        memory::MemoryBroker,
        topology::{Binding, Exchange, ExchangeKind, Queue, QueueKind, Topology},
    },
    gateway::Limits,
    grpc::proto::{
        Deliveries, Delivery, ExtendDeadline, Message, Nack, PublishRequest, PublishResponse,
        Revoked, Settle, SettleResults, Start, SubscribeRequest, SubscribeResponse,
        message::Payload, nack::Action, publisher_client::PublisherClient,
        settle_result::Result as SettleResult, subscribe_request::Request,
        subscribe_response::Response, subscriber_client::SubscriberClient,
    },
    server::ServeError,
};
use hyper_util::rt::TokioIo;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

use crate::harness::{Gateway, PATIENCE, Setup, connect, connect_managed};

/// An event with the largest message that a test publishes.
const MAX_EVENT: usize = 64 * 1024 * 1024;

/// Makes a test of each case on one broker.
macro_rules! on_one {
    (embedded: $($case:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case($crate::front::On::Embedded).await;
            })*
        }
    };
    (rabbitmq: $($case:ident)*) => {
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs RabbitMQ: run make test"]
            async fn $case() {
                super::$case($crate::front::On::RabbitMq).await;
            })*
        }
    };
    (managed: $($case:ident)*) => {
        mod managed {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs RabbitMQ: run make test"]
            async fn $case() {
                super::$case($crate::front::On::Managed).await;
            })*
        }
    };
}
pub(crate) use on_one;

/// Makes a test of each case for the embedded broker and for RabbitMQ.
macro_rules! on_both {
    ($($case:ident)+) => {
        $crate::front::on_one! { embedded: $($case)+ }
        $crate::front::on_one! { rabbitmq: $($case)+ }
    };
}
pub(crate) use on_both;

/// The same, and for RabbitMQ with its management API; but for cases that one of them has nothing to show in.
macro_rules! on_all {
    ($($case:ident)* $([not embedded] $($not_embedded:ident)+)? $([not rabbitmq] $($not_rabbitmq:ident)+)?) => {
        $crate::front::on_one! { embedded: $($case)* $($($not_rabbitmq)+)? }
        $crate::front::on_one! { rabbitmq: $($case)* $($($not_embedded)+)? }
        $crate::front::on_one! { managed: $($case)* $($($not_embedded)+)? $($($not_rabbitmq)+)? }
    };
}
pub(crate) use on_all;

/// The broker behind the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Embedded,
    /// Without its management API.
    RabbitMq,
    /// With it.
    Managed,
}

impl On {
    pub async fn gateway(self) -> Front {
        self.gateway_with(|_| {}).await
    }

    /// Its database is away: it collects no dead letters, and they stay where they can be looked at.
    pub async fn gateway_with(self, change: impl FnOnce(&mut Limits)) -> Front {
        self.gateway_set_up(|setup| {
            setup.without_database();
            change(&mut setup.config.limits);
        })
        .await
    }

    /// With a database of its own, unless `change` says otherwise.
    pub async fn gateway_set_up(self, change: impl FnOnce(&mut Setup)) -> Front {
        match self {
            Self::Embedded => {
                let memory = MemoryBroker::new();
                Front::of(memory.clone(), Some(memory), change).await
            }
            Self::RabbitMq => Front::of(connect().await, None, change).await,
            Self::Managed => Front::of(connect_managed().await, None, change).await,
        }
    }
}

/// A gateway, a client that publishes, and what a test does behind its back.
pub struct Front {
    gateway: Gateway,
    memory: Option<Arc<MemoryBroker>>,
    pub publisher: PublisherClient<Channel>,
}

impl Deref for Front {
    type Target = Gateway;

    fn deref(&self) -> &Gateway {
        &self.gateway
    }
}

impl Front {
    pub async fn of(
        broker: Arc<dyn Broker>,
        memory: Option<Arc<MemoryBroker>>,
        change: impl FnOnce(&mut Setup),
    ) -> Self {
        let gateway = Gateway::start_with(broker, change).await;
        let publisher = gateway.publisher().await;
        Self {
            gateway,
            memory,
            publisher,
        }
    }

    /// Waits until the gateway has stopped. All clients hang up first.
    pub async fn stopped(self) -> Result<(), ServeError> {
        drop(self.publisher);
        timely(self.gateway.stopped()).await
    }

    pub async fn declare(&self, topology: Topology) {
        let declared = timely(self.broker.declare(&topology)).await;
        assert_eq!(declared.expect("declared"), []);
    }

    /// A classic queue of this test's own: on it every count is exact, on RabbitMQ too.
    pub async fn queue(&self, short: &str) -> String {
        self.queue_with(short, |_| {}).await
    }

    pub async fn queue_with(&self, short: &str, change: impl FnOnce(&mut Queue)) -> String {
        let mut queue = Queue::bare(&self.name(short), QueueKind::Classic);
        change(&mut queue);
        let name = queue.name.clone();
        self.declare(Topology {
            queues: vec![queue],
            ..Topology::default()
        })
        .await;
        name
    }

    /// A queue that is full: "full" is in it.
    pub async fn full_queue(&self, short: &str) -> String {
        let queue = self.queue_with(short, |queue| queue.max_length = Some(1));
        let queue = queue.await;
        self.fill(&queue, &["full"]).await;
        queue
    }

    /// A direct exchange, with a binding of `key` to each queue.
    pub async fn exchange(&self, short: &str, key: &str, queues: &[&str]) -> String {
        let name = self.name(short);
        let binding = |queue: &&str| Binding {
            exchange: name.clone(),
            queue: (*queue).to_owned(),
            routing_key: key.to_owned(),
            arguments: [].into(),
        };
        self.declare(Topology {
            exchanges: vec![Exchange::new(name.clone(), ExchangeKind::Direct)],
            queues: vec![],
            bindings: queues.iter().map(binding).collect(),
        })
        .await;
        name
    }

    /// Deletes a queue, as an administrator does.
    pub async fn delete_queue(&self, name: &str) {
        match &self.memory {
            Some(memory) => assert!(memory.delete_queue(name)),
            None => {
                let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
                let connection = lapin::Connection::connect(&url, Default::default()).await;
                let connection = connection.expect("RabbitMQ runs");
                let channel = connection.create_channel().await.expect("a channel");
                let deleted = channel.queue_delete(name.into(), Default::default()).await;
                deleted.expect("deleted");
                connection.close(200, "done".into()).await.expect("closed");
            }
        }
    }

    pub async fn publish(&self, request: PublishRequest) -> Result<PublishResponse, Status> {
        let answer = timely(self.publisher.clone().publish(request)).await;
        answer.map(tonic::Response::into_inner)
    }

    /// Stores texts in a queue, in this order.
    pub async fn fill(&self, queue: &str, texts: &[&str]) {
        for body in texts {
            let answer = self.publish(to_queue(queue, text(body))).await;
            answer.unwrap_or_else(|status| panic!("{body} to {queue}: {status}"));
        }
    }

    /// Other clients are served as before.
    pub async fn neighbours_are_unharmed(&self) {
        let queue = self.queue("neighbour").await;
        self.fill(&queue, &["unharmed"]).await;
        assert_eq!(self.drain_bodies(&queue).await, ["unharmed"]);
    }

    pub async fn subscribe(&self, start: Start) -> Stream {
        let opened = Stream::open(self, start).await;
        opened.expect("the subscription opens")
    }

    /// What is ready in a queue, in order; the queue is empty afterwards. A message of its own, published last, shows that
    /// nothing else is left.
    pub async fn drain(&self, queue: &str) -> Vec<Delivery> {
        let end = uuid::Uuid::now_v7().to_string();
        self.fill(queue, &[&end]).await;
        let most = Start {
            max_outstanding: 10_000,
            ..from(&[queue])
        };
        let mut stream = self.subscribe(most).await;
        let mut drained = Vec::new();
        loop {
            let delivery = stream.delivery().await;
            // At once: what a client that vanished had comes one by one.
            stream.send(ack(&[&delivery.ack_id]));
            let is_end = body(&delivery) == end;
            drained.push(delivery);
            if is_end {
                break;
            }
        }
        drained.pop();
        stream.half_close();
        // Only then is everything settled.
        while let Some(Response::Results(_)) = stream.event().await.expect("it ends well") {}
        drained
    }

    /// The bodies of what is ready in a queue.
    pub async fn drain_bodies(&self, queue: &str) -> Vec<String> {
        bodies(&self.drain(queue).await)
    }
}

/// A connection, and its socket to break it off.
async fn connect_apart(address: &str) -> (Channel, TcpStream) {
    let socket = TcpStream::connect(address).expect("the server listens");
    let ours = socket.try_clone().expect("a second handle");
    socket.set_nonblocking(true).expect("a socket");
    let socket = tokio::net::TcpStream::from_std(socket).expect("a socket");
    let mut once = Some(TokioIo::new(socket));
    let connector = tower::service_fn(move |_| {
        std::future::ready(
            once.take()
                .ok_or_else(|| std::io::Error::other("it broke off")),
        )
    });
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("a valid URL");
    let channel = endpoint.connect_with_connector(connector).await;
    (channel.expect("the server listens"), ours)
}

/// Waits for what must happen.
pub async fn timely<F: Future>(future: F) -> F::Output {
    let result = timeout(PATIENCE, future).await;
    result.expect("it happens in time")
}

pub fn text(body: &str) -> Message {
    Message {
        payload: Some(Payload::Text(body.to_owned())),
        ..Message::default()
    }
}

/// Through the default exchange.
pub fn to_queue(queue: &str, message: Message) -> PublishRequest {
    PublishRequest {
        routing_key: queue.to_owned(),
        message: Some(message),
        ..PublishRequest::default()
    }
}

/// A subscription to these queues with the defaults.
pub fn from(queues: &[&str]) -> Start {
    Start {
        queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
        ..Start::default()
    }
}

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub fn payload(delivery: &Delivery) -> &[u8] {
    match delivery.message.as_ref().and_then(|m| m.payload.as_ref()) {
        Some(Payload::Data(data)) => data,
        other => panic!("deliveries carry data, not {other:?}"),
    }
}

pub fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(payload(delivery)).into_owned()
}

pub fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(body).collect()
}

/// What a status says to a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub code: Code,
    pub reason: String,
    /// `publish_outcome`
    pub outcome: String,
    /// Of the first violation; empty when there is none.
    pub field: String,
    /// Whether it says when to try again.
    pub retry: bool,
}

/// Reads a status; it must carry an `ErrorInfo` of this service.
pub fn fault(status: &Status) -> Fault {
    let details = status.get_error_details();
    let Some(info) = details.error_info() else {
        panic!("without an ErrorInfo: {status:?}");
    };
    assert_eq!(info.domain, "courtier", "{status:?}");
    let violation = details
        .bad_request()
        .and_then(|b| b.field_violations.first());
    let after = details.retry_info().and_then(|info| info.retry_delay);
    assert_ne!(after, Some(Duration::ZERO), "{status:?}");
    Fault {
        code: status.code(),
        reason: info.reason.clone(),
        outcome: info
            .metadata
            .get("publish_outcome")
            .cloned()
            .unwrap_or_default(),
        field: violation.map(|v| v.field.clone()).unwrap_or_default(),
        retry: after.is_some(),
    }
}

/// Code and reason of a failed call.
pub fn refusal<T>(answer: Result<T, Status>) -> (Code, String) {
    let Err(status) = answer else {
        panic!("this call must be refused");
    };
    let fault = fault(&status);
    (fault.code, fault.reason)
}

pub fn refused(code: Code, reason: &str) -> (Code, String) {
    (code, reason.to_owned())
}

/// The client's side of a subscription.
pub struct Stream {
    requests: mpsc::UnboundedSender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
    /// Received with one that was asked for, in order.
    ready: std::collections::VecDeque<Delivery>,
    socket: TcpStream,
    pub started: courtier::grpc::proto::Started,
}

impl Stream {
    /// Opens it and waits for `Started`.
    pub async fn open(gateway: &Gateway, start: Start) -> Result<Self, Status> {
        Self::say(gateway, [Request::Start(start)]).await
    }

    /// Opens it at a gateway that is another process.
    pub async fn at(address: &str, start: Start) -> Self {
        let opened = Self::say_to(address, [Request::Start(start)]).await;
        opened.expect("the subscription opens")
    }

    /// Opens it with any requests.
    pub async fn say(
        gateway: &Gateway,
        first: impl IntoIterator<Item = Request>,
    ) -> Result<Self, Status> {
        Self::say_to(&gateway.address, first).await
    }

    async fn say_to(
        address: &str,
        first: impl IntoIterator<Item = Request>,
    ) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::unbounded_channel();
        for request in first {
            let request = Some(request);
            requests.send(SubscribeRequest { request }).expect("open");
        }
        let (channel, socket) = connect_apart(address).await;
        let mut client = SubscriberClient::new(channel).max_decoding_message_size(MAX_EVENT);
        let requests_stream = UnboundedReceiverStream::new(receiver);
        let mut responses = timely(client.subscribe(requests_stream))
            .await?
            .into_inner();
        match timely(responses.message()).await?.and_then(|r| r.response) {
            Some(Response::Started(started)) => Ok(Self {
                requests,
                responses,
                ready: [].into(),
                socket,
                started,
            }),
            other => panic!("Started comes first, not {other:?}"),
        }
    }

    pub fn send(&self, request: Request) {
        let request = Some(request);
        // A stream that has ended takes nothing; the test then sees its end.
        let _ = self.requests.send(SubscribeRequest { request });
    }

    /// What the gateway says next; `None` at the end.
    pub async fn event(&mut self) -> Result<Option<Response>, Status> {
        assert!(self.ready.is_empty(), "deliveries were overlooked");
        let response = timely(self.responses.message()).await?;
        Ok(response.map(|response| response.response.expect("one is set")))
    }

    /// The next delivery; only results that nobody asked for may come before it.
    pub async fn delivery(&mut self) -> Delivery {
        while self.ready.is_empty() {
            match self.event().await {
                Ok(Some(Response::Deliveries(Deliveries { deliveries }))) => {
                    self.ready.extend(deliveries);
                }
                Ok(Some(Response::Results(_))) => {}
                other => panic!("a delivery is due, not {other:?}"),
            }
        }
        self.ready.pop_front().expect("never an empty event")
    }

    pub async fn deliveries(&mut self, count: usize) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for _ in 0..count {
            deliveries.push(self.delivery().await);
        }
        deliveries
    }

    /// The next answers to settles; nothing else may come before them.
    pub async fn results(&mut self, count: usize) -> Vec<SettleResult> {
        let mut results = Vec::new();
        while results.len() < count {
            match self.event().await {
                Ok(Some(Response::Results(SettleResults { results: more }))) => {
                    results.extend(more.iter().map(|result| result.result()));
                }
                other => panic!("results are due, not {other:?}"),
            }
        }
        results
    }

    pub async fn revoked(&mut self) -> Revoked {
        match self.event().await {
            Ok(Some(Response::Revoked(revoked))) => revoked,
            other => panic!("a revocation is due, not {other:?}"),
        }
    }

    /// Acks, and answers the result of each.
    pub async fn ack(&mut self, ack_ids: &[&str]) -> Vec<SettleResult> {
        self.send(ack(ack_ids));
        self.results(ack_ids.len()).await
    }

    pub async fn nack(&mut self, ack_id: &str, action: Action) -> SettleResult {
        self.send(nack(ack_id, action));
        self.results(1).await[0]
    }

    pub async fn extend(
        &mut self,
        ack_ids: &[&str],
        to: Option<prost_types::Duration>,
    ) -> Vec<SettleResult> {
        self.send(Request::Extend(ExtendDeadline {
            ack_ids: ack_ids.iter().map(|id| (*id).to_owned()).collect(),
            ack_deadline: to,
        }));
        self.results(ack_ids.len()).await
    }

    /// Dies, as a process does: its connection breaks off, and nothing is said any more.
    pub fn die(self) {
        let broken = self.socket.shutdown(Shutdown::Both);
        broken.expect("it was connected");
    }

    /// Says that there is nothing more to say.
    pub fn half_close(&mut self) {
        self.requests = mpsc::unbounded_channel().0;
    }

    /// Waits for the end; nothing may come before it.
    pub async fn end(&mut self) -> Result<(), Status> {
        match self.event().await {
            Ok(None) => Ok(()),
            Ok(Some(other)) => panic!("the end is due, not {other:?}"),
            Err(status) => Err(status),
        }
    }

    /// The same, for as long as it takes.
    pub async fn end_within(&mut self, patience: Duration) -> Result<(), Status> {
        let next = tokio::time::timeout(patience, self.responses.message());
        let next = next.await.expect("the end comes in time");
        next.map(|next| assert_eq!(next, None, "the end is due"))
    }
}

pub fn ack(ack_ids: &[&str]) -> Request {
    Request::Settle(Settle {
        ack_ids: ack_ids.iter().map(|id| (*id).to_owned()).collect(),
        nacks: vec![],
    })
}

pub fn nack(ack_id: &str, action: Action) -> Request {
    nack_as(Nack {
        ack_id: ack_id.to_owned(),
        action: action.into(),
        ..Nack::default()
    })
}

pub fn nack_as(nack: Nack) -> Request {
    Request::Settle(Settle {
        ack_ids: vec![],
        nacks: vec![nack],
    })
}
