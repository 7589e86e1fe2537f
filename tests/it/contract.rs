//! What every broker promises, whichever backend it is. Each case is a function over a [`Fixture`];
//! [`contract_suite!`] makes the tests of one backend from them:
//!
//! ```ignore
//! contract_suite!(memory, Fixture::new(MemoryBroker::new(), Traits::MEMORY));
//! contract_suite!(rabbitmq, connect().await, #[ignore = "needs RabbitMQ: run make test"]);
//! ```
//!
//! The expression is evaluated for each case: a case may close its broker. All names that a case uses begin with a
//! prefix of its own, so that cases run side by side on a RabbitMQ that others use too. Where a case waits, it waits
//! for something to happen, at most [`PATIENCE`]; that something does *not* happen is shown by what happens instead.
//!
//! To add a case, write the function and add its name to the list in [`contract_suite!`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use courtier::{
    broker::{
        Broker, Delivery, Ended, Entity, Error, Fate, Lane, LinkState, Links, NotSent, Publish,
        Receipt, Subscribe, Subscription,
        topology::{
            Binding, DeadLetter, Difference, Exchange, ExchangeKind, Queue, QueueKind, Topology,
        },
    },
    message::{Message, Table, Value, header},
};
use futures::FutureExt;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

/// How long a case waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a module of tests: `contract_suite!(name, fixture expression, attributes of each test…)`.
macro_rules! contract_suite {
    ($backend:ident, $fixture:expr $(, $(#[$attribute:meta])+)? $(,)?) => {
        mod $backend {
            use super::*;
            $crate::contract::contract_suite! { @cases ($fixture) [$($(#[$attribute])+)?]
                the_links_are_up
                a_message_arrives_with_every_property_and_every_type_of_header
                payloads_arrive_byte_for_byte
                a_mandatory_message_that_no_queue_takes_is_unroutable
                a_message_that_may_be_dropped_is_confirmed_without_a_queue
                the_default_exchange_routes_to_the_queue_of_that_name
                a_direct_exchange_routes_by_the_whole_key
                a_topic_exchange_routes_by_words
                a_fanout_exchange_routes_to_all_its_queues
                a_headers_exchange_routes_by_headers
                a_full_queue_refuses_while_its_neighbour_stores
                a_full_quorum_queue_refuses_in_the_end
                every_one_of_many_concurrent_publishes_gets_its_own_fate
                a_missing_exchange_is_not_found
                a_missing_queue_is_not_found
                a_binding_to_something_missing_is_not_found
                messages_of_one_lane_keep_their_order
                prefetch_limits_what_is_held_and_an_ack_frees_credit
                acks_in_any_order_and_in_bulk_settle_just_those
                a_requeued_message_comes_back_first_and_redelivered
                closing_a_subscription_returns_everything_unsettled
                dropping_a_subscription_returns_everything_unsettled
                a_stopped_subscription_takes_no_more_and_still_settles
                an_abandoned_next_loses_nothing
                two_consumers_share_a_queue
                an_earlier_queue_goes_before_a_later_one
                a_higher_priority_goes_first
                an_expired_message_is_dead_lettered_with_its_history
                the_time_to_live_of_a_message_counts_when_it_is_the_shorter
                a_message_that_expires_without_dead_lettering_makes_room
                declaring_anew_with_other_arguments_is_a_difference_and_changes_nothing
                closing_ends_subscriptions_and_refuses_publishes
            }
        }
    };
    (@cases $fixture:tt $attributes:tt $($case:ident)+) => {
        $($crate::contract::contract_suite! { @case $fixture $attributes $case })+
    };
    (@case ($fixture:expr) [$($attribute:tt)*] $case:ident) => {
        $($attribute)*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            $crate::contract::$case($fixture).await;
        }
    };
}
pub(crate) use contract_suite;

/// Where the backends rightly differ; in everything else they are alike.
#[derive(Clone, Copy)]
pub struct Traits {
    /// How many messages a quorum queue may take beyond its maximum length before it refuses. RabbitMQ tells publishers
    /// asynchronously that it is full; on a classic queue the limit is exact.
    pub quorum_overshoot: usize,
}

impl Traits {
    pub const MEMORY: Self = Self {
        quorum_overshoot: 0,
    };
    pub const RABBITMQ: Self = Self {
        quorum_overshoot: 64,
    };
}

/// A broker for one case, and its part of the namespace. The cases' short names get the prefix here, and only here.
#[derive(Clone)]
pub struct Fixture {
    broker: Arc<dyn Broker>,
    traits: Traits,
    prefix: String,
}

impl Fixture {
    /// The broker's links are up already.
    pub fn new(broker: Arc<dyn Broker>, traits: Traits) -> Self {
        let prefix = format!("contract-{}-", Uuid::now_v7());
        Self {
            broker,
            traits,
            prefix,
        }
    }

    fn name(&self, short: &str) -> String {
        format!("{}{short}", self.prefix)
    }

    /// A classic queue without limits: on it every count is exact, on RabbitMQ too.
    fn queue(&self, name: &str) -> Queue {
        Queue::bare(&self.name(name), QueueKind::Classic)
    }

    fn exchange(&self, name: &str, kind: ExchangeKind) -> Exchange {
        Exchange {
            name: self.name(name),
            kind,
        }
    }

    fn binding(
        &self,
        exchange: &str,
        queue: &str,
        key: &str,
        arguments: &[(&str, &str)],
    ) -> Binding {
        let arguments = arguments
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()));
        Binding {
            exchange: self.name(exchange),
            queue: self.name(queue),
            routing_key: key.to_owned(),
            arguments: arguments.collect(),
        }
    }

    async fn try_declare(&self, topology: Topology) -> Result<Vec<Difference>, Error> {
        timely(self.broker.declare(&topology)).await
    }

    /// Declares what does not exist yet.
    async fn declare(&self, topology: Topology) {
        let differences = self.try_declare(topology).await.expect("declared");
        assert_eq!(differences, []);
    }

    async fn declare_queues(&self, queues: impl IntoIterator<Item = Queue>) {
        let queues = queues.into_iter().collect();
        self.declare(Topology {
            queues,
            ..Topology::default()
        })
        .await;
    }

    /// Hands a message over. The default exchange `""` takes a queue's short name as routing key.
    fn hand_over(&self, lane: Lane, to: Address, message: Message, receipt: Receipt) -> Uuid {
        let publish_id = Uuid::now_v7();
        let (exchange, routing_key) = match to.exchange {
            "" => (String::new(), self.name(to.routing_key)),
            exchange => (self.name(exchange), to.routing_key.to_owned()),
        };
        let publish = Publish {
            publish_id,
            exchange,
            routing_key,
            mandatory: to.mandatory,
            message,
            deadline: Instant::now() + PATIENCE,
            admission: None,
        };
        self.broker.publish(lane, publish, receipt);
        publish_id
    }

    async fn publish(&self, exchange: &str, routing_key: &str, message: Message) -> Fate {
        let to = Address::new(exchange, routing_key);
        let (receipt, answer) = Receipt::single();
        self.hand_over(self.broker.lane(), to, message, receipt);
        timely(answer).await.expect("a receipt always answers")
    }

    /// Stores texts in a queue, in this order.
    async fn fill(&self, queue: &str, texts: &[&str]) {
        for body in texts {
            let fate = self.publish("", queue, text(body)).await;
            assert_eq!(fate, Fate::Confirmed, "{body} to {queue}");
        }
    }

    async fn try_subscribe(
        &self,
        queues: &[&str],
        prefetch: u16,
    ) -> Result<Box<dyn Subscription>, Error> {
        let subscribe = Subscribe {
            queues: queues.iter().map(|queue| self.name(queue)).collect(),
            prefetch,
            client_id: self.name("client"),
            deadline: Instant::now() + PATIENCE,
        };
        timely(self.broker.subscribe(subscribe)).await
    }

    async fn subscribe(&self, queues: &[&str], prefetch: u16) -> Box<dyn Subscription> {
        let subscription = self.try_subscribe(queues, prefetch).await;
        subscription.expect("the queues exist")
    }

    /// Everything that is ready in a queue, in order; the queue is empty afterwards. A last message of its own shows
    /// that nothing else is left.
    async fn drain(&self, queue: &str) -> Vec<Delivery> {
        let mut consumer = self.subscribe(&[queue], u16::MAX).await;
        let end = Uuid::now_v7().to_string();
        // A full queue has room again once the consumer holds what was ready.
        eventually("the queue has room", async || {
            self.publish("", queue, text(&end)).await == Fate::Confirmed
        })
        .await;
        let mut drained = Vec::new();
        loop {
            let delivery = receive(&mut *consumer).await;
            ack(&mut *consumer, &[delivery.tag]).await;
            if body(&delivery) == end {
                timely(consumer.close()).await;
                return drained;
            }
            drained.push(delivery);
        }
    }

    /// The bodies of what is ready in a queue.
    async fn drain_bodies(&self, queue: &str) -> Vec<String> {
        bodies(&self.drain(queue).await)
    }
}

/// Where a message goes, in a case's short names.
#[derive(Clone, Copy)]
struct Address<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    mandatory: bool,
}

impl<'a> Address<'a> {
    fn new(exchange: &'a str, routing_key: &'a str) -> Self {
        Self {
            exchange,
            routing_key,
            mandatory: true,
        }
    }
}

async fn timely<F: Future>(future: F) -> F::Output {
    let result = timeout(PATIENCE, future).await;
    result.expect("it happens within ten seconds")
}

/// Asks again and again until the answer is yes.
async fn eventually(what: &str, mut happens: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happens().await {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn receive(from: &mut dyn Subscription) -> Delivery {
    timely(from.next()).await.expect("the subscription goes on")
}

async fn receive_bodies(from: &mut dyn Subscription, count: usize) -> Vec<String> {
    let mut received = Vec::new();
    for _ in 0..count {
        received.push(receive(from).await);
    }
    bodies(&received)
}

async fn ack(to: &mut dyn Subscription, tags: &[u64]) {
    assert_eq!(timely(to.ack(tags)).await, Ok(()));
}

fn text(body: &str) -> Message {
    Message {
        payload: body.to_owned().into(),
        ..Message::default()
    }
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.payload).into_owned()
}

fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(body).collect()
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries.map(|(name, value)| (name.to_owned(), value)).into()
}

pub async fn the_links_are_up(f: Fixture) {
    let up = Links {
        publish: LinkState::Up,
        consume: LinkState::Up,
    };
    assert_eq!(*f.broker.links().borrow(), up);
}

pub async fn a_message_arrives_with_every_property_and_every_type_of_header(f: Fixture) {
    let nested = table([("deep", Value::Array(vec![Value::Table(Table::new())]))]);
    let mut message = Message {
        message_id: Some("id-1".to_owned()),
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("gzip".to_owned()),
        kind: Some("order.created".to_owned()),
        app_id: Some("shop".to_owned()),
        correlation_id: Some("correlation-1".to_owned()),
        reply_to: Some("answers".to_owned()),
        timestamp: Some(1_700_000_000),
        priority: Some(7),
        ttl_ms: Some(600_000),
        headers: table([
            ("void", Value::Void),
            ("bool", Value::Bool(true)),
            ("i8", Value::I8(i8::MIN)),
            ("u8", Value::U8(u8::MAX)),
            ("i16", Value::I16(i16::MIN)),
            ("u16", Value::U16(u16::MAX)),
            ("i32", Value::I32(i32::MIN)),
            ("u32", Value::U32(u32::MAX)),
            ("i64", Value::I64(i64::MIN)),
            ("f32", Value::F32(-0.15625)),
            ("f64", Value::F64(1e300)),
            (
                "decimal",
                Value::Decimal {
                    scale: 2,
                    value: 12_345,
                },
            ),
            ("text", Value::text("Grüße")),
            ("text of bytes", Value::Text(Bytes::from_static(b"\0\xff"))),
            ("blob", Value::Blob(Bytes::from_static(b"\xfe\0"))),
            ("timestamp", Value::Timestamp(1_700_000_001)),
            ("array", Value::Array(vec![Value::I8(1), Value::text("b")])),
            ("table", Value::Table(nested)),
        ]),
        payload: Bytes::from_static(b"\0\xff\xfe{}\r\n"),
    };
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        queues: vec![f.queue("work")],
        bindings: vec![f.binding("orders", "work", "created", &[])],
    })
    .await;
    let (receipt, answer) = Receipt::single();
    let to = Address::new("orders", "created");
    let publish_id = f.hand_over(f.broker.lane(), to, message.clone(), receipt);
    assert_eq!(timely(answer).await, Ok(Fate::Confirmed));

    let mut consumer = f.subscribe(&["work"], 1).await;
    let delivery = receive(&mut *consumer).await;
    let publish_id = Value::text(publish_id.to_string());
    message
        .headers
        .insert(header::PUBLISH_ID.to_owned(), publish_id);
    assert_eq!(delivery.message, message);
    assert_eq!(delivery.exchange, f.name("orders"));
    assert_eq!(delivery.routing_key, "created");
    assert_eq!(delivery.queue, 0);
    assert!(!delivery.redelivered);
}

pub async fn payloads_arrive_byte_for_byte(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let mebibyte: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    let payloads = [
        Bytes::new(),
        Bytes::from(mebibyte),
        Bytes::from_static(b"\0"),
    ];
    for payload in &payloads {
        let message = Message {
            payload: payload.clone(),
            ..Message::default()
        };
        assert_eq!(f.publish("", "work", message).await, Fate::Confirmed);
    }
    let drained = f.drain("work").await;
    let arrived: Vec<_> = drained.iter().map(|d| d.message.payload.clone()).collect();
    assert!(arrived == payloads, "the payloads differ");
}

pub async fn a_mandatory_message_that_no_queue_takes_is_unroutable(f: Fixture) {
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        queues: vec![f.queue("work")],
        bindings: vec![f.binding("orders", "work", "created", &[])],
    })
    .await;
    let fate = f.publish("orders", "deleted", text("a")).await;
    assert_eq!(fate, Fate::Unroutable);
    let fate = f.publish("", "no such queue", text("b")).await;
    assert_eq!(fate, Fate::Unroutable);
    assert_eq!(f.drain_bodies("work").await, [""; 0]);
}

pub async fn a_message_that_may_be_dropped_is_confirmed_without_a_queue(f: Fixture) {
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Topic)],
        ..Topology::default()
    })
    .await;
    let (receipt, answer) = Receipt::single();
    let to = Address {
        mandatory: false,
        ..Address::new("orders", "created")
    };
    f.hand_over(f.broker.lane(), to, text("a"), receipt);
    assert_eq!(timely(answer).await, Ok(Fate::Confirmed));
}

pub async fn the_default_exchange_routes_to_the_queue_of_that_name(f: Fixture) {
    f.declare_queues([f.queue("a"), f.queue("b")]).await;
    f.fill("a", &["to a"]).await;
    assert_eq!(f.drain_bodies("b").await, [""; 0]);
    let drained = f.drain("a").await;
    assert_eq!(bodies(&drained), ["to a"]);
    assert_eq!(drained[0].exchange, "");
    assert_eq!(drained[0].routing_key, f.name("a"));
}

/// A binding of the only exchange: queue, key and arguments.
type Bound<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

/// Declares an exchange with these bindings, publishes, and tells which bodies each queue got.
async fn routed(
    f: &Fixture,
    kind: ExchangeKind,
    bindings: &[Bound<'_>],
    publishes: Vec<(&str, Message)>,
) -> BTreeMap<String, Vec<String>> {
    let queues: BTreeSet<&str> = bindings.iter().map(|(queue, ..)| *queue).collect();
    let bindings = bindings
        .iter()
        .map(|(queue, key, arguments)| f.binding("exchange", queue, key, arguments));
    f.declare(Topology {
        exchanges: vec![f.exchange("exchange", kind)],
        queues: queues.iter().map(|queue| f.queue(queue)).collect(),
        bindings: bindings.collect(),
    })
    .await;
    for (key, message) in publishes {
        let fate = f.publish("exchange", key, message).await;
        assert_eq!(fate, Fate::Confirmed, "to {key:?}");
    }
    let mut routed = BTreeMap::new();
    for queue in queues {
        routed.insert(queue.to_owned(), f.drain_bodies(queue).await);
    }
    routed
}

/// Publishes each key as its own body.
fn keys<'a>(keys: &[&'a str]) -> Vec<(&'a str, Message)> {
    keys.iter().map(|key| (*key, text(key))).collect()
}

pub async fn a_direct_exchange_routes_by_the_whole_key(f: Fixture) {
    let bindings: &[Bound<'_>] = &[
        ("both", "x", &[]),
        ("both", "x.y", &[]),
        ("one", "x.y", &[]),
    ];
    let routed = routed(&f, ExchangeKind::Direct, bindings, keys(&["x", "x.y"])).await;
    assert_eq!(routed["both"], ["x", "x.y"]);
    assert_eq!(routed["one"], ["x.y"]);
}

pub async fn a_topic_exchange_routes_by_words(f: Fixture) {
    let bindings: &[Bound<'_>] = &[
        ("star", "order.*", &[]),
        ("hash", "order.#", &[]),
        ("middle", "#.eu.#", &[]),
        ("all", "#", &[]),
        ("all", "order.*", &[]),
    ];
    let sent = ["order", "order.created", "order.eu.created", "eu"];
    let routed = routed(&f, ExchangeKind::Topic, bindings, keys(&sent)).await;
    assert_eq!(routed["star"], ["order.created"]);
    assert_eq!(
        routed["hash"],
        ["order", "order.created", "order.eu.created"]
    );
    assert_eq!(routed["middle"], ["order.eu.created", "eu"]);
    assert_eq!(routed["all"], sent);
}

pub async fn a_fanout_exchange_routes_to_all_its_queues(f: Fixture) {
    let bindings: &[Bound<'_>] = &[("a", "", &[]), ("b", "key", &[])];
    let routed = routed(&f, ExchangeKind::Fanout, bindings, keys(&["", "other"])).await;
    assert_eq!(routed["a"], ["", "other"]);
    assert_eq!(routed["b"], ["", "other"]);
}

pub async fn a_headers_exchange_routes_by_headers(f: Fixture) {
    let bindings: &[Bound<'_>] = &[
        (
            "all",
            "",
            &[("x-match", "all"), ("colour", "red"), ("size", "5")],
        ),
        (
            "any",
            "",
            &[("x-match", "any"), ("colour", "red"), ("size", "5")],
        ),
        ("rest", "", &[("x-match", "all")]),
    ];
    let with = |body: &str, headers| {
        let message = text(body);
        ("", Message { headers, ..message })
    };
    let (red, five) = (Value::text("red"), Value::text("5"));
    let publishes = vec![
        with("both", table([("colour", red.clone()), ("size", five)])),
        with("number", table([("size", Value::I32(5))])),
        with("colour", table([("colour", red)])),
    ];
    let routed = routed(&f, ExchangeKind::Headers, bindings, publishes).await;
    assert_eq!(routed["all"], ["both"]);
    assert_eq!(routed["any"], ["both", "colour"]);
    assert_eq!(routed["rest"], ["both", "number", "colour"]);
}

/// A fanout exchange `both` and a direct one `one` over the queues `roomy` and `small`; `small` holds one message at
/// most.
async fn declare_roomy_and_small(f: &Fixture) {
    let small = Queue {
        max_length: Some(1),
        ..f.queue("small")
    };
    f.declare(Topology {
        exchanges: vec![
            f.exchange("both", ExchangeKind::Fanout),
            f.exchange("one", ExchangeKind::Direct),
        ],
        queues: vec![f.queue("roomy"), small],
        bindings: vec![
            f.binding("both", "roomy", "", &[]),
            f.binding("both", "small", "", &[]),
            f.binding("one", "roomy", "roomy", &[]),
            f.binding("one", "small", "small", &[]),
        ],
    })
    .await;
}

pub async fn a_full_queue_refuses_while_its_neighbour_stores(f: Fixture) {
    declare_roomy_and_small(&f).await;
    assert_eq!(f.publish("both", "", text("a")).await, Fate::Confirmed);
    assert_eq!(f.publish("both", "", text("b")).await, Fate::Rejected);
    assert_eq!(f.drain_bodies("small").await, ["a"]);
    assert_eq!(f.drain_bodies("roomy").await, ["a", "b"]);
    // It takes messages again, once there is room.
    assert_eq!(f.publish("both", "", text("c")).await, Fate::Confirmed);
}

pub async fn a_full_quorum_queue_refuses_in_the_end(f: Fixture) {
    let limit = 5;
    f.declare_queues([Queue {
        kind: QueueKind::Quorum,
        max_length: Some(limit as u64),
        ..f.queue("work")
    }])
    .await;
    let mut stored = 0;
    loop {
        match f.publish("", "work", text("a")).await {
            Fate::Confirmed => stored += 1,
            Fate::Rejected => break,
            fate => panic!("{fate:?}"),
        }
        let most = limit + f.traits.quorum_overshoot;
        assert!(stored <= most, "{stored} stored and none refused");
    }
    assert!(stored >= limit, "refused after {stored}");
    // A refused message is not stored.
    assert_eq!(f.drain("work").await.len(), stored);
}

pub async fn every_one_of_many_concurrent_publishes_gets_its_own_fate(f: Fixture) {
    const KINDS: [(&str, &str, Fate); 4] = [
        ("one", "roomy", Fate::Confirmed),
        ("one", "nobody", Fate::Unroutable),
        ("one", "small", Fate::Rejected),
        ("both", "", Fate::Rejected),
    ];
    declare_roomy_and_small(&f).await;
    f.fill("small", &["first"]).await;
    let mut publishes = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let f = f.clone();
        publishes.spawn(async move {
            let (exchange, key, expected) = KINDS[number % KINDS.len()];
            let fate = f.publish(exchange, key, text(&number.to_string())).await;
            (number, fate, expected)
        });
    }
    let mut wrong = publishes.join_all().await;
    wrong.retain(|(_, fate, expected)| fate != expected);
    assert_eq!(wrong, [], "number, fate, expected fate");

    let stored: BTreeSet<String> = f.drain_bodies("roomy").await.into_iter().collect();
    let expected = (0..1000).filter(|number| [0, 3].contains(&(number % KINDS.len())));
    assert_eq!(stored, expected.map(|number| number.to_string()).collect());
    assert_eq!(f.drain_bodies("small").await, ["first"]);
}

pub async fn a_missing_exchange_is_not_found(f: Fixture) {
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        ..Topology::default()
    })
    .await;
    let check = async |name: &str| {
        let deadline = Instant::now() + PATIENCE;
        timely(f.broker.check_exchange(name, deadline)).await
    };
    check("").await.expect("the default exchange is there");
    check(&f.name("orders")).await.expect("it was declared");
    let missing = f.name("missing");
    match check(&missing).await {
        Err(Error::NotFound { what, name }) => {
            assert_eq!((what, name), (Entity::Exchange, missing));
        }
        other => panic!("{other:?}"),
    }
}

pub async fn a_missing_queue_is_not_found(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a"]).await;
    match f.try_subscribe(&["work", "missing"], 1).await {
        Err(Error::NotFound { what, name }) => {
            assert_eq!((what, name), (Entity::Queue, f.name("missing")));
        }
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("subscribed to a missing queue"),
    }
    // What the other queue may have handed out meanwhile is back.
    let mut consumer = f.subscribe(&["work"], 1).await;
    assert_eq!(body(&receive(&mut *consumer).await), "a");
}

pub async fn a_binding_to_something_missing_is_not_found(f: Fixture) {
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        queues: vec![f.queue("work")],
        ..Topology::default()
    })
    .await;
    for (exchange, queue) in [("orders", "missing"), ("missing", "work")] {
        let bindings = vec![f.binding(exchange, queue, "key", &[])];
        let topology = Topology {
            bindings,
            ..Topology::default()
        };
        let answer = f.try_declare(topology).await;
        assert!(matches!(answer, Err(Error::NotFound { .. })), "{answer:?}");
    }
}

pub async fn messages_of_one_lane_keep_their_order(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let (answers, mut inbox) = mpsc::unbounded_channel();
    let lanes = [f.broker.lane(), f.broker.lane()];
    for number in 0..200 {
        let lane = lanes[number % 2];
        let receipt = Receipt::keyed(number, &answers);
        let message = text(&number.to_string());
        f.hand_over(lane, Address::new("", "work"), message, receipt);
    }
    for _ in 0..200 {
        let (number, fate) = timely(inbox.recv()).await.expect("every receipt answers");
        assert_eq!(fate, Fate::Confirmed, "{number}");
    }
    let drained = f.drain_bodies("work").await;
    let numbers = drained.iter().map(|body| body.parse().expect("a number"));
    // The two lanes may overtake each other.
    let (even, odd): (Vec<u32>, Vec<u32>) =
        numbers.partition(|number: &u32| number.is_multiple_of(2));
    assert_eq!(even, (0..200).step_by(2).collect::<Vec<_>>());
    assert_eq!(odd, (1..200).step_by(2).collect::<Vec<_>>());
}

pub async fn prefetch_limits_what_is_held_and_an_ack_frees_credit(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b", "c"]).await;
    let mut first = f.subscribe(&["work"], 2).await;
    let a = receive(&mut *first).await;
    let b = receive(&mut *first).await;
    assert_eq!(bodies(&[a, b]), ["a", "b"]);
    // Had the first got a third message, the second would wait in vain.
    let mut second = f.subscribe(&["work"], 1).await;
    assert_eq!(body(&receive(&mut *second).await), "c");
    assert!(first.try_next().is_none());

    f.fill("work", &["d"]).await;
    ack(&mut *first, &[1]).await;
    assert_eq!(body(&receive(&mut *first).await), "d");
    assert!(second.try_next().is_none());
}

pub async fn acks_in_any_order_and_in_bulk_settle_just_those(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b", "c", "d", "e"]).await;
    let mut consumer = f.subscribe(&["work"], 10).await;
    let mut tags = Vec::new();
    for _ in 0..5 {
        tags.push(receive(&mut *consumer).await.tag);
    }
    assert_eq!(tags, [1, 2, 3, 4, 5]);
    ack(&mut *consumer, &[4]).await;
    ack(&mut *consumer, &[1, 5, 2]).await;
    timely(consumer.close()).await;
    assert_eq!(f.drain_bodies("work").await, ["c"]);
}

pub async fn a_requeued_message_comes_back_first_and_redelivered(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b"]).await;
    let mut consumer = f.subscribe(&["work"], 1).await;
    let first = receive(&mut *consumer).await;
    assert!(!first.redelivered);
    assert_eq!(timely(consumer.requeue(&[first.tag])).await, Ok(()));
    let again = receive(&mut *consumer).await;
    assert_eq!(again.message, first.message);
    assert!(again.redelivered);
    ack(&mut *consumer, &[again.tag]).await;
    let other = receive(&mut *consumer).await;
    assert_eq!(body(&other), "b");
    assert!(!other.redelivered);
}

pub async fn closing_a_subscription_returns_everything_unsettled(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b", "c"]).await;
    let mut consumer = f.subscribe(&["work"], 10).await;
    assert_eq!(body(&receive(&mut *consumer).await), "a");
    timely(consumer.close()).await;
    // At once, with what the subscription had not taken yet.
    let drained = f.drain("work").await;
    assert_eq!(bodies(&drained), ["a", "b", "c"]);
    assert!(drained[0].redelivered);
}

pub async fn dropping_a_subscription_returns_everything_unsettled(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b", "c"]).await;
    let mut dropped = f.subscribe(&["work"], 10).await;
    assert_eq!(body(&receive(&mut *dropped).await), "a");
    drop(dropped);
    // When it is not said; what comes back first is not either.
    let mut consumer = f.subscribe(&["work"], 10).await;
    let mut received = receive_bodies(&mut *consumer, 3).await;
    received.sort_unstable();
    assert_eq!(received, ["a", "b", "c"]);
}

pub async fn a_stopped_subscription_takes_no_more_and_still_settles(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b"]).await;
    let mut stopped = f.subscribe(&["work"], 10).await;
    let taken = receive(&mut *stopped).await;
    timely(stopped.stop()).await;
    f.fill("work", &["c"]).await;
    ack(&mut *stopped, &[taken.tag]).await;

    // The new message goes past the stopped one. "b" was handed to it and may be back before or after.
    let mut consumer = f.subscribe(&["work"], 10).await;
    let mut received = Vec::new();
    while received.last().map(String::as_str) != Some("c") {
        received.push(body(&receive(&mut *consumer).await));
    }
    timely(stopped.close()).await;
    if received.len() == 1 {
        received.push(body(&receive(&mut *consumer).await));
    }
    received.sort_unstable();
    assert_eq!(received, ["b", "c"]);
    timely(consumer.close()).await;
    let mut left = f.drain_bodies("work").await;
    left.sort_unstable();
    assert_eq!(left, ["b", "c"], "and not the one that was settled");
}

pub async fn an_abandoned_next_loses_nothing(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let mut consumer = f.subscribe(&["work"], 10).await;
    for number in 0..50 {
        assert!(consumer.next().now_or_never().is_none());
        f.fill("work", &[&number.to_string()]).await;
        let mut received = None;
        eventually("the delivery", async || {
            received = consumer.next().now_or_never();
            received.is_some()
        })
        .await;
        let delivery = received
            .expect("just seen")
            .expect("the subscription goes on");
        assert_eq!(body(&delivery), number.to_string());
        ack(&mut *consumer, &[delivery.tag]).await;
    }
}

pub async fn two_consumers_share_a_queue(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let mut first = f.subscribe(&["work"], 1).await;
    let mut second = f.subscribe(&["work"], 1).await;
    for round in 0..5 {
        let pair = [format!("{round} a"), format!("{round} b")];
        f.fill("work", &[&pair[0], &pair[1]]).await;
        let one = receive(&mut *first).await;
        let other = receive(&mut *second).await;
        let received = BTreeSet::from([body(&one), body(&other)]);
        assert_eq!(received, BTreeSet::from(pair));
        ack(&mut *first, &[one.tag]).await;
        ack(&mut *second, &[other.tag]).await;
    }
}

/// Preference is among deliveries that have arrived, and when they have cannot be seen from outside. So this
/// publishes to the later queue first and looks again until both had arrived; without preference, that order never
/// comes.
pub async fn an_earlier_queue_goes_before_a_later_one(f: Fixture) {
    f.declare_queues([f.queue("early"), f.queue("late")]).await;
    let mut consumer = f.subscribe(&["early", "late"], 10).await;
    let mut pause = Duration::ZERO;
    eventually("the earlier queue goes first", async || {
        f.fill("late", &["1", "2", "3"]).await;
        f.fill("early", &["4", "5", "6"]).await;
        sleep(pause).await;
        pause += Duration::from_millis(20);
        let mut order = Vec::new();
        for _ in 0..6 {
            let delivery = receive(&mut *consumer).await;
            ack(&mut *consumer, &[delivery.tag]).await;
            order.push((delivery.queue, body(&delivery)));
        }
        let expected = [(0, "4"), (0, "5"), (0, "6"), (1, "1"), (1, "2"), (1, "3")];
        order == expected.map(|(queue, body)| (queue, body.to_owned()))
    })
    .await;
}

pub async fn a_higher_priority_goes_first(f: Fixture) {
    f.declare_queues([Queue {
        max_priority: Some(5),
        ..f.queue("work")
    }])
    .await;
    let priorities = [
        ("none", None),
        ("one", Some(1)),
        ("five", Some(5)),
        ("zero", Some(0)),
        ("above the highest", Some(9)),
        ("one again", Some(1)),
    ];
    for (body, priority) in priorities {
        let message = text(body);
        let message = Message {
            priority,
            ..message
        };
        assert_eq!(f.publish("", "work", message).await, Fate::Confirmed);
    }
    assert_eq!(
        f.drain_bodies("work").await,
        [
            "five",
            "above the highest",
            "one",
            "one again",
            "none",
            "zero"
        ]
    );
}

/// A queue `work` whose dead letters go to the queue `dead` through a direct exchange `dlx`.
async fn declare_dead_lettering(f: &Fixture, ttl: Duration) {
    let dead_letter = DeadLetter {
        exchange: f.name("dlx"),
        routing_key: "buried".to_owned(),
    };
    let work = Queue {
        message_ttl: Some(ttl),
        dead_letter: Some(dead_letter),
        ..f.queue("work")
    };
    f.declare(Topology {
        exchanges: vec![f.exchange("dlx", ExchangeKind::Direct)],
        queues: vec![work, f.queue("dead")],
        bindings: vec![f.binding("dlx", "dead", "buried", &[])],
    })
    .await;
}

/// The latest entry of a dead letter's history.
fn latest_death(delivery: &Delivery) -> &Table {
    match delivery.message.headers.get("x-death") {
        Some(Value::Array(deaths)) => match deaths.first() {
            Some(Value::Table(death)) => death,
            other => panic!("no death: {other:?}"),
        },
        other => panic!("no deaths: {other:?}"),
    }
}

pub async fn an_expired_message_is_dead_lettered_with_its_history(f: Fixture) {
    declare_dead_lettering(&f, Duration::from_millis(300)).await;
    let mut dead = f.subscribe(&["dead"], 1).await;
    let message = Message {
        headers: table([("mine", Value::U16(7))]),
        ..text("a")
    };
    assert_eq!(f.publish("", "work", message).await, Fate::Confirmed);

    let delivery = receive(&mut *dead).await;
    assert_eq!(body(&delivery), "a");
    assert_eq!(delivery.exchange, f.name("dlx"));
    assert_eq!(delivery.routing_key, "buried");
    let headers = &delivery.message.headers;
    assert_eq!(headers["mine"], Value::U16(7));
    assert_eq!(headers["x-first-death-reason"], Value::text("expired"));
    assert_eq!(headers["x-first-death-queue"], Value::text(f.name("work")));
    assert_eq!(headers["x-first-death-exchange"], Value::text(""));
    let death = latest_death(&delivery);
    assert_eq!(death["reason"], Value::text("expired"));
    assert_eq!(death["queue"], Value::text(f.name("work")));
    assert_eq!(death["exchange"], Value::text(""));
    assert_eq!(death["count"].as_integer(), Some(1));
    let routing_keys = Value::Array(vec![Value::text(f.name("work"))]);
    assert_eq!(death["routing-keys"], routing_keys);
    assert!(matches!(death["time"], Value::Timestamp(_)), "{death:?}");
    assert_eq!(death.get("original-expiration"), None);
    // It was moved, not copied.
    assert_eq!(f.drain_bodies("work").await, [""; 0]);
}

pub async fn the_time_to_live_of_a_message_counts_when_it_is_the_shorter(f: Fixture) {
    declare_dead_lettering(&f, Duration::from_secs(3600)).await;
    let mut dead = f.subscribe(&["dead"], 1).await;
    let message = Message {
        ttl_ms: Some(250),
        ..text("a")
    };
    assert_eq!(f.publish("", "work", message).await, Fate::Confirmed);
    let delivery = receive(&mut *dead).await;
    assert_eq!(body(&delivery), "a");
    let death = latest_death(&delivery);
    assert_eq!(death["original-expiration"], Value::text("250"));
    // Else it would expire in the queue of the dead as well.
    assert_eq!(delivery.message.ttl_ms, None);
}

pub async fn a_message_that_expires_without_dead_lettering_makes_room(f: Fixture) {
    f.declare_queues([Queue {
        message_ttl: Some(Duration::from_millis(300)),
        max_length: Some(1),
        ..f.queue("work")
    }])
    .await;
    f.fill("work", &["a"]).await;
    eventually("the first message is gone", async || {
        f.publish("", "work", text("b")).await == Fate::Confirmed
    })
    .await;
    let left = f.drain_bodies("work").await;
    assert!(!left.contains(&"a".to_owned()), "{left:?}");
}

pub async fn declaring_anew_with_other_arguments_is_a_difference_and_changes_nothing(f: Fixture) {
    let existing = Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        queues: vec![f.queue("work")],
        bindings: vec![f.binding("orders", "work", "created", &[])],
    };
    f.declare(existing.clone()).await;
    f.fill("work", &["a"]).await;
    // The same again is no difference.
    f.declare(existing.clone()).await;

    let other = Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Topic)],
        queues: vec![Queue {
            max_length: Some(1),
            ..f.queue("work")
        }],
        ..existing
    };
    let differences = f.try_declare(other).await.expect("declared");
    let told: Vec<_> = differences.iter().map(|d| (d.what, &*d.name)).collect();
    let (exchange, queue) = (f.name("orders"), f.name("work"));
    assert_eq!(
        told,
        [(Entity::Exchange, &*exchange), (Entity::Queue, &*queue)]
    );
    assert!(differences.iter().all(|d| !d.detail.is_empty()));
    let fate = f.publish("orders", "created", text("b")).await;
    assert_eq!(fate, Fate::Confirmed, "no maximum length has come");
    assert_eq!(f.drain_bodies("work").await, ["a", "b"]);
}

pub async fn closing_ends_subscriptions_and_refuses_publishes(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let mut consumer = f.subscribe(&["work"], 1).await;
    let mut links = f.broker.links();
    timely(f.broker.close()).await;
    let ended = timely(consumer.next()).await.map(|delivery| delivery.tag);
    assert_eq!(ended, Err(Ended::BrokerDown));
    let fate = f.publish("", "work", text("a")).await;
    assert_eq!(fate, Fate::NotSent(NotSent::BrokerDown));
    let down = Links {
        publish: LinkState::Down,
        consume: LinkState::Down,
    };
    timely(links.wait_for(|links| *links == down))
        .await
        .expect("the broker is still there");
    let refused = f.try_subscribe(&["work"], 1).await.err();
    assert!(matches!(refused, Some(Error::Down)), "{refused:?}");
}
