//! The disk under SQLite: full, or the file taken away while the gateway runs. It is said, nothing is written into nowhere, and
//! what fails meanwhile waits in its dead-letter queue.

use std::{
    fs::{self, File},
    io::Write,
};

use courtier::grpc::proto::{
    GetQueueRequest, ListAlertsRequest, ListFailedMessagesRequest, ResolveFailedMessageRequest,
    alert::Kind, failed_messages_client::FailedMessagesClient, publisher_client::PublisherClient,
    queue_admin_client::QueueAdminClient,
};
use tempfile::TempDir;

use crate::{
    front::{refusal, refused, text, timely, to_queue},
    harness::eventually,
    process::Process,
};

/// Its messages die at once of their age.
const BRIEF: &str = "brief";
const SETTINGS: [(&str, &str); 4] = [
    ("MESSAGE_MAX_RETRIES", "0"),
    ("ALERT_INTERVAL", "1s"),
    ("ALERT_HOLD", "1s"),
    ("RUST_LOG", "courtier=info"),
];

struct Desk {
    gateway: Process,
    dir: TempDir,
}

impl Desk {
    async fn open(small: bool) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let topology = dir.path().join("topology.toml");
        let queue = format!("[[queues]]\nname = {BRIEF:?}\nmessage_ttl = \"1ms\"\n");
        fs::write(&topology, queue).expect("a place to write");
        let topology = [("TOPOLOGY_FILE", topology.to_str().expect("a plain path"))];
        let settings = [&SETTINGS[..], &topology].concat();
        let gateway = if small {
            Process::on_a_small_disk(dir.path(), &settings).await
        } else {
            Process::start_in(dir.path(), &settings).await
        };
        let desk = Self { gateway, dir };
        desk.database_is(true).await;
        desk
    }

    /// Publishes a message that becomes a failed one.
    async fn fail(&self) {
        let mut publisher = PublisherClient::new(self.gateway.channel());
        let published = timely(publisher.publish(to_queue(BRIEF, text("x")))).await;
        published.expect("publishing does without the database");
    }

    /// The ids of failed messages.
    async fn listed(&self) -> Vec<String> {
        let mut failed = FailedMessagesClient::new(self.gateway.channel());
        let request = ListFailedMessagesRequest::default();
        let listed = timely(failed.list_failed_messages(request)).await;
        let rows = listed.expect("it is read").into_inner().failed_messages;
        rows.into_iter().map(|row| row.id).collect()
    }

    async fn lists(&self, count: usize) {
        let what = format!("{count} failed messages are listed");
        eventually(&what, async || self.listed().await.len() == count).await;
    }

    /// How many dead letters wait.
    async fn waiting(&self) -> u64 {
        let mut admin = QueueAdminClient::new(self.gateway.channel());
        let name = format!("{BRIEF}.dlq");
        let queue = timely(admin.get_queue(GetQueueRequest { name })).await;
        let queue = queue.expect("it is there").into_inner().queue;
        let queue = queue.expect("always set");
        queue.ready_count.expect("known") + queue.unacked_count.unwrap_or_default()
    }

    /// Waits until probes, health, figures and alerts all say this of the database.
    async fn database_is(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        let gateway = &self.gateway;
        eventually(
            &format!("/readyz says that the database is {state}"),
            async || {
                let ready = gateway.readyz().await;
                ready.contains(&format!(r#""database":"{state}""#))
            },
        )
        .await;
        for service in ["FailedMessages", "MessageLog"] {
            eventually(&format!("{service} follows"), async || {
                gateway.serves(service).await == up
            })
            .await;
        }
        let figure = format!("courtier_database_up {}", u8::from(up));
        let exposed = gateway.get("/metrics").await;
        assert!(exposed.contains(&figure), "{exposed}");
        eventually("the alert follows", async || {
            self.alert().await.is_none() == up
        })
        .await;
        assert!(gateway.serves("Publisher").await);
    }

    async fn alert(&self) -> Option<String> {
        let mut admin = QueueAdminClient::new(self.gateway.channel());
        let listed = timely(admin.list_alerts(ListAlertsRequest {})).await;
        let alerts = listed.expect("listed").into_inner().alerts;
        let mut alerts = alerts.into_iter();
        alerts
            .find(|alert| alert.kind() == Kind::DatabaseDown)
            .map(|alert| alert.summary)
    }

    /// Changes are refused, and the caller is told so.
    async fn refuses_changes(&self, id: &str) {
        let mut failed = FailedMessagesClient::new(self.gateway.channel());
        let request = ResolveFailedMessageRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let resolved = timely(failed.resolve_failed_message(request)).await;
        let expected = refused(tonic::Code::Unavailable, "DATABASE_DOWN");
        assert_eq!(refusal(resolved), expected);
    }

    /// Lines of the log that say this.
    fn said(&self, words: &str) -> usize {
        let log = self.gateway.log();
        log.lines().filter(|line| line.contains(words)).count()
    }

    /// The line and the alert say what to do.
    async fn says_once(&self, trouble: &str, advice: &str) {
        let log = self.gateway.log();
        let line = format!("{trouble}: it takes no changes");
        let lines: Vec<_> = log.lines().filter(|one| one.contains(&line)).collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert!(lines[0].contains(advice), "{log}");
        let alert = self.alert().await.expect("it stands");
        assert!(alert.contains(trouble) && alert.contains(advice), "{alert}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a small file system, which root may: run make test"]
async fn a_full_disk_is_a_database_that_is_down_until_there_is_room_again() {
    let desk = Desk::open(true).await;
    desk.fail().await;
    desk.lists(1).await;
    let id = desk.listed().await.remove(0);

    let filler = desk.gateway.data().join("filler");
    let mut file = File::create(&filler).expect("there is room for it");
    while file.write_all(&[0; 4096]).is_ok() {}
    desk.database_is(false).await;
    let ready = desk.gateway.readyz().await;
    assert!(
        ready.starts_with("HTTP/1.1 200"),
        "publishing goes on: {ready}"
    );
    desk.says_once("the disk of the database is full", "make room")
        .await;
    assert_eq!(
        desk.listed().await,
        [id.as_str()],
        "what is stored can be read"
    );
    desk.refuses_changes(&id).await;
    desk.fail().await;
    eventually("the dead letter waits", async || desk.waiting().await == 1).await;

    fs::remove_file(&filler).expect("removed");
    drop(file);
    desk.database_is(true).await;
    desk.lists(2).await;
    assert_eq!(desk.waiting().await, 0);
    assert_eq!(desk.said("it takes no changes"), 1, "it is said once");
    assert_eq!(desk.said("the database is up"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_file_that_is_taken_away_is_noticed_and_not_written_any_more() {
    let desk = Desk::open(false).await;
    desk.fail().await;
    desk.lists(1).await;
    let id = desk.listed().await.remove(0);
    let data = desk.gateway.data();
    let names = ["courtier.db", "courtier.db-wal"];
    let aside = desk.dir.path();
    for name in names {
        fs::rename(data.join(name), aside.join(name)).expect("moved");
    }
    is_lost(&desk, &id).await;

    // Its place is taken by another one.
    fs::write(data.join(names[0]), "").expect("written");
    is_lost(&desk, &id).await;

    for name in names {
        fs::rename(aside.join(name), data.join(name)).expect("moved back");
    }
    desk.database_is(true).await;
    let ready = desk.gateway.readyz().await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(desk.gateway.serves("").await);
    desk.lists(2).await;
}

async fn is_lost(desk: &Desk, id: &str) {
    desk.database_is(false).await;
    let ready = desk.gateway.readyz().await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    eventually("the whole does not serve", async || {
        !desk.gateway.serves("").await
    })
    .await;
    desk.says_once("deleted or replaced while the gateway runs", "restart")
        .await;
    assert_eq!(desk.listed().await, [id], "it can still be read");
    desk.refuses_changes(id).await;
    if desk.waiting().await == 0 {
        desk.fail().await;
    }
    eventually("the dead letter waits", async || desk.waiting().await == 1).await;
}
