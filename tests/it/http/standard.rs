//! The standard services beside the API: health, reflection, gRPC-Web, and plain HTTP for probes and people.

use courtier::grpc::proto::{Outcome, PublishResponse};
use prost::Message;
use prost_types::FileDescriptorProto;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::{
    front::{Front, On, text, timely, to_queue},
    raw::{frame, http1},
};

const SERVICES: [&str; 3] = ["", "courtier.v1.Publisher", "courtier.v1.Subscriber"];

async fn health(front: &Front, service: &str) -> ServingStatus {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = timely(HealthClient::new(front.channel().await).check(request)).await;
    answer.expect("a known service").into_inner().status()
}

async fn watch(front: &Front, service: &str) -> tonic::Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = timely(HealthClient::new(front.channel().await).watch(request)).await;
    answer.expect("a known service").into_inner()
}

async fn seen(watch: &mut tonic::Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let message = timely(watch.message()).await.expect("no error");
    message.map(|message| message.status())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_the_link_to_the_broker() {
    let front = On::Embedded.gateway().await;
    let mut watches = Vec::new();
    for service in SERVICES {
        let mut watch = watch(&front, service).await;
        while seen(&mut watch).await != Some(ServingStatus::Serving) {}
        assert_eq!(
            health(&front, service).await,
            ServingStatus::Serving,
            "{service:?}"
        );
        watches.push(watch);
    }
    front.broker.close().await;
    for (watch, service) in watches.iter_mut().zip(SERVICES) {
        assert_eq!(
            seen(watch).await,
            Some(ServingStatus::NotServing),
            "{service:?}"
        );
        assert_eq!(
            health(&front, service).await,
            ServingStatus::NotServing,
            "{service:?}"
        );
    }
    let request = HealthCheckRequest {
        service: "courtier.v1.Nothing".to_owned(),
    };
    let unknown = HealthClient::new(front.channel().await)
        .check(request)
        .await;
    assert_eq!(
        unknown.map(|_| ()).map_err(|status| status.code()),
        Err(Code::NotFound)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_told_to_who_watches_and_is_not_held_up_by_it() {
    let front = On::Embedded.gateway().await;
    let mut watch = watch(&front, "").await;
    while seen(&mut watch).await != Some(ServingStatus::Serving) {}
    front.begin_stop();
    assert_eq!(seen(&mut watch).await, Some(ServingStatus::NotServing));
    assert_eq!(seen(&mut watch).await, None);
    front.stopped().await.expect("a graceful stop");
}

/// The comments of a file, as reflection serves it.
fn comments(file: &[u8]) -> String {
    let file = FileDescriptorProto::decode(file).expect("a descriptor");
    let locations = file.source_code_info.expect("comments").location;
    locations
        .into_iter()
        .filter_map(|location| location.leading_comments)
        .collect()
}

macro_rules! reflection {
    ($test:ident, $version:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            use $version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let front = On::Embedded.gateway().await;
            let ask = |request| ServerReflectionRequest {
                host: String::new(),
                message_request: Some(request),
            };
            let requests = [
                ask(MessageRequest::ListServices(String::new())),
                ask(MessageRequest::FileContainingSymbol(
                    "courtier.v1.Publisher".to_owned(),
                )),
            ];
            let mut client = ServerReflectionClient::new(front.channel().await);
            let answers = timely(client.server_reflection_info(tokio_stream::iter(requests))).await;
            let mut answers = answers.expect("it answers").into_inner();
            let mut next = async || {
                timely(answers.message())
                    .await
                    .expect("no error")
                    .and_then(|answer| answer.message_response)
            };
            let Some(MessageResponse::ListServicesResponse(list)) = next().await else {
                panic!("a list is due");
            };
            let names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
            for name in [
                "courtier.v1.Publisher",
                "courtier.v1.Subscriber",
                "grpc.health.v1.Health",
            ] {
                assert!(names.contains(&name), "{name} in {names:?}");
            }
            let Some(MessageResponse::FileDescriptorResponse(files)) = next().await else {
                panic!("a file is due");
            };
            let text = comments(&files.file_descriptor_proto[0]);
            assert!(
                text.contains("Publishes one message. OK only after the broker confirmed it"),
                "{text}"
            );
        }
    };
}
reflection!(reflection_lists_the_services_and_serves_their_comments, v1);
reflection!(reflection_does_so_for_older_tools_too, v1alpha);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_publishes_over_grpc_web() {
    let front = On::Embedded.gateway().await;
    let queue = front.queue("work").await;
    let web = "content-type: application/grpc-web+proto\r\nx-grpc-web: 1\r\n";
    let path = "/courtier.v1.Publisher/Publish";
    let request = frame(&to_queue(&queue, text("from a page")).encode_to_vec());
    let answer = http1(&front, "POST", path, web, &request).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .head
            .contains("content-type: application/grpc-web+proto"),
        "{}",
        answer.head
    );
    assert!(answer.text().contains("grpc-status:0"), "{}", answer.text());
    assert_eq!(front.drain_bodies(&queue).await, ["from a page"]);
    // The message is in the first frame, behind the size of its chunk.
    let at = answer
        .body
        .windows(2)
        .position(|two| two == b"\r\n")
        .expect("chunked")
        + 2;
    let length = usize::from(answer.body[at + 4]);
    let response =
        PublishResponse::decode(&answer.body[at + 5..at + 5 + length]).expect("a response");
    assert_eq!(response.outcome(), Outcome::Confirmed);

    let request = frame(&to_queue(&front.name("missing"), text("x")).encode_to_vec());
    let answer = http1(&front, "POST", path, web, &request).await;
    let said = answer.head.clone() + &answer.text();
    assert!(
        said.contains("grpc-status:9") || said.contains("grpc-status: 9"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_people_are_answered_over_http() {
    let front = On::Embedded.gateway().await;
    let healthy = r#"{"status":"healthy","service":"messages-broker"}"#;
    for path in ["/api/health", "/livez"] {
        let answer = http1(&front, "GET", path, "", b"").await;
        assert_eq!((answer.status, &*answer.text()), (200, healthy), "{path}");
        assert!(
            answer.head.contains("content-type: application/json"),
            "{}",
            answer.head
        );
    }
    assert_eq!(http1(&front, "GET", "/readyz", "", b"").await.status, 200);
    front.broker.close().await;
    // A restart of the gateway would not bring the broker back.
    assert_eq!(http1(&front, "GET", "/livez", "", b"").await.status, 200);
    let answer = http1(&front, "GET", "/readyz", "", b"").await;
    assert_eq!(answer.status, 503);
    let state: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(state["broker"]["publish"], "down");

    let answer = http1(&front, "GET", "/nothing", "", b"").await;
    assert_eq!(answer.status, 404);
    let error: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(error["error"]["reason"], "NOT_FOUND");
    assert_eq!(
        http1(&front, "POST", "/api/health", "", b"{}").await.status,
        405
    );
}
