//! What only a mistaken or hostile client of plain HTTP sends, and the answer that it must get: always the one shape of errors.

use axum::body::Body;
use futures::StreamExt;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::{
    front::{Front, On},
    harness::Setup,
    raw::http1,
    rest::{
        FAILED, PUBLISH, delete, get, post, post_json, publish, refused, request, send, to_queue,
    },
};

async fn gateway() -> Front {
    On::Embedded.gateway_set_up(|_: &mut Setup| {}).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_publish_is_refused_and_says_what_is_wrong() {
    let front = gateway().await;
    let queue = front.queue("work").await;
    let deep = "{\"headers\":{\"h\":".to_owned() + &"[".repeat(100_000);
    let cases: [(&[u8], &str); 16] = [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"not JSON", "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"{\"exchange\":\"\xff\"}", "is not JSON"),
        (deep.as_bytes(), "is not JSON"),
        (b"[]", "does not fit"),
        (b"7", "does not fit"),
        (b"{}", "missing field `exchange`"),
        (
            b"{\"exchange\":\"e\",\"routing_key\":\"k\"}",
            "one of message, payload_text and payload_base64",
        ),
        (b"{\"exchange\":7}", "expected a string"),
        (
            b"{\"exchange\":\"e\",\"exchange\":\"f\"}",
            "duplicate field `exchange`",
        ),
        (b"{\"exchnage\":\"e\"}", "unknown field `exchnage`"),
        (b"{\"priority\":256}", "256"),
        (b"{\"priority\":-1}", "-1"),
        (
            b"{\"exchange\":\"e\",\"routing_key\":\"k\",\"message\":\xff}",
            "is not JSON",
        ),
    ];
    for (body, said) in cases {
        let answer = publish(&front, body.to_vec()).await;
        let error = answer.error();
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
        let expected = refused(400, "INVALID_MESSAGE", "INVALID");
        assert_eq!(answer.refusal(), expected, "{shown}");
        let message = error["message"].as_str().expect("text");
        assert!(message.contains(said), "{shown}: {message}");
        assert_eq!(error["details"]["field_violations"][0]["field"], "body");
    }
    // What was sent is not said back without measure.
    let long = format!("{{\"{}\":1}}", "x".repeat(1_000_000));
    assert!(publish(&front, long).await.body.len() < 4_096);
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_are_refused_are_named_as_they_are_in_the_body() {
    let front = gateway().await;
    let long = "x".repeat(256);
    let cases = [
        (json!({"message_id": long}), "INVALID_MESSAGE", "message_id"),
        (
            json!({"correlation_id": "a\r\nb"}),
            "INVALID_MESSAGE",
            "correlation_id",
        ),
        (
            json!({"reply_to": "amq.rabbitmq.reply-to"}),
            "INVALID_MESSAGE",
            "reply_to",
        ),
        (json!({"ttl": "-1s"}), "INVALID_MESSAGE", "ttl"),
        (json!({"ttl": "4294967296"}), "INVALID_MESSAGE", "ttl"),
        (json!({"ttl": "soon"}), "INVALID_MESSAGE", "ttl"),
        (json!({"ttl": -1}), "INVALID_MESSAGE", "ttl"),
        (json!({"ttl": [1]}), "INVALID_MESSAGE", "ttl"),
        (json!({"headers": [1]}), "INVALID_MESSAGE", "headers"),
        (json!({"headers": "h"}), "INVALID_MESSAGE", "headers"),
        (json!({"payload_text": "two"}), "INVALID_MESSAGE", "body"),
        (
            json!({"headers": {"CC": ["q"]}}),
            "RESERVED_HEADER",
            "headers",
        ),
        (
            json!({"headers": {"x-courtier-attempt": 1}}),
            "RESERVED_HEADER",
            "headers",
        ),
        (
            json!({"headers": {"h": [[[[[1]]]]]}}),
            "INVALID_MESSAGE",
            "headers",
        ),
        (json!({"exchange": "e\n"}), "INVALID_MESSAGE", "exchange"),
        (json!({"routing_key": ""}), "INVALID_MESSAGE", "routing_key"),
    ];
    for (besides, reason, field) in cases {
        let answer = publish(&front, to_queue("q", json!(1), besides.clone())).await;
        assert_eq!(
            answer.refusal(),
            refused(400, reason, "INVALID"),
            "{besides}"
        );
        let error = answer.error();
        assert_eq!(error["details"]["field_violations"][0]["field"], field);
        let message = error["message"].as_str().expect("text");
        assert!(!message.contains("message."), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_content_types_than_json_are_refused() {
    let front = gateway().await;
    let queue = front.queue("work").await;
    let send_as = async |kind: Option<&str>| {
        let mut request = request(Method::POST, PUBLISH);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let body = Body::from(to_queue(&queue, json!(1), json!({})));
        send(&front, request.body(body).expect("well-formed")).await
    };
    let refusal = refused(415, "UNSUPPORTED_MEDIA_TYPE", "INVALID");
    // The second one is what curl says when it is not told.
    for kind in [
        None,
        Some("application/x-www-form-urlencoded"),
        Some("text/plain"),
        Some("text/json"),
        Some("multipart/form-data; boundary=application/json"),
        Some("application/jsonp"),
        Some(""),
    ] {
        assert_eq!(send_as(kind).await.refusal(), refusal, "{kind:?}");
    }
    for kind in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/cloudevents+json",
    ] {
        send_as(Some(kind)).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_up_to_the_limit_pass_and_larger_ones_do_not() {
    const LIMIT: usize = 4 * 1024 * 1024;
    let front = gateway().await;
    let queue = front.queue("work").await;
    let sized = |bytes: usize| to_queue(&queue, json!("x".repeat(bytes - 2)), json!({}));
    publish(&front, sized(LIMIT)).await.ok();
    let too_large = refused(413, "PAYLOAD_TOO_LARGE", "INVALID");
    let answer = publish(&front, sized(LIMIT + 1)).await;
    assert_eq!(answer.refusal(), too_large);
    let violation = &answer.error()["details"]["field_violations"][0];
    assert_eq!(violation["field"], "message");

    // A client that reads nothing before it has sent all hears it too.
    for path in [PUBLISH, "/api/messages/retry/1", "/api/nothing"] {
        let kind = "content-type: application/json\r\n";
        let answer = http1(&front, "POST", path, kind, &vec![b' '; 4 * LIMIT]).await;
        let expected = if path == PUBLISH { 413 } else { 404 };
        assert_eq!(answer.status, expected, "{path}: {}", answer.head);
    }

    // Refused by its announced length: the client waits, and sends nothing.
    let headers = "content-type: application/json\r\nexpect: 100-continue\r\n";
    let silent = http1_announcing(&front, 100 * 1024 * 1024, headers).await;
    assert!(silent.starts_with("HTTP/1.1 413"), "{silent}");
    assert!(silent.contains("PAYLOAD_TOO_LARGE"), "{silent}");
    // Without a length it is read no further than the limit: one piece more is enough, and the end is not waited for.
    let piece = || Ok::<_, std::io::Error>(vec![b' '; 65_536]);
    let pieces = LIMIT / 65_536 + 2;
    let endless = futures::stream::repeat_with(piece).take(pieces);
    let endless = Body::from_stream(endless.chain(futures::stream::pending()));
    let answer = post_json(&front, PUBLISH, endless).await;
    assert_eq!(answer.refusal(), too_large);
    front.neighbours_are_unharmed().await;
}

/// What is answered to a body that is announced and never sent.
async fn http1_announcing(front: &Front, length: usize, headers: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(&front.address)
        .await
        .expect("it listens");
    let head = format!(
        "POST {PUBLISH} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    crate::front::timely(socket.read_to_end(&mut answer))
        .await
        .expect("answered");
    String::from_utf8(answer).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_methods_that_are_not_there_are_refused() {
    let front = gateway().await;
    let nowhere = refused(404, "NOT_FOUND", "");
    for path in [
        "/api",
        "/api/",
        "/api/messages",
        "/api/messages/publish/",
        "/api/messages/failed/1/2",
        "/api//health",
        "/API/health",
        "/%61pi/health",
        "/..%2f..%2fetc/passwd",
        "/%00",
        "/%ff",
    ] {
        assert_eq!(get(&front, path).await.refusal(), nowhere, "{path}");
    }
    let not_for = refused(405, "METHOD_NOT_ALLOWED", "");
    let cases = [
        (get(&front, PUBLISH).await, "POST"),
        (post(&front, FAILED).await, "GET,HEAD"),
        (
            post(&front, "/api/messages/failed/1").await,
            "GET,HEAD,DELETE",
        ),
        (delete(&front, "/api/messages/retry/1").await, "POST"),
        (delete(&front, "/api/health").await, "GET,HEAD"),
        (post(&front, "/openapi.json").await, "GET,HEAD"),
    ];
    for (answer, allowed) in cases {
        assert_eq!(answer.refusal(), not_for);
        assert_eq!(answer.headers["allow"], allowed);
    }
}

/// As Connect's clients and curl call an rpc: they are told what is spoken there, and what does the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_rpc_that_is_called_otherwise_says_how_it_is_called() {
    let front = gateway().await;
    let call = async |method: Method, path: &str, kind: &str| {
        let mut call = request(method, path);
        if !kind.is_empty() {
            call = call.header("content-type", kind);
        }
        send(&front, call.body(Body::from("{}")).expect("well-formed")).await
    };
    let services = "/courtier.v1.";
    for (rpc, twin, outcome) in [
        (
            "Publisher/Publish",
            "POST /api/messages/publish does",
            "INVALID",
        ),
        (
            "Publisher/PublishBatch",
            "POST /api/messages/publish/batch does",
            "INVALID",
        ),
        ("QueueAdmin/ListQueues", "GET /api/queues does", ""),
        ("Subscriber/Subscribe", "/openapi.json has", ""),
        ("QueueAdmin/Nothing", "/openapi.json has", ""),
    ] {
        let path = format!("{services}{rpc}");
        for kind in [
            "",
            "application/json",
            "application/proto",
            "application/connect+json",
            // gRPC itself, where it cannot be answered.
            "application/grpc",
        ] {
            let answer = call(Method::POST, &path, kind).await;
            let expected = refused(415, "UNSUPPORTED_MEDIA_TYPE", outcome);
            assert_eq!(answer.refusal(), expected, "{path} {kind}");
            let told = answer.error()["message"].to_string();
            assert!(told.contains(twin) && told.contains("gRPC-Web"), "{told}");
        }
        for (method, kind) in [
            (Method::GET, ""),
            (Method::PUT, "application/json"),
            (Method::GET, "application/grpc-web"),
        ] {
            let answer = call(method, &path, kind).await;
            assert_eq!(
                answer.refusal(),
                refused(405, "METHOD_NOT_ALLOWED", outcome)
            );
            assert_eq!(answer.headers["allow"], "POST");
        }
    }
    let health = call(Method::POST, "/grpc.health.v1.Health/Check", "text/json").await;
    let told = health.error()["message"].to_string();
    assert!(told.contains("GET /readyz does"), "{told}");
    // What is spoken is answered as before.
    let web = call(
        Method::POST,
        "/courtier.v1.QueueAdmin/ListQueues",
        "application/grpc-web",
    );
    let web = web.await;
    assert_eq!(web.status, 200);
    assert!(web.headers.contains_key("grpc-status"), "{web:?}");
}

/// Each route that is named instead of an rpc is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_do_the_same_as_an_rpc_is_there() {
    let front = gateway().await;
    let described = get(&front, "/openapi.json").await.ok();
    let mut twins = 0;
    for (service, methods) in [
        (
            "courtier.v1.Publisher",
            &["Publish", "PublishBatch"] as &[&str],
        ),
        (
            "courtier.v1.FailedMessages",
            &[
                "ListFailedMessages",
                "GetFailedMessage",
                "RetryFailedMessage",
                "DeleteFailedMessage",
            ],
        ),
        (
            "courtier.v1.QueueAdmin",
            &["ListQueues", "GetQueueStats", "PurgeQueue"],
        ),
        ("grpc.health.v1.Health", &["Check", "List"]),
    ] {
        for method in methods {
            let answer = post_json(&front, &format!("/{service}/{method}"), "{}").await;
            let told = answer.error()["message"].as_str().expect("text").to_owned();
            let (route, _) = told.split_once(" does the same").expect("a twin");
            let (_, route) = route.rsplit_once("; ").expect("after the rest");
            let (method, path) = route.split_once(' ').expect("a method and a path");
            let operation = &described["paths"][path][method.to_lowercase()];
            assert!(operation.is_object(), "{route}");
            twins += 1;
        }
    }
    assert_eq!(twins, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_query_of_the_list_is_refused() {
    let front = gateway().await;
    let invalid = refused(400, "INVALID_REQUEST", "");
    for query in [
        "queu=orders",
        "queue=a&queue=b",
        "page_size=-1",
        "page_size=many",
        "page_size=1000000000000",
        "status=FAILED",
        "status=failed,nothing",
        "reason=unspecified",
        "failed_after=yesterday",
        "failed_after=1969-12-31T23:59:59Z",
        "failed_before=2026-13-01T00:00:00Z",
        "operation_id=1",
    ] {
        let answer = get(&front, &format!("{FAILED}?{query}")).await;
        assert_eq!(answer.refusal(), invalid, "{query}");
        let field = &answer.error()["details"]["field_violations"][0]["field"];
        let name = query.split('=').next().expect("a name");
        assert!(field == name || field == "query", "{query}: {field}");
    }
    for query in [
        "",
        "page_size=0",
        "page_size=1000000000",
        "queue=",
        "queue=%27%20OR%201%3D1%20--",
        "queue=a%2Fb%0d%0a",
        "queue=%ff",
        "status=pending,failed&reason=rejected,expired",
        "failed_after=2026-01-31T08:00:00.5%2B01:00&failed_before=9999-12-31T23:59:59Z",
    ] {
        let page = get(&front, &format!("{FAILED}?{query}")).await.ok();
        let empty = json!({"failed_messages": [], "next_page_token": "", "unreadable_ids": []});
        assert_eq!(page, empty, "{query}");
    }
    for token in ["x", "AAAA", "%00", "kpKSzg"] {
        let answer = get(&front, &format!("{FAILED}?page_token={token}")).await;
        assert_eq!(answer.refusal(), refused(400, "INVALID_PAGE_TOKEN", ""));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_id_is_not_found() {
    let front = gateway().await;
    let missing = refused(404, "FAILED_MESSAGE_NOT_FOUND", "");
    let some = uuid::Uuid::now_v7().to_string();
    for id in [
        "1",
        "-1",
        "x",
        "%00",
        "%ff",
        "a%2Fb",
        "%0d%0aX-Evil:1",
        &some,
    ] {
        let retried = post(&front, &format!("/api/messages/retry/{id}")).await;
        assert_eq!(retried.refusal(), missing, "{id}");
        let deleted = delete(&front, &format!("{FAILED}/{id}")).await;
        assert_eq!(deleted.refusal(), missing, "{id}");
        let shown = get(&front, &format!("{FAILED}/{id}")).await;
        assert_eq!(shown.refusal(), missing, "{id}");
    }
}

/// What a visitor's browser sends for a web page of somebody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web_pages_of_other_origins_change_nothing() {
    let front = On::Embedded
        .gateway_set_up(|setup| {
            setup.config.http.cors_origins = vec!["https://desk.example".to_owned()];
        })
        .await;
    let form = |headers: &[(&str, &str)]| -> Request<Body> {
        let mut form = request(Method::POST, "/api/queues/none/purge");
        for (name, value) in headers {
            form = form.header(*name, *value);
        }
        form.body(Body::empty()).expect("well-formed")
    };
    for headers in [
        [
            ("sec-fetch-site", "cross-site"),
            ("origin", "https://evil.example"),
        ],
        [("sec-fetch-site", "same-site"), ("origin", "null")],
    ] {
        let answer = send(&front, form(&headers)).await;
        assert_eq!(answer.refusal(), refused(403, "CROSS_SITE", ""));
    }
    let old = send(&front, form(&[("origin", "https://evil.example")])).await;
    assert_eq!(old.refusal(), refused(403, "CROSS_SITE", ""));
    let missing = refused(404, "QUEUE_NOT_FOUND", "");
    for headers in [
        [
            ("sec-fetch-site", "cross-site"),
            ("origin", "https://desk.example"),
        ],
        [
            ("sec-fetch-site", "same-origin"),
            ("origin", "http://gateway"),
        ],
    ] {
        assert_eq!(send(&front, form(&headers)).await.refusal(), missing);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_database_the_list_says_so() {
    let front = On::Embedded.gateway().await;
    let answer = get(&front, FAILED).await;
    assert_eq!(answer.refusal(), refused(503, "DATABASE_DOWN", ""));
    assert_eq!(answer.headers["retry-after"], "5");
    publish(
        &front,
        to_queue(&front.queue("work").await, json!(1), json!({})),
    )
    .await
    .ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_grpc_to_no_service_is_answered_as_grpc() {
    let front = gateway().await;
    let kind = "content-type: application/grpc\r\n";
    let answer = http1(&front, "POST", "/courtier.v1.Nothing/Do", kind, b"").await;
    assert!(answer.head.contains("grpc-status: 12"), "{}", answer.head);
    let plain = get(&front, "/courtier.v1.Nothing/Do").await;
    assert_eq!(plain.refusal(), refused(404, "NOT_FOUND", ""));
    let health: Value = get(&front, "/api/health").await.ok();
    assert_eq!(
        health,
        json!({"status": "healthy", "service": "messages-broker"})
    );
}
