//! What the gateway tells of a busy broker is what the broker itself tells.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use courtier::{
    broker::rabbitmq::ManagementAt,
    grpc::proto::{GetQueueRequest, Queue, Source, nack::Action},
};

use tokio::time::MissedTickBehavior;

use crate::{
    front::{Front, On, ack, from, nack, on_all, text, timely, to_queue},
    harness::{connect_with, eventually},
    instance::Instance,
    office::Office,
};

/// Messages a second, as evenly as a timer allows.
const PACE: u64 = 20;

/// Rates are those of the traffic, within a tenth.
async fn rates_are_those_of_the_traffic(on: On) {
    let office = Office::open(on).await;
    let queue = office.plain("q").await;
    let mut stream = office.subscribe(from(&[&queue])).await;
    let acked = Arc::new(AtomicU64::new(0));
    let count = acked.clone();
    let consumer = tokio::spawn(async move {
        loop {
            let delivery = stream.delivery().await;
            stream.send(ack(&[&delivery.ack_id]));
            count.fetch_add(1, SeqCst);
        }
    });
    let publisher = office.publisher.clone();
    let request = to_queue(&queue, text("x"));
    let traffic = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_micros(1_000_000 / PACE));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            let published = publisher.clone().publish(request.clone()).await;
            published.expect("published");
        }
    });
    // The pace that was kept, by our own count, over the time that the rate is of.
    let near = |rate: Option<f64>, truth: f64| {
        rate.is_some_and(|rate| (rate - truth).abs() <= truth / 10.0)
    };
    let mut told = Vec::new();
    let agree = loop {
        // As long as RabbitMQ's own figures are of.
        let (begun, before) = (tokio::time::Instant::now(), acked.load(SeqCst));
        tokio::time::sleep(Duration::from_secs(5)).await;
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let truth = (acked.load(SeqCst) - before) as f64 / begun.elapsed().as_secs_f64();
        let found = office.get(&queue).await.expect("it is there");
        let rates = [found.publish_rate, found.deliver_rate, found.ack_rate];
        told.push((truth, rates));
        let agree = rates.into_iter().all(|rate| near(rate, truth));
        if agree || told.len() == 10 {
            break agree;
        }
    };
    assert!(agree, "{told:?}");
    consumer.abort();
    traffic.abort();
}

on_all! {
    // AMQP tells none.
    [not rabbitmq] rates_are_those_of_the_traffic
}

/// One queue's line of `rabbitmqctl list_queues`.
async fn by_rabbitmqctl(instance: &Instance, queue: &str) -> [u64; 4] {
    let columns = [
        "name",
        "messages",
        "messages_ready",
        "messages_unacknowledged",
        "consumers",
    ];
    let listed = instance
        .ctl(&[&["-q", "list_queues"], &columns[..]].concat())
        .await;
    let line = listed.lines().find(|line| line.starts_with(queue));
    let fields = line.expect("it is listed").split_whitespace().skip(1);
    let fields: Vec<u64> = fields.map(|text| text.parse().expect("a number")).collect();
    fields.try_into().expect("four")
}

fn by_the_gateway(queue: &Queue) -> Option<[u64; 4]> {
    Some([
        queue.message_count?,
        queue.ready_count?,
        queue.unacked_count?,
        queue.consumer_count?,
    ])
}

/// Traffic runs, and stops for a moment: whatever it left is counted alike by all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a broker of its own: run make test"]
async fn counts_agree_with_rabbitmqctl_and_outlive_the_management_api() {
    let instance = Instance::start_managed().await;
    let port = instance.management_port();
    let managed = connect_with(&instance.url, ManagementAt::Port(Some(port)));
    let office = Office::of(On::Managed, Front::of(managed, None, |_| {}).await).await;
    let queue = office.plain("q").await;
    let mut some = from(&[&queue]);
    some.max_outstanding = 7;
    let mut stream = office.subscribe(some).await;
    for round in 1..=3_u64 {
        for _ in 0..40 {
            office.fill(&queue, &["x"]).await;
            let delivery = stream.delivery().await;
            if office.ready(&queue).await % 2 == round % 2 {
                stream.send(ack(&[&delivery.ack_id]));
            } else {
                stream.send(nack(&delivery.ack_id, Action::Requeue));
            }
        }
        eventually("both count alike", async || {
            let truth = by_rabbitmqctl(&instance, &queue).await;
            let found = office.get(&queue).await.expect("it is there");
            by_the_gateway(&found) == Some(truth)
        })
        .await;
    }
    // The plugin is switched off: what AMQP tells is left, and nothing is made up.
    instance
        .ctl(&["-q", "eval", "application:stop(rabbitmq_management)."])
        .await;
    let truth = by_rabbitmqctl(&instance, &queue).await;
    eventually("fewer figures are told", async || {
        let name = queue.clone();
        let answer = timely(office.admin().get_queue(GetQueueRequest { name })).await;
        let answer = answer.expect("AMQP answers").into_inner();
        let found = answer.queue.expect("set");
        found.source() == Source::Amqp
            && !answer.note.is_empty()
            && (found.ready_count, found.consumer_count) == (Some(truth[1]), Some(truth[3]))
            && (found.unacked_count, found.message_count) == (None, None)
    })
    .await;
}
