//! `grpc.health.v1.Health`: which services work, as the links to the broker and the database come and go.

use std::{collections::HashMap, sync::Arc};

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
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    /// What was told last of each service. A watcher is told changes alone; the reporter would tell the same again.
    told: HashMap<&'static str, bool>,
    /// What the whole depends on: the links to the broker,
    linked: bool,
    /// and that the database's file was not deleted or replaced.
    lost: bool,
}

impl Health {
    /// Nothing serves yet.
    pub async fn starting() -> Self {
        let health = Self {
            reporter: HealthReporter::new(),
            known: Arc::default(),
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
        let mut known = self.known.lock().await;
        known.lost = trouble == Some(Trouble::Lost);
        let whole = known.linked && !known.lost;
        let services = [
            (failed_messages_server::SERVICE_NAME, up),
            (message_log_server::SERVICE_NAME, up),
            ("", whole),
        ];
        self.tell(&mut known, services).await;
    }

    /// What the links allow. A blocked link publishes nothing, and the service as a whole still works.
    pub async fn report(&self, links: Links) {
        let publisher = links.publish == LinkState::Up;
        let subscriber = links.consume.is_sound();
        let linked = links.publish.is_sound() && subscriber;
        let mut known = self.known.lock().await;
        known.linked = linked;
        let whole = linked && !known.lost;
        let services = [
            ("", whole),
            (publisher_server::SERVICE_NAME, publisher),
            (subscriber_server::SERVICE_NAME, subscriber),
            (queue_admin_server::SERVICE_NAME, linked),
        ];
        self.tell(&mut known, services).await;
    }

    /// The gateway is about to stop.
    pub async fn stopping(&self) {
        let mut known = self.known.lock().await;
        self.tell(&mut known, SERVICES.map(|service| (service, false)))
            .await;
    }

    /// Nothing is served any more: whoever watches is told the end.
    pub async fn stopped(&self) {
        for service in SERVICES {
            self.reporter.clone().clear_service_status(service).await;
        }
    }

    async fn tell(
        &self,
        known: &mut Known,
        services: impl IntoIterator<Item = (&'static str, bool)>,
    ) {
        for (service, serving) in services {
            if known.told.insert(service, serving) == Some(serving) {
                continue;
            }
            let status = if serving {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            self.reporter.set_service_status(service, status).await;
        }
    }

    fn service(&self) -> HealthService {
        HealthService::from_health_reporter(self.reporter.clone())
    }

    pub(super) fn server(&self) -> HealthServer<impl HealthApi> {
        HealthServer::new(self.service())
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

    use super::*;

    #[tokio::test]
    async fn a_watcher_is_told_changes_alone() {
        let up = Links {
            publish: LinkState::Up,
            consume: LinkState::Up,
        };
        let health = Health::starting().await;
        health.report(up).await;
        let request = HealthCheckRequest::default();
        let watch = health.service().watch(tonic::Request::new(request)).await;
        let mut watch = watch.expect("a known service").into_inner();
        let mut seen = || watch.next().now_or_never().map(|told| told?.ok());
        let told = |status: ServingStatus| {
            Some(Some(tonic_health::pb::HealthCheckResponse {
                status: status.into(),
            }))
        };
        assert_eq!(seen(), told(ServingStatus::Serving));
        health.report_database(None).await;
        health.report(up).await;
        assert_eq!(seen(), None, "nothing changed");
        health.report_database(Some(Trouble::Lost)).await;
        assert_eq!(seen(), told(ServingStatus::NotServing));
    }
}
