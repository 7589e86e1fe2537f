//! `courtier queues|exchanges|bindings|topology|alerts|status|doctor`, as people and scripts run them.

use std::{process::Output, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    command::{code, courtier, json_lines, run, stderr, stdout},
    front::On,
    harness::eventually,
    office::Office,
};

impl Office {
    async fn courtier(&self, arguments: &[&str]) -> Output {
        let mut command = courtier(arguments);
        command.env("COURTIER_SERVER", &self.address);
        run(command, b"").await
    }

    /// What a command says to programs; it must succeed.
    async fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self
            .courtier(&[arguments, &["--output", "json"]].concat())
            .await;
        assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
        json_lines(&output)
    }

    /// What a command says to people; it must succeed.
    async fn text(&self, arguments: &[&str]) -> String {
        let output = self.courtier(arguments).await;
        assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_created_filled_looked_at_moved_purged_and_deleted() {
    let office = Office::open(On::Embedded).await;
    let planned = office
        .text(&[
            "queues",
            "create",
            "orders",
            "--argument",
            "x-max-length=5",
            "--dry-run",
        ])
        .await;
    assert!(planned.contains("would be created"), "{planned}");
    assert!(office.json(&["queues", "list"]).await.is_empty());

    let created = office
        .text(&["queues", "create", "orders", "--argument", "x-max-length=5"])
        .await;
    assert!(created.contains("orders.dlq"), "{created}");
    let listed = office.json(&["queues", "list", "ORDERS"]).await;
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0]["name"], "orders");
    assert_eq!(listed[0]["arguments"]["x-max-length"], 5);
    let differs = office
        .courtier(&["queues", "create", "orders", "--argument", "x-max-length=6"])
        .await;
    assert_eq!(code(&differs), 3);
    assert!(
        stderr(&differs).contains("x-max-length: asked for 6, is 5"),
        "{}",
        stderr(&differs)
    );

    office
        .fill("orders", &["{\"id\":12345678901234567890}", "b"])
        .await;
    let peeked = office.text(&["queues", "peek", "orders"]).await;
    assert!(peeked.contains("12345678901234567890"), "{peeked}");
    let peeked = office
        .json(&["queues", "peek", "orders", "--limit=1"])
        .await;
    assert_eq!(peeked[0]["routing_key"], "orders");
    assert_eq!(peeked[0]["text"], "{\"id\":12345678901234567890}");
    // What subscribe writes of the same message, but for how often it came.
    let subscribe = ["subscribe", "orders", "--max=1", "--no-ack"];
    let mut delivered = office.json(&subscribe).await;
    let delivered = delivered[0].as_object_mut().expect("an object");
    assert_eq!(delivered.remove("attempt"), Some(json!(1)));
    delivered["redelivered"] = peeked[0]["redelivered"].clone();
    assert_eq!(json!(delivered), peeked[0]);

    let table = office.text(&["queues", "list"]).await;
    let row = table
        .lines()
        .find(|line| line.starts_with("orders "))
        .expect("a row");
    let columns: Vec<_> = row.split_whitespace().collect();
    assert_eq!(columns[1..5], ["quorum", "2", "0", "0"], "{table}");
    assert!(row.ends_with("40%"), "{table}");
    let shown = office.text(&["queues", "show", "orders"]).await;
    assert!(
        shown.contains("ready") && shown.contains("x-max-length"),
        "{shown}"
    );

    office
        .text(&["queues", "create", "parked", "--profile", "dead-letter"])
        .await;
    let moved = office
        .text(&["queues", "move", "orders", "parked", "--limit=1"])
        .await;
    assert_eq!(moved, "1 moved\n");
    let asked = office.courtier(&["queues", "purge", "parked"]).await;
    assert_eq!(code(&asked), 2, "nobody is there to be asked");
    assert_eq!(office.ready("parked").await, 1);
    let purged = office.text(&["queues", "purge", "parked", "--yes"]).await;
    assert_eq!(purged, "1 messages of parked deleted\n");
    let full = office
        .courtier(&["queues", "delete", "orders", "--if-empty", "--yes"])
        .await;
    assert_eq!(code(&full), 3);
    assert!(
        stderr(&full).contains("QUEUE_NOT_EMPTY"),
        "{}",
        stderr(&full)
    );
    office.text(&["queues", "delete", "orders", "--yes"]).await;
    let gone = office.courtier(&["queues", "show", "orders"]).await;
    assert_eq!(code(&gone), 3);
    assert!(
        stderr(&gone).contains("QUEUE_NOT_FOUND"),
        "{}",
        stderr(&gone)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchanges_and_bindings_are_made_listed_and_taken_away() {
    let office = Office::open(On::Embedded).await;
    office.text(&["queues", "create", "q"]).await;
    let created = office
        .text(&["exchanges", "create", "x", "--type", "direct"])
        .await;
    assert_eq!(created, "x created\n");
    let again = office
        .text(&["exchanges", "create", "x", "--type", "direct"])
        .await;
    assert_eq!(again, "x is there already\n");
    office.text(&["bindings", "create", "x", "q", "key"]).await;
    let listed = office.json(&["bindings", "list", "--exchange", "x"]).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0]["queue"], &listed[0]["routing_key"]),
        (&"q".into(), &"key".into())
    );
    let in_use = office
        .courtier(&["exchanges", "delete", "x", "--if-unused", "--yes"])
        .await;
    assert_eq!(code(&in_use), 3);
    office.text(&["bindings", "delete", "x", "q", "key"]).await;
    office
        .text(&["exchanges", "delete", "x", "--if-unused", "--yes"])
        .await;
    let left = office.json(&["exchanges", "list"]).await;
    assert!(left.iter().all(|exchange| exchange["name"] != "x"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topology_file_is_applied_and_its_differences_are_told() {
    let office = Office::open(On::Embedded).await;
    let dir = TempDir::new().expect("a temporary folder");
    let file = dir.path().join("topology.toml");
    let path = file.to_str().expect("a plain path");
    let write = |text: &str| std::fs::write(&file, text).expect("a place to write");
    write("[[queues]]\nname = \"q\"\nmessage_ttl = \"1m\"\nmax_retries = 1");
    let planned = office.json(&["topology", "apply", path, "--dry-run"]).await;
    assert!(planned.iter().all(|change| change["action"] == "create"));
    office.text(&["topology", "apply", path]).await;
    let again = office.json(&["topology", "apply", path]).await;
    assert!(
        again.iter().all(|change| change["action"] == "none"),
        "{again:?}"
    );
    write("[[queues]]\nname = \"q\"\nmessage_ttl = \"none\"");
    let differs = office.text(&["topology", "apply", path]).await;
    assert!(
        differs.contains("x-message-ttl: - wanted, 60000 there"),
        "{differs}"
    );
    write("[[queue]]\nname = \"q\"");
    let bad = office.courtier(&["topology", "apply", path]).await;
    assert_eq!(code(&bad), 2);
    assert!(stderr(&bad).contains("unknown field"), "{}", stderr(&bad));
    let drift = office.courtier(&["topology", "drift"]).await;
    assert_eq!(code(&drift), 3);
    assert!(stderr(&drift).contains("NO_TOPOLOGY"), "{}", stderr(&drift));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_and_status_say_what_is_wrong() {
    let office = Office::set_up(On::Embedded, |setup| {
        let alerts = &mut setup.config.alerts;
        alerts.every = Duration::from_millis(200);
        alerts.hold = Duration::ZERO;
    })
    .await;
    let quiet = office.courtier(&["alerts"]).await;
    assert_eq!((code(&quiet), stdout(&quiet)), (0, String::new()));
    assert!(stderr(&quiet).contains("nothing is wrong"));
    office.text(&["queues", "create", "q"]).await;
    office.fill("q", &["a"]).await;
    eventually("it is told", async || {
        !office.json(&["alerts"]).await.is_empty()
    })
    .await;
    let alerts = office.json(&["alerts"]).await;
    assert_eq!(
        (&alerts[0]["kind"], &alerts[0]["subject"]),
        (&"no_consumer".into(), &"q".into())
    );
    assert!(office.text(&["alerts"]).await.contains("nobody consumes"));
    let status = office.text(&["status"]).await;
    assert!(
        status.contains("publish link") && status.contains("embedded"),
        "{status}"
    );
    assert_eq!(
        office.json(&["status"]).await[0]["management"],
        "not_needed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_says_what_is_wrong_and_what_to_do() {
    let dir = TempDir::new().expect("a temporary folder");
    let data = dir.path().to_str().expect("a plain path");
    let doctor = async |settings: &[(&str, &str)]| {
        let mut command = courtier(&["doctor", "--output", "json"]);
        command.env("DATA_DIR", data).envs(settings.iter().copied());
        let output = run(command, b"").await;
        let findings = json_lines(&output);
        (code(&output), stderr(&output), findings)
    };
    let of = |findings: &[Value], what: &str| {
        let found = findings.iter().find(|one| one["what"] == what).cloned();
        let found = found.unwrap_or_else(|| panic!("{what} is missing of {findings:?}"));
        let text = |name: &str| found[name].as_str().expect("text").to_owned();
        (text("state"), text("told"))
    };
    // Nothing but what a bare machine has: only warnings.
    let (exit, _, findings) = doctor(&[("APP_PORT", "1")]).await;
    assert_eq!(exit, 0, "{findings:?}");
    assert_eq!(of(&findings, "broker").0, "warning");
    assert_eq!(of(&findings, "database").0, "ok");
    assert_eq!(of(&findings, "gateway").0, "warning");

    let nobody = [
        ("APP_PORT", "1"),
        ("RABBITMQ_URL", "amqp://me:secret-word@127.0.0.1:1/%2f"),
        ("RABBITMQ_MANAGEMENT_PORT", "1"),
        ("DATABASE_URL", "postgres://me:secret-word@127.0.0.1:1/none"),
    ];
    let (exit, said, findings) = doctor(&nobody).await;
    assert_eq!(exit, 1);
    assert!(said.contains("3 of "), "{said}");
    for (what, hint) in [
        ("broker", "RABBITMQ_HOST"),
        ("management API", "rabbitmq_management"),
        ("database", "DATABASE_URL"),
    ] {
        let (state, told) = of(&findings, what);
        assert_eq!(state, "wrong", "{what}");
        assert!(told.contains(hint), "{told}");
        assert!(!told.contains("secret-word"), "{told}");
    }
    let (exit, said, _) = doctor(&[("APP_PORT", "many")]).await;
    assert_eq!(exit, 2);
    assert!(said.contains("APP_PORT"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn the_doctor_finds_rabbitmq_well() {
    let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
    let port = std::env::var("COURTIER_TEST_MANAGEMENT_PORT").expect("set by make test");
    let office = Office::open(On::Managed).await;
    let dir = TempDir::new().expect("a temporary folder");
    // Its own gateway: the one on its port.
    let (_, own) = office.address.rsplit_once(':').expect("a port");
    let mut command = courtier(&["doctor", "--output", "json"]);
    command
        .env("APP_PORT", own)
        .env("DATA_DIR", dir.path())
        .env("RABBITMQ_URL", &url)
        .env("RABBITMQ_MANAGEMENT_PORT", &port);
    let output = run(command, b"").await;
    assert_eq!(code(&output), 0, "{}{}", stdout(&output), stderr(&output));
    let states = json_lines(&output);
    let states: Vec<_> = states
        .iter()
        .map(|one| (&one["what"], &one["state"]))
        .collect();
    assert_eq!(states.len(), 7, "{states:?}");
    assert!(
        states.iter().all(|(_, state)| **state == "ok"),
        "{states:?}"
    );
}
