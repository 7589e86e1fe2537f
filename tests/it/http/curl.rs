//! The routes of the specification as people call them: with curl.

use courtier::grpc::proto::{failed_message::Status, nack::Action};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    command::{run, stderr, stdout},
    desk::{Desk, slow},
    front::{On, on_both, text},
};

on_both! {
    the_routes_work_from_the_command_line
}

/// What curl prints.
async fn curl(desk: &Desk, path: &str, arguments: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--max-time",
        "20",
    ])
    .args(arguments)
    .arg(format!("http://{}{path}", desk.front.address));
    let output = run(curl, b"").await;
    assert!(
        output.status.success(),
        "{path}: {}{}",
        stdout(&output),
        stderr(&output)
    );
    stdout(&output)
}

async fn the_routes_work_from_the_command_line(on: On) {
    let desk = Desk::open(on, slow).await;
    let health = r#"{"status":"healthy","service":"messages-broker"}"#;
    assert_eq!(curl(&desk, "/api/health", &[]).await, health);

    let body = json!({"exchange": "", "routing_key": desk.queue, "message": {"id": 1}}).to_string();
    let published = curl(&desk, "/api/messages/publish", &["--json", &body]).await;
    let published: Value = serde_json::from_str(&published).expect("JSON");
    assert_eq!(published["outcome"], "CONFIRMED");
    assert_eq!(desk.front.drain_bodies(&desk.queue).await, [r#"{"id":1}"#]);

    let id = desk
        .refused(text("{\"id\":2}"), Action::DeadLetter)
        .await
        .id;
    let listed = curl(&desk, "/api/messages/failed?status=failed", &[]).await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let rows = listed["failed_messages"].as_array().expect("a list");
    let row = rows.iter().find(|row| row["id"] == *id).expect("listed");
    assert_eq!(row["payload"], json!({"id": 2}));

    let retry = format!("/api/messages/retry/{id}");
    let retried = curl(&desk, &retry, &["--request", "POST"]).await;
    assert!(retried.contains(r#""status":"retrying""#), "{retried}");
    assert_eq!(desk.front.drain_bodies(&desk.queue).await, [r#"{"id":2}"#]);

    desk.becomes(&id, Status::Resolved).await;
    let path = format!("/api/messages/failed/{id}");
    let deleted = curl(&desk, &path, &["--request", "DELETE"]).await;
    assert_eq!(deleted, format!(r#"{{"id":"{id}","deleted":true}}"#));

    desk.front.fill(&desk.queue, &["a"]).await;
    let queues = curl(&desk, "/api/queues", &[]).await;
    let queues: Value = serde_json::from_str(&queues).expect("JSON");
    let names: Vec<_> = queues
        .as_array()
        .expect("an array")
        .iter()
        .map(|queue| &queue["name"])
        .collect();
    assert!(names.contains(&&json!(desk.queue)), "{names:?}");
    let stats = curl(&desk, &format!("/api/queues/{}/stats", desk.queue), &[]).await;
    assert!(stats.contains(r#""ready_count":1,"#), "{stats}");
    let purge = format!("/api/queues/{}/purge", desk.queue);
    let purged = curl(&desk, &purge, &["--request", "POST"]).await;
    let expected = format!(r#"{{"name":"{}","purged_count":1}}"#, desk.queue);
    assert_eq!(purged, expected);
}
