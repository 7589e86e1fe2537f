//! `courtier failed`: looking, and what is done to single messages.

use std::process::Stdio;

use courtier::grpc::proto::{Message, message::Payload, nack::Action};
use prost_types::{Struct, value::Kind};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

use crate::{
    cli_desk::{Desk, id},
    command::{code, ended, interrupt, json_lines, line, stderr, stdout},
    desk::slow,
    front::{On, text},
    harness::{PATIENCE, Setup},
    store::database::Own,
};

#[tokio::test]
async fn a_list_has_a_line_for_each_and_says_when_there_are_more() {
    let desk = Desk::open().await;
    let ids = desk.failed(&["a", "b", "c"]).await;
    let output = desk.run(&["list"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let shown = stdout(&output);
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines.len(), 4, "{shown}");
    // The newest first, and whole where there is no terminal.
    for (line, id) in lines[1..].iter().zip(ids.iter().rev()) {
        let columns: Vec<_> = line.split_whitespace().collect();
        assert_eq!(columns[..3], [id, "FAILED", "0/3"], "{shown}");
        assert_eq!(columns[4], desk.queue);
        assert!(
            line.ends_with("Declined: card 4711 was declined"),
            "{shown}"
        );
    }
    assert_eq!(stderr(&output), "");

    let output = desk.run(&["list", "--limit=2"]).await;
    assert_eq!(stdout(&output).lines().count(), 3);
    assert!(stderr(&output).contains("more than these 2"));
    let output = desk.run(&["list", "--limit=3"]).await;
    assert_eq!(stderr(&output), "");

    let output = desk.run(&["list", "--queue=other"]).await;
    assert_eq!((code(&output), stdout(&output)), (0, String::new()));
    assert!(stderr(&output).contains("no failed messages match"));
}

#[tokio::test]
async fn each_condition_lets_through_what_it_says() {
    let desk = Desk::open().await;
    let named = |message_id: &str| Message {
        message_id: message_id.to_owned(),
        ..text("x")
    };
    let waits = desk.dead(named("m-1"), Action::Retry).await;
    let failed = desk.dead(named("m-2"), Action::DeadLetter).await;
    let both = [failed.clone(), waits.clone()];
    let row = &desk.list(&["--message-id=m-1"]).await[0];
    let of = |name: &str| row[name].as_str().expect("text").to_owned();
    let (group, first) = (of("fingerprint"), of("failed_at"));
    for (conditions, expected) in [
        (vec!["--status=pending"], &both[1..]),
        (vec!["--status=failed"], &both[..1]),
        (vec!["--status=failed,pending"], &both[..]),
        (vec!["--status=failed", "--status", "pending"], &both),
        (vec!["--status=resolved"], &[]),
        (vec!["--message-id=m-2"], &both[..1]),
        (vec!["--queue", &desk.queue], &both),
        (vec!["--routing-key", &desk.queue], &both),
        (vec!["--routing-key", "other"], &[]),
        (vec!["--exchange", "other"], &[]),
        (vec!["--reason=rejected"], &both),
        (vec!["--reason=expired,returned"], &[]),
        (vec!["--error-text=4711"], &both),
        (vec!["--error-text=4712"], &[]),
        (vec!["--fingerprint", &group], &both),
        (vec!["--after=1h"], &both),
        (vec!["--before=1h"], &[]),
        (vec!["--after=2037-01-01T00:00:00Z"], &[]),
        (vec!["--before=2037-01-01T00:00:00Z"], &both),
        (vec!["--after", &first], &both),
        (vec!["--before", &first], &[]),
        (
            vec!["--operation=0190f0f0-0000-7000-8000-000000000000"],
            &[],
        ),
    ] {
        let listed: Vec<_> = desk.list(&conditions).await.iter().map(id).collect();
        assert_eq!(listed, expected, "{conditions:?}");
    }
}

#[tokio::test]
async fn everything_about_a_message_is_shown() {
    let desk = Desk::open().await;
    let seven = Kind::NumberValue(7.0);
    let id = desk
        .dead(
            Message {
                message_id: "m-1".to_owned(),
                app_id: "shop".to_owned(),
                headers: Some(Struct {
                    fields: [("tenant".to_owned(), seven.into())].into(),
                }),
                ..text(r#"{"id":12345678901234567890123,"x":[]}"#)
            },
            Action::Retry,
        )
        .await;
    let output = desk.run(&["show", &id]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let shown = stdout(&output);
    for part in [
        format!("id            {id}\n"),
        "status        PENDING\n".to_owned(),
        format!("queue         {}\n", desk.queue),
        "exchange      \"\"\n".to_owned(),
        "error         Declined: card 4711 was declined\n".to_owned(),
        "retries       0 of 3\n".to_owned(),
        "next retry    20".to_owned(),
        "message id    m-1\n".to_owned(),
        "app id        shop\n".to_owned(),
        "\nattempts\n  1 died, ended 20".to_owned(),
        "\nheaders\n  tenant: 7\n".to_owned(),
        "\nstack\n  at pay()\n  at main()\n".to_owned(),
        "\npayload (37 bytes)\n{\n  \"id\": 12345678901234567890123,\n  \"x\": []\n}\n".to_owned(),
    ] {
        assert!(shown.contains(&part), "{part:?} in {shown}");
    }

    let full = desk.json(&["show", &id]).await.remove(0);
    assert_eq!(full, desk.list(&["--full"]).await[0]);
    for (pointer, expected) in [
        ("/status", json!("PENDING")),
        ("/reason", json!("REJECTED")),
        ("/error_type", json!("Declined")),
        ("/error_stack", json!("at pay()\nat main()")),
        ("/max_retries", json!(3)),
        ("/message/message_id", json!("m-1")),
        ("/message/headers", json!({"tenant": 7})),
        (
            "/message/text",
            json!(r#"{"id":12345678901234567890123,"x":[]}"#),
        ),
        ("/attempts/0/number", json!(1)),
        ("/attempts/0/outcome", json!("DIED")),
    ] {
        assert_eq!(
            full.pointer(pointer),
            Some(&expected),
            "{pointer} in {full}"
        );
    }
    let basic = &desk.list(&[]).await[0];
    for left_out in ["/message/text", "/error_stack", "/attempts"] {
        assert_eq!(basic.pointer(left_out), None, "{left_out}");
    }
}

#[tokio::test]
async fn a_payload_that_is_no_text_is_shown_as_digits_and_kept_in_json() {
    let desk = Desk::open().await;
    let bytes = Message {
        payload: Some(Payload::Data((&b"\xff\x00\x1b[2J"[..]).into())),
        ..text("")
    };
    let id = desk.dead(bytes, Action::DeadLetter).await;
    let shown = stdout(&desk.run(&["show", &id]).await);
    assert!(shown.contains("00000000  ff 00 1b 5b 32 4a"), "{shown}");
    let full = &desk.json(&["show", &id]).await[0];
    assert_eq!(full["message"]["data"], "/wAbWzJK");
}

#[tokio::test]
async fn groups_and_figures_are_told() {
    let desk = Desk::open().await;
    assert_eq!(
        desk.json(&["stats"]).await[0],
        json!({"queues": [], "oldest_failed_at": null})
    );
    desk.failed(&["a", "b"]).await;
    desk.dead(text("c"), Action::Retry).await;
    let group = &desk.json(&["groups"]).await[0];
    assert_eq!(
        (&group["count"], &group["failed"], &group["pending"]),
        (&json!(3), &json!(2), &json!(1))
    );
    assert_eq!(group["error_message"], "card # was declined");
    let fingerprint = group["fingerprint"].as_str().expect("text");
    let shown = stdout(&desk.run(&["groups", "--queue", &desk.queue]).await);
    assert!(shown.contains(fingerprint), "{shown}");
    assert!(
        shown.ends_with("Declined: card # was declined\n"),
        "{shown}"
    );
    assert_eq!(
        desk.json(&["groups", "--queue=other"]).await,
        [Value::Null; 0]
    );

    let counts =
        json!({"queue": desk.queue, "pending": 1, "retrying": 0, "failed": 2, "resolved": 0});
    assert_eq!(desk.json(&["stats"]).await[0]["queues"], json!([counts]));
    let shown = stdout(&desk.run(&["stats"]).await);
    let row: Vec<_> = shown
        .lines()
        .nth(1)
        .expect("a row")
        .split_whitespace()
        .collect();
    assert_eq!(row, [&desk.queue, "1", "0", "2", "0"], "{shown}");
    assert!(
        shown.contains("The oldest that is not resolved failed 20"),
        "{shown}"
    );
}

#[tokio::test]
async fn each_retry_gets_its_own_outcome_and_the_worst_one_is_the_exit_code() {
    let desk = Desk::open().await;
    let ids = desk.failed(&["a", "b"]).await;
    let output = desk.run(&["retry", &ids[0]]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output), format!("{} RETRYING\n", ids[0]));

    let output = desk.run(&["retry", &ids[0], &ids[1]]).await;
    assert_eq!(code(&output), 3);
    assert_eq!(stdout(&output), format!("{} RETRYING\n", ids[1]));
    let told = stderr(&output);
    assert!(
        told.contains(&format!("{}: STATE_CONFLICT", ids[0])),
        "{told}"
    );
    assert!(told.contains("1 of 2 not done"), "{told}");

    let output = desk.run(&["retry", "nothing", "--output=json"]).await;
    assert_eq!(code(&output), 3);
    let line = &json_lines(&output)[0];
    assert_eq!(line["id"], "nothing");
    assert!(
        line["error"]
            .as_str()
            .expect("text")
            .contains("FAILED_MESSAGE_NOT_FOUND")
    );
}

#[tokio::test]
async fn a_retry_that_the_queue_does_not_take_exits_by_what_helps() {
    let desk = Desk::open().await;
    let id = &desk.failed(&["a"]).await[0];
    desk.front.delete_queue(&desk.queue).await;
    let output = desk.run(&["retry", id]).await;
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("RETURNED"), "{}", stderr(&output));
    desk.front.broker.close().await;
    let output = desk.run(&["retry", id]).await;
    assert_eq!(code(&output), 4);
    assert!(
        stderr(&output).contains("BROKER_DOWN"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test]
async fn what_is_sent_and_cannot_be_written_down_is_in_doubt() {
    let own = Own::file();
    let desk = Desk::of(On::Embedded.gateway_set_up(|setup| {
        slow(setup);
        setup.config.database = own.options();
    }));
    let desk = desk.await;
    let ids = desk.failed(&["a", "b"]).await;
    let refuse =
        "CREATE TRIGGER refuse BEFORE UPDATE ON failed_messages WHEN upper(OLD.status) = 'RETRYING'
        BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    own.raw().await.run(refuse).await;
    for arguments in [
        &["retry", &ids[0]][..],
        &["edit", &ids[1], "--text=x", "--yes"],
    ] {
        let output = desk.run(arguments).await;
        let told = stderr(&output);
        assert_eq!(code(&output), 5, "{arguments:?}: {told}");
        assert!(told.contains("RETRYING until its lease ends"), "{told}");
    }
    assert_eq!(desk.front.drain_bodies(&desk.queue).await, ["a", "x"]);
}

#[tokio::test]
async fn what_is_resolved_keeps_the_comment_and_is_deleted_only_on_demand() {
    let desk = Desk::open().await;
    let ids = desk.failed(&["a", "b"]).await;
    let output = desk
        .run(&["resolve", &ids[0], &ids[1], "--comment=by hand"])
        .await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let row = &desk.list(&["--status=resolved"]).await[1];
    assert_eq!(
        (&row["comment"], &row["resolution"]),
        (&json!("by hand"), &json!("MANUAL"))
    );
    let shown = stdout(&desk.run(&["show", &ids[0]]).await);
    assert!(
        shown.contains("status        RESOLVED: by a person\n"),
        "{shown}"
    );
    assert_eq!(code(&desk.run(&["resolve", &ids[0]]).await), 3);

    let output = desk.run(&["delete", &ids[0], "--dry-run"]).await;
    assert_eq!(stdout(&output), format!("{} would be deleted\n", ids[0]));
    let output = desk.run(&["delete", &ids[0]]).await;
    assert_eq!(code(&output), 2, "{}", stdout(&output));
    assert!(stderr(&output).contains("--yes"), "{}", stderr(&output));
    assert_eq!(desk.list(&[]).await.len(), 2);
    let output = desk.run(&["delete", &ids[0], "--yes"]).await;
    assert_eq!(
        (code(&output), stdout(&output)),
        (0, format!("{} deleted\n", ids[0]))
    );
    assert_eq!(code(&desk.run(&["delete", &ids[0], "--yes"]).await), 3);

    desk.failed(&["c"]).await;
    let output = desk
        .run(&["delete", "--status=resolved", "--dry-run"])
        .await;
    assert_eq!(stdout(&output), "1 would be deleted\n");
    assert_eq!(code(&desk.run(&["delete", "--all"]).await), 2);
    let output = desk.run(&["delete", "--status=resolved", "--yes"]).await;
    assert_eq!(stdout(&output), "1 deleted\n");
    assert_eq!(desk.list(&[]).await.len(), 1);
}

#[tokio::test]
async fn a_watch_tells_each_change_until_it_is_interrupted() {
    let desk = Desk::open().await;
    let mut command = desk.command(&["watch", "--queue", &desk.queue, "--output=json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut told = BufReader::new(child.stderr.as_mut().expect("piped")).lines();
    let first = timeout(PATIENCE, told.next_line())
        .await
        .expect("it says so");
    assert!(first.expect("text").expect("open").contains("watching"));

    let failed = &desk.failed(&["a"]).await[0];
    let change: Value = serde_json::from_str(&line(&mut child).await).expect("JSON");
    assert_eq!(change["kind"], "CHANGED");
    assert_eq!(change["failed_message"]["status"], "FAILED");
    assert_eq!(id(&change["failed_message"]), *failed);
    desk.run(&["delete", failed, "--yes"]).await;
    let change: Value = serde_json::from_str(&line(&mut child).await).expect("JSON");
    assert_eq!(
        change,
        json!({"kind": "DELETED", "failed_message": {"id": failed}})
    );
    interrupt(&child).await;
    assert_eq!(code(&ended(child).await), 0);
}

#[tokio::test]
async fn a_closed_pipe_ends_a_list_and_a_watch_quietly() {
    let desk = Desk::open().await;
    let mut command = desk.command(&["watch"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut told = BufReader::new(child.stderr.take().expect("piped")).lines();
    timeout(PATIENCE, told.next_line())
        .await
        .expect("it says so")
        .expect("text");
    drop(child.stdout.take());
    desk.failed(&["a"]).await;
    assert_eq!(code(&ended(child).await), 0);
    assert_eq!(told.next_line().await.expect("text"), None);

    let mut command = desk.command(&["list"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    drop(child.stdout.take());
    let output = ended(child).await;
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}

#[tokio::test]
async fn a_database_that_is_away_exits_with_4() {
    let desk = Desk::of(On::Embedded.gateway_set_up(Setup::without_database)).await;
    for arguments in [
        &["list"][..],
        &["show", "x"],
        &["groups"],
        &["stats"],
        &["retry", "--all", "--dry-run"],
        &["watch"],
        &["delete", "--all", "--yes"],
        &["resolve", "0190f0f0-0000-7000-8000-000000000000"],
        &[
            "edit",
            "0190f0f0-0000-7000-8000-000000000000",
            "--text=x",
            "--yes",
        ],
    ] {
        let output = desk.run(arguments).await;
        // What is no id names nothing, database or not.
        let (expected, reason) = match arguments {
            ["show", _] => (3, "FAILED_MESSAGE_NOT_FOUND"),
            _ => (4, "DATABASE_DOWN"),
        };
        assert_eq!(code(&output), expected, "{arguments:?}");
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn wrong_usage_exits_with_2_and_asks_nobody() {
    let desk = Desk::open().await;
    for arguments in [
        &["list", "--status=broken"][..],
        &["list", "--after=soon"],
        &["list", "--limit=0"],
        &["show"],
        &["retry"],
        &["retry", "id", "--all"],
        &["retry", "id", "--operation=id"],
        &["retry", "id", "--max=1"],
        &["retry", "--stop"],
        &["retry", "--all", "--rate=0"],
        &["resolve"],
        &["delete"],
        &["delete", "id", "--queue=q"],
        &["edit"],
        &["edit", "id", "--text=x", "--json=1"],
    ] {
        let output = desk.run(arguments).await;
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
    }
}
