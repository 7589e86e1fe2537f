//! The migrations on SQLite, in a file of its own for each test.

mod common;

use common::{check_newer_is_refused, check_schema, check_values, names};
use courtier_migrations::{status, up};
use sea_orm::{ConnectOptions, Database, DatabaseConnection};

struct File {
    db: DatabaseConnection,
    _dir: tempfile::TempDir,
}

async fn file(connections: u32) -> File {
    let dir = tempfile::tempdir().expect("temporary directory");
    let url = format!(
        "sqlite://{}?mode=rwc",
        dir.path().join("courtier.db").display()
    );
    let mut options = ConnectOptions::new(url);
    options.max_connections(connections);
    File {
        db: Database::connect(options).await.expect("connect"),
        _dir: dir,
    }
}

#[tokio::test]
async fn applies_once_and_says_what_it_applied() {
    let file = file(1).await;
    let before = status(&file.db).await.expect("status");
    assert_eq!(before.pending(), names());
    assert_eq!(up(&file.db).await.expect("first"), names());
    assert_eq!(up(&file.db).await.expect("second"), Vec::<String>::new());
    let after = status(&file.db).await.expect("status");
    assert!(
        after.pending().is_empty() && after.unknown.is_empty(),
        "{after:?}"
    );
    check_schema(&file.db).await;
}

#[tokio::test]
async fn asking_for_the_status_writes_nothing() {
    let file = file(1).await;
    status(&file.db).await.expect("status");
    assert_eq!(common::tables(&file.db).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let file = file(1).await;
    check_newer_is_refused(&file.db).await;
}

#[tokio::test]
async fn values_come_back_as_they_were() {
    let file = file(1).await;
    check_values(&file.db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_once_over_one_pool_each_is_applied_once() {
    let file = file(8).await;
    let runs = (0..8).map(|_| {
        let db = file.db.clone();
        tokio::spawn(async move { up(&db).await.expect("up") })
    });
    let mut applied = Vec::new();
    for run in runs.collect::<Vec<_>>() {
        applied.extend(run.await.expect("no panic"));
    }
    applied.sort();
    assert_eq!(applied, names());
    check_schema(&file.db).await;
}

#[tokio::test]
async fn one_that_is_given_up_leaves_nothing_half_done() {
    let file = file(1).await;
    // Polled some times, so that it is somewhere in between, then dropped.
    for polls in 1..40 {
        let mut run = Box::pin(up(&file.db));
        for _ in 0..polls {
            let step = tokio::time::timeout(std::time::Duration::ZERO, &mut run).await;
            if step.is_ok() {
                return check_schema(&file.db).await;
            }
        }
        drop(run);
        let left = common::tables(&file.db).await;
        assert!(
            left.is_empty() || left.len() == common::TABLES.len() + 1,
            "{left:?}"
        );
    }
    up(&file.db).await.expect("up");
    check_schema(&file.db).await;
}
