//! `courtier failed retry` with conditions: confirmed, followed, stopped.

use std::process::Stdio;

use courtier::grpc::proto::nack::Action;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    cli_desk::{Desk, refusal},
    command::{code, ended, interrupt, json_lines, line, run, stderr, stdout},
    front::{ack, from, nack_as},
};

#[tokio::test]
async fn without_a_terminal_it_needs_a_yes() {
    let desk = Desk::open().await;
    desk.failed(&["a", "b"]).await;
    let output = desk.run(&["retry", "--all"]).await;
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--yes"), "{}", stderr(&output));
    let output = desk.run(&["retry", "--all", "--dry-run"]).await;
    assert_eq!(
        (code(&output), stdout(&output)),
        (0, "2 of 2 would be retried\n".to_owned())
    );
    let output = desk
        .run(&["retry", "--queue", &desk.queue, "--max=1", "--dry-run"])
        .await;
    assert_eq!(stdout(&output), "1 of 2 would be retried\n");
    assert_eq!(desk.list(&["--status=failed"]).await.len(), 2);

    let output = desk.run(&["retry", "--queue=other", "--yes"]).await;
    assert_eq!(code(&output), 0);
    assert!(stderr(&output).contains("no PENDING or FAILED message matches"));
}

#[tokio::test]
async fn on_a_terminal_it_says_how_many_and_asks() {
    let desk = Desk::open().await;
    desk.failed(&["a", "b"]).await;
    let on_terminal = |answer: &'static [u8]| {
        let binary = env!("CARGO_BIN_EXE_courtier");
        let mut command = Command::new("script");
        let line = format!("{binary} failed delete --all");
        command
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("COURTIER_SERVER", &desk.front.address)
            .env("TERM", "dumb")
            .kill_on_drop(true);
        run(command, answer)
    };
    let output = on_terminal(b"n\n").await;
    assert_eq!(code(&output), 4, "{}", stdout(&output));
    let shown = stdout(&output);
    assert!(
        shown.contains("Delete 2 failed messages for good? [y/N]"),
        "{shown}"
    );
    assert!(shown.contains("nothing was done"), "{shown}");
    assert_eq!(desk.list(&[]).await.len(), 2);
    let output = on_terminal(b"y\n").await;
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    assert_eq!(desk.list(&[]).await, [Value::Null; 0]);
}

#[tokio::test]
async fn it_is_followed_until_the_consumers_have_acked() {
    let desk = Desk::open().await;
    desk.failed(&["a", "b"]).await;
    let arguments = ["retry", "--queue", &desk.queue, "--rate=1000", "--yes"];
    let consumer = async {
        let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
        let copies = stream.deliveries(2).await;
        let ids: Vec<_> = copies.iter().map(|copy| copy.ack_id.as_str()).collect();
        stream.ack(&ids).await;
        stream
    };
    let (output, _stream) = tokio::join!(desk.run(&arguments), consumer);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let summary = "done, 2 of 2 retried: 2 succeeded, 0 failed again, 0 waiting\n";
    assert!(stdout(&output).ends_with(summary), "{}", stdout(&output));
    assert_eq!(desk.list(&["--status=resolved"]).await.len(), 2);
}

#[tokio::test]
async fn it_exits_with_4_when_some_failed_again_and_names_them() {
    let desk = Desk::open().await;
    desk.failed(&["a", "b", "c"]).await;
    let arguments = ["retry", "--all", "--yes", "--output=json"];
    let consumer = async {
        let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
        let copies = stream.deliveries(3).await;
        stream.send(nack_as(refusal(
            copies[0].ack_id.clone(),
            Action::DeadLetter,
        )));
        stream.send(ack(&[&copies[1].ack_id, &copies[2].ack_id]));
        stream.results(3).await;
        stream
    };
    let (output, _stream) = tokio::join!(desk.run(&arguments), consumer);
    assert_eq!(code(&output), 4);
    let last = json_lines(&output).pop().expect("a line");
    let figures = [
        "state",
        "matched",
        "started",
        "succeeded",
        "failed_again",
        "waiting",
    ];
    let figures = figures.map(|name| last[name].clone());
    assert_eq!(
        figures,
        [
            json!("DONE"),
            json!(3),
            json!(3),
            json!(2),
            json!(1),
            json!(0)
        ]
    );
    let operation = last["operation_id"].as_str().expect("text");
    let hint = format!("courtier failed list --operation {operation}");
    assert!(stderr(&output).contains(&hint), "{}", stderr(&output));
    let again = desk
        .list(&["--operation", operation, "--status=failed"])
        .await;
    assert_eq!(again.len(), 1);
}

#[tokio::test]
async fn it_goes_on_when_the_command_is_interrupted_and_can_be_stopped() {
    let desk = Desk::open().await;
    desk.failed(&["a", "b", "c"]).await;
    let arguments = ["retry", "--all", "--yes", "--rate=1", "--output=json"];
    let mut command = desk.command(&arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let first: Value = serde_json::from_str(&line(&mut child).await).expect("JSON");
    assert_eq!(first["state"], "RUNNING");
    let operation = first["operation_id"].as_str().expect("text");
    interrupt(&child).await;
    let output = ended(child).await;
    assert_eq!(code(&output), 4);
    let hint = format!("courtier failed retry --operation {operation}");
    assert!(stderr(&output).contains(&hint), "{}", stderr(&output));

    // Somebody else follows it while it is stopped.
    let follow = ["retry", "--operation", operation];
    let mut command = desk.command(&[&follow[..], &["--output=json"]].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut follower = command.spawn().expect("started");
    line(&mut follower).await;
    let output = desk.run(&[&follow[..], &["--stop"]].concat()).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("stopped, "), "{}", stdout(&output));
    let output = ended(follower).await;
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).contains("stopped: "), "{}", stderr(&output));

    let unknown = [
        "retry",
        "--operation",
        "0190f0f0-0000-7000-8000-000000000000",
    ];
    assert_eq!(code(&desk.run(&unknown).await), 3);
}
