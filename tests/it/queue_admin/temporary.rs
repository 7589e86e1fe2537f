//! Queues that go when nobody uses them, and what goes with a queue that is deleted: nothing is left behind.

use courtier::grpc::proto::{
    CreateQueueRequest, DeleteQueueRequest, DeleteQueueResponse, FailedMessage,
    create_queue_request::Profile,
    delete_queue_response::DeadLetterQueue,
    failed_message::Status as FailedStatus,
    failed_messages_client::FailedMessagesClient,
    nack::Action,
    topology_change::{Action as Change, Kind as Thing},
};
use prost_types::value::Kind;
use tokio::sync::Mutex;
use tonic::Code;

use crate::{
    desk::{failed_in, refuse, slow},
    front::{On, body, from, on_all, refusal, refused, text, timely, to_queue},
    harness::eventually,
    office::{Office, arguments},
};

fn temporary(name: &str, expires_ms: f64) -> CreateQueueRequest {
    CreateQueueRequest {
        name: name.to_owned(),
        profile: Profile::Temporary.into(),
        arguments: arguments(&[("x-expires", Kind::NumberValue(expires_ms))]),
        ..Default::default()
    }
}

impl Office {
    async fn is_missing(&self, queue: &str) -> bool {
        match self.get(queue).await {
            Ok(_) => false,
            missing => {
                let not_found = refused(Code::NotFound, "QUEUE_NOT_FOUND");
                assert_eq!(refusal(missing), not_found);
                true
            }
        }
    }

    /// A publish is no use of a queue, as a look would be.
    async fn goes(&self, queue: &str) {
        eventually("the queue goes", async || {
            let published = self.publish(to_queue(queue, text("there?"))).await;
            published.is_err_and(|status| status.code() == Code::FailedPrecondition)
        })
        .await;
    }

    async fn delete_with_letters(&self, queue: &str) -> DeleteQueueResponse {
        let request = DeleteQueueRequest {
            name: queue.to_owned(),
            with_dead_letter_queue: true,
            ..Default::default()
        };
        let answer = timely(self.admin().delete_queue(request)).await;
        answer.expect("deleted").into_inner()
    }

    async fn work(&self, short: &str) -> String {
        let name = self.name(short);
        let created = self.create(CreateQueueRequest {
            name: name.clone(),
            ..Default::default()
        });
        assert!(created.await.expect("created").created);
        name
    }
}

async fn a_temporary_queue_leaves_nothing_behind(on: On) {
    let office = Office::open(on).await;
    let name = office.name("reply");
    let request = temporary(&name, 1_000.0);
    let created = office.create(request.clone()).await.expect("created");
    assert!(created.created);
    let changes = created.changes.iter();
    let changes: Vec<_> = changes
        .map(|one| (one.kind(), &*one.name, one.action()))
        .collect();
    assert_eq!(changes, [(Thing::Queue, &*name, Change::Create)]);
    let again = office.create(request).await.expect("it is there alike");
    assert!(!again.created);
    assert!(office.is_missing(&format!("{name}.dlq")).await);
    office.fill(&name, &["a"]).await;
    office.goes(&name).await;
    assert!(office.is_missing(&name).await);
    assert!(office.is_missing(&format!("{name}.dlq")).await);
}

async fn a_queue_that_goes_with_its_subscription(on: On) {
    let office = Office::open(on).await;
    let name = office.name("reply");
    let request = CreateQueueRequest {
        name: name.clone(),
        profile: Profile::Temporary.into(),
        auto_delete: true,
        ..Default::default()
    };
    let created = office.create(request).await.expect("created");
    let arguments = created.arguments.expect("set").fields;
    // It expires as well: nobody may ever subscribe.
    assert_eq!(
        arguments["x-expires"].kind,
        Some(Kind::NumberValue(1_800_000.0))
    );
    if on != On::RabbitMq {
        let found = office.get(&name).await.expect("it is there");
        assert_eq!(found.auto_delete, Some(true));
    }
    office.fill(&name, &["a"]).await;
    let mut stream = office.subscribe(from(&[&name])).await;
    let delivery = stream.delivery().await;
    assert_eq!(body(&delivery), "a");
    stream.ack(&[&delivery.ack_id]).await;
    stream.half_close();
    stream.end().await.expect("it ends well");
    office.goes(&name).await;
}

async fn what_would_leave_something_behind_is_refused(on: On) {
    let office = Office::open(on).await;
    let name = office.name("reply");
    let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
    let cases = [
        (Profile::Standard, Some(Kind::NumberValue(60_000.0)), false),
        (Profile::Standard, None, true),
        (Profile::DeadLetter, None, true),
        // Taken away: it would stay for ever.
        (Profile::Temporary, Some(Kind::NullValue(0)), false),
        (Profile::Temporary, Some(Kind::NumberValue(0.0)), false),
    ];
    for (profile, expires, auto_delete) in cases {
        let answer = office.create(CreateQueueRequest {
            name: name.clone(),
            profile: profile.into(),
            arguments: expires.and_then(|kind| arguments(&[("x-expires", kind)])),
            auto_delete,
            ..Default::default()
        });
        let status = answer.await.expect_err("refused");
        if profile == Profile::Standard {
            assert!(status.message().contains("TEMPORARY"), "{status:?}");
        }
        assert_eq!(refusal::<()>(Err(status)), bad, "{profile:?}");
        assert!(office.is_missing(&name).await);
        assert!(office.is_missing(&format!("{name}.dlq")).await);
    }
}

/// The dead-letter queue of all temporary queues is one for all gateways on a broker: each of these tests has it for itself.
static SHARED: Mutex<()> = Mutex::const_new(());

async fn what_is_refused_in_temporary_queues_is_kept_without_a_queue_for_each(on: On) {
    let _alone = SHARED.lock().await;
    let office = Office::set_up(on, slow).await;
    let mut failed = FailedMessagesClient::new(office.channel().await);
    for short in ["one", "two"] {
        let name = office.name(short);
        let created = office.create(temporary(&name, 600_000.0)).await;
        assert!(created.expect("created").created);
        office.fill(&name, &[short]).await;
        let mut stream = office.subscribe(from(&[&name])).await;
        let delivery = stream.delivery().await;
        refuse(&mut stream, &delivery.ack_id, Action::DeadLetter).await;
        let mut rows = office.failed_in(&name).await;
        assert_eq!((rows.len(), rows[0].status()), (1, FailedStatus::Failed));
        assert!(office.is_missing(&format!("{name}.dlq")).await);
        let id = rows.remove(0).id;
        let retry = courtier::grpc::proto::RetryFailedMessageRequest { id };
        timely(failed.retry_failed_message(retry))
            .await
            .expect("sent");
        let again = stream.delivery().await;
        assert_eq!((body(&again), again.attempt), (short.to_owned(), 2));
    }
    drop(failed);
    office.stop().await;
}

async fn a_queue_takes_its_empty_dead_letter_queue_along(on: On) {
    let office = Office::set_up(on, slow).await;
    let work = office.work("work").await;
    let dlq = format!("{work}.dlq");
    // Its collector is at work.
    eventually("it is consumed", async || {
        let found = office.get(&dlq).await.expect("it is there");
        found.consumer_count == Some(1)
    })
    .await;
    let deleted = office.delete_with_letters(&work).await;
    assert_eq!(deleted.dead_letter_queue(), DeadLetterQueue::Deleted);
    assert_eq!(deleted.dead_letter_queue_note, "");
    assert!(office.is_missing(&work).await && office.is_missing(&dlq).await);

    let plain = office.plain("plain").await;
    let deleted = office.delete_with_letters(&plain).await;
    assert_eq!(deleted.dead_letter_queue(), DeadLetterQueue::Missing);

    // It is collected from as ever when it is made again.
    office.work("work").await;
    office.fill(&work, &["again"]).await;
    let mut stream = office.subscribe(from(&[&work])).await;
    let delivery = stream.delivery().await;
    refuse(&mut stream, &delivery.ack_id, Action::DeadLetter).await;
    office.failed_in(&work).await;
}

async fn a_dead_letter_queue_stays_unless_it_is_asked_for(on: On) {
    let office = Office::open(on).await;
    let work = office.work("work").await;
    let request = DeleteQueueRequest {
        name: work.clone(),
        ..Default::default()
    };
    let answer = timely(office.admin().delete_queue(request)).await;
    let answer = answer.expect("deleted").into_inner();
    assert_eq!(answer.dead_letter_queue(), DeadLetterQueue::Unspecified);
    assert!(!office.is_missing(&format!("{work}.dlq")).await);
}

async fn a_dead_letter_queue_with_letters_stays(on: On) {
    // The database is away: they wait in it.
    let office = Office::open(on).await;
    let work = office.work("work").await;
    office.fill(&work, &["a"]).await;
    let mut stream = office.subscribe(from(&[&work])).await;
    let delivery = stream.delivery().await;
    refuse(&mut stream, &delivery.ack_id, Action::DeadLetter).await;
    let deleted = office.delete_with_letters(&work).await;
    assert_eq!(deleted.dead_letter_queue(), DeadLetterQueue::NotEmpty);
    assert!(!deleted.dead_letter_queue_note.is_empty());
    assert!(office.is_missing(&work).await);
    assert_eq!(office.ready(&format!("{work}.dlq")).await, 1);
}

/// Another gateway, say.
async fn a_dead_letter_queue_that_others_consume_goes_only_when_their_messages_are_counted(on: On) {
    let office = Office::set_up(on, slow).await;
    let work = office.work("work").await;
    let dlq = format!("{work}.dlq");
    let mut other = office.subscribe(from(&[&dlq])).await;
    if on == On::Managed {
        eventually("the management API counts it", async || {
            let found = office.get(&dlq).await.expect("it is there");
            found.unacked_count.is_some()
        })
        .await;
    }
    let deleted = office.delete_with_letters(&work).await;
    if on == On::RabbitMq {
        assert_eq!(deleted.dead_letter_queue(), DeadLetterQueue::InUse);
        other.half_close();
        other.end().await.expect("it ends well");
        // It is collected from as before.
        office.fill(&dlq, &["late"]).await;
        office.failed_in(&work).await;
    } else {
        assert_eq!(deleted.dead_letter_queue(), DeadLetterQueue::Deleted);
        let end = refusal(other.end().await);
        assert_eq!(end, refused(Code::NotFound, "QUEUE_DELETED"));
    }
}

impl Office {
    /// What failed in this queue, once something did.
    async fn failed_in(&self, queue: &str) -> Vec<FailedMessage> {
        let client = FailedMessagesClient::new(self.channel().await);
        let list = async || failed_in(&client, queue).await;
        eventually("it is collected", async || !list().await.is_empty()).await;
        list().await
    }
}

on_all! {
    a_temporary_queue_leaves_nothing_behind
    a_queue_that_goes_with_its_subscription
    what_would_leave_something_behind_is_refused
    what_is_refused_in_temporary_queues_is_kept_without_a_queue_for_each
    a_queue_takes_its_empty_dead_letter_queue_along
    a_dead_letter_queue_stays_unless_it_is_asked_for
    a_dead_letter_queue_with_letters_stays
    a_dead_letter_queue_that_others_consume_goes_only_when_their_messages_are_counted
}
