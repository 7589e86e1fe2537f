//! The log of the real program: what it says, in which form, and what it never says.

use courtier::grpc::proto::{
    Binding, CreateBindingRequest, ListFailedMessagesRequest, Nack, PublishRequest,
    PurgeQueueRequest, RetryFailedMessageRequest, Settle,
    failed_messages_client::FailedMessagesClient, nack::Action, publisher_client::PublisherClient,
    queue_admin_client::QueueAdminClient, subscribe_response::Response,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::{Code, Request};

use crate::{
    books::Consumer,
    front::{text, timely, to_queue},
    harness::eventually,
    load::TOPOLOGY,
    process::Process,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SECRET: &str = "the-secret-payload";

/// The fields of the first line that says this, once it is there.
async fn line(gateway: &Process, message: &str) -> Value {
    let find = || {
        let log = gateway.log();
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines.find(|line: &Value| line["fields"]["message"] == message)
    };
    eventually(&format!("the log says {message:?}"), || async {
        find().is_some()
    })
    .await;
    find().expect("it is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_of_a_message_is_a_line_with_its_ids_and_never_its_payload() {
    let dir = TempDir::new().expect("a temporary folder");
    let topology = dir.path().join("topology.toml");
    std::fs::write(&topology, TOPOLOGY).expect("a place to write");
    let queue = "left";
    let settings = [
        ("LOG_FORMAT", "json"),
        ("TOPOLOGY_FILE", topology.to_str().expect("a plain path")),
    ];
    let gateway = Process::start_in(dir.path(), &settings).await;
    let mut message = text(SECRET);
    message.message_id = "order-1".to_owned();
    let mut request = Request::new(to_queue(queue, message));
    let context = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let context = context.parse().expect("a metadata value");
    request.metadata_mut().insert("traceparent", context);
    let mut publisher = PublisherClient::new(gateway.channel());
    timely(publisher.publish(request)).await.expect("confirmed");

    let consumer = Consumer::start(gateway.channel(), queue, 1).await;
    let mut consumer = consumer.expect("it opens");
    let ack_id = loop {
        let said = timely(consumer.next()).await.expect("the stream lives");
        if let Some(Response::Deliveries(deliveries)) = said.and_then(|said| said.response) {
            break deliveries.deliveries[0].ack_id.clone();
        }
    };
    consumer.settle(Settle {
        ack_ids: vec![],
        nacks: vec![Nack {
            ack_id,
            action: Action::DeadLetter.into(),
            ..Nack::default()
        }],
    });
    let steps = [
        ("published", "outcome", "Confirmed"),
        ("delivered", "queue", queue),
        ("settled", "action", "dead_letter"),
        ("a message failed", "reason", "rejected"),
    ];
    for (step, field, value) in steps {
        let line = line(&gateway, step).await;
        assert_eq!(line["level"], "DEBUG", "{line}");
        let fields = &line["fields"];
        assert_eq!(fields["message_id"], "order-1", "{line}");
        assert_eq!(fields["trace_id"], TRACE, "{line}");
        assert_eq!(fields[field], value, "{line}");
    }

    let mut failed = FailedMessagesClient::new(gateway.channel());
    let listed = timely(failed.list_failed_messages(ListFailedMessagesRequest::default())).await;
    let id = listed.expect("listed").into_inner().failed_messages[0]
        .id
        .clone();
    let retry = RetryFailedMessageRequest { id: id.clone() };
    timely(failed.retry_failed_message(retry))
        .await
        .expect("retried");
    let retried = line(&gateway, "retried a failed message").await;
    assert_eq!(retried["level"], "INFO");
    assert_eq!(retried["fields"]["id"], id);
    assert_eq!(retried["fields"]["trace_id"], TRACE);

    // A client's mistake is a line, and no error.
    let mistake = PublishRequest {
        exchange: "nobody-made-this".to_owned(),
        message: Some(text(SECRET)),
        ..PublishRequest::default()
    };
    let status = timely(publisher.publish(mistake))
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::NotFound);
    let line = line(&gateway, "a call failed").await;
    assert_eq!(
        (&line["level"], &line["fields"]["code"]),
        (&"DEBUG".into(), &"NOT_FOUND".into())
    );
    assert_eq!(line["fields"]["told"], status.message());
    let log = gateway.log();
    assert!(!log.contains(SECRET) && !log.contains("\"ERROR\""), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_text_unless_it_is_json_and_says_no_secret() {
    for (format, is_json) in [("text", false), ("json", true)] {
        let dir = TempDir::new().expect("a temporary folder");
        let settings = [
            ("LOG_FORMAT", format),
            ("RUST_LOG", "debug"),
            (
                "RABBITMQ_URL",
                "amqp://somebody:the-password@127.0.0.1:1/%2f",
            ),
        ];
        let gateway = Process::start_in(dir.path(), &settings).await;
        let said = "cannot reach the broker";
        eventually("the link's error is said", || async {
            gateway.log().contains(said)
        })
        .await;
        let log = gateway.log();
        let line = log
            .lines()
            .find(|line| line.contains(said))
            .expect("it is there");
        let parsed = serde_json::from_str::<Value>(line);
        assert_eq!(parsed.is_ok(), is_json, "{line}");
        assert!(line.contains("WARN"), "{line}");
        assert!(!log.contains("the-password"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_sends_makes_no_long_line() {
    for format in ["text", "json"] {
        let dir = TempDir::new().expect("a temporary folder");
        let settings = [("LOG_FORMAT", format), ("RUST_LOG", "courtier=debug")];
        let gateway = Process::start_in(dir.path(), &settings).await;
        let before = gateway.log().len();
        // As long as a request may be. Compressed, it would be refused for how well.
        let long = "n".repeat(4_000_000);
        let mut admin = QueueAdminClient::new(gateway.channel());
        let mut publisher = PublisherClient::new(gateway.channel());
        for _ in 0..15 {
            let purge = PurgeQueueRequest {
                name: long.clone(),
                confirm_name: String::new(),
            };
            timely(admin.purge_queue(purge)).await.expect_err("refused");
        }
        let (exchange, queue, routing_key) = ("e".to_owned(), long.clone(), String::new());
        let bind = CreateBindingRequest {
            binding: Some(Binding {
                exchange,
                queue,
                routing_key,
                ..Binding::default()
            }),
        };
        let bound = timely(admin.create_binding(bind)).await;
        bound.expect_err("refused");
        let mut message = text("x");
        let header = format!("x-courtier-{long}\r\n\u{1b}[2J");
        message.headers = Some(prost_types::Struct {
            fields: [(header, prost_types::Value { kind: None })].into(),
        });
        let refused = timely(publisher.publish(to_queue("q", message))).await;
        let told = refused.expect_err("refused").message().to_owned();
        assert!(told.len() <= 4 * 1024, "{} bytes are told", told.len());
        assert!(!told.contains(char::is_control), "{told:?}");
        // The last of them is there.
        eventually("the last call is in the log", || async {
            gateway.log().matches("a call failed").count() == 17
        })
        .await;
        let log = gateway.log();
        let grown = log.len() - before;
        assert!(grown < 64 * 1024, "{grown} bytes of {format}");
        let longest = log.lines().map(str::len).max();
        assert!(longest < Some(8 * 1024), "{longest:?} of {format}");
        assert!(!log.contains('\u{1b}'), "{format}");
    }
}
