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

mod consuming;
mod delivery_limit;
mod expiry;
mod publishing;
mod temporary;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use courtier::{
    broker::{
        Broker, Checked, Delivery, Ended, Entity, Error, Fate, Lane, LinkState, Links, NotSent,
        Publish, PublishReply, Subscribe, Subscription, Target,
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

pub use self::{consuming::*, delivery_limit::*, expiry::*, publishing::*, temporary::*};

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
                a_publish_that_is_late_already_is_not_sent
                a_missing_exchange_is_not_found
                a_missing_queue_is_not_found
                a_binding_to_something_missing_is_not_found
                messages_of_one_lane_keep_their_order
                a_higher_priority_gets_messages_first_while_it_has_room
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
                a_message_beyond_its_delivery_limit_is_dead_lettered
                every_return_counts_also_of_a_neighbour
                a_queue_that_nobody_uses_expires_with_all_that_is_in_it
                a_consumer_keeps_a_queue_that_expires
                declaring_and_fetching_are_uses
                an_auto_delete_queue_goes_with_its_last_consumer
                an_auto_delete_queue_that_is_stopped_goes_at_once
                an_auto_delete_queue_that_never_had_a_consumer_stays
                a_queue_is_not_made_temporary_afterwards
                what_no_consumer_had_is_given_back_and_counts_only_where_it_must
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
    /// Whether a quorum queue counts every return: it cannot tell what a consumer failed to do from what no consumer had.
    pub counts_what_is_given_back: bool,
    /// Whether a classic queue takes back what is unsettled for too long.
    pub has_consumer_timeout: bool,
    /// Whether it refuses a reply to a node that it never heard of; otherwise the reply is dropped.
    pub knows_reply_nodes: bool,
}

impl Traits {
    pub const MEMORY: Self = Self {
        quorum_overshoot: 0,
        counts_what_is_given_back: true,
        has_consumer_timeout: false,
        knows_reply_nodes: false,
    };

    /// Of the RabbitMQ that `make test` started.
    pub fn rabbitmq() -> Self {
        let version = std::env::var("COURTIER_TEST_RABBITMQ_VERSION").expect("set by make test");
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        let (major, minor) = (numbers.next(), numbers.next());
        let before_4_3 = (major, minor) < (Some(4), Some(3));
        Self {
            quorum_overshoot: 64,
            counts_what_is_given_back: before_4_3,
            has_consumer_timeout: before_4_3,
            knows_reply_nodes: major < Some(4),
        }
    }
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
        Exchange::new(self.name(name), kind)
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
            .map(|(k, v)| (k.to_string(), Value::text(*v)));
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
    fn hand_over(&self, lane: Lane, to: Address, message: Message, reply: PublishReply) -> Uuid {
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
            checked: Checked::default(),
        };
        self.broker.publish(lane, publish, reply);
        publish_id
    }

    async fn publish(&self, exchange: &str, routing_key: &str, message: Message) -> Fate {
        let to = Address::new(exchange, routing_key);
        let (reply, answer) = PublishReply::single();
        self.hand_over(self.broker.lane(), to, message, reply);
        timely(answer).await.expect("a reply always answers")
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
        let subscribe = self.to_subscribe(queues, prefetch);
        timely(self.broker.subscribe(subscribe)).await
    }

    fn to_subscribe(&self, queues: &[&str], prefetch: u16) -> Subscribe {
        Subscribe::new(
            queues.iter().map(|queue| self.name(queue)).collect(),
            prefetch,
            &self.name("client"),
            Instant::now() + PATIENCE,
        )
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
