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
        Broker, Checked, Error, Lane, Links, Publish, Receipt, Subscribe, Subscription, Target,
        admin::{Admin, BindingInfo, BrokerStatus, ExchangeInfo, Fetch, OnlyIf, QueueInfo},
        memory::MemoryBroker,
        topology::{Binding, Difference, Topology},
    },
    gateway::{
        failed::{FailedMessages, Watch},
        message_log::MessageLog,
    },
    grpc::proto::{GetQueueRequest, WatchQueueStatsRequest, queue_admin_client::QueueAdminClient},
    metrics::Metrics,
    store::{Change, Filter},
    traces::Traces,
};
use futures::future::{join_all, try_join_all};
use tokio::{sync::watch, time::Instant};
use tonic::transport::Channel;

use crate::{
    front::{Front, seconds, timely},
    instance::Instance,
    process::Process,
    store::{database::Own, deaths::collected},
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

    fn publish(&self, lane: Lane, publish: Publish, receipt: Receipt) {
        self.memory.publish(lane, publish, receipt);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_of_a_queue_ask_about_it_as_one_does() {
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
    watch_queues(&channels, &[&queue], 3).await;
    // The queue and its dead-letter queue, for each of the 3,000 answers before.
    let asked = broker.asked.load(SeqCst);
    assert!((4..=200).contains(&asked), "asked {asked} times");

    broker.asked.store(0, SeqCst);
    watch_queues(&channels, &[], 2).await;
    assert_eq!(broker.asked.load(SeqCst), 0, "the list has it all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_of_failed_messages_ask_the_database_as_one_does() {
    let own = Own::file();
    let store = own.store().await;
    let log = MessageLog::start(store.clone(), None);
    let setup = courtier::config::Config::read(courtier::config::reader::Reader::fixed(&[]));
    let retries = setup.expect("the defaults are valid").retries;
    let (failed, background) = FailedMessages::start(
        MemoryBroker::new(),
        store.clone(),
        Arc::new(retries),
        log,
        Metrics::default(),
        Traces::default(),
        [],
    );
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
