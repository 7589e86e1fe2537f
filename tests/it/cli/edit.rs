//! `courtier failed edit`.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Output};

use courtier::grpc::proto::{Message, nack::Action};
use prost_types::{Struct, value::Kind};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cli_desk::Desk,
    command::{code, json_lines, run, stderr, stdout},
    front::{from, payload, text},
};

const WRONG: &str = r#"{"id":1,"total":"12,50"}"#;
const RIGHT: &str = r#"{"id":1,"total":12.50}"#;

/// A desk, and a failed message with properties and headers.
async fn desk() -> (Desk, String) {
    let desk = Desk::open().await;
    let headers = ["tenant", "debug"].map(|name| (name.to_owned(), Kind::NumberValue(7.0).into()));
    let message = Message {
        message_id: "m-1".to_owned(),
        content_type: "application/json".to_owned(),
        app_id: "shop".to_owned(),
        headers: Some(Struct {
            fields: BTreeMap::from(headers),
        }),
        ..text(WRONG)
    };
    let id = desk.dead(message, Action::DeadLetter).await;
    (desk, id)
}

/// Edits with an editor that is this shell script; the file is `$1`. Its files are made in `temp`.
async fn with_editor(desk: &Desk, id: &str, script: &str, more: &[&str], temp: &Path) -> Output {
    let editor = temp.join("an editor");
    fs::write(&editor, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&editor, fs::Permissions::from_mode(0o700)).expect("set");
    let mut command = desk.command(&[&["edit", id], more].concat());
    command
        .env("EDITOR", format!("'{}'", editor.display()))
        .env("TMPDIR", temp);
    run(command, b"").await
}

fn drafts(temp: &Path) -> Vec<String> {
    let files = fs::read_dir(temp).expect("a folder");
    let names = files.map(|file| {
        file.expect("a file")
            .file_name()
            .into_string()
            .expect("text")
    });
    names.filter(|name| name.starts_with("courtier-")).collect()
}

#[tokio::test]
async fn a_payload_is_corrected_in_an_editor_and_everything_else_stays() {
    let (desk, id) = desk().await;
    let temp = TempDir::new().expect("a folder");
    let script = format!(
        "stat -c %a \"$1\" > {0}/mode; sed -i 's/\"12,50\"/12.50/' \"$1\"; printf '\\n' >> \"$1\"",
        temp.path().display()
    );
    let output = with_editor(&desk, &id, &script, &["--yes"], temp.path()).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        format!("confirmed, message id m-1; {id} RESOLVED\n")
    );
    let told = stderr(&output);
    assert!(
        told.contains("-   \"total\": \"12,50\"\n+   \"total\": 12.50\n"),
        "{told}"
    );
    let mode = fs::read_to_string(temp.path().join("mode")).expect("written");
    assert_eq!(mode, "600\n");
    assert_eq!(drafts(temp.path()), [""; 0]);

    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let copy = stream.delivery().await;
    assert_eq!(payload(&copy), RIGHT.as_bytes());
    let message = copy.message.expect("set");
    assert_eq!((&*message.message_id, &*message.app_id), ("m-1", "shop"));
    let headers = message.headers.expect("kept").fields;
    assert_eq!(headers.keys().collect::<Vec<_>>(), ["debug", "tenant"]);
    assert_eq!(desk.status(&id).await, "RESOLVED");
}

#[tokio::test]
async fn what_was_written_is_kept_when_it_could_not_be_sent() {
    let (desk, id) = desk().await;
    let temp = TempDir::new().expect("a folder");
    desk.front.delete_queue(&desk.queue).await;
    let script = "echo corrected > \"$1\"";
    let output = with_editor(&desk, &id, script, &["--yes"], temp.path()).await;
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains("was JSON, and is not any more"), "{told}");
    let kept = &drafts(temp.path())[0];
    assert!(told.contains(kept), "{told}");
    let written = fs::read_to_string(temp.path().join(kept)).expect("kept");
    assert_eq!(written, "corrected\n");
}

#[tokio::test]
async fn nothing_is_sent_when_nothing_changed_or_the_editor_failed() {
    let (desk, id) = desk().await;
    let temp = TempDir::new().expect("a folder");
    for (script, expected, word) in [
        ("true", 4, "nothing changed"),
        ("echo >> \"$1\"", 4, "nothing changed"),
        ("echo x > \"$1\"; exit 1", 1, "nothing was sent"),
    ] {
        let output = with_editor(&desk, &id, script, &["--yes"], temp.path()).await;
        assert_eq!(code(&output), expected, "{script}");
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
        assert_eq!(drafts(temp.path()), [""; 0]);
    }
    assert_eq!(desk.status(&id).await, "FAILED");
}

#[tokio::test]
async fn properties_and_headers_change_by_flags_and_the_payload_stays() {
    let (desk, id) = desk().await;
    let flags = ["--type=order", "--header=tenant=8", "--remove-header=debug"];
    let edit = [&["edit", &id], &flags[..]].concat();
    let output = desk.run(&[&edit[..], &["--dry-run"]].concat()).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let expected = "header debug: 7 -> (none)\nheader tenant: 7 -> 8\ntype: (none) -> \"order\"\n";
    assert_eq!(stdout(&output), expected);
    assert_eq!(desk.status(&id).await, "FAILED");

    // Nobody can be asked.
    let output = desk.run(&edit).await;
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--yes"), "{}", stderr(&output));
    assert_eq!(desk.status(&id).await, "FAILED");

    let sent = desk.json(&[&edit[..], &["--yes"]].concat()).await.remove(0);
    assert_eq!(sent["failed_message"]["status"], "RESOLVED");
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let copy = stream.delivery().await;
    assert_eq!(payload(&copy), WRONG.as_bytes());
    let message = copy.message.expect("set");
    assert_eq!(
        (&*message.r#type, &*message.content_type),
        ("order", "application/json")
    );
    let headers = message.headers.expect("some").fields;
    assert_eq!(
        headers,
        BTreeMap::from([("tenant".to_owned(), Kind::NumberValue(8.0).into())])
    );
    assert_eq!(sent["message_id"], "m-1");
}

#[tokio::test]
async fn a_payload_comes_from_where_publish_takes_it() {
    for (flags, input, expected) in [
        (&["--text=plain"][..], "", "plain"),
        (&["--json", RIGHT], "", RIGHT),
        (&["-"], "piped", "piped"),
        (&["--data-file", "-"], "piped", "piped"),
    ] {
        let (desk, id) = desk().await;
        let arguments = [&["edit", &id, "--yes"], flags].concat();
        let output = run(desk.command(&arguments), input.as_bytes()).await;
        assert_eq!(code(&output), 0, "{flags:?}: {}", stderr(&output));
        assert_eq!(desk.front.drain_bodies(&desk.queue).await, [expected]);
    }
}

#[tokio::test]
async fn what_cannot_be_edited_is_refused_before_an_editor_opens() {
    let (desk, id) = desk().await;
    // No terminal, and no editor named.
    let output = desk.run(&["edit", &id, "--yes"]).await;
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("EDITOR"), "{}", stderr(&output));
    let output = desk
        .run(&["edit", &id, "--yes", "--remove-header=none"])
        .await;
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    let output = desk
        .run(&["edit", &id, "--yes", "--header=x-death=1"])
        .await;
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("RESERVED_HEADER"),
        "{}",
        stderr(&output)
    );

    desk.run(&["resolve", &id]).await;
    let temp = TempDir::new().expect("a folder");
    let script = format!("touch {}/opened", temp.path().display());
    let output = with_editor(
        &desk,
        &id,
        &script,
        &["--yes", "--output=json"],
        temp.path(),
    )
    .await;
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("RESOLVED"), "{}", stderr(&output));
    assert!(!temp.path().join("opened").exists());
    assert_eq!(json_lines(&output), [Value::Null; 0]);
    assert_eq!(code(&desk.run(&["edit", "nothing", "--yes"]).await), 3);
}

#[tokio::test]
async fn a_dry_run_shows_the_message_that_would_be_sent() {
    let (desk, id) = desk().await;
    let shown = desk
        .json(&["edit", &id, "--dry-run", "--text=x"])
        .await
        .remove(0);
    let expected = json!({
        "message_id": "m-1",
        "content_type": "application/json",
        "app_id": "shop",
        "headers": {"tenant": 7, "debug": 7},
        "text": "x",
    });
    assert_eq!(shown, json!({"id": id, "message": expected}));
}
