//! `courtier log`.

use std::{process::Output, time::Duration};

use courtier::grpc::proto::{Message, nack::Action};
use serde_json::{Value, json};

use crate::{
    cli_desk::Desk,
    command::{code, courtier, json_lines, run, stderr, stdout},
    desk::slow,
    front::{On, from, text, to_queue},
    harness::{Setup, eventually},
};

/// The log is written at once.
async fn desk() -> Desk {
    let prompt = |setup: &mut Setup| {
        slow(setup);
        let log = setup.config.message_log.as_mut().expect("on by default");
        log.pace = Duration::ZERO;
        log.max_payload_bytes = 100;
    };
    Desk::of(On::Embedded.gateway_set_up(prompt)).await
}

async fn log(desk: &Desk, arguments: &[&str]) -> Output {
    let mut command = courtier(&[&["log"], arguments].concat());
    command.env("COURTIER_SERVER", &desk.front.address);
    run(command, b"").await
}

async fn json(desk: &Desk, arguments: &[&str]) -> Vec<Value> {
    let output = log(desk, &[arguments, &["--output=json"]].concat()).await;
    assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
    json_lines(&output)
}

fn named(message_id: &str, body: &str) -> Message {
    Message {
        message_id: message_id.to_owned(),
        app_id: "shop".to_owned(),
        correlation_id: format!("of-{message_id}"),
        ..text(body)
    }
}

/// `m-1` was acked, `m-2` failed, `m-3` is large and waits; all of it is written.
async fn three(desk: &Desk) {
    let publish = async |message| {
        let published = desk.front.publish(to_queue(&desk.queue, message)).await;
        published.expect("published");
    };
    publish(named("m-1", r#"{"id":1}"#)).await;
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let ack_id = stream.delivery().await.ack_id;
    stream.ack(&[&ack_id]).await;
    stream.half_close();
    stream.end().await.expect("it ends well");
    desk.dead(named("m-2", "x"), Action::DeadLetter).await;
    publish(named("m-3", &"x".repeat(101))).await;
    let expected = ["PUBLISHED", "FAILED", "DELIVERED"].map(Value::from);
    eventually("all is written", || async {
        let listed = json(desk, &["list"]).await;
        listed.iter().map(|row| &row["status"]).eq(&expected)
    })
    .await;
}

#[tokio::test]
async fn what_was_published_is_listed_the_newest_first() {
    let desk = desk().await;
    let output = log(&desk, &["list"]).await;
    assert_eq!((code(&output), stdout(&output)), (0, String::new()));
    assert!(stderr(&output).contains("no such message in the log"));
    three(&desk).await;
    let shown = stdout(&log(&desk, &["list"]).await);
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines.len(), 4, "{shown}");
    assert!(lines[1].starts_with("m-3         PUBLISHED  "), "{shown}");
    assert!(lines[2].starts_with("m-2         FAILED     "), "{shown}");
    assert!(lines[3].ends_with(&desk.queue), "{shown}");

    for (conditions, expected) in [
        (vec!["--status=failed"], vec!["m-2"]),
        (vec!["--status=delivered"], vec!["m-1"]),
        (vec!["--status=published"], vec!["m-3"]),
        (
            vec!["--routing-key", &desk.queue],
            vec!["m-3", "m-2", "m-1"],
        ),
        (vec!["--routing-key=other"], vec![]),
        (vec!["--exchange=other"], vec![]),
        (vec!["--correlation-id=of-m-2"], vec!["m-2"]),
        (vec!["--correlation-id=of-m"], vec![]),
        (vec!["--after=1h"], vec!["m-3", "m-2", "m-1"]),
        (vec!["--after=2037-01-01T00:00:00Z"], vec![]),
        (vec!["--before=1h"], vec![]),
        (vec!["--limit=2"], vec!["m-3", "m-2"]),
    ] {
        let listed = json(&desk, &[&["list"], &conditions[..]].concat()).await;
        let ids: Vec<_> = listed.iter().map(|row| &row["message_id"]).collect();
        assert_eq!(ids, expected, "{conditions:?}");
    }
    let output = log(&desk, &["list", "--limit=2"]).await;
    assert!(stderr(&output).contains("more than these 2"));
}

#[tokio::test]
async fn a_message_is_shown_with_its_timeline() {
    let desk = desk().await;
    three(&desk).await;
    let shown = stdout(&log(&desk, &["show", "m-1"]).await);
    for part in [
        "status        DELIVERED\n",
        "exchange      \"\"\n",
        "app id        shop\n",
        "message id    m-1\n",
        "published: CONFIRMED\n",
        &format!("settled in {}, attempt 1: ACK\n", desk.queue),
        "\npayload (8 bytes)\n{\n  \"id\": 1\n}\n",
    ] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    let shown = &json(&desk, &["show", "m-1"]).await[0];
    assert_eq!(shown["entry"]["message"]["text"], r#"{"id":1}"#);
    assert_eq!(shown["entry"]["payload_size"], 8);
    let events = shown["timeline"].as_array().expect("a list");
    let kinds: Vec<_> = events.iter().map(|event| &event["kind"]).collect();
    assert_eq!(kinds, ["PUBLISHED", "DELIVERED", "SETTLED"]);
    assert_eq!(
        (&events[2]["attempt"], &events[2]["detail"]),
        (&json!(1), &json!("ACK"))
    );

    let large = stdout(&log(&desk, &["show", "m-3"]).await);
    let part = "\npayload (101 bytes)\nnot kept: larger than AUDIT_MAX_PAYLOAD\n";
    assert!(large.ends_with(part), "{large}");

    let output = log(&desk, &["show", "none"]).await;
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("MESSAGE_NOT_FOUND"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test]
async fn a_gateway_that_keeps_no_log_is_told_and_exits_with_3() {
    let off = |setup: &mut Setup| setup.config.message_log = None;
    let desk = Desk::of(On::Embedded.gateway_set_up(off)).await;
    for arguments in [&["list"][..], &["show", "m-1"]] {
        let output = log(&desk, arguments).await;
        assert_eq!(code(&output), 3, "{arguments:?}");
        assert!(
            stderr(&output).contains("AUDIT_LOG_OFF"),
            "{}",
            stderr(&output)
        );
    }
    for arguments in [&["list", "--status=none"][..], &["show"]] {
        assert_eq!(code(&log(&desk, arguments).await), 2, "{arguments:?}");
    }
}
