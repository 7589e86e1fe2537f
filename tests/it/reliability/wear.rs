//! Nothing wears the gateway out: after more questions that the broker refuses than a connection has channel numbers (2,047), every
//! neighbour is served as before. The long form is `make endurance`.

use courtier::grpc::proto::{
    GetQueueRequest, ListAlertsRequest, queue_admin_client::QueueAdminClient,
};
use futures::{StreamExt, stream};
use tonic::Code;

use crate::{
    front::{Front, On, Stream, fault, from, on_one, text, timely, to_queue},
    harness::{PATIENCE, connect_to, eventually},
    instance::Instance,
};

/// More than the numbers of the channels of one connection.
const TIMES: usize = 2_300;
const AT_A_TIME: usize = 16;

on_one! { rabbitmq:
    publishing_to_missing_exchanges
    subscribing_to_missing_queues
    asking_for_missing_queues
}

/// A link that stands and answers wrongly: there is no way to bring this about from outside but to take away what is always there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_link_that_answers_wrongly_is_not_ready() {
    let instance = Instance::start().await;
    let broker = connect_to(&instance.url);
    assert!(broker.connected(PATIENCE).await);
    let front = Front::of(broker, None, |setup| setup.without_database()).await;
    let known = r#"rabbit_misc:r(<<"/">>, exchange, <<"amq.direct">>)"#;
    let delete = format!("rabbit_exchange:delete({known}, false, <<\"test\">>).");
    assert_eq!(instance.ctl(&["-q", "eval", &delete]).await.trim(), "ok");
    let ready = async || {
        let url = format!("http://{}/readyz", front.address);
        let answer = timely(reqwest::get(url)).await.expect("answered");
        let status = answer.status().as_u16();
        (status, timely(answer.text()).await.expect("text"))
    };
    let alerts = QueueAdminClient::new(front.channel().await);
    let is_alerted = async || {
        let listed = timely(alerts.clone().list_alerts(ListAlertsRequest::default())).await;
        let alerts = listed.expect("listed").into_inner().alerts;
        alerts
            .iter()
            .any(|alert| alert.summary.contains("does not do its work"))
    };
    eventually("it is not ready, and says why", async || {
        let (status, body) = ready().await;
        status == 503 && body.contains("failing")
    })
    .await;
    eventually("there is an alert", async || is_alerted().await).await;

    let declare =
        format!("rabbit_exchange:declare({known}, direct, true, false, false, [], <<\"test\">>).");
    instance.ctl(&["-q", "eval", &declare]).await;
    eventually("it is ready again", async || ready().await.0 == 200).await;
    eventually("the alert is over", async || !is_alerted().await).await;
    front.neighbours_are_unharmed().await;
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
