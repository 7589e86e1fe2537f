//! Many who watch the same cost the broker and the database as much as one does.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use courtier::{
    broker::{
        Broker, Checked, Error, Lane, Links, Publish, PublishReply, Subscribe, Subscription,
        Target,
        admin::{Admin, BindingInfo, BrokerStatus, ExchangeInfo, Fetch, OnlyIf, QueueInfo},
        memory::MemoryBroker,
        topology::{Binding, Difference, Topology},
    },
    gateway::{
        failed_messages::{Background, FailedMessages, Watch},
        message_log::MessageLog,
    },
    grpc::proto::{GetQueueRequest, WatchQueueStatsRequest, queue_admin_client::QueueAdminClient},
    metrics::Metrics,
    store::{Change, Filter, Store},
    traces::Traces,
};
use futures::future::{join_all, try_join_all};
use tokio::{sync::watch, time::Instant};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::{
    front::{Front, seconds, timely},
    instance::Instance,
    process::Process,
    store::{
        database::{Own, on_each, on_servers},
        deaths::{collected, death, much_later},
    },
};

/// An embedded broker that counts how often it is asked about a queue.
struct Counting {
    memory: Arc<MemoryBroker>,
    asked: AtomicU64,
}

#[async_trait]
impl Broker for Counting {
    async fn check(&self, target: Target<'_>, deadline: Instant) -> Result<Checked, Error> {
        self.memory.check(target, deadline).await
    }

    fn lane(&self) -> Lane {
        self.memory.lane()
    }

    fn publish(&self, lane: Lane, publish: Publish, reply: PublishReply) {
        self.memory.publish(lane, publish, reply);
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>, Error> {
        self.memory.subscribe(subscribe).await
    }

    async fn declare(&self, topology: &Topology) -> Result<Vec<Difference>, Error> {
        self.memory.declare(topology).await
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn links(&self) -> watch::Receiver<Links> {
        self.memory.links()
    }

    async fn close(&self) {
        self.memory.close().await;
    }
}

#[async_trait]
impl Admin for Counting {
    async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        self.memory.queues().await
    }

    async fn queue(&self, name: &str) -> Result<QueueInfo, Error> {
        self.asked.fetch_add(1, SeqCst);
        self.memory.queue(name).await
    }

    async fn exchanges(&self) -> Result<Vec<ExchangeInfo>, Error> {
        self.memory.exchanges().await
    }

    async fn exchange(&self, name: &str) -> Result<ExchangeInfo, Error> {
        self.memory.exchange(name).await
    }

    async fn bindings(&self) -> Result<Vec<BindingInfo>, Error> {
        self.memory.bindings().await
    }

    async fn status(&self) -> BrokerStatus {
        self.memory.status().await
    }

    async fn delete_queue(&self, name: &str, only: OnlyIf) -> Result<u64, Error> {
        Admin::delete_queue(&*self.memory, name, only).await
    }

    async fn purge_queue(&self, name: &str) -> Result<u64, Error> {
        self.memory.purge_queue(name).await
    }

    async fn delete_exchange(&self, name: &str, only_if_unused: bool) -> Result<(), Error> {
        self.memory.delete_exchange(name, only_if_unused).await
    }

    async fn unbind(&self, binding: &Binding) -> Result<(), Error> {
        self.memory.unbind(binding).await
    }

    async fn fetch(&self, queue: &str) -> Result<Box<dyn Fetch>, Error> {
        self.memory.fetch(queue).await
    }
}

/// Watchers of a connection: fewer than it may have streams.
const OF_ONE: usize = 250;

/// So many watch these queues until each was told so often.
async fn watch_queues(channels: &[Channel], names: &[&str], answers: usize) {
    let watching = channels.iter().flat_map(|channel| {
        (0..OF_ONE).map(move |_| async move {
            let request = WatchQueueStatsRequest {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                interval: seconds(1),
            };
            let mut admin = QueueAdminClient::new(channel.clone());
            let watching = timely(admin.watch_queue_stats(request)).await?;
            let mut watching = watching.into_inner();
            for _ in 0..answers {
                let answer = timely(watching.message()).await?;
                assert!(!answer.expect("it goes on").stats.is_empty());
            }
            Ok::<_, tonic::Status>(())
        })
    });
    try_join_all(watching).await.expect("all are told");
}

/// How often a broker with one queue is asked about queues while a thousand watch it, or all.
async fn asked(all: bool, answers: usize) -> u64 {
    let memory = MemoryBroker::new();
    let broker = Arc::new(Counting {
        memory: memory.clone(),
        asked: AtomicU64::new(0),
    });
    let front = Front::of(broker.clone(), Some(memory), |setup| {
        setup.without_database();
    })
    .await;
    let queue = front.queue("work").await;
    let channels = join_all((0..4).map(|_| front.channel())).await;
    let names: &[&str] = if all { &[] } else { &[&queue] };
    let before = broker.asked.load(SeqCst);
    watch_queues(&channels, names, answers).await;
    broker.asked.load(SeqCst) - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_of_a_queue_ask_about_it_as_one_does() {
    // The queue and its dead-letter queue, for each of the 3,000 answers otherwise.
    let asked = asked(false, 3).await;
    assert!((4..=200).contains(&asked), "asked {asked} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_of_all_queues_ask_about_none() {
    assert_eq!(asked(true, 2).await, 0, "the list has it all");
}

fn service(store: &Store) -> (FailedMessages, Background) {
    let log = MessageLog::start(store.clone(), None);
    let setup = courtier::config::Config::read(courtier::config::reader::Reader::fixed(&[]));
    let retries = setup.expect("the defaults are valid").retries;
    FailedMessages::start(
        MemoryBroker::new(),
        store.clone(),
        Arc::new(retries),
        log,
        Metrics::default(),
        Traces::default(),
        [],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_of_failed_messages_ask_the_database_as_one_does() {
    let own = Own::file();
    let store = own.store().await;
    let (failed, background) = service(&store);
    let before = store.answers();
    let beginning = (0..1_000).map(|_| failed.watch(Filter::default()));
    let watches = timely(try_join_all(beginning)).await.expect("they stand");
    let row = collected(&store, "work").await.id;
    let told = watches.into_iter().map(async |mut watch: Watch| {
        loop {
            let news = watch.next().await.expect("it goes on");
            assert!(!news.missed);
            let is_it =
                |change: &Arc<Change>| matches!(&**change, Change::Changed(one) if one.id == row);
            if news.changes.iter().any(is_it) {
                return;
            }
        }
    });
    timely(join_all(told)).await;
    // What runs besides asks, too, some times a second.
    let asked = store.answers() - before;
    assert!(asked < 300, "asked {asked} times");
    background.stop().await;
    store.close().await;
}

/// A failed message that nothing is done with by itself.
async fn waiting(store: &Store) -> Uuid {
    let death = death("work");
    let deaths = std::slice::from_ref(&death);
    store.collect(deaths, much_later).await.expect("collect");
    death.id
}

/// A change is dated when its transaction begins, which may be before somebody begins to watch.
async fn what_is_under_way_when_a_watch_begins_is_told(own: &Own) {
    let store = own.store().await;
    let (failed, background) = service(&store);
    let row = waiting(&store).await;
    let other = own.raw().await;
    other.run("BEGIN").await;
    let change = format!(
        "UPDATE failed_messages SET comment = 'late', updated_at = CURRENT_TIMESTAMP(6) WHERE id = '{row}'"
    );
    other.run(&change).await;
    let mut watch = failed.watch(Filter::default()).await.expect("it stands");
    other.run("COMMIT").await;
    let news = timely(watch.next()).await.expect("it goes on");
    let [change] = &*news.changes else {
        panic!("one change, not {:?}", news.changes);
    };
    let Change::Changed(told) = &**change else {
        panic!("nothing was deleted");
    };
    assert_eq!((told.id, told.comment.as_deref()), (row, Some("late")));
    background.stop().await;
    store.close().await;
}

/// What happened just before is none of its news.
async fn what_was_before_a_watch_is_not_told(own: &Own) {
    let store = own.store().await;
    let (failed, background) = service(&store);
    waiting(&store).await;
    let mut watch = failed.watch(Filter::default()).await.expect("it stands");
    let row = waiting(&store).await;
    let news = timely(watch.next()).await.expect("it goes on");
    let ids = news.changes.iter().map(|change| match &**change {
        Change::Changed(row) => row.id,
        Change::Deleted(id) => *id,
    });
    assert_eq!(ids.collect::<Vec<_>>(), [row]);
    background.stop().await;
    store.close().await;
}

on_each! {
    what_was_before_a_watch_is_not_told
}
/// SQLite has one that writes at a time.
mod of_servers {
    use super::*;

    on_servers! {
        what_is_under_way_when_a_watch_begins_is_told
    }
}

fn descriptors(gateway: &Process) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", gateway.id()));
    open.expect("it runs").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a broker of its own: run make test"]
async fn a_thousand_who_ask_about_a_queue_cost_no_more_connections_than_some() {
    let broker = Instance::start_managed().await;
    let port = broker.management_port().to_string();
    let settings = [("RABBITMQ_MANAGEMENT_PORT", port.as_str())];
    let gateway = Process::with_load(&broker, &settings).await;
    let queue = "left";
    let channels: Vec<_> = (0..4).map(|_| gateway.channel()).collect();
    let get = &async |channel: &Channel| {
        let request = GetQueueRequest {
            name: queue.to_owned(),
        };
        let mut admin = QueueAdminClient::new(channel.clone());
        timely(admin.get_queue(request)).await
    };
    for channel in &channels {
        get(channel).await.expect("it is there");
    }
    let before = descriptors(&gateway);
    watch_queues(&channels, &[queue], 2).await;
    let watched = descriptors(&gateway);
    let gets = channels
        .iter()
        .flat_map(|channel| (0..OF_ONE).map(move |_| get(channel)));
    try_join_all(gets).await.expect("all are answered");
    let got = descriptors(&gateway);
    println!("{before} descriptors before, {watched} after watching, {got} after asking");
    assert!(watched.max(got) < before + 30);
}
