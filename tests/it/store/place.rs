//! Which databases are used: a file by one process, and no schema that is newer.

use std::time::Duration;

use courtier::store::{OpenError, Options, Store, migrate, schema_status};

use super::{
    database::{Own, on_each},
    deaths::collected,
};
use crate::harness::PATIENCE;

on_each! {
    a_schema_that_is_newer_is_refused
    a_schema_that_is_older_is_refused_when_it_may_not_be_changed
    what_is_stored_is_there_when_it_is_opened_again
}

async fn a_schema_that_is_newer_is_refused(own: &Own) {
    own.store().await.close().await;
    let raw = own.raw().await;
    raw.run("INSERT INTO courtier_migrations (version, applied_at) VALUES ('m99991231_000001_later', 1)")
        .await;
    let refused = own.open().await.err();
    assert!(
        matches!(&refused, Some(OpenError::Newer(steps)) if steps == "m99991231_000001_later"),
        "{refused:?}"
    );
    let refused = migrate(&own.options()).await.err();
    assert!(matches!(refused, Some(OpenError::Newer(_))), "{refused:?}");
    let status = schema_status(&own.options()).await.expect("status");
    assert_eq!(status.unknown, ["m99991231_000001_later"]);
    assert!(status.pending.is_empty());
}

async fn a_schema_that_is_older_is_refused_when_it_may_not_be_changed(own: &Own) {
    let options = Options {
        migrate: false,
        ..own.options()
    };
    let refused = Store::open(options.clone(), PATIENCE).await.err();
    assert!(matches!(refused, Some(OpenError::Behind)), "{refused:?}");
    let status = schema_status(&options).await.expect("status");
    assert!(status.applied.is_empty());
    let applied = migrate(&options).await.expect("migrate");
    assert_eq!(applied, status.pending);
    let store = Store::open(options, PATIENCE).await.expect("open");
    collected(&store, "work").await;
    store.close().await;
}

async fn what_is_stored_is_there_when_it_is_opened_again(own: &Own) {
    let store = own.store().await;
    let row = collected(&store, "work").await;
    let mut watch = store.watch();
    assert!(store.is_up() && watch.is_up());
    store.close().await;
    assert!(!store.is_up());
    while watch.changed().await {}
    let store = own.store().await;
    assert_eq!(store.failed_message(row.id).await.expect("the row"), row);
    store.close().await;
}

#[tokio::test]
async fn a_file_is_used_by_one_process() {
    let own = Own::file();
    let store = own.store().await;
    let refused = own.open().await.err();
    assert!(
        matches!(&refused, Some(OpenError::InUse(path)) if *path == own.path()),
        "{refused:?}"
    );
    let refused = schema_status(&own.options()).await.err();
    assert!(matches!(refused, Some(OpenError::InUse(_))), "{refused:?}");
    store.close().await;
    own.store().await.close().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let own = Own::file();
    std::fs::write(
        own.path(),
        "not a database, but long enough to be looked at",
    )
    .expect("write");
    let refused = own.open().await.err();
    assert!(
        matches!(
            refused,
            Some(OpenError::Database(..) | OpenError::Migration(_))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_server_that_is_away_is_no_error() {
    let own = Own::Server {
        server: String::new(),
        name: String::new(),
        // Nobody listens on port 1.
        url: "postgres://courtier:courtier@127.0.0.1:1/courtier".to_owned(),
    };
    let store = Store::open(own.options(), Duration::from_millis(100)).await;
    let store = store.expect("it is tried on");
    assert!(!store.is_up());
    let answer = store.now().await;
    assert!(matches!(answer, Err(courtier::store::Error::Down)));
    store.close().await;
}
