//! Each alert is raised when something goes wrong, and cleared when it is well again.

use std::time::Duration;

use courtier::{
    gateway::alerts::Options,
    grpc::proto::{
        Alert, DeleteFailedMessageRequest, ListAlertsRequest, ListFailedMessagesRequest,
        ResolveFailedMessageRequest, WatchAlertsRequest,
        alert::{Kind, Severity},
        failed_messages_client::FailedMessagesClient,
        nack::Action,
    },
    store::Place,
};
use secrecy::SecretString;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    front::{Front, On, ack, from, on_all, text, timely, to_queue},
    harness::{Setup, connect_to, eventually},
    instance::Instance,
    office::Office,
    store::database::Own,
};

/// Looks often, and believes soon.
fn nervous(setup: &mut Setup) {
    let Options { every, hold, .. } = &mut setup.config.alerts;
    (*every, *hold) = (Duration::from_millis(200), Duration::from_millis(300));
}

impl Office {
    async fn nervous(on: On, change: impl FnOnce(&mut Options)) -> Self {
        Self::set_up(on, |setup| {
            nervous(setup);
            change(&mut setup.config.alerts);
        })
        .await
    }

    async fn alert(&self, kind: Kind, subject: &str) -> Option<Alert> {
        let listed = timely(self.admin().list_alerts(ListAlertsRequest {})).await;
        let mut alerts = listed.expect("listed").into_inner().alerts.into_iter();
        alerts.find(|alert| alert.kind() == kind && alert.subject == subject)
    }

    pub async fn raised(&self, kind: Kind, subject: &str) -> Alert {
        eventually("it is raised", async || {
            self.alert(kind, subject).await.is_some()
        })
        .await;
        self.alert(kind, subject).await.expect("it stands")
    }

    pub async fn cleared(&self, kind: Kind, subject: &str) {
        eventually("it is cleared", async || {
            self.alert(kind, subject).await.is_none()
        })
        .await;
    }

    /// Lets so many messages fail, each for a person to look at.
    async fn fail(&self, queue: &str, count: usize) {
        let mut stream = self.subscribe(from(&[queue])).await;
        for _ in 0..count {
            self.fill(queue, &["bad"]).await;
            let delivery = stream.delivery().await;
            stream.nack(&delivery.ack_id, Action::DeadLetter).await;
        }
        stream.half_close();
        stream.end().await.expect("it ends well");
    }

    /// The ids of its failed messages, once there are so many.
    async fn failures(&self, count: usize) -> Vec<String> {
        let failed = FailedMessagesClient::new(self.channel().await);
        let ids = async || {
            let request = ListFailedMessagesRequest::default();
            let listed = timely(failed.clone().list_failed_messages(request)).await;
            let listed = listed.expect("listed").into_inner().failed_messages;
            listed.into_iter().map(|one| one.id).collect::<Vec<_>>()
        };
        eventually("they are stored", async || ids().await.len() == count).await;
        ids().await
    }
}

async fn messages_without_a_consumer(on: On) {
    let office = Office::nervous(on, |_| {}).await;
    let queue = office.plain("q").await;
    let stream = office.subscribe(from(&[&queue])).await;
    stream.die();
    eventually("nobody consumes any more", async || {
        let found = office.get(&queue).await.expect("it is there");
        found.consumer_count == Some(0)
    })
    .await;
    office.fill(&queue, &["a", "b"]).await;
    let alert = office.raised(Kind::NoConsumer, &queue).await;
    assert_eq!(alert.severity(), Severity::Critical);
    assert!(alert.raised_at.is_some() && alert.cleared_at.is_none());
    assert!(alert.summary.contains("2 messages"), "{}", alert.summary);
    assert_eq!(alert.runbook, "docs/runbook.md#no-consumer");
    let mut stream = office.subscribe(from(&[&queue])).await;
    let deliveries = stream.deliveries(2).await;
    office.cleared(Kind::NoConsumer, &queue).await;
    drop(deliveries);
}

async fn a_queue_that_is_nearly_full(on: On) {
    if on == On::RabbitMq {
        return only_those_who_know_can_tell(on).await;
    }
    let office = Office::nervous(on, |_| {}).await;
    let queue = office
        .queue_with("q", |queue| queue.max_length = Some(10))
        .await;
    office.fill(&queue, &["x"; 8]).await;
    // Somebody is there, so that this is the only thing wrong.
    let mut one = from(&[&queue]);
    one.max_outstanding = 1;
    let mut stream = office.subscribe(one).await;
    let held = stream.delivery().await;
    office.fill(&queue, &["x"; 2]).await;
    let alert = office.raised(Kind::QueueDepth, &queue).await;
    assert_eq!(alert.severity(), Severity::Warning);
    assert!(alert.summary.contains("90 %"), "{}", alert.summary);
    stream.ack(&[&held.ack_id]).await;
    for _ in 0..5 {
        let next = stream.delivery().await;
        stream.ack(&[&next.ack_id]).await;
    }
    office.cleared(Kind::QueueDepth, &queue).await;
}

/// Without the management API nobody knows of the queue's limit: no alert, and no wrong one.
async fn only_those_who_know_can_tell(on: On) {
    let office = Office::nervous(on, |_| {}).await;
    let queue = office
        .queue_with("q", |queue| queue.max_length = Some(1))
        .await;
    office.fill(&queue, &["x"]).await;
    assert!(office.get(&queue).await.is_ok());
    // It is known from the moment that somebody asks for it.
    drop(office.subscribe(from(&[&queue])).await);
    office.raised(Kind::NoConsumer, &queue).await;
    assert_eq!(office.alert(Kind::QueueDepth, &queue).await, None);
}

async fn consumers_that_do_not_keep_up(on: On) {
    let office = Office::nervous(on, |alerts| alerts.consumer_lag = Duration::from_secs(2)).await;
    let queue = office.plain("q").await;
    let all = 600;
    office.fill(&queue, &vec!["x"; all]).await;
    let mut some = from(&[&queue]);
    some.max_outstanding = 5;
    let mut stream = office.subscribe(some).await;
    // About twenty a second, so that the last one waits for half a minute.
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    let mut taken = 0;
    let raised = loop {
        pace.tick().await;
        let next = stream.delivery().await;
        taken += 1;
        stream.send(ack(&[&next.ack_id]));
        // At first RabbitMQ's figures may say that nothing is acked: they are some seconds old.
        let alert = office.alert(Kind::ConsumerLag, &queue).await;
        if let Some(alert) = alert.filter(|alert| alert.summary.contains("waits")) {
            break alert;
        }
    };
    assert_eq!(raised.severity(), Severity::Warning);
    for _ in taken..all {
        let next = stream.delivery().await;
        stream.send(ack(&[&next.ack_id]));
    }
    office.cleared(Kind::ConsumerLag, &queue).await;
}

async fn many_failures_at_once(on: On) {
    let office = Office::nervous(on, |alerts| alerts.failed_spike = 3).await;
    let queue = office.plain("work").await;
    office.fail(&queue, 3).await;
    let alert = office.raised(Kind::FailedSpike, "").await;
    assert!(alert.summary.starts_with("3 messages"), "{}", alert.summary);
    let mut failed = FailedMessagesClient::new(office.channel().await);
    for id in office.failures(3).await {
        let request = DeleteFailedMessageRequest { id };
        timely(failed.delete_failed_message(request))
            .await
            .expect("deleted");
    }
    office.cleared(Kind::FailedSpike, "").await;
}

async fn a_failed_message_that_nobody_looks_at(on: On) {
    let office = Office::nervous(on, |alerts| alerts.oldest_failed = Duration::from_secs(1)).await;
    let queue = office.plain("work").await;
    office.fail(&queue, 1).await;
    office.raised(Kind::OldestFailed, "").await;
    let request = ResolveFailedMessageRequest {
        id: office.failures(1).await.remove(0),
        comment: String::new(),
    };
    let mut failed = FailedMessagesClient::new(office.channel().await);
    timely(failed.resolve_failed_message(request))
        .await
        .expect("resolved");
    office.cleared(Kind::OldestFailed, "").await;
}

async fn queues_that_nobody_wants_to_hear_of_are_left_out(on: On) {
    let office = Office::nervous(on, |alerts| {
        alerts.ignored_queues = vec!["*-parked".to_owned()];
    })
    .await;
    let (parked, other) = (office.plain("parked").await, office.plain("other").await);
    office.fill(&parked, &["a"]).await;
    office.fill(&other, &["a"]).await;
    office.raised(Kind::NoConsumer, &other).await;
    assert_eq!(office.alert(Kind::NoConsumer, &parked).await, None);
}

async fn a_watch_tells_what_stands_and_what_changes(on: On) {
    let office = Office::nervous(on, |_| {}).await;
    let (first, second) = (office.plain("1").await, office.plain("2").await);
    office.fill(&first, &["a"]).await;
    office.raised(Kind::NoConsumer, &first).await;
    let watch = timely(office.admin().watch_alerts(WatchAlertsRequest {})).await;
    let mut watch = watch.expect("begun").into_inner();
    let mut next = async |subject: &str, cleared: bool| loop {
        let response = timely(watch.message()).await.expect("it goes on");
        let alerts = response.expect("it has no end").alerts;
        let is_it =
            |alert: &Alert| alert.subject == subject && alert.cleared_at.is_some() == cleared;
        if alerts.iter().any(is_it) {
            return;
        }
    };
    next(&first, false).await;
    office.fill(&second, &["a"]).await;
    next(&second, false).await;
    office.drain(&first).await;
    next(&first, true).await;
}

on_all! {
    messages_without_a_consumer
    a_queue_that_is_nearly_full
    many_failures_at_once
    a_failed_message_that_nobody_looks_at
    queues_that_nobody_wants_to_hear_of_are_left_out
    a_watch_tells_what_stands_and_what_changes
    // AMQP tells no rates.
    [not rabbitmq] consumers_that_do_not_keep_up
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a broker of its own: run make test"]
async fn a_broker_that_goes_and_one_that_takes_nothing() {
    let instance = Instance::start().await;
    let front = Front::of(connect_to(&instance.url), None, nervous).await;
    let office = Office::of(On::RabbitMq, front).await;
    let queue = office.queue("q").await;
    office.fill(&queue, &["before"]).await;

    instance.block().await;
    // RabbitMQ tells those who publish.
    eventually("it is noticed", async || {
        let mut publish = tonic::Request::new(to_queue(&queue, text("x")));
        publish.set_timeout(Duration::from_millis(500));
        let _ = office.publisher.clone().publish(publish).await;
        office.alert(Kind::BrokerAlarm, "publish").await.is_some()
    })
    .await;
    instance.unblock().await;
    office.cleared(Kind::BrokerAlarm, "publish").await;

    instance.kill().await;
    for link in ["publish", "consume"] {
        let alert = office.raised(Kind::LinkDown, link).await;
        assert_eq!(alert.severity(), Severity::Critical);
    }
    instance.restart().await;
    for link in ["publish", "consume"] {
        office.cleared(Kind::LinkDown, link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a database of its own: run make test"]
async fn a_database_that_goes() {
    let database = Instance::database("postgres").await;
    let own = Own::at(database.url.clone()).await;
    let office = Office::set_up(On::Embedded, |setup| {
        nervous(setup);
        let url = SecretString::from(own.url().to_owned());
        setup.config.database.place = Place::Server(url);
    })
    .await;
    assert_eq!(office.alert(Kind::DatabaseDown, "").await, None);
    database.kill().await;
    office.raised(Kind::DatabaseDown, "").await;
    database.restart().await;
    office.cleared(Kind::DatabaseDown, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_told_and_told_again_when_it_did_not_listen() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let deaf = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let hook = axum::routing::post(move |body: axum::Json<Value>| async move {
        if deaf.swap(false, std::sync::atomic::Ordering::SeqCst) {
            return axum::http::StatusCode::BAD_GATEWAY;
        }
        told.send(body.0).expect("the test listens");
        axum::http::StatusCode::NO_CONTENT
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        let app = axum::Router::new().route("/hook", hook);
        axum::serve(listener, app).await
    });
    let office = Office::nervous(On::Embedded, |alerts| {
        alerts.webhook = Some(SecretString::from(format!("http://{address}/hook")));
    })
    .await;
    let queue = office.plain("q").await;
    office.fill(&queue, &["a"]).await;
    let raised = timely(heard.recv()).await.expect("it is told");
    assert_eq!(raised["status"], "raised");
    assert_eq!(raised["kind"], "no_consumer");
    assert_eq!(raised["subject"], Value::from(queue.clone()));
    assert_eq!(raised["severity"], "critical");
    assert_eq!(raised["cleared_at"], Value::Null);
    assert!(raised["raised_at"].is_string());
    office.drain(&queue).await;
    let cleared = timely(heard.recv()).await.expect("it is told");
    assert_eq!(cleared["status"], "cleared");
    assert!(cleared["cleared_at"].is_string());
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_leads_elsewhere_is_not_followed() {
    use axum::{http::StatusCode, response::Redirect, routing::any};
    let (asked, mut heard) = mpsc::unbounded_channel();
    let elsewhere = asked.clone();
    let app = axum::Router::new()
        .route(
            "/hook/{token}",
            any(move || async move {
                asked.send("the hook").expect("the test listens");
                Redirect::temporary("/elsewhere")
            }),
        )
        .route(
            "/elsewhere",
            any(move || async move {
                elsewhere.send("elsewhere").expect("the test listens");
                StatusCode::NO_CONTENT
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let office = Office::nervous(On::Embedded, |alerts| {
        let url = format!("http://{address}/hook/the-token");
        alerts.webhook = Some(SecretString::from(url));
    })
    .await;
    let queue = office.plain("q").await;
    office.fill(&queue, &["a"]).await;
    // It is asked again, because the first answer was none.
    for _ in 0..2 {
        assert_eq!(timely(heard.recv()).await, Some("the hook"));
    }
    serving.abort();
}
