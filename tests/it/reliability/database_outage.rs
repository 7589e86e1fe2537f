//! Publishing and subscribing do without the database; what fails meanwhile waits in the dead-letter queues, and calls about
//! failed messages are told so. When it is back, everything is collected, and what consumers acked is noted.
//!
//! `COURTIER_OUTAGE` is how many seconds it is away (10).

use std::{fs, time::Duration};

use courtier::{
    failed_message::{Resolution, Status},
    grpc::proto::{
        Delivery, ListFailedMessagesRequest, Message, Nack, Outcome, PublishRequest, Settle, Start,
        message::Payload, nack::Action, publisher_client::PublisherClient,
        settle_result::Result as Settled, subscribe_response::Response,
    },
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status as GrpcStatus};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::{
    books::{Consumer, reason_of},
    failed_books::Rows,
    failed_load::{FailedLoad, WORK, topology, waits},
    harness::PATIENCE,
    instance::Instance,
    load::LATE,
    process::Process,
    store::database::Own,
};

const MAX_RETRIES: u32 = 3;
/// The one queue that the load leaves alone.
const NOTED: &str = "noted";
const DEADLINE: Duration = Duration::from_secs(2);

fn outage() -> Duration {
    let seconds = std::env::var("COURTIER_OUTAGE");
    Duration::from_secs(seconds.map_or(10, |text| text.parse().expect("a number")))
}

/// What the gateway stands on.
struct Ground {
    broker: Instance,
    database: Instance,
    own: Own,
}

impl Ground {
    async fn lay(kind: &str) -> Self {
        let (broker, database) = tokio::join!(Instance::start(), Instance::database(kind));
        let own = Own::at(database.url.clone()).await;
        Self {
            broker,
            database,
            own,
        }
    }

    async fn gateway(&self) -> Process {
        let file = self.broker.dir().join("topology.toml");
        fs::write(&file, topology(&[NOTED])).expect("a place to write");
        let max_retries = MAX_RETRIES.to_string();
        let settings = [
            ("TOPOLOGY_FILE", file.to_str().expect("a plain path")),
            ("DATABASE_URL", self.own.url()),
            ("MESSAGE_MAX_RETRIES", &max_retries),
            ("MESSAGE_RETRY_DELAYS", "100,200,400"),
            ("MESSAGE_RETRY_RATE", "100"),
            ("MESSAGE_QUIET_PERIOD", "4s"),
        ];
        let gateway = Process::start(&self.broker, &settings).await;
        gateway.health([true; 3]).await;
        gateway
    }

    /// Waits until all that failed is accounted for.
    async fn check(&self, mut load: FailedLoad) {
        let raw = self.own.raw().await;
        load.rest(&self.broker, &raw).await;
        let store = self.own.store().await;
        let mut rows = Rows::read(&store).await;
        rows.leave_out(NOTED);
        println!("{}", rows.summary());
        {
            let books = load.books();
            books.balance(&rows, MAX_RETRIES);
            let confirmed = books.count(Some(Outcome::Confirmed));
            assert_eq!(confirmed, books.len(), "every publish was confirmed");
        }
        assert_eq!(load.ends(), 0, "every subscription went on");
        store.close().await;
    }
}

/// Whether calls about failed messages are taken; the others are all the time.
async fn database_is(gateway: &Process, up: bool) {
    waits("health follows the database", async || {
        gateway.serves("FailedMessages").await == up
    })
    .await;
    gateway.health([true; 3]).await;
    let ready = gateway.readyz().await;
    let says = format!(r#""database":"{}""#, if up { "up" } else { "down" });
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains(&says),
        "{ready}"
    );
}

async fn list(gateway: &Process, deadline: Option<Duration>) -> Result<(), GrpcStatus> {
    let mut request = Request::new(ListFailedMessagesRequest::default());
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    let mut client = gateway.patient().failed_messages();
    let listed = timeout(PATIENCE, client.list_failed_messages(request)).await;
    listed.expect("an answer").map(drop)
}

fn assert_database_down(answer: &Result<(), GrpcStatus>) {
    let status = answer.as_ref().expect_err("there is no database");
    assert_eq!(
        (status.code(), reason_of(status).as_str()),
        (Code::Unavailable, "DATABASE_DOWN")
    );
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
}

/// A call at this moment, with a deadline, is answered in time.
async fn answered_in_time(gateway: &Process) {
    let begin = Instant::now();
    let status = list(gateway, Some(DEADLINE)).await;
    let took = begin.elapsed();
    let code = status.expect_err("there is no database").code();
    assert!(
        matches!(code, Code::Unavailable | Code::DeadlineExceeded),
        "{code:?}"
    );
    assert!(took < DEADLINE + LATE, "{took:?}");
}

/// Work done in a while.
async fn figures(load: &FailedLoad, what: &str, duration: Duration) {
    let counts = || {
        let books = load.books();
        [books.confirmed, books.deliveries]
    };
    let (before, begin) = (counts(), Instant::now());
    sleep(duration).await;
    let (after, took) = (counts(), begin.elapsed());
    let done = [after[0] - before[0], after[1] - before[1]];
    println!(
        "{what}: {} publishes and {} deliveries in {took:.1?}",
        done[0], done[1]
    );
}

/// A consumer that has a retry in its hands.
struct Holder {
    consumer: Consumer,
    delivery: Delivery,
}

impl Holder {
    async fn take(gateway: &Process) -> Self {
        let message = Message {
            payload: Some(Payload::Text("to be noted".to_owned())),
            ..Message::default()
        };
        let request = PublishRequest {
            routing_key: NOTED.to_owned(),
            message: Some(message),
            ..PublishRequest::default()
        };
        let mut publisher = PublisherClient::new(gateway.channel());
        publisher.publish(request).await.expect("published");
        let start = Start {
            queues: vec![NOTED.to_owned()],
            max_outstanding: 1,
            ack_deadline: Some(prost_types::Duration {
                seconds: 600,
                nanos: 0,
            }),
            ..Start::default()
        };
        let consumer = Consumer::open(gateway.channel(), start).await;
        let mut consumer = consumer.expect("the queue exists");
        let first = delivery(&mut consumer).await;
        consumer.settle(Settle {
            nacks: vec![Nack {
                ack_id: first.ack_id,
                action: Action::Retry.into(),
                ..Nack::default()
            }],
            ..Settle::default()
        });
        let delivery = delivery(&mut consumer).await;
        assert_eq!(delivery.attempt, 2);
        Self { consumer, delivery }
    }

    /// Acks it; the row that it is a retry of.
    async fn ack(mut self) -> Uuid {
        self.consumer.ack(vec![self.delivery.ack_id.clone()]);
        loop {
            let next = timeout(PATIENCE, self.consumer.next()).await;
            let next = next.expect("an answer").expect("it goes on");
            if let Some(Response::Results(results)) = next.and_then(|next| next.response) {
                assert_eq!(results.results[0].result(), Settled::Ok);
                break;
            }
        }
        self.consumer.finish().await;
        Uuid::parse_str(&self.delivery.failed_message_id).expect("a retry")
    }
}

async fn delivery(consumer: &mut Consumer) -> Delivery {
    loop {
        let next = timeout(PATIENCE, consumer.next()).await;
        let next = next.expect("something comes").expect("it goes on");
        if let Some(Response::Deliveries(deliveries)) = next.and_then(|next| next.response) {
            return deliveries.deliveries.into_iter().next().expect("one");
        }
    }
}

async fn publish_and_subscribe_do_without(kind: &str, hangs: bool) {
    let ground = Ground::lay(kind).await;
    let gateway = ground.gateway().await;
    database_is(&gateway, true).await;
    ground.broker.settle().await;
    let load = FailedLoad::start(std::slice::from_ref(&gateway), &ground.broker.url);
    waits("retries come", async || load.progress().1 > 20).await;
    let holder = Holder::take(&gateway).await;
    figures(&load, "before", outage() / 2).await;

    let away = Instant::now();
    if hangs {
        ground.database.pause().await;
    } else {
        ground.database.kill().await;
    }
    let (patient, ()) = tokio::join!(list(&gateway, None), answered_in_time(&gateway));
    assert_database_down(&patient);
    database_is(&gateway, false).await;
    // It is known now, and said at once.
    assert_database_down(&list(&gateway, Some(DEADLINE)).await);
    let row = holder.ack().await;
    let refusals = load.books().refusals;
    figures(&load, "meanwhile", outage().saturating_sub(away.elapsed())).await;
    waits("failures are stored", async || {
        load.books().refusals > refusals
    })
    .await;
    let waiting = ground.broker.messages(&format!("{}.dlq", WORK[0])).await;
    assert!(waiting > 0, "dead letters wait");
    println!("{kind} was away for {:.1?}", away.elapsed());

    if hangs {
        ground.database.resume().await;
    } else {
        ground.database.restart().await;
    }
    database_is(&gateway, true).await;
    waits("failed messages are listed again", async || {
        list(&gateway, Some(DEADLINE)).await.is_ok()
    })
    .await;
    figures(&load, "after", outage() / 2).await;
    let store = ground.own.store().await;
    waits("the ack is noted", async || {
        let row = store.failed_message(row).await.expect("it is there");
        (row.state.status, row.state.resolution) == (Status::Resolved, Some(Resolution::Acked))
    })
    .await;
    store.close().await;
    ground.check(load).await;
}

async fn a_gateway_that_finds_its_database_later(kind: &str) {
    let ground = Ground::lay(kind).await;
    ground.database.stop().await;
    let gateway = ground.gateway().await;
    database_is(&gateway, false).await;
    assert_database_down(&list(&gateway, Some(DEADLINE)).await);
    ground.broker.settle().await;
    let load = FailedLoad::start(std::slice::from_ref(&gateway), &ground.broker.url);
    waits("failures are stored", async || load.books().refusals > 20).await;
    assert_eq!(load.progress().1, 0, "nothing is retried");
    ground.database.restart().await;
    database_is(&gateway, true).await;
    waits("retries come", async || load.progress().1 > 20).await;
    ground.check(load).await;
}

macro_rules! on_own_servers {
    ($($kind:ident)+) => {
        $(mod $kind {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "starts a broker and a database of its own: run make test"]
            async fn publish_and_subscribe_do_without_a_database_that_crashed() {
                Box::pin(super::publish_and_subscribe_do_without(stringify!($kind), false)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "starts a broker and a database of its own: run make test"]
            async fn publish_and_subscribe_do_without_a_database_that_hangs() {
                Box::pin(super::publish_and_subscribe_do_without(stringify!($kind), true)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "starts a broker and a database of its own: run make test"]
            async fn a_gateway_without_a_database_starts_and_finds_it_later() {
                Box::pin(super::a_gateway_that_finds_its_database_later(stringify!($kind))).await;
            }
        })+
    };
}

on_own_servers! { mariadb postgres }
