//! What is due is claimed once, however many want it.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use courtier::{
    failed_message::{Death, FailedMessage, Next, Status},
    store::{Error, Filter, Sent},
};

use super::{
    database::{Own, on_each, on_servers},
    deaths::{LEASE, claim, claim_up_to, collect, collected, death, much_later},
};
use crate::harness::eventually;

on_each! {
    many_claimers_get_each_row_once
    of_a_hundred_who_want_one_row_one_gets_it
    a_row_is_claimed_when_it_is_due_and_not_before
    those_due_longest_come_first_and_no_more_than_asked_for
    what_a_person_asked_for_is_claimed_apart
}

mod replicas {
    use super::*;

    on_servers! {
        two_replicas_get_each_row_once
    }

    async fn two_replicas_get_each_row_once(own: &Own) {
        let (one, other) = (own.store().await, own.store().await);
        claim_all(&[one.clone(), other.clone()], 500).await;
        one.close().await;
        other.close().await;
    }
}

async fn many_claimers_get_each_row_once(own: &Own) {
    let store = own.store().await;
    claim_all(std::slice::from_ref(&store), 500).await;
    store.close().await;
}

/// Eight tasks claim until nothing is left.
async fn claim_all(replicas: &[courtier::store::Store], rows: usize) {
    let deaths: Vec<_> = (0..rows).map(|_| death("work")).collect();
    let collected = replicas[0].collect(&deaths, super::deaths::at_once).await;
    assert_eq!(collected.expect("collect").len(), rows);
    let claiming: Vec<_> = (0..8)
        .map(|n| {
            let store = replicas[n % replicas.len()].clone();
            tokio::spawn(async move {
                let mut ids = Vec::new();
                loop {
                    let claimed = claim_up_to(&store, "work", 20).await.expect("claim");
                    if claimed.is_empty() {
                        return ids;
                    }
                    ids.extend(claimed.iter().map(|claimed| claimed.message.id));
                }
            })
        })
        .collect();
    let mut ids = Vec::new();
    for task in claiming {
        ids.extend(task.await.expect("no panic"));
    }
    assert_eq!(ids.len(), rows, "each once");
    let claimed: HashSet<_> = ids.into_iter().collect();
    assert_eq!(claimed, deaths.iter().map(|death| death.id).collect());
    let stats = replicas[0].stats(None).await.expect("stats");
    assert_eq!(stats.queues[0].counts.retrying, rows as u64);
    assert_eq!(stats.queues[0].counts.pending, 0);
}

async fn of_a_hundred_who_want_one_row_one_gets_it(own: &Own) {
    let store = own.store().await;
    let row = collected(&store, "work").await;
    let wanting: Vec<_> = (0..100)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.claim_one(row.id, LEASE).await })
        })
        .collect();
    let mut won = Vec::new();
    for task in wanting {
        match task.await.expect("no panic") {
            Ok(claimed) => won.push(claimed),
            Err(Error::Conflict(Status::Retrying)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(won[0].message.state.attempt, 2);
    assert!(won[0].message.state.manual);
    let now = store.failed_message(row.id).await.expect("the row");
    assert_eq!(now.state, won[0].message.state);
    assert!(store.is_up());
    store.close().await;
}

async fn a_row_is_claimed_when_it_is_due_and_not_before(own: &Own) {
    let store = own.store().await;
    let later = death("work");
    let answer = store
        .collect(std::slice::from_ref(&later), much_later)
        .await;
    answer.expect("collect");
    let soon = Death {
        next: Next::Retry(Some(Duration::from_millis(300))),
        ..death("work")
    };
    collect(&store, &soon).await;
    let due = store.failed_message(soon.id).await.expect("the row");
    let due = due.state.next_retry_at.expect("due");
    let mut claimed = Vec::new();
    while claimed.is_empty() {
        claimed = claim_up_to(&store, "work", 9).await.expect("claim");
    }
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].message.id, soon.id);
    let at = claimed[0].message.state.last_retry_at.expect("claimed");
    assert!(at >= due, "claimed at {at}, due at {due}");
    assert!(
        claim_up_to(&store, "work", 9)
            .await
            .expect("claim")
            .is_empty()
    );
    // A person need not wait.
    let claimed = store.claim_one(later.id, LEASE).await.expect("claim");
    assert_eq!(claimed.message.state.status, Status::Retrying);
    store.close().await;
}

async fn those_due_longest_come_first_and_no_more_than_asked_for(own: &Own) {
    let store = own.store().await;
    let mut due = BTreeMap::new();
    for delay in [50, 10, 40, 0, 30, 20] {
        let death = Death {
            next: Next::Retry(Some(Duration::from_millis(delay))),
            ..death("work")
        };
        collect(&store, &death).await;
        let row = store.failed_message(death.id).await.expect("the row");
        due.insert(row.state.next_retry_at, row.id);
    }
    collected(&store, "other").await;
    let last = due.keys().next_back().copied().flatten().expect("due");
    eventually("all are due", || async {
        store.now().await.expect("now") >= last
    })
    .await;
    let mut claimed = Vec::new();
    for _ in 0..3 {
        let two = claim_up_to(&store, "work", 2).await.expect("claim");
        assert_eq!(two.len(), 2);
        claimed.extend(two.iter().map(|claimed| claimed.message.id));
    }
    let expected: Vec<_> = due.into_values().collect();
    assert_eq!(claimed, expected);
    assert!(
        claim_up_to(&store, "work", 2)
            .await
            .expect("claim")
            .is_empty()
    );
    store.close().await;
}

async fn what_a_person_asked_for_is_claimed_apart(own: &Own) {
    let store = own.store().await;
    let asked = collected(&store, "work").await;
    let filter = Filter {
        queue: Some("work".to_owned()),
        ..Filter::default()
    };
    let operation = store.begin_operation(&filter, 10, None).await;
    let operation = operation.expect("begin");
    store.step_operation().await.expect("step");
    let scheduled = collected(&store, "work").await;

    let by_schedule = claim(&store, "work").await;
    assert_eq!(by_schedule.message.id, scheduled.id);
    assert!(!by_schedule.message.state.manual);
    assert_eq!(by_schedule.message.state.retry_count, 1);
    let by_request = store.claim("work", true, 9, LEASE).await.expect("claim");
    assert_eq!(by_request.len(), 1);
    let FailedMessage {
        id,
        state,
        operation_id,
        ..
    } = &by_request[0].message;
    assert_eq!(*id, asked.id);
    assert!(state.manual);
    // It uses up none of the automatic retries.
    assert_eq!((state.attempt, state.retry_count), (2, 0));
    assert_eq!(*operation_id, Some(operation.id));
    // Not sent, it waits as one that was asked for.
    let not_sent = Sent::NotSent { again_after: None };
    let back = store.sent(asked.id, by_request[0].token, not_sent).await;
    let back = back.expect("back");
    assert_eq!(back.state.status, Status::Pending);
    assert!(back.state.manual);
    assert!(
        claim_up_to(&store, "work", 9)
            .await
            .expect("claim")
            .is_empty()
    );
    let again = store.claim("work", true, 9, LEASE).await.expect("claim");
    assert_eq!(again.len(), 1);
    store.close().await;
}
