//! What watchers are told: each change, deletions too, and none is lost however many there are.

use std::collections::{HashMap, HashSet};

use courtier::{
    failed_message::{Status, Time},
    store::{Change, Filter, Store},
};
use uuid::Uuid;

use super::{
    database::{Own, on_each},
    deaths::{at_once, claim, collected, death},
};

on_each! {
    each_change_is_told
    more_at_one_moment_than_a_page_are_told_together
    deletions_are_forgotten_when_all_have_seen_them
    queues_are_remembered
}

async fn changes(store: &Store, since: Time) -> Vec<(Time, Change)> {
    let changes = store.changes(since, 1000).await.expect("changes");
    assert!(!changes.more);
    assert!(changes.changes.iter().all(|(at, _)| *at <= changes.now));
    changes.changes
}

async fn each_change_is_told(own: &Own) {
    let store = own.store().await;
    let began = store.now().await.expect("now");
    assert!(changes(&store, began).await.is_empty());
    let retried = collected(&store, "work").await;
    claim(&store, "work").await;
    let deleted = collected(&store, "work").await;
    store.delete(deleted.id).await.expect("delete");
    let resolved = collected(&store, "work").await;
    store.resolve(resolved.id, "done").await.expect("resolve");
    let told = changes(&store, began).await;
    let short: Vec<_> = told
        .iter()
        .map(|(_, change)| match change {
            Change::Changed(row) => {
                assert!(row.message.payload.is_empty(), "not in lists");
                (row.id, Some(row.state.status))
            }
            Change::Deleted(id) => (*id, None),
        })
        .collect();
    assert_eq!(
        short,
        [
            (retried.id, Some(Status::Retrying)),
            (deleted.id, None),
            (resolved.id, Some(Status::Resolved)),
        ]
    );
    assert!(told.windows(2).all(|two| two[0].0 <= two[1].0));
    let last = told[2].0;
    assert_eq!(changes(&store, last).await.len(), 1, "from then on");
    store.close().await;
}

async fn more_at_one_moment_than_a_page_are_told_together(own: &Own) {
    let store = own.store().await;
    let mut since = store.now().await.expect("now");
    let mut expected = HashMap::new();
    for _ in 0..3 {
        let deaths: Vec<_> = (0..25).map(|_| death("gone")).collect();
        store.collect(&deaths, at_once).await.expect("collect");
        expected.extend(deaths.iter().map(|death| (death.id, false)));
    }
    let gone = Filter {
        queue: Some("gone".to_owned()),
        ..Filter::default()
    };
    assert_eq!(store.delete_some(&gone).await.expect("delete"), 75);
    for _ in 0..3 {
        let deaths: Vec<_> = (0..25).map(|_| death("work")).collect();
        store.collect(&deaths, at_once).await.expect("collect");
        expected.extend(deaths.iter().map(|death| (death.id, true)));
    }
    let mut told: HashMap<Uuid, bool> = HashMap::new();
    loop {
        let found = store.changes(since, 10).await.expect("changes");
        let moments: HashSet<_> = found.changes.iter().map(|(at, _)| *at).collect();
        assert!(moments.len() < 4, "all in one go");
        for (_, change) in &found.changes {
            let (id, there) = match change {
                Change::Changed(row) => (row.id, true),
                Change::Deleted(id) => (*id, false),
            };
            assert_eq!(told.insert(id, there), None, "twice");
        }
        let Some((last, _)) = found.changes.last().filter(|_| found.more) else {
            break;
        };
        // All of that moment was told.
        since = *last + chrono::TimeDelta::microseconds(1);
    }
    assert_eq!(told, expected);
    store.close().await;
}

async fn deletions_are_forgotten_when_all_have_seen_them(own: &Own) {
    let store = own.store().await;
    let began = store.now().await.expect("now");
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = collected(&store, "work").await.id;
        store.delete(id).await.expect("delete");
        ids.push(id);
    }
    store.forget_deletions().await.expect("forget");
    assert_eq!(changes(&store, began).await.len(), 2, "not so soon");
    let raw = own.raw().await;
    raw.run(&format!(
        "UPDATE failed_message_deletions SET deleted_at = '2026-01-01 00:00:00' WHERE id = '{}'",
        ids[0]
    ))
    .await;
    store.forget_deletions().await.expect("forget");
    let count = "SELECT COUNT(*) FROM failed_message_deletions";
    assert_eq!(raw.number(count).await, 1);
    assert_eq!(changes(&store, began).await.len(), 1);
    store.close().await;
}

async fn queues_are_remembered(own: &Own) {
    let store = own.store().await;
    for queue in ["work", "Work", "work"] {
        let added = store.add_dead_letter_queue(queue).await;
        added.expect("add");
    }
    let queues = async || {
        let mut queues = store.dead_letter_queues().await.expect("queues");
        queues.sort();
        queues
    };
    assert_eq!(queues().await, ["Work", "work"]);
    for queue in ["Work", "other"] {
        let removed = store.remove_dead_letter_queue(queue).await;
        removed.expect("remove");
    }
    assert_eq!(queues().await, ["work"]);
    store.close().await;
}
