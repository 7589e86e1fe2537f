//! How the real program stops: in order when it is told to, at once when it is told twice.

use std::{
    fs::{self, File},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use courtier::grpc::proto::{
    Settle, publisher_client::PublisherClient, subscribe_response::Response,
};
use tempfile::TempDir;

use crate::{
    books::Consumer,
    front::{text, timely, to_queue},
    harness::eventually,
    load::TOPOLOGY,
    process::Process,
};

/// A gateway whose consumer holds a delivery, and would for longer than a test waits.
struct Held {
    gateway: Process,
    consumer: Consumer,
    ack_id: String,
    _dir: TempDir,
}

impl Held {
    async fn new() -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let topology = dir.path().join("topology.toml");
        fs::write(&topology, TOPOLOGY).expect("a place to write");
        let settings = [
            ("TOPOLOGY_FILE", topology.to_str().expect("a plain path")),
            ("SHUTDOWN_GRACE", "10m"),
        ];
        let gateway = Process::start_in(dir.path(), &settings).await;
        let mut publisher = PublisherClient::new(gateway.channel());
        let published = timely(publisher.publish(to_queue("left", text("held")))).await;
        published.expect("confirmed");
        let consumer = Consumer::start(gateway.channel(), "left", 1).await;
        let mut consumer = consumer.expect("it opens");
        let ack_id = loop {
            let said = timely(consumer.next()).await.expect("the stream lives");
            if let Some(Response::Deliveries(deliveries)) = said.and_then(|said| said.response) {
                break deliveries.deliveries[0].ack_id.clone();
            }
        };
        Self {
            gateway,
            consumer,
            ack_id,
            _dir: dir,
        }
    }

    async fn draining(&mut self) {
        loop {
            let said = timely(self.consumer.next())
                .await
                .expect("the stream lives");
            if let Some(Response::Draining(_)) = said.expect("not the end").response {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_signal_that_asks_to_stop_lets_consumers_settle() {
    for signal in ["HUP", "INT", "TERM"] {
        let mut held = Held::new().await;
        held.gateway.signal(signal);
        held.draining().await;
        held.consumer.settle(Settle {
            ack_ids: vec![held.ack_id.clone()],
            nacks: vec![],
        });
        assert_eq!(held.gateway.ended().await, Some(0), "{signal}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_cuts_what_the_first_let_go_on() {
    for signal in ["TERM", "INT"] {
        let mut held = Held::new().await;
        held.gateway.signal("TERM");
        held.draining().await;
        held.gateway.signal(signal);
        assert_eq!(held.gateway.ended().await, Some(1), "{signal}");
        let log = held.gateway.log();
        assert!(log.contains("cut by a second signal"), "{log}");
    }
}

/// Signals of a process, as Linux tells them.
fn mask(child: &Child, name: &str) -> u64 {
    let path = format!("/proc/{}/status", child.id());
    let status = fs::read_to_string(path).expect("it runs");
    let mask = status.lines().find_map(|line| line.strip_prefix(name));
    u64::from_str_radix(mask.expect("it is there").trim(), 16).expect("hexadecimal")
}

async fn listens_to_signals(child: &Child) {
    const TERMINATE: u64 = 1 << 14;
    eventually("it listens to signals", || async {
        mask(child, "SigCgt:") & TERMINATE != 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_still_starting_stops_at_once() {
    // It takes connections, and never says anything.
    let database = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = database.local_addr().expect("bound").port();
    let dir = TempDir::new().expect("a temporary folder");
    let log = dir.path().join("log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_courtier"))
        .arg("serve")
        .env_clear()
        .env("APP_PORT", "0")
        .env("DATA_DIR", dir.path())
        .env("DATABASE_URL", format!("mysql://u:p@127.0.0.1:{port}/db"))
        .stdin(Stdio::null())
        .stderr(File::create(&log).expect("a place to write"))
        .spawn()
        .expect("it starts");
    listens_to_signals(&child).await;
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status();
    assert!(sent.expect("kill runs").success());
    let ended = child.wait().expect("it ends");
    assert_eq!(ended.code(), Some(0));
    let log = fs::read_to_string(log).expect("it is there");
    assert!(log.contains("stopped before it began to serve"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hang_up_that_is_to_be_ignored_is() {
    const HANG_UP: u64 = 1;
    let dir = TempDir::new().expect("a temporary folder");
    let log = File::create(dir.path().join("log")).expect("a place to write");
    // As nohup does it.
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" serve"])
        .arg(env!("CARGO_BIN_EXE_courtier"))
        .env_clear()
        .env("APP_PORT", "0")
        .env("DATA_DIR", dir.path())
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("it starts");
    listens_to_signals(&child).await;
    assert_ne!(mask(&child, "SigIgn:") & HANG_UP, 0);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}
