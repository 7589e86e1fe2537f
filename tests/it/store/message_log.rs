//! The message log: entries and events, in whatever order they are written.

use std::{sync::Arc, time::Duration};

use courtier::{
    failed_message::Time,
    message::{Message, Table, Value},
    store::{
        Cursor, Entry, Error, Event, EventKind, Happened, LogFilter, LogStatus, Logged, Settlement,
        Store, What,
    },
};
use uuid::Uuid;

use super::database::{Own, on_each, on_servers};

on_each! {
    an_entry_comes_back_with_all_that_is_known
    texts_of_any_kind_are_taken
    a_batch_may_be_larger_than_a_statement
    publishes_of_one_message_make_one_entry
    a_publish_without_an_entry_is_noted_where_there_is_one
    what_is_written_before_the_publish_counts
    the_status_follows_from_what_happened_whatever_the_batches
    a_timeline_is_in_the_order_of_time_and_shows_nothing_twice
    a_long_timeline_is_cut_at_its_beginning
    pages_part_messages_of_the_same_moment
    filters_are_met_together
    a_rare_message_is_found_in_steps
    what_is_old_is_forgotten_with_its_events
    the_size_of_a_log_is_known_about_and_the_oldest_of_it_go_first
}

mod replicas {
    use super::*;

    on_servers! {
        the_same_messages_from_two_replicas_are_one_entry_each
        an_ack_that_another_replica_writes_at_the_same_moment_counts
    }

    /// Published through one, acked through the other.
    async fn an_ack_that_another_replica_writes_at_the_same_moment_counts(own: &Own) {
        let (one, other) = (own.store().await, own.store().await);
        for round in 0..30 {
            let ids = (0..20).map(|n| format!("{round}-{n}"));
            let lives: Vec<[Event; 2]> = ids.map(|id| whole(&id)).collect();
            let publishes: Vec<Event> = lives.iter().map(|[publish, _]| publish.clone()).collect();
            let acks: Vec<Event> = lives.iter().map(|[_, ack]| ack.clone()).collect();
            let both = tokio::join!(one.log(&publishes), other.log(&acks));
            both.0.expect("log");
            both.1.expect("log");
        }
        let published = LogFilter {
            status: Some(LogStatus::Published),
            ..LogFilter::default()
        };
        assert_eq!(ids(&list(&one, &published, None, 1_000).await), [""; 0]);
        let all = list(&one, &LogFilter::default(), None, 1_000).await;
        assert_eq!(all.len(), 600);
        assert!(all.iter().all(|entry| entry.delivered_at.is_some()));
        one.close().await;
        other.close().await;
    }

    async fn the_same_messages_from_two_replicas_are_one_entry_each(own: &Own) {
        let (one, other) = (own.store().await, own.store().await);
        for _ in 0..10 {
            let there: Vec<Event> = (0..50).flat_map(|n| whole(&n.to_string())).collect();
            let back: Vec<Event> = (0..50).rev().flat_map(|n| whole(&n.to_string())).collect();
            let both = tokio::join!(one.log(&there), other.log(&back));
            both.0.expect("log");
            both.1.expect("log");
        }
        let listed = list(&one, &LogFilter::default(), None, 100).await;
        assert_eq!(listed.len(), 50);
        assert!(
            listed
                .iter()
                .all(|entry| entry.status == LogStatus::Delivered)
        );
        one.close().await;
        other.close().await;
    }
}

fn at(seconds: i64) -> Time {
    Time::from_timestamp(1_700_000_000 + seconds, 123_456_000).expect("a time")
}

fn entry(payload: &str) -> Entry {
    Entry {
        publish_id: Uuid::now_v7(),
        exchange: "events".to_owned(),
        routing_key: "order.created".to_owned(),
        message: Message {
            payload: payload.to_owned().into(),
            ..Message::default()
        },
        keeps_payload: true,
        payload_size: payload.len(),
    }
}

fn published_as(id: &str, seconds: i64, entry: Entry) -> Event {
    Event {
        message_id: id.to_owned(),
        at: at(seconds),
        queue: Arc::default(),
        attempt: 0,
        what: What::Published {
            outcome: "CONFIRMED",
            entry: Some(Box::new(entry)),
        },
    }
}

fn published(id: &str, seconds: i64) -> Event {
    published_as(id, seconds, entry("x"))
}

fn settled(id: &str, seconds: i64, attempt: u32, how: Settlement) -> Event {
    Event {
        queue: "work".into(),
        attempt,
        what: What::Settled(how),
        ..published(id, seconds)
    }
}

fn failed(id: &str, seconds: i64) -> Event {
    Event {
        what: What::Failed {
            detail: "REJECTED".to_owned(),
        },
        ..settled(id, seconds, 1, Settlement::Ack)
    }
}

/// All of an ordinary message's life.
fn whole(id: &str) -> [Event; 2] {
    [published(id, 1), settled(id, 2, 1, Settlement::Ack)]
}

async fn log(store: &Store, events: &[Event]) {
    store.log(events).await.expect("log");
}

async fn get(store: &Store, id: &str) -> (Logged, Vec<Happened>) {
    store.logged_message(id).await.expect("the entry")
}

async fn list(
    store: &Store,
    filter: &LogFilter,
    after: Option<&Cursor>,
    limit: u64,
) -> Vec<Logged> {
    let page = store.logged_messages(filter, after, limit).await;
    page.expect("list").rows
}

fn ids(rows: &[Logged]) -> Vec<&str> {
    rows.iter().map(|row| row.message_id.as_str()).collect()
}

async fn an_entry_comes_back_with_all_that_is_known(own: &Own) {
    let store = own.store().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let entry = Entry {
        message: Message {
            message_id: Some("m".to_owned()),
            kind: Some("order.created".to_owned()),
            priority: Some(9),
            headers: Table::from([
                ("bytes".to_owned(), Value::Blob(every_byte.clone().into())),
                ("n".to_owned(), Value::I64(i64::MIN)),
            ]),
            payload: every_byte.into(),
            ..Message::default()
        },
        payload_size: 256,
        ..entry("")
    };
    log(&store, &[published_as("m", 1, entry.clone())]).await;
    let (logged, events) = get(&store, "m").await;
    let expected = Logged {
        message_id: "m".to_owned(),
        publish_id: Some(entry.publish_id.to_string()),
        exchange: entry.exchange.clone(),
        routing_key: entry.routing_key.clone(),
        message: entry.message.clone(),
        keeps_payload: true,
        payload_size: 256,
        status: LogStatus::Published,
        published_at: at(1),
        delivered_at: None,
        failed_at: None,
    };
    assert_eq!(logged, expected);
    let event = Happened {
        kind: EventKind::Published,
        at: at(1),
        queue: String::new(),
        attempt: 0,
        detail: "CONFIRMED".to_owned(),
    };
    assert_eq!(events, [event]);
    let listed = list(&store, &LogFilter::default(), None, 9).await;
    let mut brief = expected;
    brief.message.payload = Default::default();
    assert_eq!(listed, [brief]);

    let left_out = Entry {
        keeps_payload: false,
        payload_size: 1 << 40,
        ..super::message_log::entry("")
    };
    log(&store, &[published_as("large", 1, left_out)]).await;
    let (logged, _) = get(&store, "large").await;
    assert_eq!(
        (logged.keeps_payload, logged.payload_size),
        (false, 1 << 40)
    );
    let unknown = store.logged_message("M").await;
    assert!(matches!(unknown, Err(Error::NotFound)), "{unknown:?}");
    store.close().await;
}

async fn texts_of_any_kind_are_taken(own: &Own) {
    let store = own.store().await;
    let long = "🦀".repeat(255);
    for id in ["m\0", "' OR 1=1 --", long.as_str()] {
        let names = Entry {
            exchange: id.to_owned(),
            routing_key: id.to_owned(),
            ..entry("x")
        };
        let mut ack = settled(id, 2, 1, Settlement::Ack);
        ack.queue = id.into();
        log(&store, &[published_as(id, 1, names)]).await;
        log(&store, &[ack, failed(id, 3)]).await;
        let (logged, events) = get(&store, id).await;
        let shown = id.replace('\0', "\u{fffd}");
        assert_eq!((&logged.message_id, &logged.exchange), (&shown, &shown));
        assert_eq!((events.len(), &events[1].queue), (3, &shown));
        assert_eq!(logged.status, LogStatus::Failed);
        let filter = LogFilter {
            exchange: Some(id.to_owned()),
            routing_key: Some(id.to_owned()),
            ..LogFilter::default()
        };
        assert_eq!(ids(&list(&store, &filter, None, 9).await), [shown]);
    }
    store.close().await;
}

async fn a_batch_may_be_larger_than_a_statement(own: &Own) {
    let store = own.store().await;
    let payload = "x".repeat(16 * 1024);
    let mut events = Vec::new();
    for n in 0..1_300 {
        let id = n.to_string();
        events.push(published_as(&id, n, entry(&payload)));
        events.push(settled(&id, n, 1, Settlement::Ack));
    }
    let large = "y".repeat(4 * 1024 * 1024);
    events.push(published_as("large", 0, entry(&large)));
    log(&store, &events).await;
    // Again, when all entries are there.
    let again: Vec<_> = (0..1_300).map(|n| failed(&n.to_string(), n + 1)).collect();
    log(&store, &again).await;
    for n in [0, 127, 128, 1_299] {
        let (logged, events) = get(&store, &n.to_string()).await;
        assert_eq!((logged.status, events.len()), (LogStatus::Failed, 3), "{n}");
        assert_eq!(logged.published_at, at(n));
        assert_eq!(logged.delivered_at, Some(at(n)));
        assert_eq!(logged.failed_at, Some(at(n + 1)));
        assert!(logged.message.payload == payload);
    }
    assert!(get(&store, "large").await.0.message.payload == large);
    let all = list(&store, &LogFilter::default(), None, 2_000).await;
    assert_eq!(all.len(), 1_301);
    store.close().await;
}

async fn publishes_of_one_message_make_one_entry(own: &Own) {
    let store = own.store().await;
    let twice = [
        published_as("m", 1, entry("first")),
        published_as("m", 2, entry("second")),
    ];
    log(&store, &twice).await;
    log(&store, &[published_as("m", 3, entry("third"))]).await;
    let (logged, events) = get(&store, "m").await;
    assert_eq!(
        (&logged.message.payload[..], logged.published_at),
        (&b"first"[..], at(1))
    );
    assert_eq!(events.len(), 3);

    let writing = (0..8).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { store.log(&[published("same", n)]).await })
    });
    for written in futures::future::join_all(writing).await {
        written.expect("no panic").expect("log");
    }
    assert_eq!(get(&store, "same").await.1.len(), 8);
    assert_eq!(list(&store, &LogFilter::default(), None, 9).await.len(), 2);
    store.close().await;
}

async fn a_publish_without_an_entry_is_noted_where_there_is_one(own: &Own) {
    let store = own.store().await;
    let refused = |id: &str, seconds| Event {
        what: What::Published {
            outcome: "UNROUTABLE",
            entry: None,
        },
        ..published(id, seconds)
    };
    log(&store, &[refused("m", 1), refused("none", 1)]).await;
    log(&store, &[published("m", 2), refused("m", 3)]).await;
    log(&store, &[refused("m", 4)]).await;
    let (_, events) = get(&store, "m").await;
    let details: Vec<_> = events.iter().map(|event| &*event.detail).collect();
    assert_eq!(details, ["CONFIRMED", "UNROUTABLE", "UNROUTABLE"]);
    let none = store.logged_message("none").await;
    assert!(matches!(none, Err(Error::NotFound)), "{none:?}");
    // Not even its event is there.
    let raw = own.raw().await;
    let events = raw.number("SELECT COUNT(*) FROM message_log_events").await;
    assert_eq!(events, 3);
    store.close().await;
}

async fn what_is_written_before_the_publish_counts(own: &Own) {
    let store = own.store().await;
    log(&store, &[settled("acked", 2, 1, Settlement::Ack)]).await;
    log(
        &store,
        &[
            failed("failed", 2),
            settled("requeued", 2, 1, Settlement::Requeue),
        ],
    )
    .await;
    let unknown = store.logged_message("acked").await;
    assert!(matches!(unknown, Err(Error::NotFound)), "{unknown:?}");
    log(
        &store,
        &[
            published("acked", 1),
            published("failed", 1),
            published("requeued", 1),
        ],
    )
    .await;
    let (acked, events) = get(&store, "acked").await;
    assert_eq!(
        (acked.status, acked.delivered_at),
        (LogStatus::Delivered, Some(at(2)))
    );
    assert_eq!(events[0].kind, EventKind::Published);
    let (failed, _) = get(&store, "failed").await;
    assert_eq!(
        (failed.status, failed.failed_at),
        (LogStatus::Failed, Some(at(2)))
    );
    assert_eq!(get(&store, "requeued").await.0.status, LogStatus::Published);
    store.close().await;
}

async fn the_status_follows_from_what_happened_whatever_the_batches(own: &Own) {
    let store = own.store().await;
    let life = |id: &str| {
        vec![
            published(id, 1),
            failed(id, 2),
            settled(id, 3, 1, Settlement::Ack),
            settled(id, 4, 2, Settlement::Retry),
            failed(id, 5),
            settled(id, 6, 3, Settlement::Discard),
            settled(id, 7, 1, Settlement::AutoAck),
        ]
    };
    let expected = [
        LogStatus::Published,
        LogStatus::Failed,
        LogStatus::Failed,
        LogStatus::Failed,
        LogStatus::Failed,
        LogStatus::Delivered,
        LogStatus::Delivered,
    ];
    for (event, expected) in life("apart").iter().zip(expected) {
        log(&store, std::slice::from_ref(event)).await;
        assert_eq!(get(&store, "apart").await.0.status, expected, "{event:?}");
    }
    for count in 1..=life("").len() {
        let id = count.to_string();
        log(&store, &life(&id)[..count]).await;
        assert_eq!(
            get(&store, &id).await.0.status,
            expected[count - 1],
            "{count}"
        );
        log(&store, &life(&id)[count..]).await;
        let (whole, _) = get(&store, &id).await;
        assert_eq!(whole.status, LogStatus::Delivered, "{count}");
        // The first of each.
        assert_eq!(
            (whole.delivered_at, whole.failed_at),
            (Some(at(3)), Some(at(2)))
        );
    }
    store.close().await;
}

async fn a_timeline_is_in_the_order_of_time_and_shows_nothing_twice(own: &Own) {
    let store = own.store().await;
    let events = [
        failed("m", 3),
        published("m", 1),
        settled("m", 2, 1, Settlement::Retry),
    ];
    log(&store, &events).await;
    // As when a commit was not answered.
    log(&store, &events).await;
    let (_, events) = get(&store, "m").await;
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(
        kinds,
        [EventKind::Published, EventKind::Settled, EventKind::Failed]
    );
    assert_eq!((&*events[1].queue, events[1].attempt), ("work", 1));
    store.close().await;
}

async fn a_long_timeline_is_cut_at_its_beginning(own: &Own) {
    let store = own.store().await;
    let mut events = vec![published("m", 0)];
    events.extend((1..=1_000).map(|n| settled("m", n, 1, Settlement::Requeue)));
    log(&store, &events).await;
    let (_, events) = get(&store, "m").await;
    assert_eq!(events.len(), 1_000);
    assert_eq!((events[0].at, events[999].at), (at(1), at(1_000)));
    store.close().await;
}

async fn pages_part_messages_of_the_same_moment(own: &Own) {
    let store = own.store().await;
    let names: Vec<String> = (0..7).map(|n| n.to_string()).collect();
    let events: Vec<_> = names.iter().map(|id| published(id, 1)).collect();
    log(&store, &events).await;
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store
            .logged_messages(&LogFilter::default(), after.as_ref(), 3)
            .await;
        let page = page.expect("list");
        seen.extend(page.rows.into_iter().map(|row| row.message_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, names);
    let foreign = Cursor {
        at: at(1),
        name: "no number".to_owned(),
    };
    let page = store
        .logged_messages(&LogFilter::default(), Some(&foreign), 3)
        .await;
    assert!(matches!(page, Err(Error::PageToken)), "{page:?}");
    store.close().await;
}

async fn filters_are_met_together(own: &Own) {
    let store = own.store().await;
    for (n, (exchange, key)) in [("a", "k"), ("a", "l"), ("b", "k"), ("A", "k"), ("a", "k")]
        .into_iter()
        .enumerate()
    {
        let mut names = Entry {
            exchange: exchange.to_owned(),
            routing_key: key.to_owned(),
            ..entry("x")
        };
        // 1 and 4 are of one workflow; the others say nothing, or something else.
        names.message.correlation_id = match n {
            1 | 4 => Some("w".to_owned()),
            2 => Some("W".to_owned()),
            _ => None,
        };
        let seconds = i64::try_from(n).expect("small");
        log(&store, &[published_as(&n.to_string(), seconds, names)]).await;
    }
    log(
        &store,
        &[settled("0", 9, 1, Settlement::Ack), failed("2", 9)],
    )
    .await;
    let filter = |exchange: &str, key: &str, status| LogFilter {
        exchange: (!exchange.is_empty()).then(|| exchange.to_owned()),
        routing_key: (!key.is_empty()).then(|| key.to_owned()),
        status,
        ..LogFilter::default()
    };
    let of = |id: &str, filter: LogFilter| LogFilter {
        correlation_id: Some(id.to_owned()),
        ..filter
    };
    let published = Some(LogStatus::Published);
    let cases = [
        (of("w", filter("", "", None)), vec!["4", "1"]),
        (of("W", filter("", "", None)), vec!["2"]),
        (of("w ", filter("", "", None)), vec![]),
        (of("w", filter("b", "", None)), vec![]),
        (of("w", filter("a", "k", published)), vec!["4"]),
        (
            LogFilter {
                published_before: Some(at(4)),
                ..of("w", filter("", "", None))
            },
            vec!["1"],
        ),
        (filter("a", "", None), vec!["4", "1", "0"]),
        (filter("", "k", None), vec!["4", "3", "2", "0"]),
        (filter("a", "k", None), vec!["4", "0"]),
        (filter("a", "k", Some(LogStatus::Delivered)), vec!["0"]),
        (filter("a", "", Some(LogStatus::Published)), vec!["4", "1"]),
        (filter("", "", Some(LogStatus::Failed)), vec!["2"]),
        (filter("a ", "", None), vec![]),
        (
            LogFilter {
                published_after: Some(at(1)),
                published_before: Some(at(3)),
                ..filter("", "k", None)
            },
            vec!["2"],
        ),
    ];
    for (filter, expected) in cases {
        let rows = list(&store, &filter, None, 9).await;
        assert_eq!(ids(&rows), expected, "{filter:?}");
    }
    store.close().await;
}

async fn a_rare_message_is_found_in_steps(own: &Own) {
    let store = own.store().await;
    let rare = Entry {
        routing_key: "rare".to_owned(),
        ..entry("x")
    };
    log(&store, &[published_as("rare", 0, rare)]).await;
    let many: Vec<_> = (0..10_100)
        .map(|n| published(&n.to_string(), n + 1))
        .collect();
    for some in many.chunks(2_000) {
        log(&store, some).await;
    }
    let filter = LogFilter {
        routing_key: Some("rare".to_owned()),
        ..LogFilter::default()
    };
    let page = store.logged_messages(&filter, None, 5).await.expect("list");
    assert_eq!(ids(&page.rows), [""; 0]);
    let next = page.next.expect("there is more to look at");
    let page = store.logged_messages(&filter, Some(&next), 5).await;
    let page = page.expect("list");
    assert_eq!(ids(&page.rows), ["rare"]);
    assert_eq!(page.next, None);
    store.close().await;
}

async fn what_is_old_is_forgotten_with_its_events(own: &Own) {
    let store = own.store().await;
    let now = store.now().await.expect("now");
    let hours = |hours: i64| now - chrono_hours(hours);
    for n in 0..600 {
        let id = format!("old-{n}");
        let mut life = whole(&id);
        life[0].at = hours(3);
        life[1].at = hours(2);
        log(&store, &life).await;
    }
    let mut young = whole("young");
    young[0].at = hours(0);
    young[1].at = hours(0);
    log(&store, &young).await;
    let mut steps = 0;
    while store
        .forget_log(Duration::from_secs(3_600))
        .await
        .expect("forget")
        .rows
        > 0
    {
        steps += 1;
    }
    assert!(steps > 1, "in steps");
    let left = list(&store, &LogFilter::default(), None, 9).await;
    assert_eq!(ids(&left), ["young"]);
    assert_eq!(get(&store, "young").await.1.len(), 2);
    let raw = own.raw().await;
    let events = raw.number("SELECT COUNT(*) FROM message_log_events").await;
    assert_eq!(events, 2);
    store.close().await;
}

fn chrono_hours(hours: i64) -> Duration {
    Duration::from_secs(u64::try_from(hours).expect("not negative") * 3_600)
}

/// Lives of so many messages, a second apart, of which every tenth is large.
fn lives(numbers: std::ops::Range<i64>) -> Vec<Event> {
    let life = |n: i64| {
        let payload = if n % 10 == 0 {
            "x".repeat(2_000)
        } else {
            "x".to_owned()
        };
        let id = format!("m-{n:06}");
        [
            published_as(&id, n, entry(&payload)),
            settled(&id, n, 1, Settlement::Ack),
        ]
    };
    numbers.flat_map(life).collect()
}

async fn the_size_of_a_log_is_known_about_and_the_oldest_of_it_go_first(own: &Own) {
    let store = own.store().await;
    let size = async || store.log_bytes().await.expect("looked at");
    assert_eq!(size().await, 0);
    log(&store, &lives(0..500)).await;
    let small = size().await;
    let payloads = 50 * 2_000 + 450;
    assert!(
        small > payloads && small < payloads + 1_500 * 400,
        "{small}"
    );
    let step = async || store.forget_oldest().await.expect("forgotten");
    let some = store.forget_log(Duration::from_secs(3_600)).await;
    let some = some.expect("forgotten");
    assert!(
        some.rows > 0 && some.rows <= 1_000,
        "a bounded step: {some:?}"
    );
    assert_eq!(
        size().await,
        small - some.bytes,
        "what is gone is known exactly"
    );
    while step().await.rows > 0 {}
    assert_eq!(size().await, 0);

    // More than is looked at.
    for n in 0..20 {
        log(&store, &lives(n * 500..(n + 1) * 500)).await;
    }
    let estimate = size().await;
    let first = step().await;
    assert!(first.rows > 0 && first.rows <= 1_000, "{first:?}");
    let mut left = list(&store, &LogFilter::default(), None, 10_000).await;
    left.sort_by_key(|entry| entry.published_at);
    assert_eq!(left.last().expect("most").message_id, "m-009999");
    let gone = 10_000 - left.len();
    assert_eq!(
        left[0].message_id,
        format!("m-{gone:06}"),
        "the oldest went"
    );
    let events = get(&store, &left[0].message_id).await.1;
    assert_eq!(events.len(), 2, "with its events");
    let mut all = first.bytes;
    loop {
        let more = step().await;
        all += more.bytes;
        if more.rows == 0 {
            break;
        }
    }
    let (estimate, all) = (i64::try_from(estimate), i64::try_from(all));
    let (estimate, all) = (estimate.expect("fits"), all.expect("fits"));
    assert!((estimate - all).abs() < all / 10, "{estimate} of {all}");
    store.close().await;
}
