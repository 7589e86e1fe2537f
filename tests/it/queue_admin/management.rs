//! RabbitMQ's management API where it answers oddly, and names that its paths cannot hold.

use axum::{Json, Router, http::StatusCode, routing::get};
use courtier::{
    broker::{
        Broker, Error,
        admin::{Management as State, OnlyIf},
        rabbitmq::ManagementAt,
        topology::{Exchange, ExchangeKind, Queue, QueueKind, Topology},
    },
    grpc::proto::{ListExchangesRequest, ListQueuesRequest, queue_admin_client::QueueAdminClient},
};
use serde_json::json;
use tonic::Code;

use crate::{
    front::Front,
    harness::{connect_managed, connect_with},
    rest::{self, refused},
};

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
    let url = serve(api).await;
    let at = ManagementAt::Url(url.parse().expect("a URL"));
    let broker = connect_with("amqp://127.0.0.1:1/%2f", at);
    let admin = broker.admin();
    let odd = admin.queues().await;
    assert!(matches!(odd, Err(Error::ManagementDown(_))), "{odd:?}");
    assert_eq!(admin.exchanges().await.expect("answered")[0].name, "e");
    let odd = admin.bindings().await.map(drop);
    assert!(matches!(odd, Err(Error::ManagementDown(_))), "{odd:?}");
    assert_eq!(admin.exchanges().await.expect("answered")[0].name, "e");
}

/// Serves an API somewhere.
async fn serve(api: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, api).await });
    url
}

fn reason<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Err(Error::ManagementDown(reason)) => reason,
        other => panic!("it does not answer: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_with_a_path_prefix_is_found_where_its_url_says() {
    let api = Router::new()
        .route(
            "/rabbit/api/overview",
            get(|| async { Json(json!({"rabbitmq_version": "3.10.8"})) }),
        )
        .route(
            "/rabbit/api/queues/{host}",
            get(|host: axum::extract::Path<String>| async move {
                match host.as_str() {
                    "/" => Ok(Json(json!([{"name": "q"}]))),
                    _ => Err(StatusCode::NOT_FOUND),
                }
            }),
        );
    let url = serve(api).await;
    let broker = |vhost: &str, url: String| {
        let at = ManagementAt::Url(url.parse().expect("a URL"));
        connect_with(&format!("amqp://127.0.0.1:1/{vhost}"), at)
    };
    for prefixed in [format!("{url}/rabbit"), format!("{url}/rabbit/")] {
        let broker = broker("%2f", prefixed);
        let queues = broker.admin().queues().await.expect("answered");
        assert_eq!(queues[0].name, "q");
        let status = broker.admin().status().await;
        assert_eq!(status.version.as_deref(), Some("3.10.8"));
    }
    let elsewhere = broker("other", format!("{url}/rabbit"));
    let told = reason(elsewhere.admin().queues().await);
    assert!(told.contains("no virtual host \"other\""), "{told}");
    // Without the prefix it is no lack of a virtual host.
    let without = broker("%2f", url);
    let told = reason(without.admin().queues().await);
    assert!(told.contains("management.path_prefix"), "{told}");
    match without.admin().status().await.management {
        State::Down(told) => assert!(told.contains("RABBITMQ_MANAGEMENT_URL"), "{told}"),
        other => panic!("it does not answer: {other:?}"),
    }
}

/// An API that knows the user, and does not let it ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_not_ask_is_told_so_instead_of_that_there_is_nothing() {
    let refuse = || async { StatusCode::UNAUTHORIZED };
    let url = serve(Router::new().fallback(refuse)).await;
    let at = ManagementAt::Url(url.parse().expect("a URL"));
    let broker = connect_with("amqp://127.0.0.1:1/%2f", at);
    let front = Front::of(broker, None, |setup| {
        setup.without_database();
    })
    .await;
    let answer = rest::get(&front, "/api/queues").await;
    assert_eq!(answer.refusal(), refused(503, "MANAGEMENT_DOWN", ""));
    let told = answer.error()["message"].to_string();
    assert!(told.contains("give the user the tag"), "{told}");
    let mut client = QueueAdminClient::new(front.channel().await);
    let listed = client.list_queues(ListQueuesRequest::default()).await;
    let refused = listed.expect_err("nobody tells");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("tag"), "{refused}");
    let listed = client.list_exchanges(ListExchangesRequest::default()).await;
    assert_eq!(listed.expect_err("nobody tells").code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn what_is_named_by_dots_is_found_and_nobody_else_suffers() {
    let broker = connect_managed().await;
    let admin = broker.admin();
    let neighbour = format!("it-{}", uuid::Uuid::now_v7());
    let exchange = |name: &str| Exchange::new(name.to_owned(), ExchangeKind::Fanout);
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
