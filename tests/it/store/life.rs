//! The life of a failed message, from its death to its end.

use std::time::Duration;

use courtier::{
    failed_message::{Attempt, FailedMessage, Outcome, Reason, Resolution, Status},
    store::{Ack, Error, Filter, Sent, Store},
};
use uuid::Uuid;

use super::{
    database::{Own, on_each},
    deaths::{LEASE, ack, claim, claim_up_to, collect, collected, death, death_of, much_later},
};
use courtier::store::Collected;

on_each! {
    a_retry_that_is_acked_resolves_its_row
    a_retry_that_was_not_sent_gives_everything_back
    a_retry_that_no_queue_takes_fails_the_row
    what_became_of_a_retry_is_told_once_and_by_its_owner
    a_lease_that_lapses_gives_the_row_back
    a_retry_that_does_not_die_counts_as_done
    an_ack_after_the_quiet_period_says_how_it_ended
    an_ack_after_the_lease_lapsed_counts
    an_ack_of_an_earlier_attempt_counts_for_nothing
    an_ack_in_another_queue_counts_for_nothing
    a_persons_retry_that_was_not_sent_leaves_the_schedule_alone
    an_edited_copy_in_doubt_keeps_the_original_from_the_schedule
    an_edit_of_which_nobody_hears_again_keeps_the_original_from_the_schedule
    an_edit_that_was_not_sent_leaves_the_schedule_alone
    a_consumer_may_drop_a_retry
    a_retry_replaced_by_an_edited_one_is_done
    resolving_and_deleting_need_a_row_that_nobody_works_on
    a_deleted_row_leaves_nothing
}

const QUIET: Sent = Sent::Confirmed {
    quiet_period: Duration::from_secs(600),
};
const NOT_QUIET: Sent = Sent::Confirmed {
    quiet_period: Duration::ZERO,
};

async fn row(store: &Store, id: Uuid) -> FailedMessage {
    store.failed_message(id).await.expect("the row")
}

async fn attempts(store: &Store, id: Uuid) -> Vec<(u32, Option<Outcome>)> {
    let entries = store.attempts(id).await.expect("attempts");
    let short = |entry: &Attempt| (entry.number, entry.outcome);
    entries.iter().map(short).collect()
}

/// A row whose first retry the broker has.
async fn sent(store: &Store, quiet: Sent) -> FailedMessage {
    collected(store, "work").await;
    let claimed = claim(store, "work").await;
    let row = store.sent(claimed.message.id, claimed.token, quiet).await;
    row.expect("sent")
}

async fn a_retry_that_is_acked_resolves_its_row(own: &Own) {
    let store = own.store().await;
    let dead = collected(&store, "work").await;
    assert_eq!(dead.state.status, Status::Pending);
    let claimed = claim(&store, "work").await;
    assert_eq!(claimed.message.id, dead.id);
    assert_eq!(claimed.message.state.status, Status::Retrying);
    assert_eq!(claimed.message.state, row(&store, dead.id).await.state);
    assert_eq!(
        attempts(&store, dead.id).await,
        [(1, Some(Outcome::Died)), (2, None)]
    );
    let sent = store.sent(dead.id, claimed.token, QUIET).await;
    let sent = sent.expect("sent");
    assert_eq!(sent.state.status, Status::Retrying);
    assert!(sent.state.lease.is_none());
    assert!(sent.state.assume_at.is_some());
    store.acked(&[ack(&dead, 2)]).await.expect("acked");
    let done = row(&store, dead.id).await;
    assert_eq!(done.state.status, Status::Resolved);
    assert_eq!(done.state.resolution, Some(Resolution::Acked));
    assert!(done.state.resolved_at >= sent.state.last_retry_at);
    assert_eq!(
        attempts(&store, dead.id).await,
        [(1, Some(Outcome::Died)), (2, Some(Outcome::Acked))]
    );
    let page = store.failed_messages(&Filter::default(), None, 10).await;
    let page = page.expect("list");
    assert_eq!(page.rows.len(), 1);
    assert!(page.next.is_none());
    // Lists leave out payload and stack.
    let mut shown = done.clone();
    shown.message.payload = "".into();
    shown.error.stack = String::new();
    assert_eq!(page.rows[0], shown);
    store.close().await;
}

async fn a_retry_that_was_not_sent_gives_everything_back(own: &Own) {
    let store = own.store().await;
    let before = collected(&store, "work").await;
    let claimed = claim(&store, "work").await;
    let not_sent = Sent::NotSent { again_after: None };
    let back = store.sent(before.id, claimed.token, not_sent).await;
    let back = back.expect("back");
    assert_eq!(back.state.status, Status::Pending);
    assert_eq!(back.state.attempt, 1);
    assert_eq!(back.state.retry_count, 0);
    assert_eq!(back.state.next_retry_at, before.state.next_retry_at);
    assert_eq!(
        attempts(&store, before.id).await,
        [(1, Some(Outcome::Died))]
    );
    let claimed = claim(&store, "work").await;
    let not_sent = Sent::NotSent {
        again_after: Some(Duration::from_secs(3600)),
    };
    let back = store.sent(before.id, claimed.token, not_sent).await;
    let back = back.expect("back");
    assert!(back.state.next_retry_at.expect("due") > back.updated_at + LEASE);
    assert!(
        claim_up_to(&store, "work", 9)
            .await
            .expect("claim")
            .is_empty()
    );

    // One that a person wanted is FAILED again.
    let failed = death("parked");
    let failed = courtier::failed_message::Death {
        next: courtier::failed_message::Next::Park,
        ..failed
    };
    collect(&store, &failed).await;
    let claimed = store.claim_one(failed.id, LEASE).await.expect("claim");
    let back = store.sent(failed.id, claimed.token, not_sent).await;
    let back = back.expect("back");
    assert_eq!(back.state.status, Status::Failed);
    assert_eq!(back.state.next_retry_at, None);
    assert!(!back.state.manual);
    store.close().await;
}

async fn a_retry_that_no_queue_takes_fails_the_row(own: &Own) {
    let store = own.store().await;
    let before = collected(&store, "work").await;
    let claimed = claim(&store, "work").await;
    let returned = store.sent(before.id, claimed.token, Sent::Returned).await;
    let returned = returned.expect("returned");
    assert_eq!(returned.state.status, Status::Failed);
    assert_eq!(returned.reason, Reason::Returned);
    assert_eq!(returned.state.attempt, 1);
    assert_eq!(
        attempts(&store, before.id).await,
        [(1, Some(Outcome::Died))]
    );
    store.close().await;
}

async fn what_became_of_a_retry_is_told_once_and_by_its_owner(own: &Own) {
    let store = own.store().await;
    let id = collected(&store, "work").await.id;
    let claimed = claim(&store, "work").await;
    for what in [QUIET, Sent::NotSent { again_after: None }, Sent::Returned] {
        let now = store.sent(id, Uuid::new_v4(), what).await.expect("row");
        assert_eq!(now.state, claimed.message.state);
        assert_eq!(now.reason, claimed.message.reason);
    }
    let sent = store.sent(id, claimed.token, QUIET).await.expect("sent");
    for what in [
        NOT_QUIET,
        Sent::NotSent { again_after: None },
        Sent::Returned,
    ] {
        let now = store.sent(id, claimed.token, what).await.expect("row");
        assert_eq!(now, sent);
    }
    let unknown = store.sent(Uuid::now_v7(), claimed.token, QUIET).await;
    assert!(matches!(unknown, Err(Error::NotFound)), "{unknown:?}");
    store.close().await;
}

async fn a_lease_that_lapses_gives_the_row_back(own: &Own) {
    let store = own.store().await;
    let id = collected(&store, "work").await.id;
    let claimed = store.claim("work", false, 9, Duration::ZERO).await;
    let claimed = claimed.expect("claim").remove(0);
    let held = collected(&store, "work").await;
    claim(&store, "work").await;
    let reaped = store.reap().await.expect("reap");
    assert_eq!((reaped.lapsed, reaped.assumed), (1, 0));
    let back = row(&store, id).await;
    assert_eq!(back.state.status, Status::Pending);
    assert_eq!((back.state.attempt, back.state.retry_count), (1, 0));
    assert_eq!(attempts(&store, id).await, [(1, Some(Outcome::Died))]);
    assert_eq!(row(&store, held.id).await.state.status, Status::Retrying);
    // Who held it comes too late.
    let late = store.sent(id, claimed.token, NOT_QUIET).await;
    assert_eq!(late.expect("row").state.status, Status::Pending);
    // The next one gets the same number.
    assert_eq!(claim(&store, "work").await.message.state.attempt, 2);
    store.close().await;
}

async fn a_retry_that_does_not_die_counts_as_done(own: &Own) {
    let store = own.store().await;
    let sent_quietly = sent(&store, NOT_QUIET).await;
    let waiting = sent(&store, QUIET).await;
    let reaped = store.reap().await.expect("reap");
    assert_eq!((reaped.lapsed, reaped.assumed), (0, 1));
    let done = row(&store, sent_quietly.id).await;
    assert_eq!(done.state.status, Status::Resolved);
    assert_eq!(done.state.resolution, Some(Resolution::Assumed));
    assert_eq!(
        attempts(&store, done.id).await,
        [(1, Some(Outcome::Died)), (2, Some(Outcome::Assumed))]
    );
    assert_eq!(row(&store, waiting.id).await.state, waiting.state);
    // It died after all.
    let death = death_of(&done);
    assert_eq!(collect(&store, &death).await, Collected::Again);
    assert_eq!(row(&store, done.id).await.state.status, Status::Pending);
    store.close().await;
}

async fn an_ack_after_the_quiet_period_says_how_it_ended(own: &Own) {
    let store = own.store().await;
    let sent = sent(&store, NOT_QUIET).await;
    assert_eq!(store.reap().await.expect("reap").assumed, 1);
    store.acked(&[ack(&sent, 2)]).await.expect("acked");
    let done = row(&store, sent.id).await;
    assert_eq!(done.state.resolution, Some(Resolution::Acked));
    assert_eq!(
        attempts(&store, sent.id).await,
        [(1, Some(Outcome::Died)), (2, Some(Outcome::Acked))]
    );
    store.close().await;
}

async fn an_ack_after_the_lease_lapsed_counts(own: &Own) {
    let store = own.store().await;
    let id = collected(&store, "work").await.id;
    let claimed = store.claim("work", false, 9, Duration::ZERO).await;
    assert_eq!(claimed.expect("claim").len(), 1);
    assert_eq!(store.reap().await.expect("reap").lapsed, 1);
    // Its copy had been sent.
    let before = row(&store, id).await;
    store.acked(&[ack(&before, 2)]).await.expect("acked");
    let done = row(&store, id).await;
    assert_eq!(done.state.resolution, Some(Resolution::Acked));
    assert_eq!(done.state.attempt, 2);
    assert!(
        claim_up_to(&store, "work", 9)
            .await
            .expect("claim")
            .is_empty()
    );
    store.close().await;
}

async fn an_ack_of_an_earlier_attempt_counts_for_nothing(own: &Own) {
    let store = own.store().await;
    let sent = sent(&store, QUIET).await;
    let death = death_of(&sent);
    assert_eq!(collect(&store, &death).await, Collected::Again);
    claim(&store, "work").await;
    let before = row(&store, sent.id).await;
    assert_eq!(before.state.attempt, 3);
    let unknown = Ack {
        id: Uuid::now_v7(),
        ..ack(&sent, 2)
    };
    let acks = [ack(&sent, 2), unknown, ack(&sent, 1)];
    store.acked(&acks).await.expect("acked");
    assert_eq!(row(&store, sent.id).await, before);
    store.close().await;
}

/// A consumer copied the headers into a message of its own.
async fn an_ack_in_another_queue_counts_for_nothing(own: &Own) {
    let store = own.store().await;
    let sent = sent(&store, QUIET).await;
    let before = row(&store, sent.id).await;
    let elsewhere = Ack {
        queue: "invoices".to_owned(),
        ..ack(&sent, 2)
    };
    store.acked(&[elsewhere]).await.expect("acked");
    assert_eq!(row(&store, sent.id).await, before);
    store.close().await;
}

async fn a_persons_retry_that_was_not_sent_leaves_the_schedule_alone(own: &Own) {
    let store = own.store().await;
    let waiting = death("work");
    let deaths = std::slice::from_ref(&waiting);
    store.collect(deaths, much_later).await.expect("collect");
    let before = row(&store, waiting.id).await;
    let claimed = store.claim_one(waiting.id, LEASE).await.expect("claim");
    let soon = Sent::NotSent {
        again_after: Some(Duration::from_secs(5)),
    };
    let back = store.sent(waiting.id, claimed.token, soon).await;
    assert_eq!(
        back.expect("back").state.next_retry_at,
        before.state.next_retry_at
    );
    store.close().await;
}

async fn an_edited_copy_in_doubt_keeps_the_original_from_the_schedule(own: &Own) {
    let store = own.store().await;
    let waiting = collected(&store, "work").await;
    let claimed = store.claim_one(waiting.id, LEASE).await.expect("claim");
    let in_doubt = Sent::EditedInDoubt;
    let back = store.sent(waiting.id, claimed.token, in_doubt).await;
    let back = back.expect("back");
    assert_eq!(back.state.status, Status::Failed);
    assert_eq!(back.reason, waiting.reason);
    let due = claim_up_to(&store, "work", 9).await.expect("claim");
    assert!(due.is_empty());
    store.close().await;
}

async fn an_edit_of_which_nobody_hears_again_keeps_the_original_from_the_schedule(own: &Own) {
    let store = own.store().await;
    let waiting = collected(&store, "work").await;
    let at_once = Duration::ZERO;
    store
        .claim_to_edit(waiting.id, at_once)
        .await
        .expect("claim");
    assert_eq!(store.reap().await.expect("reap").lapsed, 1);
    let back = row(&store, waiting.id).await;
    assert_eq!(back.state.status, Status::Failed);
    assert_eq!(back.state.attempt, waiting.state.attempt);
    let due = claim_up_to(&store, "work", 9).await.expect("claim");
    assert!(due.is_empty());
    store.close().await;
}

async fn an_edit_that_was_not_sent_leaves_the_schedule_alone(own: &Own) {
    let store = own.store().await;
    let waiting = collected(&store, "work").await;
    let before = row(&store, waiting.id).await;
    let claimed = store.claim_to_edit(waiting.id, LEASE).await.expect("claim");
    let not_sent = Sent::NotSent { again_after: None };
    let back = store.sent(waiting.id, claimed.token, not_sent).await;
    let back = back.expect("back").state;
    assert_eq!(back.status, before.state.status);
    assert_eq!(back.next_retry_at, before.state.next_retry_at);
    assert_eq!(
        (back.attempt, back.retry_count, back.manual),
        (before.state.attempt, before.state.retry_count, false)
    );
    store.close().await;
}

async fn a_consumer_may_drop_a_retry(own: &Own) {
    let store = own.store().await;
    let sent = sent(&store, QUIET).await;
    let dropped = Ack {
        dropped: true,
        ..ack(&sent, 2)
    };
    store.acked(&[dropped]).await.expect("acked");
    let done = row(&store, sent.id).await;
    assert_eq!(done.state.resolution, Some(Resolution::Acked));
    assert_eq!(done.comment.as_deref(), Some("discarded by the consumer"));
    assert_eq!(
        attempts(&store, sent.id).await,
        [(1, Some(Outcome::Died)), (2, Some(Outcome::Discarded))]
    );
    store.close().await;
}

async fn a_retry_replaced_by_an_edited_one_is_done(own: &Own) {
    let store = own.store().await;
    let id = collected(&store, "work").await.id;
    let claimed = store.claim_one(id, LEASE).await.expect("claim");
    let other = store.replaced(id, Uuid::new_v4(), "edited").await;
    assert_eq!(other.expect("row").state.status, Status::Retrying);
    let done = store.replaced(id, claimed.token, "edited").await;
    let done = done.expect("replaced");
    assert_eq!(done.state.status, Status::Resolved);
    assert_eq!(done.state.resolution, Some(Resolution::Manual));
    assert_eq!(done.comment.as_deref(), Some("edited"));
    assert_eq!(attempts(&store, id).await, [(1, Some(Outcome::Died))]);
    store.close().await;
}

async fn resolving_and_deleting_need_a_row_that_nobody_works_on(own: &Own) {
    let store = own.store().await;
    let id = collected(&store, "work").await.id;
    let claimed = claim(&store, "work").await;
    let conflict = |answer: Result<(), Error>, with: Status| match answer {
        Err(Error::Conflict(status)) => assert_eq!(status, with),
        other => panic!("{other:?}"),
    };
    let resolve = async || store.resolve(id, "done").await.map(|_| ());
    conflict(resolve().await, Status::Retrying);
    conflict(store.delete(id).await, Status::Retrying);
    conflict(
        store.claim_one(id, LEASE).await.map(|_| ()),
        Status::Retrying,
    );
    let filter = Filter {
        queue: Some("work".to_owned()),
        ..Filter::default()
    };
    assert_eq!(store.delete_some(&filter).await.expect("delete"), 0);
    // The broker has it: whoever knows that it is done may say so.
    store.sent(id, claimed.token, QUIET).await.expect("sent");
    conflict(store.delete(id).await, Status::Retrying);
    resolve().await.expect("resolve");
    conflict(resolve().await, Status::Resolved);
    store.delete(id).await.expect("delete");
    for answer in [resolve().await, store.delete(id).await] {
        assert!(matches!(answer, Err(Error::NotFound)), "{answer:?}");
    }
    store.close().await;
}

async fn a_deleted_row_leaves_nothing(own: &Own) {
    let store = own.store().await;
    let dead = collected(&store, "work").await;
    store.delete(dead.id).await.expect("delete");
    assert!(store.attempts(dead.id).await.expect("none").is_empty());
    let groups = store.groups(None, None, 10).await.expect("groups");
    assert!(groups.rows.is_empty());
    let stats = store.stats(None).await.expect("stats");
    assert!(stats.queues.is_empty() && stats.oldest.is_none());
    // It may come again, and go again.
    let again = death_of(&dead);
    let deaths = std::slice::from_ref(&again);
    let answer = store.collect(deaths, much_later).await.expect("collect");
    assert_eq!(answer, [Collected::New]);
    store.delete(dead.id).await.expect("delete");
    store.close().await;
}
