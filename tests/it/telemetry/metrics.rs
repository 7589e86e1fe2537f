//! `GET /metrics`: the figures are those of what happened, and the documentation has all of them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::{
    desk::{Desk, slow},
    front::{Front, On, from, on_both, seconds, text, timely, to_queue},
    harness::{Gateway, eventually},
    instance::Instance,
    process::{Process, get},
    raw::http1,
    scripted::Scripted,
};
use courtier::{
    broker::{Fate, InDoubt, NotSent, memory::MemoryBroker},
    gateway::message_log::Room,
    grpc::proto::{
        PublishBatchRequest, PublishRequest, PublishStreamRequest, failed_message::Status,
        nack::Action, publisher_client::PublisherClient,
    },
    metrics::{ActiveAlert, Metrics, QueueSample},
};

const DOCUMENTED: &str = include_str!("../../../docs/metrics.md");

on_both! {
    deliveries_and_settles_are_counted_by_queue
    what_fails_is_counted_until_it_is_resolved
    queues_and_alerts_are_those_of_the_broker
}

/// What a gateway exposes.
struct Exposed {
    /// By name and labels, as they are written.
    series: HashMap<String, f64>,
    /// Types by the names of the series.
    types: BTreeMap<String, String>,
}

impl Exposed {
    async fn by(address: &str) -> Self {
        let answer = timely(get(address, "/metrics")).await;
        let answer = answer.expect("it answers text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(
            head.contains("application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        assert!(body.ends_with("# EOF\n"), "{body}");
        let mut exposed = Self {
            series: HashMap::new(),
            types: BTreeMap::new(),
        };
        for line in body.lines() {
            if let Some(described) = line.strip_prefix("# TYPE ") {
                let (name, kind) = described.split_once(' ').expect("a name and a type");
                let end = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                exposed
                    .types
                    .insert(format!("{name}{end}"), kind.to_owned());
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                let value = value.parse().expect("a number");
                assert_eq!(
                    exposed.series.insert(name.to_owned(), value),
                    None,
                    "{name} twice"
                );
            }
        }
        exposed
    }

    /// The value of a series.
    fn get(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }

    fn has(&self, part: &str) -> bool {
        self.series.keys().any(|series| series.contains(part))
    }
}

/// Waits until a series has this value; `None`: until there is no such series.
async fn becomes(gateway: &Gateway, series: &str, value: Option<f64>) {
    eventually(&format!("{series} is {value:?}"), || async {
        Exposed::by(&gateway.address).await.get(series) == value
    })
    .await;
}

fn publishes(exchange: &str, outcome: &str) -> String {
    format!(r#"courtier_publishes_total{{exchange="{exchange}",outcome="{outcome}"}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_knows_no_openmetrics_gets_the_classic_format() {
    let front = On::Embedded.gateway().await;
    let ask = async |accept: &str| http1(&front, "GET", "/metrics", accept, b"").await;
    let prometheus =
        "accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.2\r\n";
    for accept in ["", "accept: */*\r\n", prometheus] {
        let head = ask(accept).await.head;
        assert!(head.contains("application/openmetrics-text"), "{head}");
    }
    let answer = ask("accept: text/plain\r\n").await;
    let (head, text) = (&answer.head, answer.text());
    let classic = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(head.contains(classic), "{head}");
    assert!(text.contains("\n# TYPE courtier_publishes_total counter\n"));
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
}

#[tokio::test]
async fn each_outcome_of_a_publish_is_counted() {
    let fates = [
        (Fate::Confirmed, "confirmed"),
        (Fate::Unroutable, "unroutable"),
        (Fate::Rejected, "rejected"),
        (Fate::NotSent(NotSent::BrokerDown), "not_sent"),
        (Fate::InDoubt(InDoubt::ConfirmLost), "in_doubt"),
    ];
    for (fate, outcome) in fates {
        let broker = std::sync::Arc::new(Scripted::new(Some(fate)));
        let front = Front::of(broker, None, |setup| setup.without_database()).await;
        let exchange = front.exchange("events", "k", &[]).await;
        let request = PublishRequest {
            exchange: exchange.clone(),
            routing_key: "k".to_owned(),
            message: Some(text("hello")),
            ..PublishRequest::default()
        };
        let answer = front.publish(request.clone()).await;
        assert_eq!(answer.is_ok(), fate == Fate::Confirmed, "{answer:?}");
        let batch = PublishBatchRequest {
            messages: vec![request.clone(), request.clone()],
        };
        timely(front.publisher.clone().publish_batch(batch))
            .await
            .expect("answered");
        let exposed = Exposed::by(&front.address).await;
        assert_eq!(
            exposed.get(&publishes(&exchange, outcome)),
            Some(3.0),
            "{outcome}"
        );
        assert_eq!(exposed.get("courtier_publish_seconds_count"), Some(3.0));
        assert_eq!(exposed.get("courtier_publishes_in_flight"), Some(0.0));
        assert_eq!(exposed.get("courtier_publishes_in_flight_bytes"), Some(0.0));
    }
}

#[tokio::test]
async fn a_publish_that_is_refused_makes_no_series_of_its_own() {
    let gateway =
        Gateway::start(MemoryBroker::new(), |limits| limits.max_payload_bytes = 100).await;
    let mut publisher = gateway.publisher().await;
    let to = |exchange: &str, message| PublishRequest {
        exchange: exchange.to_owned(),
        routing_key: "k".to_owned(),
        message,
        ..PublishRequest::default()
    };
    let refused = [
        to("nobody-made-this", Some(text("x"))),
        to("nor\nthis", Some(text("x"))),
        to("", Some(text(&"x".repeat(101)))),
        to("", None),
    ];
    for request in refused.clone() {
        let answer = timely(publisher.clone().publish(request)).await;
        answer.expect_err("it is refused");
    }
    let stream = refused.map(|request| PublishStreamRequest {
        sequence: 1,
        publish: Some(request),
    });
    let stream = stream.into_iter().chain([PublishStreamRequest::default()]);
    let answers = publisher.publish_stream(tokio_stream::iter(stream.collect::<Vec<_>>()));
    let mut answers = timely(answers).await.expect("it opens").into_inner();
    while timely(answers.message())
        .await
        .expect("it ends well")
        .is_some()
    {}
    let exposed = Exposed::by(&gateway.address).await;
    assert_eq!(exposed.get(&publishes("", "invalid")), Some(9.0));
    assert!(!exposed.has("nobody-made-this") && !exposed.has("nor"));
}

#[tokio::test]
async fn what_waits_for_its_outcome_is_in_flight() {
    let broker = std::sync::Arc::new(Scripted::new(None));
    let gateway = Gateway::start(broker, |_| {}).await;
    let mut publisher = gateway.publisher().await;
    let publish = tokio::spawn(async move {
        let mut request = tonic::Request::new(to_queue("q", text("12345")));
        request.set_timeout(std::time::Duration::from_secs(600));
        publisher.publish(request).await
    });
    becomes(&gateway, "courtier_publishes_in_flight", Some(1.0)).await;
    becomes(&gateway, "courtier_publishes_in_flight_bytes", Some(5.0)).await;
    publish.abort();
    // The call is over, and its message is not.
    let call = r#"courtier_grpc_requests_total{service="courtier.v1.Publisher",method="Publish",code="CANCELLED"}"#;
    becomes(&gateway, call, Some(1.0)).await;
    becomes(&gateway, "courtier_publishes_in_flight", Some(1.0)).await;
}

async fn deliveries_and_settles_are_counted_by_queue(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let series = |name: &str, label: &str, value: &str| {
        format!(r#"courtier_{name}_total{{queue="{queue}",{label}="{value}"}}"#)
    };
    front.fill(&queue, &["1", "2", "3", "4", "5"]).await;
    let mut start = from(&[&queue]);
    start.ack_deadline = seconds(600);
    start.max_outstanding = 7;
    let mut stream = front.subscribe(start).await;
    let given = stream.deliveries(5).await;
    becomes(&front, "courtier_deliveries_outstanding", Some(5.0)).await;
    stream.ack(&[&given[0].ack_id]).await;
    stream.nack(&given[1].ack_id, Action::Discard).await;
    stream.nack(&given[2].ack_id, Action::Retry).await;
    stream.nack(&given[3].ack_id, Action::DeadLetter).await;
    stream.nack(&given[4].ack_id, Action::Requeue).await;
    let again = stream.delivery().await;
    becomes(&front, "courtier_deliveries_outstanding", Some(1.0)).await;
    let exposed = Exposed::by(&front.address).await;
    for action in ["ack", "discard", "retry", "dead_letter", "requeue"] {
        let settles = series("settles", "action", action);
        assert_eq!(exposed.get(&settles), Some(1.0), "{settles}");
    }
    assert_eq!(
        exposed.get(&series("deliveries", "redelivered", "false")),
        Some(5.0)
    );
    assert_eq!(
        exposed.get(&series("deliveries", "redelivered", "true")),
        Some(1.0)
    );
    assert_eq!(exposed.get("courtier_subscriptions"), Some(1.0));
    assert_eq!(
        exposed.get("courtier_subscription_credit_messages"),
        Some(7.0)
    );
    stream.ack(&[&again.ack_id]).await;
    stream.half_close();
    stream.end().await.expect("it ends well");
    becomes(&front, "courtier_subscriptions", Some(0.0)).await;
    becomes(&front, "courtier_subscription_credit_messages", Some(0.0)).await;

    front.fill(&queue, &["6"]).await;
    let mut start = from(&[&queue]);
    start.ack_deadline = seconds(1);
    let mut stream = front.subscribe(start).await;
    stream.delivery().await;
    stream.revoked().await;
    let exposed = Exposed::by(&front.address).await;
    assert_eq!(
        exposed.get(&series("settles", "action", "expired")),
        Some(1.0)
    );
    stream.die();

    let mut start = from(&[&queue]);
    start.auto_ack = true;
    start.max_messages = 1;
    let mut stream = front.subscribe(start).await;
    stream.delivery().await;
    stream.end().await.expect("it ends well");
    becomes(&front, &series("settles", "action", "auto_ack"), Some(1.0)).await;
    becomes(&front, "courtier_deliveries_outstanding", Some(0.0)).await;
}

async fn what_fails_is_counted_until_it_is_resolved(on: On) {
    let desk = Desk::open(on, |setup| {
        slow(setup);
        setup.config.alerts.every = Duration::from_millis(100);
    })
    .await;
    let (front, queue) = (&desk.front, &desk.queue);
    let rows =
        |status: &str| format!(r#"courtier_failed_messages{{queue="{queue}",status="{status}"}}"#);
    let failed = desk.refused(text("no"), Action::Retry).await;
    becomes(front, &rows("pending"), Some(1.0)).await;
    let exposed = Exposed::by(&front.address).await;
    let collected =
        format!(r#"courtier_dead_letters_collected_total{{queue="{queue}",reason="rejected"}}"#);
    assert_eq!(exposed.get(&collected), Some(1.0));
    assert!(exposed.get("courtier_failed_message_oldest_seconds") >= Some(0.0));

    desk.retry(&failed.id).await.expect("it may be retried");
    let exposed = Exposed::by(&front.address).await;
    let retried = format!(r#"courtier_retries_total{{queue="{queue}",result="confirmed"}}"#);
    assert_eq!(exposed.get(&retried), Some(1.0));

    let mut stream = front.subscribe(from(&[queue])).await;
    let delivery = stream.delivery().await;
    stream.ack(&[&delivery.ack_id]).await;
    desk.becomes(&failed.id, Status::Resolved).await;
    becomes(front, &rows("resolved"), Some(1.0)).await;
    let exposed = Exposed::by(&front.address).await;
    assert_eq!(exposed.get(&rows("pending")), Some(0.0));
    assert_eq!(
        exposed.get("courtier_failed_message_oldest_seconds"),
        Some(0.0)
    );
    assert_eq!(exposed.get("courtier_database_up"), Some(1.0));
    assert!(
        exposed
            .get(r#"courtier_database_connections{state="idle"}"#)
            .is_some()
    );
}

#[tokio::test]
async fn a_retry_that_comes_back_is_counted_as_unroutable() {
    let desk = Desk::open(On::Embedded, slow).await;
    let failed = desk.refused(text("no"), Action::Retry).await;
    desk.front.delete_queue(&desk.queue).await;
    desk.retry(&failed.id).await.expect_err("no queue takes it");
    let exposed = Exposed::by(&desk.front.address).await;
    let returned = format!(
        r#"courtier_retries_total{{queue="{}",result="unroutable"}}"#,
        desk.queue
    );
    assert_eq!(exposed.get(&returned), Some(1.0));
}

#[tokio::test]
async fn without_a_database_what_it_knows_has_no_series_and_what_is_dropped_is_counted() {
    let gateway = Gateway::start_with(MemoryBroker::new(), |setup| {
        setup.without_database();
        let log = setup.config.message_log.as_mut().expect("on by default");
        log.room = Room {
            events: 1,
            bytes: 10_000,
        };
    })
    .await;
    let mut publisher = gateway.publisher().await;
    for _ in 0..4 {
        let mut request = to_queue("nobody", text("x"));
        request.allow_unroutable = true;
        timely(publisher.publish(request)).await.expect("confirmed");
    }
    let exposed = Exposed::by(&gateway.address).await;
    assert_eq!(exposed.get("courtier_database_up"), Some(0.0));
    for name in ["failed_message", "database_connections"] {
        assert!(!exposed.has(name), "{name}");
    }
    let dropped = exposed.get("courtier_message_log_dropped_events_total");
    // The writer may hold a batch of one already.
    assert!(dropped >= Some(2.0), "{dropped:?}");
}

#[tokio::test]
async fn calls_are_counted_by_how_they_end_and_unknown_ones_make_no_series() {
    let gateway = Gateway::embedded().await;
    let channel = gateway.channel().await;
    let mut publisher = PublisherClient::new(channel.clone());
    let unroutable = to_queue("nobody", text("x"));
    timely(publisher.publish(unroutable))
        .await
        .expect_err("no queue");
    let mut routable = to_queue("nobody", text("x"));
    routable.allow_unroutable = true;
    timely(publisher.publish(routable))
        .await
        .expect("confirmed");
    let mut grpc = tonic::client::Grpc::new(channel);
    for path in ["/courtier.v1.Publisher/Invented", "/in.vented/Call"] {
        grpc.ready().await.expect("it is there");
        let codec = tonic_prost::ProstCodec::<PublishRequest, PublishRequest>::default();
        let path = path.parse().expect("a path");
        let answer =
            timely(grpc.unary(tonic::Request::new(PublishRequest::default()), path, codec)).await;
        answer.expect_err("there is no such method");
    }
    let exposed = Exposed::by(&gateway.address).await;
    let calls = |code: &str| {
        format!(
            r#"courtier_grpc_requests_total{{service="courtier.v1.Publisher",method="Publish",code="{code}"}}"#
        )
    };
    assert_eq!(exposed.get(&calls("OK")), Some(1.0));
    assert_eq!(exposed.get(&calls("FAILED_PRECONDITION")), Some(1.0));
    let count =
        r#"courtier_grpc_request_seconds_count{service="courtier.v1.Publisher",method="Publish"}"#;
    assert_eq!(exposed.get(count), Some(2.0));
    assert!(!exposed.has("Invented") && !exposed.has("in.vented"));
}

async fn queues_and_alerts_are_those_of_the_broker(on: On) {
    let front = on
        .gateway_set_up(|setup| {
            setup.without_database();
            setup.config.alerts.every = Duration::from_millis(200);
            setup.config.alerts.hold = Duration::ZERO;
        })
        .await;
    let queue = front.queue("q").await;
    front.fill(&queue, &["a", "b"]).await;
    // Somebody asks for it: without the management API, that is how it is known.
    drop(front.subscribe(from(&[&queue])).await);
    let of = |figure: &str| format!("courtier_queue_{figure}{{queue=\"{queue}\"}}");
    let alert = format!("courtier_alert_active{{alert=\"no_consumer\",subject=\"{queue}\"}}");
    eventually("its figures are exposed", async || {
        let exposed = Exposed::by(&front.address).await;
        exposed.get(&of("messages_ready")) == Some(2.0)
            && exposed.get(&of("consumers")) == Some(0.0)
            && exposed.get(&alert) == Some(1.0)
    })
    .await;
    let exposed = Exposed::by(&front.address).await;
    let unacked = exposed.get(&of("messages_unacked"));
    // AMQP does not tell.
    assert_eq!(unacked, (on == On::Embedded).then_some(0.0));
    assert_eq!(exposed.get(&of("capacity_ratio")), None, "it has no most");
    front.delete_queue(&queue).await;
    eventually("its series are gone", async || {
        let exposed = Exposed::by(&front.address).await;
        !exposed.has(&of("messages_ready")) && !exposed.has(&alert)
    })
    .await;
}

#[tokio::test]
async fn the_documentation_has_every_figure_and_no_other() {
    let metrics = Metrics::default();
    let mine = metrics.clone();
    let desk = Desk::open(On::Embedded, |setup| {
        slow(setup);
        setup.metrics = mine;
        // It has looked around long before what is fed below, and does not again.
        setup.config.alerts.every = Duration::from_secs(3_600);
    })
    .await;
    let failed = desk.refused(text("no"), Action::Retry).await;
    desk.retry(&failed.id).await.expect("it may be retried");
    // What only RabbitMQ has, and what others feed.
    metrics.lane(0).set(1, 2);
    metrics.connected("publish", true);
    metrics.repaired("q");
    metrics.queues(&[QueueSample {
        queue: "q".to_owned(),
        messages_ready: Some(1),
        messages_unacked: Some(2),
        consumers: Some(3),
        capacity_ratio: Some(0.5),
        publish_rate: Some(1.5),
        deliver_rate: Some(2.5),
        ack_rate: Some(3.5),
    }]);
    metrics.alerts(&[ActiveAlert {
        alert: "queue_full".to_owned(),
        subject: "q".to_owned(),
    }]);
    metrics.failed(Some([("q", "pending", 1)]), Some(Duration::ZERO));
    let exposed = Exposed::by(&desk.front.address).await;
    let documented: BTreeMap<String, String> = DOCUMENTED
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.trim_end_matches('`');
            Some((name.to_owned(), cells.next()?.to_owned()))
        })
        .collect();
    assert_eq!(exposed.types, documented);
    for (name, labels) in labels_in_the_documentation() {
        let series = exposed
            .series
            .keys()
            .find(|series| series.split('{').next() == Some(&*name));
        let Some(series) = series else { continue };
        for label in &labels {
            assert!(
                series.contains(&format!("{label}=\"")),
                "{label} in {series}"
            );
        }
        assert_eq!(series.matches("=\"").count(), labels.len(), "{series}");
    }
}

/// The labels of each metric that the documentation has.
fn labels_in_the_documentation() -> impl Iterator<Item = (String, Vec<String>)> {
    DOCUMENTED.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let name = cells.next()?.trim().trim_end_matches('`');
        let labels = cells
            .nth(1)?
            .split(',')
            .map(|label| label.trim().trim_matches('`'));
        let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned);
        Some((name.to_owned(), labels.collect()))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_link_that_was_lost_and_is_back_is_counted() {
    let instance = Instance::start().await;
    let gateway = Process::start(&instance, &[]).await;
    gateway.health([true; 3]).await;
    let state =
        |state: &str| format!(r#"courtier_broker_link_state{{role="publish",state="{state}"}}"#);
    let reconnects = r#"courtier_broker_reconnects_total{role="publish"}"#;
    let exposed = Exposed::by(&gateway.address()).await;
    assert_eq!(exposed.get(&state("up")), Some(1.0));
    assert_eq!(exposed.get(reconnects), Some(0.0));
    assert_eq!(
        exposed.get(r#"courtier_lane_backlog_messages{lane="7"}"#),
        Some(0.0)
    );
    instance.kill().await;
    eventually("the link is down", || async {
        let exposed = Exposed::by(&gateway.address()).await;
        exposed.get(&state("down")) == Some(1.0) && exposed.get(&state("up")) == Some(0.0)
    })
    .await;
    instance.restart().await;
    gateway.health([true; 3]).await;
    let exposed = Exposed::by(&gateway.address()).await;
    assert_eq!(exposed.get(reconnects), Some(1.0));
    for figure in [
        "resident_memory_bytes",
        "cpu_seconds_total",
        "open_fds",
        "start_time_seconds",
    ] {
        let value = exposed.get(&format!("courtier_process_{figure}"));
        assert!(value > Some(0.0), "{figure}: {value:?}");
    }
}
