//! Nothing that failed is lost or retried too often: gateways, broker and database are killed again and again under a load whose
//! messages fail in every way, and in the end every message is accounted for.
//!
//! `COURTIER_CRASHES` is how often each of them dies, over the two databases together (20).

use std::{
    fs,
    time::{Duration, Instant},
};

use courtier::grpc::proto::Outcome;

use crate::{
    failed_books::Rows,
    failed_load::{FailedLoad, topology, waits},
    instance::{Instance, crashes},
    process::Process,
    store::database::Own,
};

const MAX_RETRIES: u32 = 3;
/// Two gateways on one broker and one database, each of which may be killed.
struct Trial {
    // Dropped first: their logs are in the broker's folder.
    gateways: Vec<Process>,
    broker: Instance,
    database: Instance,
    own: Own,
    load: FailedLoad,
}

async fn for_a_while() {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(..1_500))).await;
}

impl Trial {
    async fn start(kind: &str) -> Self {
        let (broker, database) = tokio::join!(Instance::start(), Instance::database(kind));
        let own = Own::at(database.url.clone()).await;
        let file = broker.dir().join("topology.toml");
        fs::write(&file, topology(&[])).expect("a place to write");
        let max_retries = MAX_RETRIES.to_string();
        let settings = [
            ("TOPOLOGY_FILE", file.to_str().expect("a plain path")),
            ("DATABASE_URL", own.url()),
            ("MESSAGE_MAX_RETRIES", &max_retries),
            ("MESSAGE_RETRY_DELAYS", "100,200,400"),
            ("MESSAGE_RETRY_RATE", "20"),
            // A claim that takes half of it is given back: on a busy machine a short one never gets on.
            ("MESSAGE_RETRY_LEASE", "10s"),
            ("MESSAGE_QUIET_PERIOD", "4s"),
            ("RUST_LOG", "courtier=debug"),
        ];
        let mut gateways = Vec::new();
        for _ in 0..2 {
            let gateway = Process::start(&broker, &settings).await;
            gateway.health([true; 3]).await;
            gateways.push(gateway);
        }
        broker.settle().await;
        let load = FailedLoad::start(&gateways, &broker.url);
        Self {
            broker,
            database,
            own,
            gateways,
            load,
        }
    }

    /// Until it all works: messages are confirmed, and retries come.
    async fn progress(&self) {
        let (confirmed, retries) = (fastrand::u64(20..80), fastrand::u64(5..30));
        let begin = self.load.progress();
        waits("messages are confirmed and retried", async || {
            let now = self.load.progress();
            now.0 >= begin.0 + confirmed && now.1 >= begin.1 + retries
        })
        .await;
    }

    async fn kill_gateway(gateways: &mut [Process]) {
        let victim = fastrand::usize(..gateways.len());
        gateways[victim].kill();
        gateways[victim].restart().await;
    }

    async fn kill(server: &Instance) {
        server.kill().await;
        for_a_while().await;
        server.restart().await;
    }

    /// Kills each of them once: one after the other, or all in one moment.
    async fn round(&mut self, at_once: bool) {
        if at_once {
            self.progress().await;
            let Self {
                broker,
                database,
                gateways,
                ..
            } = self;
            tokio::join!(
                async {
                    for_a_while().await;
                    Self::kill_gateway(gateways).await;
                },
                async {
                    for_a_while().await;
                    Self::kill(database).await;
                },
                Self::kill(broker),
            );
            return;
        }
        self.progress().await;
        Self::kill_gateway(&mut self.gateways).await;
        self.progress().await;
        Self::kill(&self.database).await;
        self.progress().await;
        Self::kill(&self.broker).await;
    }
}

async fn nothing_that_failed_is_lost(kind: &str) {
    let begin = Instant::now();
    let rounds = crashes().div_ceil(2);
    let mut trial = Trial::start(kind).await;
    for round in 0..rounds {
        trial.round(round % 3 == 2).await;
    }
    trial.progress().await;
    let crashing = begin.elapsed();
    let raw = trial.own.raw().await;
    trial.load.rest(&trial.broker, &raw).await;
    let store = trial.own.store().await;
    let rows = Rows::read(&store).await;
    {
        let books = trial.load.books();
        println!(
            "{kind}: {rounds} crashes each of a gateway, the broker and the database in {crashing:.0?}, at rest after {:.0?}",
            begin.elapsed(),
        );
        println!(
            "{} messages: {} CONFIRMED, {} IN_DOUBT, {} NOT_SENT, {} without an answer",
            books.len(),
            books.count(Some(Outcome::Confirmed)),
            books.count(Some(Outcome::InDoubt)),
            books.count(Some(Outcome::NotSent)),
            books.count(None),
        );
        println!("{}", rows.summary());
        let twice = books.balance(&rows, MAX_RETRIES);
        println!(
            "{} retries seen; {} attempts seen again, {} copies of them not redelivered; {twice} rows of native messages made twice",
            books.retries,
            books.attempts_seen_again(),
            books.duplicates,
        );
        assert!(books.retries > 0 && !rows.rows.is_empty(), "nothing failed");
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a broker and a database of its own: run make test"]
async fn nothing_that_failed_is_lost_on_postgres() {
    Box::pin(nothing_that_failed_is_lost("postgres")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a broker and a database of its own: run make test"]
async fn nothing_that_failed_is_lost_on_mariadb() {
    Box::pin(nothing_that_failed_is_lost("mariadb")).await;
}
