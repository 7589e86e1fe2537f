//! The command line: the real binary against a real gateway.

use std::process::{Output, Stdio};

use courtier::{
    broker::topology::{Binding, Exchange, ExchangeKind, Queue, QueueKind, Topology},
    grpc::proto::{
        Start, SubscribeRequest, subscribe_request::Request, subscribe_response::Response,
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::timeout,
};
use tokio_stream::StreamExt;

use crate::{
    command::{code, courtier, ended, interrupt, json_lines, line, run, stderr, stdout},
    harness::{Gateway, PATIENCE},
};

/// A gateway with an exchange that is bound to a queue by `#`, and a queue that holds one message at most.
struct Fixture {
    gateway: Gateway,
    exchange: String,
    queue: String,
    tiny: String,
}

impl Fixture {
    async fn new() -> Self {
        Self::on(Gateway::embedded().await).await
    }

    async fn on(gateway: Gateway) -> Self {
        let (exchange, queue, tiny) = (
            gateway.name("exchange"),
            gateway.name("queue"),
            gateway.name("tiny"),
        );
        let mut full_at_one = Queue::bare(&tiny, QueueKind::Classic);
        full_at_one.max_length = Some(1);
        let topology = Topology {
            exchanges: vec![Exchange::new(exchange.clone(), ExchangeKind::Topic)],
            queues: vec![Queue::bare(&queue, QueueKind::Classic), full_at_one],
            bindings: vec![Binding {
                exchange: exchange.clone(),
                queue: queue.clone(),
                routing_key: "order.#".to_owned(),
                arguments: Default::default(),
            }],
        };
        gateway.broker.declare(&topology).await.expect("declared");
        Self {
            gateway,
            exchange,
            queue,
            tiny,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = courtier(arguments);
        command.env(
            "COURTIER_SERVER",
            format!("http://{}", self.gateway.address),
        );
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments), b"").await
    }

    async fn feed(&self, arguments: &[&str], input: &[u8]) -> Output {
        run(self.command(arguments), input).await
    }

    async fn publish(&self, arguments: &[&str]) -> Output {
        let mut all = vec!["publish", &self.exchange, "order.created"];
        all.extend(arguments);
        self.run(&all).await
    }

    /// The messages that are printed as JSON, acknowledged.
    async fn received(&self, count: usize) -> Vec<Value> {
        let max = count.to_string();
        let output = self
            .run(&["subscribe", "--output", "json", "--max", &max, &self.queue])
            .await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        json_lines(&output)
    }

    /// Waits as long as the shortest ack deadline: until a delivery that nobody settles lapses.
    async fn one_ack_deadline_passes(&self) {
        self.run(&["publish", "", &self.tiny, "--text=x"]).await;
        let start = Start {
            queues: vec![self.tiny.clone()],
            ack_deadline: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..Start::default()
        };
        let request = SubscribeRequest {
            request: Some(Request::Start(start)),
        };
        // The stream stays open: a half-close would end it.
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut client = self.gateway.subscriber().await;
        let responses = client.subscribe(requests).await.expect("subscribed");
        let mut responses = responses.into_inner();
        let revoked = async {
            loop {
                let response = responses
                    .message()
                    .await
                    .expect("open")
                    .expect("not the end");
                if let Some(Response::Revoked(_)) = response.response {
                    return;
                }
            }
        };
        timeout(PATIENCE, revoked).await.expect("it lapses");
    }

    /// A subscriber that runs on; its lines are read by the test.
    fn subscriber(&self, arguments: &[&str]) -> Child {
        let mut all = vec!["subscribe", &self.queue];
        all.extend(arguments);
        let mut command = self.command(&all);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("started")
    }
}

#[tokio::test]
async fn what_is_published_as_text_is_printed_under_a_headline() {
    let fixture = Fixture::new().await;
    let published = fixture
        .publish(&["--text", "hello", "--message-id", "m-1"])
        .await;
    assert_eq!(code(&published), 0, "{}", stderr(&published));
    assert_eq!(stdout(&published), "confirmed, message id m-1\n");

    let printed = fixture
        .run(&["subscribe", "--max", "1", &fixture.queue])
        .await;
    assert_eq!(code(&printed), 0, "{}", stderr(&printed));
    let expected = format!("# {} order.created m-1\nhello\n", fixture.queue);
    assert_eq!(stdout(&printed), expected);
}

#[tokio::test]
async fn every_property_arrives() {
    let fixture = Fixture::new().await;
    let json = r#"{"id":12345678901234567890}"#;
    let published = fixture
        .publish(&[
            "--json",
            json,
            "--type",
            "order.created",
            "--app-id",
            "shop",
            "--correlation-id",
            "c",
            "--reply-to",
            "answers",
            "--priority",
            "4",
            "--ttl",
            "30s",
            "--header",
            "tenant=7",
            "--header",
            "test=true",
            "--header",
            "name=a=b",
            "--output",
            "json",
        ])
        .await;
    assert_eq!(code(&published), 0, "{}", stderr(&published));
    let answer = &json_lines(&published)[0];
    assert_eq!(answer["outcome"], "CONFIRMED");

    let message = &fixture.received(1).await[0];
    for (field, expected) in [
        ("queue", Value::from(fixture.queue.clone())),
        ("exchange", fixture.exchange.clone().into()),
        ("routing_key", "order.created".into()),
        ("message_id", answer["message_id"].clone()),
        ("text", json.into()),
        ("content_type", "application/json".into()),
        ("type", "order.created".into()),
        ("app_id", "shop".into()),
        ("correlation_id", "c".into()),
        ("reply_to", "answers".into()),
        ("priority", 4.into()),
        ("ttl_ms", 30_000.into()),
        (
            "headers",
            serde_json::json!({"tenant": 7, "test": true, "name": "a=b"}),
        ),
        ("attempt", 1.into()),
        ("redelivered", false.into()),
    ] {
        assert_eq!(message[field], expected, "{field}");
    }
}

#[tokio::test]
async fn standard_input_and_files_arrive_byte_for_byte() {
    let fixture = Fixture::new().await;
    let bytes = b"\xff\x00\n";
    let file = std::env::temp_dir().join(fixture.gateway.name("payload"));
    std::fs::write(&file, bytes).expect("written");
    let path = file.to_str().expect("text");
    let base = ["publish", &fixture.exchange, "order.created"];
    for source in [
        vec![],
        vec!["-"],
        vec!["--data-file", path],
        vec!["--data-file", "-"],
    ] {
        let published = fixture.feed(&[&base[..], &source].concat(), bytes).await;
        assert_eq!(code(&published), 0, "{}", stderr(&published));
        assert_eq!(fixture.received(1).await[0]["data"], "/wAK", "{source:?}");
    }
    std::fs::remove_file(file).expect("removed");
}

#[tokio::test]
async fn the_default_exchange_leads_to_the_queue() {
    let fixture = Fixture::new().await;
    let published = fixture
        .run(&["publish", "", &fixture.queue, "--text", "straight"])
        .await;
    assert_eq!(code(&published), 0, "{}", stderr(&published));
    assert_eq!(fixture.received(1).await[0]["text"], "straight");
}

#[tokio::test]
async fn each_line_is_a_message_and_they_keep_their_order() {
    let fixture = Fixture::new().await;
    let count = 3_000;
    let input: String = (0..count).map(|i| format!("line {i}\n")).collect();
    let arguments = ["publish", &fixture.exchange, "order.created", "--lines"];
    let published = fixture.feed(&arguments, input.as_bytes()).await;
    assert_eq!(code(&published), 0, "{}", stderr(&published));
    assert_eq!(stdout(&published), "3000 lines: 3000 confirmed\n");

    let received = fixture.received(count).await;
    for (i, message) in received.iter().enumerate() {
        assert_eq!(message["text"], format!("line {i}"));
    }
}

#[tokio::test]
async fn a_line_ends_before_its_line_break_and_the_last_one_needs_none() {
    let fixture = Fixture::new().await;
    let arguments = ["publish", &fixture.exchange, "order.created", "--lines"];
    let published = fixture.feed(&arguments, b"a\r\n\nb").await;
    assert_eq!(stdout(&published), "3 lines: 3 confirmed\n");
    let texts: Vec<_> = fixture.received(3).await;
    let texts: Vec<_> = texts.iter().map(|message| &message["text"]).collect();
    assert_eq!(texts, ["a", "", "b"]);
}

#[tokio::test]
async fn each_line_gets_its_own_outcome_and_the_worst_one_is_the_exit_code() {
    let fixture = Fixture::new().await;
    let arguments = ["publish", "", &fixture.tiny, "--lines", "--output", "json"];
    let published = fixture.feed(&arguments, b"one\ntwo\n").await;
    assert_eq!(code(&published), 4);
    assert!(stderr(&published).contains("2 lines: 1 confirmed, 1 rejected"));
    let mut outcomes = json_lines(&published);
    outcomes.sort_by_key(|outcome| outcome["line"].as_u64());
    assert_eq!(outcomes[0]["outcome"], "CONFIRMED");
    assert_eq!(outcomes[1]["outcome"], "REJECTED");
    assert_eq!(outcomes[1]["reason"], "QUEUE_FULL");
    assert_ne!(outcomes[0]["message_id"], outcomes[1]["message_id"]);

    let arguments = ["publish", &fixture.exchange, "other", "--lines"];
    let published = fixture.feed(&arguments, b"one\n").await;
    assert_eq!(code(&published), 3);
    assert!(stderr(&published).contains("line 1 unroutable"));
    assert_eq!(stdout(&published), "1 line: 1 unroutable\n");
}

#[tokio::test]
async fn an_interrupt_ends_the_lines_and_waits_for_their_outcome() {
    let fixture = Fixture::new().await;
    let arguments = [
        "publish",
        &fixture.exchange,
        "order.created",
        "--lines",
        "--output",
        "json",
    ];
    let mut command = fixture.command(&arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"one\n").await.expect("written");
    assert!(line(&mut child).await.contains("CONFIRMED"));
    interrupt(&child).await;
    let output = ended(child).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains("1 line: 1 confirmed"));
}

#[tokio::test]
async fn what_is_refused_as_it_is_exits_with_3() {
    let fixture = Fixture::new().await;
    let long = "k".repeat(256);
    for (arguments, reason) in [
        (
            ["publish", &fixture.exchange, "other", "--text=x"],
            "UNROUTABLE",
        ),
        (
            ["publish", "nowhere", "key", "--text=x"],
            "EXCHANGE_NOT_FOUND",
        ),
        (
            ["publish", &fixture.exchange, &long, "--text=x"],
            "INVALID_MESSAGE",
        ),
        (["subscribe", "nowhere", "--max", "1"], "QUEUE_NOT_FOUND"),
        (
            ["subscribe", &fixture.queue, "--ack-deadline", "1h"],
            "INVALID_REQUEST",
        ),
    ] {
        let output = fixture.run(&arguments).await;
        assert_eq!(code(&output), 3, "{arguments:?}");
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn what_may_be_dropped_is_confirmed_without_a_queue() {
    let fixture = Fixture::new().await;
    let arguments = [
        "publish",
        &fixture.exchange,
        "other",
        "--text=x",
        "--allow-unroutable",
    ];
    assert_eq!(code(&fixture.run(&arguments).await), 0);
}

#[tokio::test]
async fn a_full_queue_exits_with_4() {
    let fixture = Fixture::new().await;
    let arguments = ["publish", "", &fixture.tiny, "--text=x", "--output=json"];
    assert_eq!(code(&fixture.run(&arguments).await), 0);
    let output = fixture.run(&arguments).await;
    assert_eq!(code(&output), 4);
    assert!(
        stderr(&output).contains("QUEUE_FULL"),
        "{}",
        stderr(&output)
    );
    let answer = &json_lines(&output)[0];
    assert_eq!(answer["outcome"], "REJECTED");
    assert_eq!(answer["reason"], "QUEUE_FULL");
}

#[tokio::test]
async fn no_gateway_exits_with_4_and_says_what_to_do() {
    // Port 1 is nobody's.
    for arguments in [
        &["publish", "e", "k", "--text=x"][..],
        &["publish", "e", "k", "--lines"],
        &["subscribe", "q"],
        &["health"],
    ] {
        let mut command = courtier(arguments);
        command.env("APP_PORT", "1");
        let output = run(command, b"").await;
        assert_eq!(code(&output), 4, "{arguments:?}");
        let told = stderr(&output);
        assert!(told.contains("http://127.0.0.1:1"), "{told}");
        assert!(told.contains("courtier serve"), "{told}");
    }
}

/// Takes connections, and closes each one as soon as a request is in whose payload ends with "mark!".
async fn takes_and_breaks() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            // The connection preface is an empty SETTINGS frame, as an HTTP/2 server sends it.
            let _ = connection.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            let mut reader = BufReader::new(&mut connection);
            let mut seen = Vec::new();
            while !seen.ends_with(b"mark!") {
                if reader.read_until(b'!', &mut seen).await.unwrap_or(0) == 0 {
                    break;
                }
            }
        }
    });
    address.to_string()
}

#[tokio::test]
async fn a_publish_whose_answer_got_lost_exits_with_5_and_names_the_message() {
    let server = takes_and_breaks().await;
    let arguments = [
        "publish",
        "e",
        "k",
        "--text",
        "mark!",
        "--server",
        &server,
        "--output=json",
    ];
    let output = run(courtier(&arguments), b"").await;
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let answer = &json_lines(&output)[0];
    assert_eq!(answer["outcome"], "IN_DOUBT");
    let message_id = answer["message_id"].as_str().expect("text");
    assert!(!message_id.is_empty());
    let hint = format!("--message-id {message_id}");
    assert!(stderr(&output).contains(&hint), "{}", stderr(&output));
}

#[tokio::test]
async fn a_subscription_whose_connection_breaks_exits_with_4() {
    let server = takes_and_breaks().await;
    let output = run(courtier(&["subscribe", "mark!", "--server", &server]), b"").await;
    assert_eq!(code(&output), 4, "{}", stderr(&output));
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    let fixture = Fixture::new().await;
    for arguments in [
        &["publish", "e"][..],
        &["publish", "e", "k", "--text=x", "--json=1"],
        &["publish", "e", "k", "--json={"],
        &["publish", "e", "k", "--text=x", "--header", "nothing"],
        &["publish", "e", "k", "--text=x", "--ttl", "soon"],
        &["publish", "e", "k", "--data-file", "/nowhere"],
        &["publish", "e", "k", "--text=x", "--lines"],
        &[
            "publish",
            "e",
            "k",
            "--text=x",
            "--server",
            "https://127.0.0.1:1",
        ],
        &["subscribe"],
        &["subscribe", "q", "--max", "0"],
        &["subscribe", "q", "--nack", "requeue"],
        &["subscribe", "q", "--nack", "discard", "--no-ack"],
    ] {
        let output = fixture.run(arguments).await;
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn without_ack_the_messages_are_still_there_afterwards() {
    let fixture = Fixture::new().await;
    let arguments = ["publish", &fixture.exchange, "order.created", "--lines"];
    let input: String = (0..150).map(|i| format!("{i}\n")).collect();
    fixture.feed(&arguments, input.as_bytes()).await;
    let output = fixture
        .run(&[
            "subscribe",
            "--no-ack",
            "--max",
            "150",
            "--output",
            "json",
            &fixture.queue,
        ])
        .await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(json_lines(&output).len(), 150);

    let again = fixture.received(150).await;
    assert_eq!(again[0]["text"], "0");
    assert_eq!(again[0]["redelivered"], true);
}

#[tokio::test]
async fn without_ack_nothing_comes_twice_however_long_it_is_held() {
    let fixture = Fixture::new().await;
    fixture.publish(&["--text", "first"]).await;
    let mut child = fixture.subscriber(&["--no-ack", "--ack-deadline", "1s", "--output", "json"]);
    assert!(line(&mut child).await.contains("first"));
    // A second message after more than the deadline is the second line: the first did not come again.
    fixture.one_ack_deadline_passes().await;
    fixture.publish(&["--text", "second"]).await;
    assert!(line(&mut child).await.contains("second"));
    interrupt(&child).await;
    assert_eq!(code(&ended(child).await), 0);
}

#[tokio::test]
async fn a_nack_does_what_it_says() {
    let fixture = Fixture::new().await;
    let subscribe = |action| ["subscribe", "--max", "1", "--output=json", "--nack", action];
    for (action, left_in) in [
        ("requeue", Some(fixture.queue.clone())),
        ("dead-letter", Some(format!("{}.dlq", fixture.queue))),
        ("retry", Some(format!("{}.dlq", fixture.queue))),
        ("discard", None),
    ] {
        fixture.publish(&["--text", action]).await;
        let output = fixture
            .run(&[&subscribe(action)[..], &[&fixture.queue]].concat())
            .await;
        assert_eq!(code(&output), 0, "{action}: {}", stderr(&output));
        let Some(queue) = left_in else { continue };
        let output = fixture
            .run(&["subscribe", "--max", "1", "--output=json", &queue])
            .await;
        assert_eq!(code(&output), 0, "{action}: {}", stderr(&output));
        assert_eq!(json_lines(&output)[0]["text"], action);
    }
    // Nothing is left but what comes now.
    fixture.publish(&["--text", "last"]).await;
    assert_eq!(fixture.received(1).await[0]["text"], "last");
}

#[tokio::test]
async fn an_interrupt_ends_a_subscription_in_good_order() {
    let fixture = Fixture::new().await;
    fixture.publish(&["--text", "one"]).await;
    let mut child = fixture.subscriber(&[]);
    assert!(line(&mut child).await.starts_with("# "));
    assert_eq!(line(&mut child).await, "one");
    interrupt(&child).await;
    let output = ended(child).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    // It was acknowledged: what comes next is the next message.
    fixture.publish(&["--text", "two"]).await;
    assert_eq!(fixture.received(1).await[0]["text"], "two");
}

#[tokio::test]
async fn a_closed_pipe_ends_it_quietly_and_loses_nothing() {
    let fixture = Fixture::new().await;
    let mut child = fixture.subscriber(&["--output", "json"]);
    fixture.publish(&["--text", "read"]).await;
    assert!(line(&mut child).await.contains("\"read\""));
    drop(child.stdout.take());
    fixture.publish(&["--text", "kept"]).await;
    let output = ended(child).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    assert_eq!(fixture.received(1).await[0]["text"], "kept");
}

#[tokio::test]
async fn a_stopping_gateway_is_said_and_exits_with_4() {
    let fixture = Fixture::new().await;
    for arguments in [&["--output=json"][..], &["--output=json", "--no-ack"]] {
        let fixture = Fixture::on(Gateway::embedded().await).await;
        fixture.publish(&["--text", "one"]).await;
        let mut child = fixture.subscriber(arguments);
        line(&mut child).await;
        fixture.gateway.begin_stop();
        let output = ended(child).await;
        assert_eq!(code(&output), 4);
        let told = stderr(&output);
        assert!(told.contains("the gateway is stopping"), "{told}");
        assert!(told.contains("GATEWAY_STOPPING"), "{told}");
    }
    drop(fixture);
}

#[tokio::test]
async fn a_message_of_the_largest_size_comes_through() {
    let fixture = Fixture::new().await;
    let largest = vec![b'x'; 4 * 1024 * 1024];
    let arguments = ["publish", &fixture.exchange, "order.created"];
    let published = fixture.feed(&arguments, &largest).await;
    assert_eq!(code(&published), 0, "{}", stderr(&published));
    let received = fixture.received(1).await;
    assert_eq!(
        received[0]["text"].as_str().map(str::len),
        Some(largest.len())
    );
}

#[tokio::test]
async fn health_says_whether_it_serves() {
    let fixture = Fixture::new().await;
    for arguments in [
        &["health"][..],
        &["health", "--service", "courtier.v1.Publisher"],
    ] {
        let output = fixture.run(arguments).await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_eq!(stdout(&output), "SERVING\n");
    }
    assert_eq!(
        code(&fixture.run(&["health", "--service", "nothing"]).await),
        3
    );
    fixture.gateway.broker.close().await;
    let output = fixture.run(&["health"]).await;
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert_eq!(stdout(&output), "NOT_SERVING\n");
}

#[tokio::test]
async fn health_finds_the_gateway_by_the_port_of_its_own_environment() {
    let fixture = Fixture::new().await;
    let (_, port) = fixture.gateway.address.rsplit_once(':').expect("a port");
    let mut command = courtier(&["health"]);
    command.env("APP_PORT", port);
    assert_eq!(code(&run(command, b"").await), 0);
}

#[tokio::test]
async fn a_configuration_is_checked_and_all_that_is_wrong_is_said() {
    let mut command = courtier(&["config", "check", "--rabbitmq-host", "rabbitmq"]);
    command.env("APP_PORT", "http");
    let output = run(command, b"").await;
    assert_eq!(code(&output), 2);
    let told = stderr(&output);
    for problem in ["APP_PORT", "guest"] {
        assert!(told.contains(problem), "{told}");
    }
    let output = run(courtier(&["config", "check"]), b"").await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("embedded broker"));
}

#[tokio::test]
async fn a_printed_configuration_hides_secrets_and_says_where_each_value_is_from() {
    for arguments in [&["config", "print"][..], &["config", "print", "--json"]] {
        let mut command = courtier(arguments);
        command
            .env("RABBITMQ_URL", "amqp://shop:hunter2@127.0.0.1/")
            .env("RABBITMQ_PASSWORD", "hunter3")
            .arg("--app-port=9000");
        let output = run(command, b"").await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let told = stdout(&output);
        assert!(!told.contains("hunter"), "{told}");
        assert!(told.contains("(hidden)"), "{told}");
        assert!(told.contains("--app-port"), "{told}");
    }
}

#[tokio::test]
async fn what_serve_prints_as_next_steps_works_as_printed() {
    let topology = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/topology.toml");
    let mut command = courtier(&["serve", "--app-port=0", "--topology-file", topology]);
    let data = tempfile::TempDir::new().expect("a temporary folder");
    command
        .stderr(Stdio::piped())
        .env("RUST_LOG", "off")
        .env("DATA_DIR", data.path());
    let mut server = command.spawn().expect("started");
    let mut lines = BufReader::new(server.stderr.take().expect("piped")).lines();
    let mut steps = Vec::new();
    let mark = format!("{} ", env!("CARGO_BIN_EXE_courtier"));
    while steps.len() < 3 {
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .expect("a line comes");
        let line = line.expect("text").expect("not the end");
        steps.extend(
            line.trim()
                .starts_with(&mark)
                .then(|| line.trim().to_owned()),
        );
    }
    let shell = async |step: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", step]).kill_on_drop(true);
        let output = run(command, b"").await;
        assert_eq!(code(&output), 0, "{step}: {}", stderr(&output));
        stdout(&output)
    };
    assert!(shell(&steps[0]).await.starts_with("confirmed"));
    assert!(
        shell(&format!("{} --max 1", steps[1]))
            .await
            .contains(r#"{"id":1}"#)
    );
    assert_eq!(shell(&steps[2]).await, "SERVING\n");
}
