//! Lists: each filter lets through what it says, and pages follow each other whatever happens meanwhile.

use std::{collections::HashSet, time::Duration};

use courtier::{
    failed_message::{Death, FailedMessage, Next, Reason, Status, Time},
    store::{Ack, Cursor, Error, Filter, Sent, Store},
};
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{
    database::{Own, on_each},
    deaths::{LEASE, at_once, claim, collect, collected, death, error},
};

on_each! {
    each_filter_lets_through_what_it_says
    times_far_away_are_times_too
    error_text_is_compared_byte_for_byte
    pages_follow_each_other_while_rows_come
    several_states_are_one_list
    a_search_gives_up_after_so_many_rows_and_goes_on_from_there
    what_cannot_be_read_hides_nothing_and_can_be_deleted
    figures_by_queue_and_kind
    groups_come_in_pages_too
}

async fn ids(store: &Store, filter: &Filter) -> HashSet<Uuid> {
    let page = store.failed_messages(filter, None, 100).await;
    let page = page.expect("list");
    assert!(page.next.is_none());
    let ids: HashSet<_> = page.rows.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), page.rows.len());
    let count = store.count(filter).await.expect("count");
    assert_eq!(count, ids.len() as u64);
    ids
}

async fn each_filter_lets_through_what_it_says(own: &Own) {
    let store = own.store().await;
    let plain = death("work");
    let mut other = Death {
        exchange: "Events".to_owned(),
        routing_key: "order.Created".to_owned(),
        reason: Reason::Expired,
        error: error("Refused", "by the bank"),
        next: Next::Park,
        ..death("other")
    };
    other.message.message_id = Some("m-2".to_owned());
    for death in [&plain, &other] {
        collect(&store, death).await;
    }
    let row = store.failed_message(other.id).await.expect("the row");
    let text = |text: &str| Some(text.to_owned());
    let only = [
        Filter {
            queue: text("other"),
            ..Filter::default()
        },
        Filter {
            exchange: text("Events"),
            ..Filter::default()
        },
        Filter {
            routing_key: text("order.Created"),
            ..Filter::default()
        },
        Filter {
            statuses: vec![Status::Failed, Status::Resolved, Status::Failed],
            ..Filter::default()
        },
        Filter {
            reasons: vec![Reason::Returned, Reason::Expired],
            ..Filter::default()
        },
        Filter {
            error_text: text("efuse"),
            ..Filter::default()
        },
        Filter {
            error_text: text("the bank"),
            ..Filter::default()
        },
        Filter {
            failed_after: Some(row.failed_at),
            ..Filter::default()
        },
        Filter {
            fingerprint: Some(row.fingerprint.clone()),
            ..Filter::default()
        },
        Filter {
            message_id: text("m-2"),
            ..Filter::default()
        },
    ];
    for filter in &only {
        assert_eq!(
            ids(&store, filter).await,
            HashSet::from([other.id]),
            "{filter:?}"
        );
        let none = Filter {
            failed_before: Some(row.failed_at),
            ..filter.clone()
        };
        assert_eq!(ids(&store, &none).await, HashSet::new(), "{none:?}");
    }
    let before = Filter {
        failed_before: Some(row.failed_at),
        ..Filter::default()
    };
    assert_eq!(ids(&store, &before).await, HashSet::from([plain.id]));
    let all_of_it = Filter {
        failed_after: Some(row.failed_at),
        failed_before: Some(row.failed_at + Duration::from_micros(1)),
        ..only.into_iter().fold(Filter::default(), |all, one| Filter {
            queue: all.queue.or(one.queue),
            exchange: all.exchange.or(one.exchange),
            routing_key: all.routing_key.or(one.routing_key),
            statuses: [all.statuses, one.statuses].concat(),
            reasons: [all.reasons, one.reasons].concat(),
            error_text: all.error_text.or(one.error_text),
            fingerprint: all.fingerprint.or(one.fingerprint),
            message_id: all.message_id.or(one.message_id),
            ..Filter::default()
        })
    };
    assert_eq!(ids(&store, &all_of_it).await, HashSet::from([other.id]));
    assert_eq!(ids(&store, &Filter::default()).await.len(), 2);
    store.close().await;
}

async fn times_far_away_are_times_too(own: &Own) {
    let store = own.store().await;
    let row = collected(&store, "work").await;
    let time = |text: &str| -> Option<Time> { Some(text.parse().expect("a time")) };
    let past = ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z"];
    let future = ["2038-01-19T03:14:08Z", "9999-12-31T23:59:59.999999Z"];
    for (past, future) in past.into_iter().zip(future) {
        let around = Filter {
            failed_after: time(past),
            failed_before: time(future),
            ..Filter::default()
        };
        assert_eq!(ids(&store, &around).await, HashSet::from([row.id]));
        let cursor = |text: &str| Cursor {
            at: time(text).expect("a time"),
            name: Uuid::nil().to_string(),
        };
        for (at, expected) in [(past, 0), (future, 1)] {
            let cursor = cursor(at);
            let page = store
                .failed_messages(&Filter::default(), Some(&cursor), 9)
                .await;
            assert_eq!(page.expect("list").rows.len(), expected);
            let groups = store.groups(None, Some(&cursor), 9).await;
            assert_eq!(groups.expect("groups").rows.len(), expected);
        }
        let since = async |text| {
            let changes = store.changes(time(text).expect("a time"), 9).await;
            changes.expect("changes").changes.len()
        };
        assert_eq!((since(past).await, since(future).await), (1, 0));
        let begun = store.begin_operation(&around, 1, None).await;
        assert_eq!(begun.expect("begin").matched, 1);
    }
    store.close().await;
}

async fn error_text_is_compared_byte_for_byte(own: &Own) {
    let store = own.store().await;
    let texts = [
        "100% of a_b",
        "100 of aXb",
        "Straße \\ 'x' \"y\"",
        "STRASSE",
    ];
    let mut made = Vec::new();
    for text in texts {
        let death = Death {
            error: error("E", text),
            ..death("work")
        };
        collect(&store, &death).await;
        made.push(death.id);
    }
    let cases: [(&str, &[usize]); 9] = [
        ("%", &[0]),
        ("_", &[0]),
        ("a_b", &[0]),
        ("of a", &[0, 1]),
        ("OF A", &[]),
        ("Straße", &[2]),
        ("strasse", &[]),
        ("\\ 'x' \"", &[2]),
        ("E", &[0, 1, 2, 3]),
    ];
    for (text, expected) in cases {
        let filter = Filter {
            error_text: Some(text.to_owned()),
            ..Filter::default()
        };
        let expected = expected.iter().map(|n| made[*n]).collect();
        assert_eq!(ids(&store, &filter).await, expected, "{text}");
    }
    store.close().await;
}

/// All pages from the first on, `limit` rows each.
async fn pages(store: &Store, filter: &Filter, limit: u64) -> Vec<Vec<FailedMessage>> {
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = store.failed_messages(filter, after.as_ref(), limit).await;
        let page = page.expect("list");
        assert!(page.rows.len() as u64 <= limit);
        pages.push(page.rows);
        after = page.next;
        if after.is_none() {
            return pages;
        }
    }
}

async fn pages_follow_each_other_while_rows_come(own: &Own) {
    let store = own.store().await;
    let mut deaths: Vec<_> = (0..100).map(|_| death("work")).collect();
    // All in one moment: the order among them is that of their ids.
    fastrand::shuffle(&mut deaths);
    store.collect(&deaths, at_once).await.expect("collect");
    let known: HashSet<_> = deaths.iter().map(|death| death.id).collect();
    let more = {
        let store = store.clone();
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            while stopped.try_recv().is_err() {
                collected(&store, "work").await;
                tokio::task::yield_now().await;
            }
        });
        (stop, task)
    };
    for text in [None, Some("no answer".to_owned())] {
        let filter = Filter {
            queue: Some("work".to_owned()),
            error_text: text,
            ..Filter::default()
        };
        let rows = pages(&store, &filter, 7).await.concat();
        let places: Vec<_> = rows.iter().map(|row| (row.failed_at, row.id)).collect();
        assert!(places.windows(2).all(|two| two[0] > two[1]), "newest first");
        let seen: HashSet<_> = rows.iter().map(|row| row.id).collect();
        assert!(seen.is_superset(&known), "none is left out");
    }
    more.0.send(()).expect("it still runs");
    more.1.await.expect("no panic");
    store.close().await;
}

async fn several_states_are_one_list(own: &Own) {
    let store = own.store().await;
    for n in 0..20 {
        let death = Death {
            next: if n % 2 == 0 {
                Next::Park
            } else {
                Next::Retry(None)
            },
            ..death("work")
        };
        collect(&store, &death).await;
        if n % 5 == 0 {
            store.resolve(death.id, "done").await.expect("resolve");
        }
    }
    let statuses = vec![Status::Failed, Status::Pending, Status::Failed];
    for queue in [None, Some("work".to_owned())] {
        let filter = Filter {
            queue,
            statuses: statuses.clone(),
            ..Filter::default()
        };
        let rows = pages(&store, &filter, 3).await.concat();
        assert_eq!(rows.len(), 16);
        let places: Vec<_> = rows.iter().map(|row| (row.failed_at, row.id)).collect();
        assert!(places.windows(2).all(|two| two[0] > two[1]));
        assert!(rows.iter().all(|row| row.state.status != Status::Resolved));
    }
    let all_done = Filter {
        statuses: vec![Status::Resolved],
        ..Filter::default()
    };
    assert_eq!(ids(&store, &all_done).await.len(), 4);
    store.close().await;
}

/// How many rows the store looks at for one page.
const SCAN: i64 = 10_000;

async fn a_search_gives_up_after_so_many_rows_and_goes_on_from_there(own: &Own) {
    let store = own.store().await;
    let first = Death {
        error: error("Rare", "once"),
        ..death("work")
    };
    collect(&store, &first).await;
    collected(&store, "work").await;
    let last = Death {
        error: error("Rare", "once"),
        ..death("work")
    };
    let raw = own.raw().await;
    fill(&raw, 2 * SCAN + 100).await;
    collect(&store, &last).await;
    let filter = Filter {
        error_text: Some("Rare".to_owned()),
        ..Filter::default()
    };
    let pages = pages(&store, &filter, 10).await;
    assert!(pages.len() > 2, "in one go");
    assert_eq!(pages[0].len(), 1);
    assert_eq!(pages[0][0].id, last.id);
    assert!(pages[1].is_empty(), "a page of nothing");
    let rows = pages.concat();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].id, first.id);
    store.close().await;
}

async fn what_cannot_be_read_hides_nothing_and_can_be_deleted(own: &Own) {
    let store = own.store().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(collected(&store, "work").await.id);
    }
    let raw = own.raw().await;
    let damage = async |column: &str, value: &str, id: Uuid| {
        raw.run(&format!(
            "UPDATE failed_messages SET {column} = {value} WHERE id = '{id}'"
        ))
        .await;
    };
    let bytes = match raw.backend() {
        DbBackend::Postgres => r"'\x6f6464'::bytea",
        _ => "x'6f6464'",
    };
    damage("properties", bytes, ids[1]).await;
    damage("resolution", "'odd'", ids[2]).await;
    let all = Filter::default();
    let page = store.failed_messages(&all, None, 10).await.expect("listed");
    let listed: Vec<_> = page.rows.iter().map(|row| row.id).collect();
    assert_eq!(listed, [ids[3], ids[0]]);
    assert_eq!(page.unreadable, [ids[2], ids[1]].map(|id| id.to_string()));
    // Nor does it hold up what is done with many.
    let begun = store.begin_operation(&all, 10, None).await;
    let operation = begun.expect("begun").id;
    store.step_operation().await.expect("a step");
    let operation = store.operation(operation).await.expect("it is there");
    assert_eq!(operation.started, 3);
    let acks = ids.iter().map(|id| Ack {
        id: *id,
        attempt: 1,
        dropped: false,
        queue: "work".to_owned(),
    });
    let acks: Vec<_> = acks.collect();
    store.acked(&acks).await.expect("taken");

    for id in [ids[1], ids[2]] {
        let unreadable = store.failed_message(id).await;
        assert!(matches!(unreadable, Err(Error::Damaged { .. })));
        store.delete(id).await.expect("deleted");
    }
    let page = store.failed_messages(&all, None, 10).await.expect("listed");
    assert_eq!((page.rows.len(), page.unreadable.len()), (2, 0));
    let stats = store.stats(None).await.expect("counted");
    assert_eq!(stats.queues[0].counts.all(), 2);
    store.close().await;
}

/// Copies ordinary rows until there are so many.
async fn fill(raw: &super::database::Raw, rows: i64) {
    loop {
        let there = raw.number("SELECT COUNT(*) FROM failed_messages").await;
        if there >= rows {
            return;
        }
        raw.run(&super::database::doubling(
            raw.backend(),
            "error_type <> 'Rare'",
        ))
        .await;
    }
}

async fn figures_by_queue_and_kind(own: &Own) {
    let store = own.store().await;
    let empty = store.stats(None).await.expect("stats");
    assert!(empty.queues.is_empty() && empty.oldest.is_none());
    let resolved = collected(&store, "work").await;
    store.resolve(resolved.id, "done").await.expect("resolve");
    let mut retried = death("work");
    retried.error = error("Other", "kind");
    collect(&store, &retried).await;
    let claimed = claim(&store, "work").await;
    let quiet_period = LEASE;
    let sent = Sent::Confirmed { quiet_period };
    let sent = store.sent(retried.id, claimed.token, sent).await;
    let oldest = sent.expect("sent").failed_at;
    collected(&store, "other").await;
    let stats = store.stats(None).await.expect("stats");
    let queues: Vec<_> = stats.queues.iter().map(|one| one.queue.as_str()).collect();
    assert_eq!(queues, ["other", "work"]);
    let work = stats.queues[1].counts;
    assert_eq!(
        (work.pending, work.retrying, work.failed, work.resolved),
        (0, 1, 0, 1)
    );
    assert_eq!(stats.queues[0].counts.pending, 1);
    assert_eq!(stats.oldest, Some(oldest), "resolved ones do not count");
    let one = store.stats(Some("other")).await.expect("stats");
    assert_eq!(one.queues, stats.queues[..1]);
    assert!(one.oldest > stats.oldest);
    assert!(
        store
            .stats(Some("Work"))
            .await
            .expect("stats")
            .queues
            .is_empty()
    );
    assert_eq!(store.waiting_queues().await.expect("queues"), ["other"]);
    store.close().await;
}

async fn groups_come_in_pages_too(own: &Own) {
    let store = own.store().await;
    let mut deaths = Vec::new();
    for n in 0..10 {
        // Letters: numbers do not tell kinds apart.
        let letters = "x".repeat(n + 1);
        for (queue, text) in [("work", &letters), ("other", &letters), ("work", &letters)] {
            deaths.push(Death {
                error: error("E", text),
                ..death(queue)
            });
        }
    }
    store.collect(&deaths, at_once).await.expect("collect");
    let seen_again = Death {
        error: error("E", "xxx"),
        ..death("work")
    };
    let before = store.groups(None, None, 100).await.expect("groups").rows;
    collect(&store, &seen_again).await;
    for (queue, expected) in [(None, 20), (Some("work"), 10)] {
        let (mut groups, mut after) = (Vec::new(), None);
        loop {
            let page = store
                .groups(queue, after.as_ref(), 3)
                .await
                .expect("groups");
            groups.extend(page.rows);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(groups.len(), expected);
        let names: HashSet<_> = groups.iter().map(|group| &group.fingerprint).collect();
        assert_eq!(names.len(), expected);
        assert_eq!(groups[0].error_message, "xxx");
        assert_eq!(groups[0].queue, "work");
        assert_eq!(groups[0].counts.pending, 3);
        assert!(groups[0].last_seen > groups[0].first_seen);
        let earlier = before
            .iter()
            .find(|one| one.fingerprint == groups[0].fingerprint);
        assert_eq!(groups[0].first_seen, earlier.expect("known").first_seen);
        assert!(
            groups[1..]
                .iter()
                .all(|group| group.last_seen == group.first_seen)
        );
    }
    store.close().await;
}
