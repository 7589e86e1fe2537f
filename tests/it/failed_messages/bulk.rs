//! Many failed messages at once: lists, kinds, figures, bulk retries and deletes, and watching them.

use std::{collections::BTreeSet, time::Duration};

use courtier::{
    broker::{
        Broker,
        memory::MemoryBroker,
        topology::{Queue, QueueKind, Topology},
    },
    failed_message::{Death, Next},
    grpc::proto::{
        DeleteFailedMessagesRequest, ErrorDetail, FailedMessage, FailedMessageFilter,
        GetFailedMessageStatsRequest, ListFailedMessageGroupsRequest, ListFailedMessagesRequest,
        ListFailedMessagesResponse, Nack, RetryFailedMessagesRequest, RetryFailedMessagesResponse,
        WatchFailedMessagesRequest,
        failed_message::Status,
        failed_messages_client::FailedMessagesClient,
        list_failed_messages_request::View,
        message::Payload,
        nack::Action,
        retry_failed_messages_response::State,
        watch_failed_messages_response::{Change, change::Kind},
    },
    store::Filter,
};
use tonic::{Code, Status as GrpcStatus, Streaming};

use crate::{
    desk::{Desk, hasty, refuse, slow, told},
    front::{Front, On, from, nack_as, on_both, timely},
    harness::eventually,
    store::{
        database::Own,
        deaths::{at_once, death},
    },
};

on_both! {
    a_bulk_retry_retries_what_the_filter_lets_through_and_says_how_it_went
    a_bulk_retry_goes_on_without_its_caller_and_ends_on_request
    a_bulk_retry_stops_when_too_many_fail_again
    nobody_retries_or_deletes_everything_by_accident
    a_bulk_delete_says_first_what_it_would_delete
    failures_of_one_kind_are_one_group
    pages_lead_from_one_to_the_next_in_their_own_list_only
    payloads_are_listed_on_request_only
    a_watcher_is_told_what_changes
}

impl Desk {
    /// So many messages that a consumer refused for good, with this error.
    async fn failed(&self, bodies: &[&str], kind: &str, message: &str) {
        self.front.fill(&self.queue, bodies).await;
        let before = self.all().await.len();
        let mut stream = self.front.subscribe(from(&[&self.queue])).await;
        for (n, delivery) in stream
            .deliveries(bodies.len())
            .await
            .into_iter()
            .enumerate()
        {
            stream.send(nack_as(Nack {
                ack_id: delivery.ack_id,
                action: Action::DeadLetter.into(),
                error: Some(ErrorDetail {
                    r#type: kind.to_owned(),
                    message: message.replace("{}", &n.to_string()),
                    stack: String::new(),
                }),
                ..Nack::default()
            }));
            stream.results(1).await;
        }
        stream.half_close();
        stream.end().await.expect("it ends well");
        eventually("they are collected", || async {
            self.all().await.len() == before + bodies.len()
        })
        .await;
    }

    fn filter(&self) -> Option<FailedMessageFilter> {
        Some(FailedMessageFilter {
            queue: self.queue.clone(),
            ..Default::default()
        })
    }

    async fn bulk(
        &self,
        request: RetryFailedMessagesRequest,
    ) -> Result<Streaming<RetryFailedMessagesResponse>, GrpcStatus> {
        let started = timely(self.failed.clone().retry_failed_messages(request)).await?;
        Ok(started.into_inner())
    }

    async fn list(
        &self,
        request: ListFailedMessagesRequest,
    ) -> Result<ListFailedMessagesResponse, GrpcStatus> {
        let listed = timely(self.failed.clone().list_failed_messages(request)).await?;
        Ok(listed.into_inner())
    }
}

/// The last that a bulk retry says.
async fn end(mut progress: Streaming<RetryFailedMessagesResponse>) -> RetryFailedMessagesResponse {
    let mut last = None;
    while let Some(next) = timely(progress.message()).await.expect("it goes on") {
        last = Some(next);
    }
    last.expect("at least one")
}

async fn a_bulk_retry_retries_what_the_filter_lets_through_and_says_how_it_went(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.failed(&["1", "2", "3", "4"], "Timeout", "no answer")
        .await;
    desk.failed(&["other"], "Declined", "no").await;
    let timeouts = FailedMessageFilter {
        error_text: "answer".to_owned(),
        ..desk.filter().expect("set")
    };
    let request = RetryFailedMessagesRequest {
        filter: Some(timeouts),
        dry_run: true,
        ..Default::default()
    };
    let would = end(desk.bulk(request.clone()).await.expect("counted")).await;
    assert_eq!(
        (would.matched, would.started, would.state()),
        (4, 0, State::Done)
    );
    assert!(would.operation_id.is_empty());

    let real = RetryFailedMessagesRequest {
        dry_run: false,
        limit: 3,
        rate: 1_000,
        ..request
    };
    let progress = desk.bulk(real).await.expect("started");
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    for delivery in stream.deliveries(3).await {
        assert_eq!(delivery.attempt, 2);
        stream.ack(&[&delivery.ack_id]).await;
    }
    let end = end(progress).await;
    assert_eq!(end.state(), State::Done, "{end:?}");
    assert_eq!(
        (end.matched, end.started, end.succeeded, end.waiting),
        (4, 3, 3, 0)
    );
    let mut bodies = Vec::new();
    for row in desk.all().await {
        if row.status() == Status::Failed {
            let row = desk.get(&row.id).await.expect("there");
            bodies.push(row.message.and_then(|message| message.payload));
        }
    }
    // The oldest go first.
    let left = ["other", "4"].map(|body| Some(Payload::Data(body.into())));
    assert_eq!(bodies, left);
}

/// Not so many a round: the round after the first one is an hour away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_bulk_retry_asks_for_is_sent_without_waiting_for_the_next_round() {
    const COUNT: usize = 300;
    let own = Own::file();
    let store = own.store().await;
    let parked = || Death {
        next: Next::Park,
        ..death("work")
    };
    let deaths: Vec<_> = std::iter::repeat_with(parked).take(COUNT).collect();
    store.collect(&deaths, at_once).await.expect("stored");
    let begun = store.begin_operation(&Filter::default(), 1_000, None).await;
    let operation = begun.expect("begun").id;
    store.close().await;

    let memory = MemoryBroker::new();
    let topology = Topology {
        queues: vec![Queue::bare("work", QueueKind::Classic)],
        ..Topology::default()
    };
    memory.declare(&topology).await.expect("declared");
    let front = Front::of(memory.clone(), Some(memory), |setup| {
        setup.config.database = own.options();
        setup.config.retries.poll = Duration::from_secs(3_600);
    })
    .await;
    eventually("all are in the queue", async || {
        let queue = front.broker.admin().queue("work").await;
        queue.expect("it is there").ready == u64::try_from(COUNT).ok()
    })
    .await;
    let failed = FailedMessagesClient::new(front.channel().await);
    let retrying = || async {
        let request = ListFailedMessagesRequest {
            page_size: 1_000,
            ..Default::default()
        };
        let listed = timely(failed.clone().list_failed_messages(request)).await;
        let rows = listed.expect("listed").into_inner().failed_messages;
        let of_it = |row: &FailedMessage| {
            row.operation_id == operation.to_string()
                && row.status() == Status::Retrying
                && row.last_retry_at.is_some()
        };
        rows.iter().filter(|row| of_it(row)).count()
    };
    eventually("that is written of each", || async {
        retrying().await == COUNT
    })
    .await;
    let once = front.drain("work").await;
    assert!(once.iter().all(|delivery| delivery.attempt == 2));
    let ids: BTreeSet<_> = once.iter().map(|one| &one.failed_message_id).collect();
    assert_eq!((once.len(), ids.len()), (COUNT, COUNT));
}

async fn a_bulk_retry_goes_on_without_its_caller_and_ends_on_request(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.failed(&["1", "2"], "Timeout", "no answer").await;
    let request = RetryFailedMessagesRequest {
        filter: desk.filter(),
        ..Default::default()
    };
    let mut progress = desk.bulk(request).await.expect("started");
    let first = timely(progress.message())
        .await
        .expect("it goes on")
        .expect("not the end");
    drop(progress);
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let delivered = stream.deliveries(2).await;
    stream.ack(&[&delivered[0].ack_id]).await;

    let follow = RetryFailedMessagesRequest {
        operation_id: first.operation_id.clone(),
        stop: true,
        ..Default::default()
    };
    let stopped = end(desk.bulk(follow.clone()).await.expect("it is known")).await;
    assert_eq!((stopped.state(), stopped.started), (State::Stopped, 2));
    assert!(!stopped.stop_reason.is_empty());
    // What was sent is not called back.
    stream.ack(&[&delivered[1].ack_id]).await;
    for row in desk.all().await {
        desk.becomes(&row.id, Status::Resolved).await;
    }
    for id in ["x", "0190f0f0-0000-7000-8000-000000000000"] {
        let unknown = RetryFailedMessagesRequest {
            operation_id: id.to_owned(),
            ..follow.clone()
        };
        let status = desk.bulk(unknown).await.expect_err("no such operation");
        assert_eq!(
            told(&status),
            (Code::NotFound, "OPERATION_NOT_FOUND".to_owned())
        );
    }
}

async fn a_bulk_retry_stops_when_too_many_fail_again(on: On) {
    let desk = Desk::open(on, slow).await;
    let bodies: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    desk.failed(&bodies, "Timeout", "no answer").await;
    let request = RetryFailedMessagesRequest {
        filter: desk.filter(),
        rate: 25,
        ..Default::default()
    };
    let progress = desk.bulk(request).await.expect("started");
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    for delivery in stream.deliveries(25).await {
        refuse(&mut stream, &delivery.ack_id, Action::DeadLetter).await;
    }
    let end = end(progress).await;
    assert_eq!(end.state(), State::Stopped, "{end:?}");
    assert!(end.failed_again >= 20 && end.succeeded == 0, "{end:?}");
    assert!(
        end.stop_reason.contains("failed again"),
        "{}",
        end.stop_reason
    );
}

async fn nobody_retries_or_deletes_everything_by_accident(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.failed(&["1"], "Timeout", "no answer").await;
    let refused = desk.bulk(RetryFailedMessagesRequest::default()).await;
    let status = refused.expect_err("an empty filter");
    assert_eq!(
        told(&status),
        (Code::InvalidArgument, "INVALID_REQUEST".to_owned())
    );
    let refused = desk
        .failed
        .clone()
        .delete_failed_messages(DeleteFailedMessagesRequest::default())
        .await;
    let status = refused.expect_err("an empty filter");
    assert_eq!(
        told(&status),
        (Code::InvalidArgument, "INVALID_REQUEST".to_owned())
    );
    assert_eq!(desk.all().await.len(), 1);
}

async fn a_bulk_delete_says_first_what_it_would_delete(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.failed(&["1", "2"], "Timeout", "no answer").await;
    desk.failed(&["3"], "Declined", "no").await;
    let busy = desk.all().await.pop().expect("three").id;
    desk.retry(&busy).await.expect("retried");
    let mut request = DeleteFailedMessagesRequest {
        filter: desk.filter(),
        dry_run: true,
        all: false,
    };
    let delete = async |request| {
        let deleted = timely(desk.failed.clone().delete_failed_messages(request)).await;
        let deleted = deleted.expect("carried out").into_inner();
        (deleted.matched, deleted.deleted)
    };
    assert_eq!(delete(request.clone()).await, (2, 0));
    assert_eq!(desk.all().await.len(), 3);
    request.dry_run = false;
    assert_eq!(delete(request).await, (2, 2));
    let left: Vec<_> = desk.all().await.into_iter().map(|row| row.id).collect();
    assert_eq!(left, [busy]);
}

async fn failures_of_one_kind_are_one_group(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.failed(&["1", "2"], "Timeout", "order {} got no answer in 30 s")
        .await;
    desk.failed(&["3"], "Declined", "card 4711").await;
    let request = ListFailedMessageGroupsRequest {
        queue: desk.queue.clone(),
        ..Default::default()
    };
    let groups = timely(desk.failed.clone().list_failed_message_groups(request)).await;
    let groups = groups.expect("listed").into_inner().groups;
    let kinds: Vec<_> = groups
        .iter()
        .map(|group| {
            (
                &*group.error_type,
                &*group.error_message,
                group.count,
                group.failed,
            )
        })
        .collect();
    let expected = [
        ("Declined", "card #", 1, 1),
        ("Timeout", "order # got no answer in # s", 2, 2),
    ];
    assert_eq!(kinds, expected);
    let of_group = ListFailedMessagesRequest {
        filter: Some(FailedMessageFilter {
            fingerprint: groups[1].fingerprint.clone(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let rows = desk.list(of_group).await.expect("listed").failed_messages;
    assert_eq!(rows.len(), 2);

    let request = GetFailedMessageStatsRequest {
        queue: desk.queue.clone(),
    };
    let stats = timely(desk.failed.clone().get_failed_message_stats(request)).await;
    let stats = stats.expect("counted").into_inner();
    assert_eq!((stats.queues.len(), stats.queues[0].failed), (1, 3));
    let oldest = desk.all().await.pop().expect("three").failed_at;
    assert_eq!(stats.oldest_failed_at, oldest);
}

async fn pages_lead_from_one_to_the_next_in_their_own_list_only(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.failed(&["1", "2", "3"], "Timeout", "no answer").await;
    let first = ListFailedMessagesRequest {
        filter: desk.filter(),
        page_size: 2,
        ..Default::default()
    };
    let page = desk.list(first.clone()).await.expect("listed");
    assert_eq!(page.failed_messages.len(), 2);
    let second = ListFailedMessagesRequest {
        page_token: page.next_page_token.clone(),
        ..first
    };
    let rest = desk.list(second.clone()).await.expect("listed");
    assert_eq!(
        (rest.failed_messages.len(), &*rest.next_page_token),
        (1, "")
    );
    let listed = page.failed_messages.iter().chain(&rest.failed_messages);
    let listed: Vec<_> = listed.map(|row| &row.id).collect();
    let all = desk.all().await;
    assert_eq!(listed, all.iter().map(|row| &row.id).collect::<Vec<_>>());

    let elsewhere = ListFailedMessagesRequest {
        filter: None,
        ..second.clone()
    };
    let status = desk.list(elsewhere).await.expect_err("another filter");
    assert_eq!(
        told(&status),
        (Code::InvalidArgument, "INVALID_PAGE_TOKEN".to_owned())
    );
    let negative = ListFailedMessagesRequest {
        page_size: -1,
        ..second
    };
    let status = desk.list(negative).await.expect_err("no such size");
    assert_eq!(
        told(&status),
        (Code::InvalidArgument, "INVALID_REQUEST".to_owned())
    );
}

async fn payloads_are_listed_on_request_only(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.failed(&["1", "2"], "Timeout", "no answer").await;
    let mut request = ListFailedMessagesRequest {
        filter: desk.filter(),
        ..Default::default()
    };
    let payloads = |listed: ListFailedMessagesResponse| {
        let rows = listed.failed_messages.into_iter();
        rows.map(|row| {
            (
                row.attempts.len(),
                row.message.and_then(|message| message.payload),
            )
        })
        .collect::<Vec<_>>()
    };
    let basic = desk.list(request.clone()).await.expect("listed");
    assert_eq!(payloads(basic), [(0, None), (0, None)]);
    request.set_view(View::Full);
    let full = desk.list(request).await.expect("listed");
    let expected = ["2", "1"].map(|body| (1, Some(Payload::Data(body.into()))));
    assert_eq!(payloads(full), expected);
}

async fn a_watcher_is_told_what_changes(on: On) {
    let desk = Desk::open(on, hasty).await;
    let request = WatchFailedMessagesRequest {
        filter: desk.filter(),
    };
    let watching = timely(desk.failed.clone().watch_failed_messages(request)).await;
    let mut watching = watching.expect("it stands").into_inner();
    let mut until = async |wanted: fn(&Change) -> bool| loop {
        let next = timely(watching.message()).await.expect("it goes on");
        let changes = next.expect("not the end").changes;
        if let Some(change) = changes.into_iter().find(&wanted) {
            return change.failed_message.expect("always set").id;
        }
    };
    desk.failed(&["1"], "Timeout", "no answer").await;
    let id = until(|change| is(change, Status::Failed)).await;
    desk.resolve(&id, "done").await.expect("resolved");
    let resolved = until(|change| is(change, Status::Resolved)).await;
    desk.delete(&id).await.expect("deleted");
    let deleted = until(|change| change.kind() == Kind::Deleted).await;
    assert_eq!([&resolved, &deleted], [&id, &id]);
}

fn is(change: &Change, status: Status) -> bool {
    let row = change.failed_message.as_ref();
    change.kind() == Kind::Changed && row.is_some_and(|row| row.status() == status)
}
