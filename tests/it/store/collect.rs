//! Dead letters become rows: each death once, and nothing of the message changes.

use std::time::Duration;

use bytes::Bytes;
use courtier::{
    failed_message::{Death, Next, Outcome, Reason, Resolution, Status},
    message::{Message, Table, Value},
    store::{Collected, Error, Filter, Sent},
};
use uuid::Uuid;

use super::{
    database::{Own, on_each},
    deaths::{MAX_RETRIES, at_once, claim, collect, collected, death, death_of, error, much_later},
};

on_each! {
    a_death_becomes_a_row_with_all_that_is_known
    payload_and_headers_come_back_byte_for_byte
    a_batch_may_be_larger_than_a_statement
    texts_with_nul_are_kept_without_it
    names_have_up_to_255_characters_of_any_kind
    names_that_differ_in_case_or_spaces_are_different
    a_publish_id_of_any_length_is_taken
    the_same_death_again_is_the_same_row
    the_same_death_from_many_at_once_is_one_row
    each_queue_of_a_fan_out_has_a_row
    without_a_publish_id_each_death_is_a_row
    other_messages_with_a_copied_publish_id_are_rows_of_their_own
    another_message_with_a_retrys_headers_is_a_row_of_its_own
    a_retry_that_dies_is_the_same_row_until_none_is_left
    a_retry_of_a_deleted_row_brings_it_back
    a_retry_that_died_in_another_queue_is_another_row
    a_parked_death_is_failed
    a_delay_of_the_consumers_own_is_kept
    a_death_after_the_end_reopens_the_row
    a_dead_letter_that_comes_again_reopens_nothing
    a_retry_may_die_before_it_is_known_to_be_sent
}

async fn a_death_becomes_a_row_with_all_that_is_known(own: &Own) {
    let store = own.store().await;
    let death = death("work");
    let before = store.now().await.expect("now");
    let answer = store
        .collect(std::slice::from_ref(&death), much_later)
        .await;
    assert_eq!(answer.expect("collect"), [Collected::New]);
    let row = store.failed_message(death.id).await.expect("the row");
    assert_eq!(row.queue, death.queue);
    assert_eq!(row.exchange, death.exchange);
    assert_eq!(row.routing_key, death.routing_key);
    assert_eq!(row.publish_id, death.publish_id);
    assert_eq!(row.message, death.message);
    assert_eq!(row.error, death.error);
    assert_eq!(row.reason, Reason::Rejected);
    assert_eq!(row.operation_id, None);
    assert_eq!(row.comment, None);
    assert!(row.failed_at >= before);
    assert_eq!(row.last_failed_at, row.failed_at);
    assert_eq!(row.updated_at, row.failed_at);
    let state = &row.state;
    assert_eq!(state.status, Status::Pending);
    assert_eq!(
        (state.attempt, state.retry_count, state.max_retries),
        (1, 0, MAX_RETRIES)
    );
    assert!(state.next_retry_at.expect("due") > row.failed_at + Duration::from_secs(2800));
    let attempts = store.attempts(death.id).await.expect("attempts");
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].number, 1);
    assert_eq!(attempts[0].outcome, Some(Outcome::Died));
    assert_eq!(attempts[0].error.kind, death.error.kind);
    assert_eq!(attempts[0].error.message, death.error.message);
    assert_eq!(attempts[0].ended_at, Some(row.failed_at));
    let unknown = store.failed_message(Uuid::now_v7()).await;
    assert!(matches!(unknown, Err(Error::NotFound)), "{unknown:?}");
    store.close().await;
}

async fn payload_and_headers_come_back_byte_for_byte(own: &Own) {
    let store = own.store().await;
    let every_byte: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let deep = Table::from([
        ("text\0".to_owned(), Value::Text(every_byte.clone())),
        ("bytes".to_owned(), Value::Blob(every_byte.clone())),
        (
            "list".to_owned(),
            Value::Array(vec![Value::Void, Value::F64(-0.0)]),
        ),
    ]);
    let large: Bytes = (0..4 * 1024 * 1024_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect::<Vec<u8>>()
        .into();
    for payload in [Bytes::new(), every_byte, large] {
        let mut death = death("work");
        death.message = Message {
            kind: Some("order.created\0".to_owned()),
            priority: Some(9),
            timestamp: Some(u64::MAX),
            headers: Table::from([
                ("deep".to_owned(), Value::Table(deep.clone())),
                ("é".to_owned(), Value::I64(i64::MIN)),
            ]),
            payload,
            ..death.message
        };
        assert_eq!(collect(&store, &death).await, Collected::New);
        let row = store.failed_message(death.id).await.expect("the row");
        assert!(row.message == death.message, "another message came back");
        let claimed = claim(&store, "work").await;
        assert!(claimed.message.message == death.message, "was claimed");
    }
    store.close().await;
}

async fn a_batch_may_be_larger_than_a_statement(own: &Own) {
    let store = own.store().await;
    let large = |n: u8| {
        let mut death = death("work");
        death.message.payload = vec![n; 4 * 1024 * 1024].into();
        death
    };
    let mut deaths: Vec<_> = (0..6).map(large).collect();
    deaths.extend((0..1200).map(|_| death("work")));
    let answer = store.collect(&deaths, much_later).await.expect("collect");
    assert_eq!(answer, vec![Collected::New; deaths.len()]);
    for death in &deaths[..6] {
        let row = store.failed_message(death.id).await.expect("the row");
        assert!(row.message.payload == death.message.payload);
    }
    let count = store.count(&Filter::default()).await.expect("count");
    assert_eq!(count, 1206);
    store.close().await;
}

async fn texts_with_nul_are_kept_without_it(own: &Own) {
    let store = own.store().await;
    let mut death = death("a\0queue");
    death.exchange = "an\0exchange".to_owned();
    death.routing_key = "\0".to_owned();
    death.publish_id = Some("p\0".to_owned());
    death.message.message_id = Some("m\0".to_owned());
    death.error = error("T\0", "no\0answer");
    death.error.stack = "at\0main".to_owned();
    assert_eq!(collect(&store, &death).await, Collected::New);
    let row = store.failed_message(death.id).await.expect("the row");
    let shown = |text: &str| text.replace('\0', "\u{fffd}");
    assert_eq!(row.queue, shown(&death.queue));
    assert_eq!(row.exchange, shown(&death.exchange));
    assert_eq!(row.routing_key, shown(&death.routing_key));
    assert_eq!(row.error.kind, shown(&death.error.kind));
    assert_eq!(row.error.message, shown(&death.error.message));
    assert_eq!(row.error.stack, shown(&death.error.stack));
    assert_eq!(row.message, death.message);

    // The same again, as a retry that dies, and in every question.
    let retried = claim(&store, &row.queue).await.message;
    let again = Death {
        error: death.error.clone(),
        queue: death.queue.clone(),
        ..death_of(&retried)
    };
    assert_eq!(collect(&store, &again).await, Collected::Again);
    let filter = Filter {
        queue: Some(death.queue.clone()),
        message_id: death.message.message_id.clone(),
        error_text: Some("o\0a".to_owned()),
        ..Filter::default()
    };
    let page = store.failed_messages(&filter, None, 10).await;
    assert_eq!(page.expect("list").rows.len(), 1);
    let groups = store.groups(Some(&death.queue), None, 10).await;
    assert_eq!(groups.expect("groups").rows.len(), 1);
    let stats = store.stats(Some(&death.queue)).await.expect("stats");
    assert_eq!(stats.queues.len(), 1);
    let resolved = store.resolve(row.id, "why\0not").await.expect("resolve");
    assert_eq!(resolved.comment, Some(shown("why\0not")));
    store.close().await;
}

async fn names_have_up_to_255_characters_of_any_kind(own: &Own) {
    let store = own.store().await;
    let name = "🦀".repeat(255);
    let mut death = death(&name);
    death.exchange = name.clone();
    death.routing_key = name.clone();
    death.message.message_id = Some(name.clone());
    death.error = error(&"é".repeat(2048), &"🦀".repeat(1024));
    assert_eq!(collect(&store, &death).await, Collected::New);
    let row = store.failed_message(death.id).await.expect("the row");
    assert_eq!(row.queue, name);
    assert_eq!(row.exchange, name);
    assert_eq!(row.routing_key, name);
    assert_eq!(row.error, death.error);
    assert_eq!(claim(&store, &name).await.message.id, death.id);
    store.close().await;
}

async fn names_that_differ_in_case_or_spaces_are_different(own: &Own) {
    let store = own.store().await;
    let names = ["work", "Work", "work ", "wórk", "work\u{301}"];
    for name in names {
        let mut death = death(name);
        death.publish_id = Some("the same".to_owned());
        death.message.message_id = Some(name.to_owned());
        death.error = error(name, "no answer");
        assert_eq!(collect(&store, &death).await, Collected::New);
    }
    for name in names {
        let by_queue = Filter {
            queue: Some(name.to_owned()),
            ..Filter::default()
        };
        let by_message = Filter {
            message_id: Some(name.to_owned()),
            ..Filter::default()
        };
        for filter in [by_queue, by_message] {
            let page = store.failed_messages(&filter, None, 10).await;
            let page = page.expect("list");
            assert_eq!(page.rows.len(), 1, "{name:?}");
            assert_eq!(page.rows[0].queue, name);
        }
    }
    let stats = store.stats(None).await.expect("stats");
    assert_eq!(stats.queues.len(), names.len());
    let mut waiting = store.waiting_queues().await.expect("queues");
    waiting.sort();
    let mut names = names.map(str::to_owned);
    names.sort();
    assert_eq!(waiting, names);
    store.close().await;
}

async fn a_publish_id_of_any_length_is_taken(own: &Own) {
    let store = own.store().await;
    let mut death = death("work");
    death.publish_id = Some("é".repeat(300));
    assert_eq!(collect(&store, &death).await, Collected::New);
    let again = Death {
        id: Uuid::now_v7(),
        ..death.clone()
    };
    assert_eq!(collect(&store, &again).await, Collected::Duplicate);
    let other = Death {
        id: Uuid::now_v7(),
        publish_id: Some("é".repeat(299)),
        ..death
    };
    assert_eq!(collect(&store, &other).await, Collected::New);
    store.close().await;
}

async fn the_same_death_again_is_the_same_row(own: &Own) {
    let store = own.store().await;
    let first = death("work");
    // Other ids, since each reading of a dead letter proposes one.
    let copies = [first.clone(), death_again(&first), death_again(&first)];
    let answer = store.collect(&copies, at_once).await.expect("collect");
    assert_eq!(
        answer,
        [Collected::New, Collected::Duplicate, Collected::Duplicate]
    );
    assert_eq!(
        collect(&store, &death_again(&first)).await,
        Collected::Duplicate
    );
    // Nor while it is retried, or afterwards.
    let claimed = claim(&store, "work").await;
    assert_eq!(
        collect(&store, &death_again(&first)).await,
        Collected::Duplicate
    );
    let quiet_period = Duration::from_secs(600);
    let sent = Sent::Confirmed { quiet_period };
    let sent = store.sent(claimed.message.id, claimed.token, sent).await;
    assert_eq!(sent.expect("sent").state.status, Status::Retrying);
    assert_eq!(
        collect(&store, &death_again(&first)).await,
        Collected::Duplicate
    );
    let rows = store.failed_messages(&Filter::default(), None, 10).await;
    assert_eq!(rows.expect("list").rows.len(), 1);
    store.close().await;
}

fn death_again(death: &Death) -> Death {
    Death {
        id: Uuid::now_v7(),
        redelivered: true,
        ..death.clone()
    }
}

async fn the_same_death_from_many_at_once_is_one_row(own: &Own) {
    let store = own.store().await;
    for _ in 0..10 {
        let deaths: Vec<_> = (0..20).map(|_| death("work")).collect();
        let collecting: Vec<_> = (0..8)
            .map(|n| {
                let (store, mut deaths) = (store.clone(), deaths.clone());
                deaths.rotate_left(n);
                for death in &mut deaths {
                    death.id = Uuid::now_v7();
                }
                tokio::spawn(async move { store.collect(&deaths, at_once).await })
            })
            .collect();
        let mut new = 0;
        for task in collecting {
            let answer = task.await.expect("no panic").expect("collect");
            new += answer.iter().filter(|one| **one == Collected::New).count();
        }
        assert_eq!(new, deaths.len());
    }
    assert_eq!(store.count(&Filter::default()).await.expect("count"), 200);
    let stats = store.stats(None).await.expect("stats");
    assert_eq!(stats.queues[0].counts.pending, 200);
    store.close().await;
}

async fn each_queue_of_a_fan_out_has_a_row(own: &Own) {
    let store = own.store().await;
    let billing = death("billing");
    let shipping = Death {
        id: Uuid::now_v7(),
        queue: "shipping".to_owned(),
        ..billing.clone()
    };
    let answer = store.collect(&[billing, shipping], at_once).await;
    assert_eq!(answer.expect("collect"), [Collected::New, Collected::New]);
    store.close().await;
}

async fn without_a_publish_id_each_death_is_a_row(own: &Own) {
    let store = own.store().await;
    let one = Death {
        publish_id: None,
        ..death("work")
    };
    let other = death_again(&one);
    let answer = store.collect(&[one, other.clone()], at_once).await;
    assert_eq!(answer.expect("collect"), [Collected::New, Collected::New]);
    assert_eq!(collect(&store, &death_again(&other)).await, Collected::New);
    store.close().await;
}

/// A consumer that copies headers into messages of its own copies their publish-id.
async fn other_messages_with_a_copied_publish_id_are_rows_of_their_own(own: &Own) {
    let store = own.store().await;
    let one = death("lines");
    let other = |payload: &'static str| Death {
        message: Message {
            payload: payload.into(),
            ..one.message.clone()
        },
        ..death_again(&one)
    };
    let batch = [one.clone(), other("line 2"), death_again(&one)];
    let answer = store.collect(&batch, at_once).await.expect("collect");
    assert_eq!(
        answer,
        [Collected::New, Collected::New, Collected::Duplicate]
    );
    assert_eq!(collect(&store, &other("line 3")).await, Collected::New);
    assert_eq!(
        collect(&store, &death_again(&one)).await,
        Collected::Duplicate
    );
    store.close().await;
}

/// A consumer copied a retry's headers into a message of its own, in the same queue.
async fn another_message_with_a_retrys_headers_is_a_row_of_its_own(own: &Own) {
    let store = own.store().await;
    let first = collected(&store, "work").await;
    let claimed = claim(&store, "work").await;
    let before = store.failed_message(first.id).await.expect("the row");
    let other = Death {
        message: Message {
            payload: "another".into(),
            ..first.message.clone()
        },
        ..death_of(&claimed.message)
    };
    assert_eq!(collect(&store, &other).await, Collected::New);
    let after = store.failed_message(first.id).await.expect("the row");
    assert_eq!(after, before);
    let row = store.failed_message(other.id).await.expect("the row");
    assert_eq!(row.message.payload, other.message.payload);
    store.close().await;
}

async fn a_retry_that_dies_is_the_same_row_until_none_is_left(own: &Own) {
    let store = own.store().await;
    let row = collected(&store, "work").await;
    for n in 1..=MAX_RETRIES {
        let claimed = claim(&store, "work").await;
        assert_eq!(claimed.message.state.attempt, n + 1);
        assert_eq!(claimed.message.state.retry_count, n);
        let mut death = death_of(&claimed.message);
        death.error = error("Timeout", &format!("no answer in attempt {}", n + 1));
        death.reason = Reason::Expired;
        assert_eq!(collect(&store, &death).await, Collected::Again);
        let now = store.failed_message(row.id).await.expect("the row");
        assert_eq!(now.error, death.error);
        assert_eq!(now.reason, Reason::Expired);
        assert_eq!(now.failed_at, row.failed_at);
        assert!(now.last_failed_at > row.last_failed_at);
        assert_eq!(now.state.retry_count, n);
        let expected = if n < MAX_RETRIES {
            Status::Pending
        } else {
            Status::Failed
        };
        assert_eq!(now.state.status, expected);
        // The same dead letter once more.
        assert_eq!(
            collect(&store, &death_again(&death)).await,
            Collected::Duplicate
        );
    }
    let attempts = store.attempts(row.id).await.expect("attempts");
    let numbers: Vec<_> = attempts.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    for entry in &attempts[1..] {
        assert_eq!(entry.outcome, Some(Outcome::Died));
        assert!(!entry.manual);
        assert!(entry.started_at.expect("begun") <= entry.ended_at.expect("ended"));
        let expected = format!("no answer in attempt {}", entry.number);
        assert_eq!(entry.error.message, expected);
    }
    // All four deaths are of one kind, but for the first one's text.
    let groups = store.groups(None, None, 10).await.expect("groups").rows;
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].error_message, "no answer in attempt #");
    assert_eq!(groups[0].counts.failed, 1);
    store.close().await;
}

async fn a_retry_of_a_deleted_row_brings_it_back(own: &Own) {
    let store = own.store().await;
    let id = Uuid::now_v7();
    let retried = Death {
        failed_id: Some(id),
        attempt: 3,
        ..death("work")
    };
    let answer = store
        .collect(&[retried.clone(), retried.clone()], at_once)
        .await;
    assert_eq!(
        answer.expect("collect"),
        [Collected::New, Collected::Duplicate]
    );
    assert_eq!(collect(&store, &retried).await, Collected::Duplicate);
    let row = store.failed_message(id).await.expect("the row has that id");
    assert_eq!((row.state.attempt, row.state.retry_count), (3, 2));
    assert_eq!(row.message, retried.message);
    store.close().await;
}

async fn a_retry_that_died_in_another_queue_is_another_row(own: &Own) {
    let store = own.store().await;
    let row = collected(&store, "work").await;
    let retried = claim(&store, "work").await.message;
    let elsewhere = Death {
        queue: "other".to_owned(),
        ..death_of(&retried)
    };
    assert_eq!(collect(&store, &elsewhere).await, Collected::New);
    let other = store.failed_message(elsewhere.id).await.expect("a row");
    assert_eq!(other.queue, "other");
    let row = store.failed_message(row.id).await.expect("the row");
    assert_eq!(row.state.status, Status::Retrying);
    store.close().await;
}

async fn a_parked_death_is_failed(own: &Own) {
    let store = own.store().await;
    let death = Death {
        next: Next::Park,
        ..death("work")
    };
    assert_eq!(collect(&store, &death).await, Collected::New);
    let row = store.failed_message(death.id).await.expect("the row");
    assert_eq!(row.state.status, Status::Failed);
    assert_eq!(row.state.next_retry_at, None);
    store.close().await;
}

async fn a_delay_of_the_consumers_own_is_kept(own: &Own) {
    let store = own.store().await;
    for delay in [Duration::from_secs(7200), Duration::MAX] {
        let death = Death {
            next: Next::Retry(Some(delay)),
            ..death("work")
        };
        assert_eq!(collect(&store, &death).await, Collected::New);
        let row = store.failed_message(death.id).await.expect("the row");
        let due = row.state.next_retry_at.expect("it is due one day");
        let from_death = (due - row.failed_at).to_std().expect("later");
        if delay == Duration::MAX {
            assert!(from_death > Duration::from_secs(24 * 60 * 60));
        } else {
            assert_eq!(from_death, delay);
        }
    }
    store.close().await;
}

async fn a_death_after_the_end_reopens_the_row(own: &Own) {
    let store = own.store().await;
    let row = collected(&store, "work").await;
    store.resolve(row.id, "done").await.expect("resolve");
    let claimed = store.claim_one(row.id, Duration::from_secs(60)).await;
    assert!(
        matches!(claimed, Err(Error::Conflict(Status::Resolved))),
        "{claimed:?}"
    );
    let late = Death {
        redelivered: false,
        ..death_of(&row)
    };
    assert_eq!(collect(&store, &late).await, Collected::Again);
    let row = store.failed_message(row.id).await.expect("the row");
    assert_eq!(row.state.status, Status::Pending);
    assert_eq!(row.state.resolution, None);
    assert_eq!(row.state.resolved_at, None);
    store.close().await;
}

async fn a_dead_letter_that_comes_again_reopens_nothing(own: &Own) {
    let store = own.store().await;
    let row = collected(&store, "work").await;
    store.resolve(row.id, "done").await.expect("resolve");
    let again = death_again(&death_of(&row));
    assert_eq!(collect(&store, &again).await, Collected::Duplicate);
    let row = store.failed_message(row.id).await.expect("the row");
    assert_eq!(row.state.resolution, Some(Resolution::Manual));
    store.close().await;
}

async fn a_retry_may_die_before_it_is_known_to_be_sent(own: &Own) {
    let store = own.store().await;
    let row = collected(&store, "work").await;
    let claimed = claim(&store, "work").await;
    let death = death_of(&claimed.message);
    assert_eq!(collect(&store, &death).await, Collected::Again);
    let quiet_period = Duration::ZERO;
    let sent = Sent::Confirmed { quiet_period };
    let now = store.sent(row.id, claimed.token, sent).await.expect("sent");
    assert_eq!(now.state.status, Status::Pending);
    assert_eq!(now.state.attempt, 2);
    assert_eq!(store.reap().await.expect("reap").assumed, 0);
    store.close().await;
}
