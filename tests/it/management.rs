//! RabbitMQ's management API where it answers oddly, and names that its paths cannot hold.

use axum::{Json, Router, http::StatusCode, routing::get};
use courtier::broker::{
    Broker, Error,
    admin::OnlyIf,
    rabbitmq::ManagementAt,
    topology::{Exchange, ExchangeKind, Queue, QueueKind, Topology},
};
use serde_json::json;

use crate::harness::{connect_managed, connect_with};

/// A broker that is away, with an API that answers as it likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_odd_answer_is_no_reason_to_ask_nothing_any_more() {
    let api = Router::new()
        .route(
            "/api/queues/{host}",
            get(|| async { Json(json!({"odd": 1})) }),
        )
        .route(
            "/api/bindings/{host}",
            get(|| async { StatusCode::INTERNAL_SERVER_ERROR }),
        )
        .route(
            "/api/exchanges/{host}",
            get(|| async { Json(json!([{"name": "e"}])) }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let serving = tokio::spawn(async move { axum::serve(listener, api).await });
    let at = ManagementAt::Url(url.parse().expect("a URL"));
    let broker = connect_with("amqp://127.0.0.1:1/%2f", at);
    let admin = broker.admin();
    let odd = admin.queues().await;
    assert!(matches!(odd, Err(Error::ManagementDown(_))), "{odd:?}");
    assert_eq!(admin.exchanges().await.expect("answered")[0].name, "e");
    let odd = admin.bindings().await.map(drop);
    assert!(matches!(odd, Err(Error::ManagementDown(_))), "{odd:?}");
    assert_eq!(admin.exchanges().await.expect("answered")[0].name, "e");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn what_is_named_by_dots_is_found_and_nobody_else_suffers() {
    let broker = connect_managed().await;
    let admin = broker.admin();
    let neighbour = format!("it-{}", uuid::Uuid::now_v7());
    let exchange = |name: &str| Exchange {
        name: name.to_owned(),
        kind: ExchangeKind::Fanout,
    };
    let topology = Topology {
        exchanges: vec![exchange(".."), exchange(&neighbour)],
        queues: vec![
            Queue::bare("..", QueueKind::Classic),
            Queue::bare(&neighbour, QueueKind::Classic),
        ],
        bindings: vec![],
    };
    broker.declare(&topology).await.expect("declared");
    for name in ["..", ".", &neighbour] {
        let (queue, exchange) = (admin.queue(name).await, admin.exchange(name).await);
        if name == "." {
            assert!(matches!(queue, Err(Error::NotFound { .. })), "{queue:?}");
            assert!(
                matches!(exchange, Err(Error::NotFound { .. })),
                "{exchange:?}"
            );
        } else {
            // Only the API says of what kind it is.
            assert_eq!(
                queue.expect("it is there").kind.as_deref(),
                Some("classic"),
                "{name}"
            );
            assert_eq!(
                exchange.expect("it is there").kind.as_deref(),
                Some("fanout"),
                "{name}"
            );
        }
        let listed = admin.exchanges().await.expect("the API answers");
        assert!(listed.iter().any(|one| one.name == neighbour));
    }
    let any = OnlyIf {
        unused: false,
        empty: false,
    };
    for name in ["..", &neighbour] {
        admin.delete_queue(name, any).await.expect("deleted");
        admin.delete_exchange(name, false).await.expect("deleted");
    }
}
