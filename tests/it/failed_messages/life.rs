//! Failed messages through the front door: they are collected, retried, resolved, edited and deleted.

use std::time::Duration;

use courtier::grpc::proto::{
    self, Attempt, DeathReason, Message,
    attempt::Outcome,
    failed_message::{Resolution, Status},
    nack::Action,
};
use tonic::Code;

use crate::{
    desk::{Desk, conflict, hasty, refuse, slow, told},
    front::{On, body, from, nack_as, on_both, payload, text, to_queue},
    harness::eventually,
};

on_both! {
    a_refused_message_is_kept_retried_and_resolved_by_the_consumers_ack
    after_the_last_retry_a_person_decides
    dead_letter_means_no_automatic_retry
    a_consumers_own_delay_goes_before_the_schedule
    a_retry_that_nobody_settles_through_us_counts_as_done_after_the_quiet_period
    a_retry_goes_only_to_the_queue_where_it_failed
    a_retry_whose_queue_is_gone_is_failed_and_kept
    an_edited_copy_replaces_the_original_which_is_kept
    resolving_and_deleting_obey_the_state
    of_many_identical_retries_exactly_one_wins
    what_is_no_id_is_not_found
}

fn outcomes(attempts: &[Attempt]) -> Vec<(u32, bool, Outcome)> {
    let outcome = |attempt: &Attempt| (attempt.number, attempt.manual, attempt.outcome());
    attempts.iter().map(outcome).collect()
}

async fn a_refused_message_is_kept_retried_and_resolved_by_the_consumers_ack(on: On) {
    let desk = Desk::open(on, hasty).await;
    let sent = Message {
        message_id: "m-1".to_owned(),
        r#type: "order.created".to_owned(),
        ..text("{\"id\":1}")
    };
    let answer = desk
        .front
        .publish(to_queue(&desk.queue, sent))
        .await
        .expect("published");
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let first = stream.delivery().await;
    assert_eq!(first.attempt, 1);
    refuse(&mut stream, &first.ack_id, Action::Retry).await;

    let retry = stream.delivery().await;
    assert_eq!((retry.attempt, body(&retry)), (2, "{\"id\":1}".to_owned()));
    let row = desk
        .get(&retry.failed_message_id)
        .await
        .expect("it is there");
    assert_eq!(
        (row.status(), row.retry_count, row.max_retries),
        (Status::Retrying, 1, 3)
    );
    assert_eq!(
        (row.queue.as_str(), row.routing_key.as_str()),
        (&*desk.queue, &*desk.queue)
    );
    assert_eq!(row.reason(), DeathReason::Rejected);
    assert_eq!(row.publish_id, answer.publish_id);
    assert_eq!(
        (&*row.error_type, &*row.error_message, &*row.error_stack),
        ("Declined", "card 4711 was declined", "at pay()")
    );
    let kept = row.message.expect("always set");
    assert_eq!((&*kept.message_id, &*kept.r#type), ("m-1", "order.created"));
    assert_eq!(kept.headers.map_or(0, |headers| headers.fields.len()), 0);
    assert!(row.next_retry_at.is_none() && row.last_retry_at.is_some());

    stream.ack(&[&retry.ack_id]).await;
    let row = desk.becomes(&row.id, Status::Resolved).await;
    assert_eq!(row.resolution(), Resolution::Acked);
    assert!(row.resolved_at.is_some());
    assert_eq!(
        outcomes(&row.attempts),
        [(1, false, Outcome::Died), (2, false, Outcome::Acked)]
    );
    assert_eq!(row.attempts[0].error_message, "card 4711 was declined");
}

async fn after_the_last_retry_a_person_decides(on: On) {
    let desk = Desk::open(on, hasty).await;
    desk.front.fill(&desk.queue, &["x"]).await;
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    for attempt in 1..=4 {
        let delivery = stream.delivery().await;
        assert_eq!(delivery.attempt, attempt);
        refuse(&mut stream, &delivery.ack_id, Action::Retry).await;
    }
    let id = desk.only().await.id;
    let row = desk.becomes(&id, Status::Failed).await;
    assert_eq!((row.retry_count, row.attempt), (3, 4));

    // A person's retry does not count against the limit, and is an attempt.
    desk.retry(&id).await.expect("retried");
    let delivery = stream.delivery().await;
    assert_eq!(delivery.attempt, 5);
    refuse(&mut stream, &delivery.ack_id, Action::Retry).await;
    let row = desk.becomes(&id, Status::Failed).await;
    assert_eq!((row.retry_count, row.attempt), (3, 5));
    let last = row.attempts.last().expect("five");
    assert!(last.manual && last.outcome() == Outcome::Died);
}

async fn dead_letter_means_no_automatic_retry(on: On) {
    let desk = Desk::open(on, hasty).await;
    let row = desk.refused(text("x"), Action::DeadLetter).await;
    assert_eq!((row.status(), row.retry_count), (Status::Failed, 0));
    assert!(row.next_retry_at.is_none());
    assert_eq!(desk.front.drain_bodies(&desk.queue).await, [""; 0]);
}

async fn a_consumers_own_delay_goes_before_the_schedule(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.front.fill(&desk.queue, &["x"]).await;
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let delivery = stream.delivery().await;
    stream.send(nack_as(proto::Nack {
        ack_id: delivery.ack_id,
        action: Action::Retry.into(),
        delay: Some(prost_types::Duration {
            seconds: 0,
            nanos: 1_000_000,
        }),
        ..Default::default()
    }));
    stream.results(1).await;
    assert_eq!(stream.delivery().await.attempt, 2);
}

async fn a_retry_that_nobody_settles_through_us_counts_as_done_after_the_quiet_period(on: On) {
    let desk = Desk::open(on, |setup| {
        slow(setup);
        setup.config.retries.quiet_period = Duration::from_millis(1);
    })
    .await;
    let row = desk.refused(text("x"), Action::Retry).await;
    assert_eq!(row.status(), Status::Pending);
    desk.retry(&row.id).await.expect("retried");
    let row = desk.becomes(&row.id, Status::Resolved).await;
    assert_eq!(row.resolution(), Resolution::Assumed);

    // It died after all: the same one is opened again.
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let delivery = stream.delivery().await;
    refuse(&mut stream, &delivery.ack_id, Action::Retry).await;
    let again = desk.becomes(&row.id, Status::Pending).await;
    assert_eq!(
        (again.attempt, again.resolution()),
        (2, Resolution::Unspecified)
    );
    assert_eq!(desk.all().await.len(), 1);
}

async fn a_retry_goes_only_to_the_queue_where_it_failed(on: On) {
    let desk = Desk::open(on, hasty).await;
    let [stock, mail] = [
        desk.front.queue("stock").await,
        desk.front.queue("mail").await,
    ];
    let queues = [desk.queue.as_str(), &stock, &mail];
    let exchange = desk.front.exchange("fan", "k", &queues).await;
    let everybody = proto::PublishRequest {
        exchange: exchange.clone(),
        routing_key: "k".to_owned(),
        message: Some(text("x")),
        ..Default::default()
    };
    desk.front.publish(everybody).await.expect("published");
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let delivery = stream.delivery().await;
    refuse(&mut stream, &delivery.ack_id, Action::Retry).await;
    // Consumers dispatch by where it was published to, however often it failed.
    let first = (exchange.clone(), "k".to_owned());
    let mut retry = stream.delivery().await;
    assert_eq!((retry.exchange.clone(), retry.routing_key.clone()), first);
    refuse(&mut stream, &retry.ack_id, Action::Retry).await;
    retry = stream.delivery().await;
    assert_eq!(retry.attempt, 3);
    assert_eq!((retry.exchange.clone(), retry.routing_key.clone()), first);
    stream.ack(&[&retry.ack_id]).await;
    let row = desk
        .becomes(&retry.failed_message_id, Status::Resolved)
        .await;
    assert_eq!((row.exchange, row.routing_key), first);
    for other in [&stock, &mail] {
        assert_eq!(desk.front.drain_bodies(other).await, ["x"], "{other}");
    }
}

async fn a_retry_whose_queue_is_gone_is_failed_and_kept(on: On) {
    let desk = Desk::open(on, slow).await;
    let row = desk.refused(text("x"), Action::Retry).await;
    desk.front.delete_queue(&desk.queue).await;
    let status = desk.retry(&row.id).await.expect_err("nowhere to go");
    assert_eq!(
        told(&status),
        (Code::FailedPrecondition, "RETURNED".to_owned())
    );
    let row = desk.get(&row.id).await.expect("kept");
    assert_eq!(
        (row.status(), row.reason()),
        (Status::Failed, DeathReason::Returned)
    );
    assert_eq!((row.attempt, row.attempts.len()), (1, 1));
}

async fn an_edited_copy_replaces_the_original_which_is_kept(on: On) {
    let desk = Desk::open(on, slow).await;
    let row = desk.refused(text("wrong"), Action::DeadLetter).await;
    let refused = desk
        .edit(
            &row.id,
            Message {
                reply_to: "\u{7}".to_owned(),
                ..text("")
            },
        )
        .await;
    assert_eq!(
        refused.expect_err("malformed").code(),
        Code::InvalidArgument
    );
    let original = desk.edit(&row.id, text("right")).await.expect("edited");
    assert_eq!(
        (original.status(), original.resolution()),
        (Status::Resolved, Resolution::Manual)
    );
    assert!(original.comment.contains("edited"), "{}", original.comment);

    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let copy = stream.delivery().await;
    assert_eq!(
        (body(&copy).as_str(), copy.attempt, &*copy.failed_message_id),
        ("right", 1, "")
    );
    let kept = desk.get(&row.id).await.expect("kept");
    assert_eq!(
        kept.message.expect("set").payload,
        Some(proto::message::Payload::Data("wrong".into()))
    );
    conflict(desk.edit(&row.id, text("again")).await);

    // What dies of it is another failed message.
    refuse(&mut stream, &copy.ack_id, Action::DeadLetter).await;
    eventually("there are two", || async { desk.all().await.len() == 2 }).await;
}

async fn resolving_and_deleting_obey_the_state(on: On) {
    let desk = Desk::open(on, slow).await;
    let row = desk.refused(text("x"), Action::Retry).await;
    desk.retry(&row.id).await.expect("retried");
    conflict(desk.retry(&row.id).await);
    let refused = desk.delete(&row.id).await.expect_err("it is on its way");
    assert_eq!(told(&refused).1, "STATE_CONFLICT");
    let row = desk
        .resolve(&row.id, "done by hand")
        .await
        .expect("the copy is confirmed");
    assert_eq!(
        (row.resolution(), &*row.comment),
        (Resolution::Manual, "done by hand")
    );
    conflict(desk.resolve(&row.id, "again").await);
    conflict(desk.retry(&row.id).await);
    desk.delete(&row.id).await.expect("deleted");
    let gone = desk.get(&row.id).await.expect_err("deleted");
    assert_eq!(
        told(&gone),
        (Code::NotFound, "FAILED_MESSAGE_NOT_FOUND".to_owned())
    );
}

async fn of_many_identical_retries_exactly_one_wins(on: On) {
    let desk = Desk::open(on, slow).await;
    let row = desk.refused(text("x"), Action::Retry).await;
    let calls = (0..100).map(|_| desk.retry(&row.id));
    let answers = futures::future::join_all(calls).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    lost.into_iter().for_each(conflict);
    let copies = desk.front.drain(&desk.queue).await;
    assert_eq!(copies.len(), 1);
    assert_eq!(payload(&copies[0]), b"x");
}

async fn what_is_no_id_is_not_found(on: On) {
    let desk = Desk::open(on, slow).await;
    for id in ["", "1", "x' OR 1=1", "0190f0f0-0000-7000-8000-000000000000"] {
        let status = desk.get(id).await.expect_err("no such thing");
        assert_eq!(told(&status).0, Code::NotFound, "{id}");
    }
}
