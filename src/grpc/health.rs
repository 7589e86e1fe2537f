//! `grpc.health.v1.Health`: which services work, as the links to the broker and the database come and go.

use std::sync::Arc;

use tokio::sync::Mutex;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health as HealthApi, HealthServer},
    server::{HealthReporter, HealthService},
};

use super::proto::{
    failed_messages_server, message_log_server, publisher_server, queue_admin_server,
    subscriber_server,
};
use crate::{
    broker::{LinkState, Links},
    store::Trouble,
};

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
    whole: Arc<Mutex<Whole>>,
}

/// What the whole depends on.
#[derive(Default)]
struct Whole {
    linked: bool,
    /// The database's file was deleted or replaced.
    lost: bool,
}

impl Health {
    /// Nothing serves yet.
    pub async fn starting() -> Self {
        let health = Self {
            reporter: HealthReporter::new(),
            whole: Arc::default(),
        };
        let down = Links {
            publish: LinkState::Down,
            consume: LinkState::Down,
        };
        health.report(down).await;
        health.report_database(Some(Trouble::Away)).await;
        health
    }

    /// What is wrong with the database, if anything is. Publishing and subscribing do without, so the whole does not depend on it,
    /// unless its file was taken away: that does not come back by itself, and takes what is stored along.
    pub async fn report_database(&self, trouble: Option<Trouble>) {
        let up = trouble.is_none();
        self.set(failed_messages_server::SERVICE_NAME, up).await;
        self.set(message_log_server::SERVICE_NAME, up).await;
        let mut whole = self.whole.lock().await;
        whole.lost = trouble == Some(Trouble::Lost);
        self.set("", whole.linked && !whole.lost).await;
    }

    /// What the links allow. A blocked link publishes nothing, and the service as a whole still works.
    pub async fn report(&self, links: Links) {
        let publisher = links.publish == LinkState::Up;
        let subscriber = links.consume.is_sound();
        let linked = links.publish.is_sound() && subscriber;
        {
            let mut whole = self.whole.lock().await;
            whole.linked = linked;
            self.set("", linked && !whole.lost).await;
        }
        self.set(publisher_server::SERVICE_NAME, publisher).await;
        self.set(subscriber_server::SERVICE_NAME, subscriber).await;
        self.set(queue_admin_server::SERVICE_NAME, linked).await;
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
