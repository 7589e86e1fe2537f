//! gRPC: a file or folder a `.proto`. Each converts in, calls the gateway, and converts out.
//!
//! To add an rpc: write it in its `.proto`, implement it in the room of that name here, on top of the service of that
//! name in `gateway/`, and test it in `tests/it/`. A new service is added in [`routes`], in `health.rs` and in `build.rs`.

pub mod codec;
pub mod convert;
pub mod deadline;
mod failed_messages;
mod fields;
pub mod hangup;
mod health;
mod incoming;
pub mod intake;
mod message_log;
mod publisher;
mod queue_admin;
mod requests;
pub mod status;
mod subscriber;

use http::{HeaderMap, header::CONTENT_TYPE};
use tonic::{codec::CompressionEncoding, service::Routes};
use tonic_web::GrpcWebService;
use tower::Layer;

use self::proto::{
    failed_messages_server::FailedMessagesServer, message_log_server::MessageLogServer,
    publisher_server::PublisherServer, queue_admin_server::QueueAdminServer,
    subscriber_server::SubscriberServer,
};
use self::{incoming::Incoming, requests::Requests};
use crate::gateway::Gateway;

pub use self::health::Health;

/// The generated messages, servers and clients of package `courtier.v1`.
pub mod proto {
    tonic::include_proto!("courtier.v1");
}

/// The compiled `.proto` files, comments included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Adds all services to `routes`.
pub fn routes(
    routes: Routes,
    gateway: &Gateway,
    health: &Health,
) -> Result<Routes, tonic_reflection::server::Error> {
    // Messages come uncompressed and within the limits of their rpcs: see `incoming`. Tonic's own limit would only add one more.
    let request_bytes = usize::MAX;
    let publisher = PublisherServer::new(publisher::Service::new(gateway))
        .max_decoding_message_size(request_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    let subscriber = SubscriberServer::new(subscriber::Service::new(gateway))
        .max_decoding_message_size(request_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    let failed = FailedMessagesServer::new(failed_messages::Service::new(gateway))
        .max_decoding_message_size(request_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    let log = MessageLogServer::new(message_log::Service::new(gateway))
        .max_decoding_message_size(request_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    let queues = QueueAdminServer::new(queue_admin::Service::new(gateway))
        .max_decoding_message_size(request_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    let requests = Requests::new(gateway.metrics.clone());
    let incoming = Incoming::new(&gateway.limits, gateway.memory.intake.clone());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(routes
        .add_service(web(requests.counted(incoming.bounded(publisher))))
        .add_service(web(requests.counted(incoming.bounded(subscriber))))
        .add_service(web(requests.counted(incoming.bounded(failed))))
        .add_service(web(requests.counted(incoming.bounded(log))))
        .add_service(web(requests.counted(incoming.bounded(queues))))
        .add_service(web(requests.counted(incoming.bounded(health.server()))))
        .add_service(web(
            requests.counted(incoming.bounded(reflection().build_v1()?))
        ))
        // grpcurl before 1.9 and other older tools ask for the alpha version only.
        .add_service(web(
            requests.counted(incoming.bounded(reflection().build_v1alpha()?))
        )))
}

/// Whether a request is a call of gRPC or gRPC-Web.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Speaks gRPC-Web as well.
fn web<S>(service: S) -> GrpcWebService<S> {
    tonic_web::GrpcWebLayer::new().layer(service)
}
