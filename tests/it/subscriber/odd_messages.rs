//! Messages that others wrote and no gateway expects: they are delivered, and nobody else notices.

use std::time::Duration;

use courtier::grpc::proto::{
    Start, nack::Action, settle_result::Result as SettleResult, subscribe_response::Response,
};

use crate::{
    front::{On, Stream, bodies, body, from, on_one, seconds, text, timely, to_queue},
    native,
};

on_one! { rabbitmq:
    properties_that_are_no_utf8_are_delivered_and_disturb_nobody
    a_message_of_a_stream_comes_again_and_disturbs_nobody
}

/// A subscription beside the one that is tried, to see whether it notices anything.
struct Neighbour {
    stream: Stream,
    queue: String,
}

impl Neighbour {
    async fn of(front: &crate::front::Front) -> Self {
        let queue = front.queue("neighbour").await;
        let stream = front.subscribe(from(&[&queue])).await;
        Self { stream, queue }
    }

    async fn is_unharmed(&mut self, front: &crate::front::Front) {
        front.fill(&self.queue, &["unharmed"]).await;
        let delivery = self.stream.delivery().await;
        assert_eq!(body(&delivery), "unharmed");
        assert_eq!(
            self.stream.ack(&[&delivery.ack_id]).await,
            [SettleResult::Ok]
        );
    }
}

async fn properties_that_are_no_utf8_are_delivered_and_disturb_nobody(on: On) {
    let front = on.gateway().await;
    let mut neighbour = Neighbour::of(&front).await;
    let queue = front.queue("odd").await;
    native::odd("odd", &queue).await;

    let mut stream = front.subscribe(from(&[&queue])).await;
    let odd = stream.deliveries(12).await;
    assert_eq!(
        bodies(&odd),
        [
            "correlation_id",
            "content_type",
            "content_encoding",
            "type",
            "app_id",
            "message_id",
            "reply_to",
            "header",
            "header in a header",
            "header's value",
            "routing_key",
            "without bottom",
        ]
    );
    let message = |index: usize| odd[index].message.as_ref().expect("there is one");
    assert_eq!(message(0).correlation_id, "??\u{1}");
    let headers = message(7).headers.as_ref().expect("headers");
    assert!(headers.fields.contains_key("??\u{1}"), "{headers:?}");
    assert_eq!(odd[10].routing_key, "??\u{1}");
    neighbour.is_unharmed(&front).await;

    // They go back and come again, and can be settled in every way.
    let ids: Vec<&str> = odd
        .iter()
        .map(|delivery| delivery.ack_id.as_str())
        .collect();
    assert_eq!(stream.nack(ids[0], Action::Requeue).await, SettleResult::Ok);
    let again = stream.delivery().await;
    assert_eq!(body(&again), "correlation_id");
    assert!(again.redelivered);
    assert_eq!(
        stream.nack(ids[1], Action::DeadLetter).await,
        SettleResult::Ok
    );
    assert_eq!(
        stream.nack(&again.ack_id, Action::Discard).await,
        SettleResult::Ok
    );
    let rest = stream.ack(&ids[2..]).await;
    assert!(
        rest.iter().all(|result| *result == SettleResult::Ok),
        "{rest:?}"
    );
    neighbour.is_unharmed(&front).await;
}

async fn a_message_of_a_stream_comes_again_and_disturbs_nobody(on: On) {
    let front = on.gateway().await;
    let mut neighbour = Neighbour::of(&front).await;
    let queue = front.name("stream");
    native::odd("stream", &queue).await;

    let start = Start {
        ack_deadline: seconds(1),
        ..from(&[&queue])
    };
    let mut stream = front.subscribe(start).await;
    front.fill(&queue, &["first"]).await;
    let first = stream.delivery().await;
    assert_eq!(body(&first), "first");
    assert!(!first.redelivered);
    assert_eq!(
        stream.nack(&first.ack_id, Action::Requeue).await,
        SettleResult::Ok
    );
    let again = stream.delivery().await;
    assert_eq!((body(&again).as_str(), again.redelivered), ("first", true));
    neighbour.is_unharmed(&front).await;

    // Its deadline comes: revoked, and given again, until it is acked.
    assert_eq!(stream.revoked().await.ack_ids, [again.ack_id.as_str()]);
    let again = stream.delivery().await;
    assert_eq!((body(&again).as_str(), again.redelivered), ("first", true));
    assert_eq!(stream.ack(&[&again.ack_id]).await, [SettleResult::Ok]);
    neighbour.is_unharmed(&front).await;

    // Nothing is left that would come again.
    front
        .publish(to_queue(&queue, text("last")))
        .await
        .expect("confirmed");
    assert_eq!(body(&stream.delivery().await), "last");
    let silence = tokio::time::timeout(Duration::from_millis(1_500), async {
        loop {
            match stream.event().await.expect("it goes on") {
                Some(Response::Revoked(_)) => return,
                Some(Response::Deliveries(more)) => panic!("{more:?}"),
                _ => {}
            }
        }
    });
    timely(silence)
        .await
        .expect("only the deadline of the last one comes");
    front.delete_queue(&queue).await;
}
