//! `grpc.health.v1.Health`: which services work, as the links to the broker and the database come and go.

use tonic_health::{
    ServingStatus,
    pb::health_server::{Health as HealthApi, HealthServer},
    server::{HealthReporter, HealthService},
};

use super::proto::{
    failed_messages_server, message_log_server, publisher_server, queue_admin_server,
    subscriber_server,
};
use crate::broker::{LinkState, Links};

/// The whole, and each service.
const SERVICES: [&str; 6] = [
    "",
    publisher_server::SERVICE_NAME,
    subscriber_server::SERVICE_NAME,
    failed_messages_server::SERVICE_NAME,
    message_log_server::SERVICE_NAME,
    queue_admin_server::SERVICE_NAME,
];

/// The health of each service and of the whole (`""`).
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Nothing serves yet.
    pub async fn starting() -> Self {
        let health = Self {
            reporter: HealthReporter::new(),
        };
        let down = Links {
            publish: LinkState::Down,
            consume: LinkState::Down,
        };
        health.report(down).await;
        health.report_database(false).await;
        health
    }

    /// Whether the database is there. Publishing and subscribing do without, so the whole does not depend on it.
    pub async fn report_database(&self, up: bool) {
        self.set(failed_messages_server::SERVICE_NAME, up).await;
        self.set(message_log_server::SERVICE_NAME, up).await;
    }

    /// What the links allow. A blocked link publishes nothing, and the service as a whole still works.
    pub async fn report(&self, links: Links) {
        let publisher = links.publish == LinkState::Up;
        let subscriber = links.consume.is_sound();
        let whole = links.publish.is_sound() && subscriber;
        self.set("", whole).await;
        self.set(publisher_server::SERVICE_NAME, publisher).await;
        self.set(subscriber_server::SERVICE_NAME, subscriber).await;
        self.set(queue_admin_server::SERVICE_NAME, whole).await;
    }

    /// The gateway is about to stop.
    pub async fn stopping(&self) {
        for service in SERVICES {
            self.set(service, false).await;
        }
    }

    /// Nothing is served any more: whoever watches is told the end.
    pub async fn stopped(&self) {
        for service in SERVICES {
            self.reporter.clone().clear_service_status(service).await;
        }
    }

    async fn set(&self, service: &str, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        self.reporter.set_service_status(service, status).await;
    }

    pub(super) fn server(&self) -> HealthServer<impl HealthApi> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }
}
