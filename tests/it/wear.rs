//! Nothing wears the gateway out: after more questions that the broker refuses than a connection has channel numbers (2,047), every
//! neighbour is served as before. The long form is `make endurance`.

use courtier::grpc::proto::{GetQueueRequest, queue_admin_client::QueueAdminClient};
use futures::{StreamExt, stream};
use tonic::Code;

use crate::front::{Front, On, Stream, fault, from, on_one, text, timely, to_queue};

/// More than the numbers of the channels of one connection.
const TIMES: usize = 2_300;
const AT_A_TIME: usize = 16;

on_one! { rabbitmq:
    publishing_to_missing_exchanges
    subscribing_to_missing_queues
    asking_for_missing_queues
}

async fn often(work: impl AsyncFn(usize)) {
    let work = &work;
    stream::iter(0..TIMES)
        .map(async |number| work(number).await)
        .buffer_unordered(AT_A_TIME)
        .collect::<()>()
        .await;
}

/// Everything that the broker is asked works.
async fn all_is_well(front: &Front) {
    front.neighbours_are_unharmed().await;
    let queue = front.queue("there").await;
    let exchange = front.exchange("there", "key", &[&queue]).await;
    let mut request = to_queue("key", text("a"));
    request.exchange = exchange;
    front.publish(request).await.expect("confirmed");
    let mut admin = QueueAdminClient::new(front.channel().await);
    let name = queue.clone();
    let found = timely(admin.get_queue(GetQueueRequest { name })).await;
    found.expect("it is there");
    assert_eq!(front.drain_bodies(&queue).await, ["a"]);
}

async fn publishing_to_missing_exchanges(on: On) {
    let front = on.gateway().await;
    often(async |number| {
        let mut request = to_queue("key", text("a"));
        request.exchange = front.name(&format!("missing-{number}"));
        let status = front.publish(request).await.expect_err("it is missing");
        let fault = fault(&status);
        assert_eq!(
            (fault.code, fault.reason.as_str()),
            (Code::NotFound, "EXCHANGE_NOT_FOUND"),
            "{number}: {status:?}"
        );
    })
    .await;
    all_is_well(&front).await;
}

async fn subscribing_to_missing_queues(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("beside").await;
    let mut stream = front.subscribe(from(&[&queue])).await;
    often(async |number| {
        let missing = front.name(&format!("missing-{number}"));
        let opened = Stream::open(&front, from(&[&missing])).await;
        let status = opened.err().expect("it is missing");
        assert_eq!(status.code(), Code::NotFound, "{number}: {status:?}");
    })
    .await;
    all_is_well(&front).await;
    front.fill(&queue, &["a"]).await;
    let delivery = stream.delivery().await;
    stream.ack(&[&delivery.ack_id]).await;
}

async fn asking_for_missing_queues(on: On) {
    let front = on.gateway().await;
    let admin = QueueAdminClient::new(front.channel().await);
    often(async |number| {
        let name = front.name(&format!("missing-{number}"));
        let asked = timely(admin.clone().get_queue(GetQueueRequest { name })).await;
        let status = asked.expect_err("it is missing");
        assert_eq!(status.code(), Code::NotFound, "{number}: {status:?}");
    })
    .await;
    all_is_well(&front).await;
}
