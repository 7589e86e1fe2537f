//! Bulk retries: so many a second, no further than they should, and carried on by whoever is there.

use std::collections::HashSet;

use courtier::{
    failed_message::{Death, Status},
    store::{Claimed, Error, Filter, Operation, OperationState, Sent, Step, Store},
};
use uuid::Uuid;

use super::{
    database::{Own, on_each, on_servers},
    deaths::{LEASE, ack, at_once, collect, collected, death, death_of},
};
use crate::harness::eventually;

on_each! {
    it_asks_for_so_many_at_a_time_and_ends_when_all_have_ended
    it_asks_for_no_more_than_its_limit
    it_retries_only_what_had_failed_when_it_began
    it_stops_when_most_fail_again
    it_stops_on_request
    what_was_deleted_meanwhile_is_skipped
    what_a_person_retried_meanwhile_does_not_count
    another_store_carries_it_on
    only_pending_and_failed_rows_count
    one_that_is_unknown_is_not_found
}

mod replicas {
    use super::*;

    on_servers! {
        two_replicas_take_turns
    }

    async fn two_replicas_take_turns(own: &Own) {
        let replicas = [own.store().await, own.store().await];
        let rows = fail(&replicas[0], 30).await;
        let begun = begin(&replicas[0], 3, None).await;
        let stepping: Vec<_> = (0..8)
            .map(|n| {
                let store = replicas[n % 2].clone();
                tokio::spawn(async move { store.step_operation().await.expect("step") })
            })
            .collect();
        for step in stepping {
            step.await.expect("no panic");
        }
        // However many did at once: of each second there is one step.
        let asked = asked(&replicas[1]).await;
        assert!(asked.len() < 8 * 3, "{} in a moment", asked.len());
        let ids: HashSet<_> = asked.iter().map(|claimed| claimed.message.id).collect();
        let ids = std::sync::Mutex::new(ids);
        eventually("all are asked for", || async {
            for store in &replicas {
                store.step_operation().await.expect("step");
            }
            for claimed in super::asked(&replicas[0]).await {
                let mut ids = ids.lock().expect("no panic");
                assert!(ids.insert(claimed.message.id), "twice");
            }
            ids.lock().expect("no panic").len() == rows.len()
        })
        .await;
        assert_eq!(state(&replicas[1], begun.id).await.started, 30);
        for store in replicas {
            store.close().await;
        }
    }
}

async fn fail(store: &Store, rows: usize) -> Vec<Uuid> {
    let deaths: Vec<_> = (0..rows).map(|_| death("work")).collect();
    store.collect(&deaths, at_once).await.expect("collect");
    deaths.iter().map(|death| death.id).collect()
}

fn of_work() -> Filter {
    Filter {
        queue: Some("work".to_owned()),
        ..Filter::default()
    }
}

async fn begin(store: &Store, rate: u32, limit: Option<u64>) -> Operation {
    let begun = store.begin_operation(&of_work(), rate, limit).await;
    let begun = begun.expect("begin");
    assert_eq!(begun.state, OperationState::Running);
    assert_eq!(begun.started, 0);
    begun
}

async fn state(store: &Store, id: Uuid) -> Operation {
    store.operation(id).await.expect("the operation")
}

/// Claims what was asked for.
async fn asked(store: &Store) -> Vec<Claimed> {
    store.claim("work", true, 1000, LEASE).await.expect("claim")
}

/// Retries what was asked for; `dies` says which ones die again.
async fn retry(store: &Store, dies: impl Fn(usize) -> bool) -> usize {
    let claimed = asked(store).await;
    for (n, claimed) in claimed.iter().enumerate() {
        let row = &claimed.message;
        let quiet_period = LEASE;
        let sent = Sent::Confirmed { quiet_period };
        store.sent(row.id, claimed.token, sent).await.expect("sent");
        if dies(n) {
            collect(store, &death_of(row)).await;
        } else {
            let acks = [ack(row, row.state.attempt)];
            store.acked(&acks).await.expect("acked");
        }
    }
    claimed.len()
}

/// Steps until the operation has ended.
async fn until_it_ends(store: &Store, id: Uuid, dies: impl Fn(usize) -> bool + Copy) -> Operation {
    eventually("it ends", || async {
        store.step_operation().await.expect("step");
        retry(store, dies).await;
        state(store, id).await.state != OperationState::Running
    })
    .await;
    state(store, id).await
}

async fn it_asks_for_so_many_at_a_time_and_ends_when_all_have_ended(own: &Own) {
    let store = own.store().await;
    assert_eq!(store.step_operation().await.expect("step"), Step::Nothing);
    fail(&store, 7).await;
    let counted = store.count_retriable(&of_work()).await.expect("count");
    assert_eq!(counted, 7);
    let begun = begin(&store, 5, None).await;
    assert_eq!(begun.matched, 7);
    let before = store.now().await.expect("now");
    assert_eq!(store.step_operation().await.expect("step"), Step::Done);
    assert_eq!(state(&store, begun.id).await.started, 5);
    // The next step is due a second later, by the database's clock.
    eventually("the second step", || async {
        store.step_operation().await.expect("step") == Step::Done
    })
    .await;
    let passed = store.now().await.expect("now") - before;
    assert!(passed >= chrono::TimeDelta::seconds(1), "{passed}");
    let now = state(&store, begun.id).await;
    assert_eq!((now.started, now.waiting()), (7, 7));
    assert_eq!(now.state, OperationState::Running);
    // All are asked for: it runs until the last one has ended.
    let mut claimed = asked(&store).await;
    assert_eq!(claimed.len(), 7);
    let last = claimed.pop().expect("one");
    for claimed in claimed {
        let acks = [ack(&claimed.message, 2)];
        store.acked(&acks).await.expect("acked");
    }
    eventually("a third step", || async {
        store.step_operation().await.expect("step") == Step::Done
    })
    .await;
    let now = state(&store, begun.id).await;
    assert_eq!(now.state, OperationState::Running);
    assert_eq!((now.succeeded, now.waiting()), (6, 1));
    let acks = [ack(&last.message, 2)];
    store.acked(&acks).await.expect("acked");
    let done = until_it_ends(&store, begun.id, |_| false).await;
    assert_eq!(done.state, OperationState::Done);
    assert_eq!(done.stop_reason, None);
    assert_eq!((done.started, done.succeeded, done.waiting()), (7, 7, 0));
    let of_it = Filter {
        operation_id: Some(begun.id),
        statuses: vec![Status::Resolved],
        ..Filter::default()
    };
    assert_eq!(store.count(&of_it).await.expect("count"), 7);
    let listed = store.failed_messages(&of_it, None, 100).await;
    assert_eq!(listed.expect("list").rows.len(), 7);
    store.close().await;
}

async fn it_asks_for_no_more_than_its_limit(own: &Own) {
    let store = own.store().await;
    fail(&store, 5).await;
    let begun = begin(&store, 100, Some(3)).await;
    let done = until_it_ends(&store, begun.id, |_| false).await;
    assert_eq!(done.state, OperationState::Done);
    assert_eq!((done.started, done.succeeded), (3, 3));
    assert_eq!(store.count_retriable(&of_work()).await.expect("count"), 2);
    store.close().await;
}

async fn it_retries_only_what_had_failed_when_it_began(own: &Own) {
    let store = own.store().await;
    let known: HashSet<_> = fail(&store, 3).await.into_iter().collect();
    let begun = begin(&store, 100, None).await;
    fail(&store, 3).await;
    store.step_operation().await.expect("step");
    let asked = asked(&store).await;
    let ids: HashSet<_> = asked.iter().map(|claimed| claimed.message.id).collect();
    assert_eq!(ids, known);
    assert_eq!(state(&store, begun.id).await.started, 3);
    store.close().await;
}

async fn it_stops_when_most_fail_again(own: &Own) {
    let store = own.store().await;
    fail(&store, 40).await;
    let begun = begin(&store, 20, None).await;
    // Of twenty, ten do not make it stop.
    store.step_operation().await.expect("step");
    assert_eq!(retry(&store, |n| n % 2 == 0).await, 20);
    let now = state(&store, begun.id).await;
    assert_eq!((now.succeeded, now.failed_again), (10, 10));
    eventually("the second step", || async {
        store.step_operation().await.expect("step") == Step::Done
    })
    .await;
    assert_eq!(state(&store, begun.id).await.started, 40);
    let claimed = asked(&store).await;
    collect(&store, &death_of(&claimed[0].message)).await;
    let stopped = until_it_ends(&store, begun.id, |_| true).await;
    assert_eq!(stopped.state, OperationState::Stopped);
    let reason = stopped.stop_reason.expect("a reason");
    assert_eq!(reason, "11 of 21 finished retries failed again");
    // Those under way still count.
    let acks = [ack(&claimed[1].message, 2)];
    store.acked(&acks).await.expect("acked");
    assert_eq!(state(&store, begun.id).await.succeeded, 11);
    store.close().await;
}

async fn it_stops_on_request(own: &Own) {
    let store = own.store().await;
    fail(&store, 3).await;
    let begun = begin(&store, 1, None).await;
    store.step_operation().await.expect("step");
    let stopped = store.stop_operation(begun.id).await.expect("stop");
    assert_eq!(stopped.state, OperationState::Stopped);
    assert_eq!(stopped.started, 1);
    let reason = stopped.stop_reason.clone();
    assert_eq!(reason.as_deref(), Some("stopped on request"));
    assert_eq!(
        store.stop_operation(begun.id).await.expect("again"),
        stopped
    );
    assert_eq!(store.step_operation().await.expect("step"), Step::Nothing);
    assert_eq!(asked(&store).await.len(), 1, "what was asked for is sent");
    store.close().await;
}

async fn what_was_deleted_meanwhile_is_skipped(own: &Own) {
    let store = own.store().await;
    let rows = fail(&store, 4).await;
    let begun = begin(&store, 100, None).await;
    store.step_operation().await.expect("step");
    store.delete(rows[0]).await.expect("delete");
    assert_eq!(store.delete_some(&of_work()).await.expect("delete"), 3);
    let done = until_it_ends(&store, begun.id, |_| false).await;
    assert_eq!(done.state, OperationState::Done);
    assert_eq!((done.started, done.skipped, done.succeeded), (4, 4, 0));
    store.close().await;
}

async fn what_a_person_retried_meanwhile_does_not_count(own: &Own) {
    let store = own.store().await;
    let id = collected(&store, "work").await.id;
    let begun = begin(&store, 1, None).await;
    store.step_operation().await.expect("step");
    assert_eq!(retry(&store, |_| true).await, 1);
    assert_eq!(state(&store, begun.id).await.failed_again, 1);
    // It is its own again, and does not count twice.
    let claimed = store.claim_one(id, LEASE).await.expect("claim");
    assert_eq!(claimed.message.operation_id, None);
    let acks = [ack(&claimed.message, claimed.message.state.attempt)];
    store.acked(&acks).await.expect("acked");
    let now = state(&store, begun.id).await;
    assert_eq!((now.started, now.failed_again, now.succeeded), (1, 1, 0));
    store.close().await;
}

async fn another_store_carries_it_on(own: &Own) {
    let store = own.store().await;
    fail(&store, 3).await;
    let begun = begin(&store, 2, None).await;
    store.step_operation().await.expect("step");
    store.close().await;
    assert!(matches!(store.now().await, Err(Error::Down)));
    let other = own.store().await;
    let done = until_it_ends(&other, begun.id, |_| false).await;
    assert_eq!(done.state, OperationState::Done);
    assert_eq!((done.started, done.succeeded), (3, 3));
    other.close().await;
}

async fn only_pending_and_failed_rows_count(own: &Own) {
    let store = own.store().await;
    let rows = fail(&store, 4).await;
    store.resolve(rows[0], "done").await.expect("resolve");
    store.claim_one(rows[1], LEASE).await.expect("claim");
    let parked = Death {
        next: courtier::failed_message::Next::Park,
        ..death("work")
    };
    collect(&store, &parked).await;
    let counted = store.count_retriable(&of_work()).await.expect("count");
    assert_eq!(counted, 3);
    assert_eq!(begin(&store, 100, None).await.matched, 3);
    // One that is asked for already is none of a second one.
    store.step_operation().await.expect("step");
    assert_eq!(begin(&store, 100, None).await.matched, 0);
    store.close().await;
}

async fn one_that_is_unknown_is_not_found(own: &Own) {
    let store = own.store().await;
    let id = Uuid::now_v7();
    for answer in [store.operation(id).await, store.stop_operation(id).await] {
        assert!(matches!(answer, Err(Error::NotFound)), "{answer:?}");
    }
    store.close().await;
}
