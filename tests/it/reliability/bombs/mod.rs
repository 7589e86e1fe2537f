//! Bombs and starvation: what one client may cost the others. Each trial starts the gateway as it is run, with the 512 MiB that a
//! replica has, lets a neighbour work, throws the bomb, and looks: the process lives and stayed within its memory, the neighbour was
//! answered every time, and afterwards the process holds what it held before.
//!
//! How long the neighbour waited, quiet and bombed, is printed and not asserted: a timing is the machine's too, which attacker, broker,
//! gateway and neighbour share. So another neighbour does the same work meanwhile, with a gateway beside that is not bombed: what both
//! wait is the machine's and the broker's doing, and the ratio of their p99, which should be at most 2, the gateway's. `make bombs`
//! runs the trials one after the other, on an optimised gateway, and shows it.

mod attacker;
mod connections;
mod memory;
mod neighbour;
mod requests;
mod texts;
mod warden;
mod watches;

use std::time::{Duration, Instant};

use courtier::broker::{
    Broker,
    topology::{Queue, QueueKind, Topology},
};
use tempfile::TempDir;

use self::{
    neighbour::{Neighbour, Waits},
    warden::Warden,
};
use crate::{
    harness::connect,
    instance::Instance,
    process::Process,
    vitals::{Vitals, cpu_time},
};

/// What the gateway may share out: half of what the process has, as it would derive itself from a container's limit.
const MAX_MEMORY: &str = "256MiB";

/// A gateway under limits, and somebody who works with it.
pub struct Target {
    pub gateway: Process,
    warden: Warden,
    neighbour: Neighbour,
    before: Vitals,
    quiet: Waits,
    /// When the bomb was thrown, and the processor time that the process had taken until then.
    begin: (Instant, Duration),
    name: &'static str,
    queue: String,
    _dir: TempDir,
    bystander: Bystander,
}

/// Somebody who works with another gateway, on the same machine and broker.
struct Bystander {
    neighbour: Neighbour,
    _gateway: Process,
    _dir: TempDir,
}

/// The RabbitMQ of this test run.
fn shared() -> (String, String) {
    let of = |name| std::env::var(name).expect("set by make test");
    (
        of("COURTIER_TEST_AMQP_URL"),
        of("COURTIER_TEST_MANAGEMENT_PORT"),
    )
}

impl Target {
    /// On the RabbitMQ of this test run.
    pub async fn start(name: &'static str) -> Self {
        Self::scarce(name, None).await
    }

    /// The same, with so many descriptors.
    pub async fn scarce(name: &'static str, descriptors: Option<u32>) -> Self {
        let (url, management) = shared();
        let broker = connect().await;
        Self::on(name, &*broker, (&url, &management), descriptors).await
    }

    /// On a RabbitMQ of its own.
    pub async fn apart(name: &'static str, instance: &Instance) -> Self {
        let broker = crate::harness::connect_to(&instance.url);
        assert!(broker.connected(crate::harness::PATIENCE).await);
        let port = instance.management_port().to_string();
        Self::on(name, &*broker, (&instance.url, &port), None).await
    }

    async fn on(
        name: &'static str,
        broker: &dyn Broker,
        (url, management): (&str, &str),
        descriptors: Option<u32>,
    ) -> Self {
        let [queue, beside] = ["at", "beside"].map(|place| {
            let run = uuid::Uuid::now_v7();
            format!("bombs-{place}-{run}")
        });
        let topology = Topology {
            queues: [&queue, &beside]
                .map(|queue| Queue::bare(queue, QueueKind::Classic))
                .into(),
            ..Topology::default()
        };
        assert_eq!(broker.declare(&topology).await.expect("declared"), []);
        broker.close().await;
        let dir = TempDir::new().expect("a temporary folder");
        let settings = [
            ("RABBITMQ_URL", url),
            ("RABBITMQ_MANAGEMENT_PORT", management),
            ("MAX_MEMORY_BYTES", MAX_MEMORY),
            ("RUST_LOG", "info"),
        ];
        let gateway = match descriptors {
            Some(most) => Process::start_with_descriptors(dir.path(), &settings, most, most).await,
            None => Process::start_in(dir.path(), &settings).await,
        };
        gateway.health([true; 3]).await;
        let bystander = {
            let dir = TempDir::new().expect("a temporary folder");
            let gateway = Process::start_in(dir.path(), &settings).await;
            gateway.health([true; 3]).await;
            Bystander {
                neighbour: Neighbour::start(gateway.address(), beside),
                _gateway: gateway,
                _dir: dir,
            }
        };
        let warden = Warden::watch(gateway.id());
        let neighbour = Neighbour::start(gateway.address(), queue.clone());
        let quiet = neighbour.work(neighbour::ENOUGH).await;
        bystander.neighbour.work(0).await;
        let cpu = cpu_time(gateway.id());
        Self {
            before: Vitals::of(&gateway).await,
            gateway,
            warden,
            neighbour,
            quiet,
            begin: (Instant::now(), cpu),
            name,
            queue,
            _dir: dir,
            bystander,
        }
    }

    /// Waits until the process takes no more than it takes already: the bomb has done what it can.
    pub async fn saturated(&self) {
        let (mut most, mut since) = (0, Instant::now());
        while since.elapsed() < Duration::from_secs(2) && !self.warden.killed() {
            let now = self.warden.peak();
            if now > most + 1024 {
                (most, since) = (now, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The neighbour's queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The most files and sockets that the process had open so far.
    pub fn files(&self) -> u64 {
        self.warden.files()
    }

    /// Lets the neighbour work beside what is going on; the bombed figures are of this.
    pub async fn beside(&self) {
        self.neighbour.worked(neighbour::ENOUGH / 2).await;
    }

    /// The bomb is over: what it cost. Fails when it cost too much.
    pub async fn survived(mut self) {
        assert!(
            !self.warden.killed(),
            "{}: killed, because it took {} MiB of {}",
            self.name,
            self.warden.peak() / 1024,
            warden::BUDGET / 1024
        );
        let bombed = self.neighbour.work(neighbour::ENOUGH / 4).await;
        let beside = self.bystander.neighbour.work(neighbour::ENOUGH / 4).await;
        assert_eq!(self.gateway.exit_status(), None, "{}: it runs", self.name);
        let took = self.begin.0.elapsed();
        let busy = cpu_time(self.gateway.id()).saturating_sub(self.begin.1);
        let cores = busy.as_secs_f64() / took.as_secs_f64();
        let files = self.warden.files();
        // Connections that clients close are let go a moment later.
        let allowed = self.before.descriptors + 24;
        crate::harness::eventually("descriptors are given back", || async {
            crate::vitals::descriptors(self.gateway.id()) <= allowed
        })
        .await;
        println!(
            "\n{:<39} {:>6} {:>5} {:>8} {:>5}  {:>9}  {:>9}  {:>9} {:>9}  {:>5}",
            "bomb",
            "took",
            "cores",
            "memory",
            "files",
            "quiet p99",
            "beside",
            "bombed",
            "worst",
            "ratio"
        );
        let phases = [&self.quiet, &beside, &bombed].map(Waits::summaries);
        for (number, what) in Waits::KINDS.into_iter().enumerate() {
            let [quiet, beside, bombed] = phases.each_ref().map(|phase| &phase[number]);
            println!(
                "{:<39} {:>5.1}s {cores:>5.1} {:>4} MiB {files:>5}  {:>9.1?}  {:>9.1?}  {:>9.1?} {:>9.1?}  {:>5.1}",
                format!("{}: {what}", self.name),
                took.as_secs_f64(),
                self.warden.peak() / 1024,
                quiet.late,
                beside.late,
                bombed.late,
                bombed.worst,
                bombed.late.as_secs_f64() / beside.late.as_secs_f64(),
            );
        }
        assert_eq!(
            bombed.faults(),
            [""; 0],
            "{}: the neighbour is served",
            self.name
        );
    }
}
