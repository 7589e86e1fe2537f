//! Several gateway processes on one broker and one database: each retry is sent once by one of them, and what one leaves behind
//! when it dies, hangs or is held up is sent by another.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use courtier::{
    failed_message::{FailedMessage, Status},
    grpc::proto::{Delivery, Nack, Settle, nack::Action, subscribe_response::Response},
    store::{Error, Filter, Store},
};
use sea_orm::DbBackend;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    books::Consumer,
    failed_load::waits,
    instance::Instance,
    process::Process,
    store::{
        database::{Own, Raw, on_servers},
        deaths::{at_once, death},
    },
};

on_servers! {
    two_replicas_share_the_work
    four_replicas_share_the_work
    what_a_dead_and_a_hanging_replica_had_is_sent_by_another
    a_replica_that_was_held_up_does_not_send_what_it_no_longer_owns
    a_replica_that_hangs_in_a_transaction_holds_up_nobody_for_long
    a_queue_gets_no_more_retries_than_the_rate_allows
}

const QUEUE: &str = "work";
const TOPOLOGY: &str = r#"queues = [{ name = "work", message_ttl = "none", max_length = 100000 }]"#;
/// How long a replica has a row to itself, where it is to lose it.
const LEASE: Duration = Duration::from_secs(2);
/// Where it is to keep it, however slow the machine is.
const LONG_LEASE: Duration = Duration::from_secs(60);
/// Retries that one replica sends at a time.
const UNDER_WAY: usize = 64;

/// How often each attempt of each row was delivered.
type Seen = Arc<Mutex<BTreeMap<(Uuid, u32), usize>>>;

struct Trial {
    // Dropped first: their logs are in the broker's folder.
    gateways: Vec<Process>,
    broker: Instance,
    store: Store,
    raw: Raw,
    settings: Vec<(&'static str, String)>,
    seen: Seen,
    consuming: Option<JoinHandle<()>>,
}

impl Trial {
    /// A broker and a database without a gateway. `rate`: of retries, of each replica.
    async fn prepare(own: &Own, rate: u32, lease: Duration) -> Self {
        let broker = Instance::start().await;
        let topology = broker.dir().join("topology.toml");
        fs::write(&topology, TOPOLOGY).expect("a place to write");
        let topology = topology.to_str().expect("a plain path").to_owned();
        let settings = vec![
            ("TOPOLOGY_FILE", topology),
            ("DATABASE_URL", own.url().to_owned()),
            // A replica that hangs is found out by the broker after two of these.
            ("RABBITMQ_URL", format!("{}?heartbeat=3", broker.url)),
            ("MESSAGE_RETRY_RATE", rate.to_string()),
            ("MESSAGE_RETRY_DELAYS", "0".to_owned()),
            ("MESSAGE_RETRY_LEASE", lease.as_millis().to_string()),
        ];
        Self {
            broker,
            store: own.store().await,
            raw: own.raw().await,
            settings,
            gateways: Vec::new(),
            seen: Seen::default(),
            consuming: None,
        }
    }

    async fn add_gateway(&mut self) {
        let settings = self.settings.iter();
        let settings: Vec<_> = settings.map(|(name, value)| (*name, &**value)).collect();
        let gateway = Process::start(&self.broker, &settings).await;
        gateway.health([true; 3]).await;
        self.gateways.push(gateway);
    }

    /// Consumes through the last gateway: acks from attempt `last` on, and refuses what comes before.
    async fn consume(&mut self, last: u32) {
        let gateway = self.gateways.last().expect("there is one");
        let consumer = Consumer::start(gateway.channel(), QUEUE, 200).await;
        let consumer = consumer.expect("the queue exists");
        self.consuming = Some(tokio::spawn(work(consumer, self.seen.clone(), last)));
    }

    /// With so many gateways, and a consumer.
    async fn start(own: &Own, gateways: usize, rate: u32, lease: Duration, last: u32) -> Self {
        let mut trial = Self::prepare(own, rate, lease).await;
        for _ in 0..gateways {
            trial.add_gateway().await;
        }
        trial.consume(last).await;
        trial
    }

    /// So many messages failed just now, and are due at once.
    async fn fail(&self, count: usize) -> Vec<Uuid> {
        let deaths: Vec<_> = (0..count).map(|_| death(QUEUE)).collect();
        // Whoever hangs may hold it up for longer than the store waits; the same again is recognised.
        waits("they are stored", async || {
            match self.store.collect(&deaths, at_once).await {
                Ok(_) => true,
                Err(Error::Down) => false,
                Err(error) => panic!("{error:?}"),
            }
        })
        .await;
        deaths.iter().map(|death| death.id).collect()
    }

    async fn resolved(&self, count: usize) {
        let filter = Filter {
            statuses: vec![Status::Resolved],
            ..Filter::default()
        };
        let count = u64::try_from(count).expect("a count");
        waits("all are resolved", async || {
            self.store.count(&filter).await.expect("counted") == count
        })
        .await;
    }

    fn seen(&self) -> BTreeMap<(Uuid, u32), usize> {
        let seen = self.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many retries each replica says that it sent.
    fn sent(&self) -> Vec<usize> {
        let sent = |gateway: &Process| gateway.log().matches("retried a failed message").count();
        self.gateways.iter().map(sent).collect()
    }

    async fn row(&self, id: Uuid) -> FailedMessage {
        self.store.failed_message(id).await.expect("it is there")
    }

    async fn end(self) {
        if let Some(consuming) = self.consuming {
            assert!(!consuming.is_finished(), "the consumer goes on");
            consuming.abort();
        }
        drop(self.gateways);
        self.store.close().await;
    }

    /// From now on, each claim of a row takes so long in its transaction.
    async fn hold_up_claims(&self, seconds: u32) {
        self.raw
            .run("CREATE TABLE held (seconds int NOT NULL)")
            .await;
        self.raw
            .run(&format!("INSERT INTO held VALUES ({seconds})"))
            .await;
        let seconds = "(SELECT COALESCE(MAX(seconds), 0) FROM held)";
        if self.raw.backend() == DbBackend::MySql {
            let trigger = format!(
                "CREATE TRIGGER hold BEFORE UPDATE ON failed_messages FOR EACH ROW \
                 IF NEW.lease_token IS NOT NULL AND OLD.lease_token IS NULL THEN DO SLEEP({seconds}); END IF"
            );
            return self.raw.run(&trigger).await;
        }
        let function = format!(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.lease_token IS NOT NULL AND OLD.lease_token IS NULL THEN PERFORM pg_sleep({seconds}); END IF; \
             RETURN NEW; END $$"
        );
        self.raw.run(&function).await;
        let trigger = "CREATE TRIGGER hold BEFORE UPDATE ON failed_messages \
                       FOR EACH ROW EXECUTE FUNCTION hold()";
        self.raw.run(trigger).await;
    }

    /// Waits until a claim is held up, and lets later ones be.
    async fn held(&self) {
        let asleep = match self.raw.backend() {
            DbBackend::MySql => {
                "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND state = 'User sleep'"
            }
            _ => {
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            }
        };
        waits("a claim is held up", async || {
            !self.raw.rows(asleep).await.is_empty()
        })
        .await;
        self.raw.run("DELETE FROM held").await;
    }
}

async fn work(mut consumer: Consumer, seen: Seen, last: u32) {
    while let Ok(Some(response)) = consumer.next().await {
        let Some(Response::Deliveries(deliveries)) = response.response else {
            continue;
        };
        let mut settle = Settle::default();
        for delivery in deliveries.deliveries {
            let Delivery {
                ack_id, attempt, ..
            } = delivery;
            let row = Uuid::parse_str(&delivery.failed_message_id).expect("only retries come");
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            *seen.entry((row, attempt)).or_default() += 1;
            if attempt >= last {
                settle.ack_ids.push(ack_id);
            } else {
                settle.nacks.push(Nack {
                    ack_id,
                    action: Action::Retry.into(),
                    ..Nack::default()
                });
            }
        }
        consumer.settle(settle);
    }
}

/// That each of these rows' attempts, from 2 to `last`, was delivered just once, and no other.
fn assert_each_once(seen: &BTreeMap<(Uuid, u32), usize>, rows: &[Uuid], last: u32) {
    let numbers = |row: &Uuid| {
        (2..=last)
            .map(|number| ((*row, number), 1))
            .collect::<Vec<_>>()
    };
    let expected: BTreeMap<_, _> = rows.iter().flat_map(numbers).collect();
    let other: Vec<_> = seen
        .iter()
        .filter(|(which, times)| expected.get(which) != Some(times))
        .take(5)
        .collect();
    assert!(other.is_empty(), "not once: {other:?}");
    assert_eq!(seen.len(), expected.len());
}

async fn two_replicas_share_the_work(own: &Own) {
    share_the_work(own, 2).await;
}

async fn four_replicas_share_the_work(own: &Own) {
    share_the_work(own, 4).await;
}

async fn share_the_work(own: &Own, replicas: usize) {
    let trial = Trial::start(own, replicas, 50, LONG_LEASE, 3).await;
    let rows = trial.fail(400).await;
    trial.resolved(400).await;
    assert_each_once(&trial.seen(), &rows, 3);
    let sent = trial.sent();
    println!("{replicas} replicas sent {sent:?}");
    assert_eq!(sent.iter().sum::<usize>(), 800);
    assert!(sent.iter().all(|sent| *sent > 0), "{sent:?}");
    trial.end().await;
}

async fn what_a_dead_and_a_hanging_replica_had_is_sent_by_another(own: &Own) {
    let mut trial = Trial::start(own, 3, 100, LEASE, 3).await;
    let mut rows = trial.fail(600).await;
    waits("retries come", async || trial.seen().len() >= 100).await;
    trial.gateways[0].kill();
    trial.gateways[1].pause();
    trial.resolved(600).await;
    trial.gateways[1].resume();
    trial.gateways[1].health([true; 3]).await;
    let before = trial.sent()[1];
    // It does its part again.
    waits("it sends again", async || {
        rows.extend(trial.fail(50).await);
        trial.resolved(rows.len()).await;
        trial.sent()[1] > before
    })
    .await;
    let seen = trial.seen();
    for row in &rows {
        for number in 2..=3 {
            assert!(seen.contains_key(&(*row, number)), "{row} {number}");
        }
    }
    assert_eq!(seen.len(), 2 * rows.len(), "no other attempts");
    let again = seen.values().filter(|times| **times > 1).count();
    println!(
        "{} rows, {again} attempts delivered more than once",
        rows.len()
    );
    // What was with the broker when its sender stopped, or with a consumer of theirs.
    assert!(again <= 2 * UNDER_WAY, "{again}");
    trial.end().await;
}

async fn a_replica_that_was_held_up_does_not_send_what_it_no_longer_owns(own: &Own) {
    let trial = Trial::start(own, 1, 100, LEASE, 2).await;
    // Its claim is answered when the lease is over.
    trial.hold_up_claims(3).await;
    let rows = trial.fail(1).await;
    trial.held().await;
    trial.resolved(1).await;
    assert_each_once(&trial.seen(), &rows, 2);
    let log = trial.gateways[0].log();
    let dropped = log.matches("fate=NotSent(Overloaded)").count();
    // On a busy machine a later claim may come too late as well.
    assert!(dropped >= 1, "it was claimed, and not sent");
    assert_eq!(trial.row(rows[0]).await.state.retry_count, 1);
    trial.end().await;
}

async fn a_replica_that_hangs_in_a_transaction_holds_up_nobody_for_long(own: &Own) {
    // It hangs before it has the row to itself; what the other one has, it is to keep.
    let mut trial = Trial::prepare(own, 100, LONG_LEASE).await;
    trial.add_gateway().await;
    trial.hold_up_claims(1).await;
    let mut rows = trial.fail(1).await;
    trial.held().await;
    trial.gateways[0].pause();
    trial.add_gateway().await;
    trial.consume(2).await;
    // Of the same kind: their count is one row of the database, which every change of one of them changes.
    rows.extend(trial.fail(50).await);
    trial.resolved(rows.len()).await;
    trial.gateways[0].resume();
    trial.gateways[0].health([true; 3]).await;
    rows.extend(trial.fail(50).await);
    trial.resolved(rows.len()).await;
    assert_each_once(&trial.seen(), &rows, 2);
    trial.end().await;
}

async fn a_queue_gets_no_more_retries_than_the_rate_allows(own: &Own) {
    const ROWS: usize = 1_000;
    const RATE: usize = 50;
    const REPLICAS: usize = 2;
    let trial = Trial::start(own, REPLICAS, 50, LONG_LEASE, 2).await;
    let rows = trial.fail(ROWS).await;
    trial.resolved(ROWS).await;
    assert_each_once(&trial.seen(), &rows, 2);
    // When each was claimed, by the database's clock.
    let mut rounds = BTreeMap::<_, usize>::new();
    for row in rows {
        let attempts = trial.store.attempts(row).await.expect("listed");
        let started = attempts[1].started_at.expect("it was sent");
        *rounds.entry(started).or_default() += 1;
    }
    // A replica looks twice a second.
    let most = RATE.div_ceil(2);
    assert!(rounds.values().all(|sent| *sent <= most), "{rounds:?}");
    let (first, last) = (rounds.keys().min(), rounds.keys().max());
    let took = *last.expect("some") - *first.expect("some");
    let milliseconds = usize::try_from(took.num_milliseconds()).expect("not before the first");
    println!(
        "{ROWS} retries in {} rounds over {milliseconds} ms",
        rounds.len()
    );
    // The first round comes at once, and one may come late, so that the next follows it sooner.
    let allowed = REPLICAS * (RATE * milliseconds / 1_000 + 1 + 2 * most);
    assert!(ROWS <= allowed, "{ROWS} of {allowed} in {milliseconds} ms");
    trial.end().await;
}
