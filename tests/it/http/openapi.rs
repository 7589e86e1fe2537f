//! `/openapi.json`: it describes the routes that there are, and answers are as it says.

use std::collections::BTreeMap;

use axum::body::Body;
use courtier::grpc::proto::nack::Action;
use http::Method;
use serde_json::{Value, json};

use crate::{
    desk::{Desk, slow},
    front::{On, text},
    harness::Gateway,
    rest::{
        BATCH, FAILED, PUBLISH, Reply, delete, get, post, post_json, publish, request, send,
        to_queue,
    },
};

async fn description(gateway: &Gateway) -> Value {
    get(gateway, "/openapi.json").await.ok()
}

/// The methods of each path.
fn operations(description: &Value) -> BTreeMap<String, Vec<String>> {
    let paths = description["paths"].as_object().expect("an object").iter();
    let methods = |item: &Value| {
        let item = item.as_object().expect("an object");
        item.keys().map(|method| method.to_uppercase()).collect()
    };
    paths
        .map(|(path, item)| (path.clone(), methods(item)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_routes_of_the_specification_are_described_and_no_others() {
    let gateway = Gateway::embedded().await;
    let description = description(&gateway).await;
    let described: Vec<_> = operations(&description)
        .into_iter()
        .flat_map(|(path, methods)| {
            methods
                .into_iter()
                .map(move |method| format!("{method} {path}"))
        })
        .collect();
    let routes = [
        "GET /api/health",
        "GET /api/messages/failed",
        "DELETE /api/messages/failed/{id}",
        "GET /api/messages/failed/{id}",
        "POST /api/messages/publish",
        "POST /api/messages/publish/batch",
        "POST /api/messages/retry/{id}",
        "GET /api/queues",
        "POST /api/queues/{queue}/purge",
        "GET /api/queues/{queue}/stats",
        "GET /livez",
        "GET /readyz",
    ];
    assert_eq!(described, routes);
    let paths = description["paths"].as_object().expect("an object");
    for operation in paths
        .values()
        .flat_map(|item| item.as_object().expect("methods").values())
    {
        let responses = operation["responses"].as_object().expect("an object");
        for response in responses.values() {
            // The standard demands one.
            assert!(response["description"].is_string(), "{operation}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_described_method_answers_and_no_other_one_does() {
    let gateway = Gateway::embedded().await;
    for (path, described) in operations(&description(&gateway).await) {
        let path = path.replace('{', "%7B").replace('}', "%7D");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let known = Method::from_bytes(method.as_bytes()).expect("a method");
            let call = request(known, &path).body(Body::empty());
            let answer = send(&gateway, call.expect("well-formed")).await;
            let refused = answer.status == 405;
            assert_eq!(
                refused,
                !described.contains(&method.to_owned()),
                "{method} {path}"
            );
            if !answer.status.is_success() && path != "/readyz" {
                assert_ne!(answer.error()["reason"], "NOT_FOUND", "{method} {path}");
            }
        }
    }
}

/// The schema of what an operation answers with this status, or else by default.
fn validator(description: &Value, method: &str, path: &str, status: u16) -> jsonschema::Validator {
    let responses = &description["paths"][path][method]["responses"];
    let by_status = &responses[status.to_string()];
    let response = if by_status.is_null() {
        &responses["default"]
    } else {
        by_status
    };
    let mut schema = response["content"]["application/json"]["schema"].clone();
    let object = schema.as_object_mut().expect("a schema");
    object.insert("components".to_owned(), description["components"].clone());
    jsonschema::validator_for(&schema).expect("a valid schema")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_as_described() {
    let desk = Desk::open(On::Embedded, slow).await;
    let gateway = &desk.front;
    let description = description(gateway).await;
    let matches = |method: &str, path: &str, answer: &Reply| {
        let validator = validator(&description, method, path, answer.status.as_u16());
        let body = answer.json();
        let faults: Vec<_> = validator
            .iter_errors(&body)
            .map(|fault| format!("{}: {fault}", fault.instance_path()))
            .collect();
        assert_eq!(faults, [""; 0], "{method} {path}: {body}");
    };
    for path in ["/api/health", "/livez", "/readyz"] {
        matches("get", path, &get(gateway, path).await);
    }
    let body = to_queue(&desk.queue, json!({"id": 1}), json!({"priority": 1}));
    matches("post", PUBLISH, &publish(gateway, body).await);
    matches("post", PUBLISH, &publish(gateway, "{").await);
    let nowhere = to_queue("no_such_queue", json!(1), json!({}));
    matches("post", PUBLISH, &publish(gateway, nowhere).await);
    let batch = json!({"messages": [{"exchange": "", "routing_key": desk.queue, "message": 1}, 7]});
    matches(
        "post",
        BATCH,
        &post_json(gateway, BATCH, batch.to_string()).await,
    );
    matches("post", BATCH, &post_json(gateway, BATCH, "{}").await);
    matches("get", "/api/queues", &get(gateway, "/api/queues").await);
    for queue in [&*desk.queue, "no_such_queue"] {
        let (stats, purge) = ("/api/queues/{queue}/stats", "/api/queues/{queue}/purge");
        let path = stats.replace("{queue}", queue);
        matches("get", stats, &get(gateway, &path).await);
        let path = purge.replace("{queue}", queue);
        matches("post", purge, &post(gateway, &path).await);
    }

    let mut messages = vec![text("not JSON"), text("{\"id\":1}")];
    messages[1].r#type = "order.created".to_owned();
    for message in messages {
        let row = desk.refused(message, Action::Retry).await;
        matches("get", FAILED, &get(gateway, FAILED).await);
        matches("get", FAILED, &get(gateway, &format!("{FAILED}?x=1")).await);
        let shown = get(gateway, &format!("{FAILED}/{}", row.id)).await;
        matches("get", "/api/messages/failed/{id}", &shown);
        let (retry, by_id) = ("/api/messages/retry/{id}", "/api/messages/failed/{id}");
        let remove = format!("{FAILED}/{}", row.id);
        let again = format!("/api/messages/retry/{}", row.id);
        matches("post", retry, &post(gateway, &again).await);
        matches("post", retry, &post(gateway, &again).await);
        matches("delete", by_id, &delete(gateway, &remove).await);
        desk.resolve(&row.id, "done").await.expect("resolved");
        matches("get", FAILED, &get(gateway, FAILED).await);
        matches("delete", by_id, &delete(gateway, &remove).await);
        gateway.drain(&desk.queue).await;
    }
}

/// What a client must send is described too: a request that is taken fits, and one that is refused does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_as_described() {
    let gateway = Gateway::embedded().await;
    let description = description(&gateway).await;
    let content = &description["paths"][PUBLISH]["post"]["requestBody"]["content"];
    let mut schema = content["application/json"]["schema"].clone();
    let object = schema.as_object_mut().expect("a schema");
    object.insert("components".to_owned(), description["components"].clone());
    let validator = jsonschema::validator_for(&schema).expect("a valid schema");
    let besides = json!({"message_id": "m", "headers": {"a": [1]}, "priority": 1, "ttl": "90s",
        "correlation_id": null, "reply_to": "q", "allow_unroutable": true, "payload_text": null});
    let as_php = json!({"headers": [], "ttl": 5_000});
    for message in [json!(null), json!(7), json!([1]), json!({"a": {}})] {
        for besides in [&json!({}), &besides, &as_php] {
            let body = to_queue("no_such_queue", message.clone(), besides.clone());
            let body: Value = serde_json::from_str(&body).expect("JSON");
            assert!(validator.is_valid(&body), "{body}");
            let reason = publish(&gateway, body.to_string()).await;
            assert!(reason.status == 200 || reason.refusal().1 == "UNROUTABLE");
        }
    }
    for refused in [
        json!({}),
        json!({"exchange": 7, "routing_key": "k", "message": 1}),
        json!({"exchange": "e", "routing_key": "k", "message": 1, "extra": 1}),
        json!({"exchange": "e", "routing_key": "k", "message": 1, "priority": 256}),
        json!({"exchange": "e", "routing_key": "k", "message": 1, "headers": [1]}),
        json!({"exchange": "e", "routing_key": "k", "message": 1, "ttl": [1]}),
    ] {
        assert!(!validator.is_valid(&refused), "{refused}");
        let answer = publish(&gateway, refused.to_string()).await;
        assert_eq!(answer.refusal().1, "INVALID_MESSAGE", "{refused}");
    }
}
