//! `courtier migrate`, on SQLite, and on a server that is away.

use std::{path::Path, process::Output};

use courtier::store::Place;
use sea_orm::{ConnectionTrait, Database};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    command::{code, courtier, json_lines, run, stderr, stdout},
    harness::Gateway,
};

async fn migrate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = courtier(&[&["migrate"], arguments].concat());
    command.env("DATA_DIR", folder);
    run(command, b"").await
}

#[tokio::test]
async fn steps_are_pending_until_they_are_applied() {
    let temp = TempDir::new().expect("a folder");
    let folder = temp.path().join("data");
    let output = migrate(&folder, &["status"]).await;
    assert_eq!(code(&output), 4);
    let shown = stdout(&output);
    assert!(
        shown.contains("pending") && !shown.contains("applied"),
        "{shown}"
    );
    assert!(
        stderr(&output).contains("courtier migrate up"),
        "{}",
        stderr(&output)
    );
    assert!(!folder.exists(), "asking changes nothing");

    let output = migrate(&folder, &["up"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), shown.lines().count() - 1);
    assert_eq!(
        stdout(&migrate(&folder, &["up"]).await),
        "up to date already\n"
    );
    let again = migrate(&folder, &["up", "--output=json"]).await;
    assert_eq!(json_lines(&again), [json!({"applied": []})]);

    let output = migrate(&folder, &["status"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(
        stdout(&output).matches(" applied\n").count(),
        shown.lines().count() - 1
    );
    let status = &json_lines(&migrate(&folder, &["status", "--output=json"]).await)[0];
    assert_eq!(
        (&status["pending"], &status["unknown"]),
        (&json!([]), &json!([]))
    );
}

#[tokio::test]
async fn a_newer_schema_exits_with_3_and_is_left_alone() {
    let temp = TempDir::new().expect("a folder");
    assert_eq!(code(&migrate(temp.path(), &["up"]).await), 0);
    let url = format!("sqlite:{}/courtier.db", temp.path().display());
    let database = Database::connect(url).await.expect("it is there");
    let newer = "INSERT INTO courtier_migrations (version, applied_at) VALUES ('m29991231_000001_later', 0)";
    database.execute_unprepared(newer).await.expect("inserted");
    database.close().await.expect("closed");
    for arguments in [["status"], ["up"]] {
        let output = migrate(temp.path(), &arguments).await;
        assert_eq!(code(&output), 3, "{arguments:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("m29991231_000001_later"),
            "{}",
            stderr(&output)
        );
    }
}

#[tokio::test]
async fn a_database_that_is_away_exits_with_4_and_its_password_is_not_said() {
    let temp = TempDir::new().expect("a folder");
    for url in [
        "postgres://shop:hunter2@127.0.0.1:1/x",
        "mysql://shop:hunter2@127.0.0.1:1/x",
    ] {
        let output = migrate(temp.path(), &["status", "--database-url", url]).await;
        assert_eq!(code(&output), 4, "{}", stderr(&output));
        let told = stderr(&output);
        assert!(told.contains("the database is away"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    let output = migrate(temp.path(), &["status", "--database-url=oracle://x"]).await;
    assert_eq!(code(&output), 2, "{}", stderr(&output));
}

#[tokio::test]
async fn a_file_that_a_gateway_uses_is_left_to_it() {
    let mut used = None;
    let broker = courtier::broker::memory::MemoryBroker::new();
    let _gateway = Gateway::start_with(broker, |setup| {
        let Place::File(file) = &setup.config.database.place else {
            panic!("tests run on SQLite");
        };
        used = file.parent().map(Path::to_owned);
    })
    .await;
    let folder = used.expect("a folder");
    for arguments in [["status"], ["up"]] {
        let output = migrate(&folder, &arguments).await;
        assert_eq!(code(&output), 4, "{arguments:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("a running gateway uses"),
            "{}",
            stderr(&output)
        );
    }
}
