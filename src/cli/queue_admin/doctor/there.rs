//! What a gateway elsewhere tells of itself, its broker and its database. Only that one knows with which settings.

use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{Finding, How, finding, ok};
use crate::{
    cli::{
        client::{self, Server},
        queue_admin::word,
    },
    grpc::proto::{
        Alert, GetBrokerStatusRequest, GetBrokerStatusResponse, ListAlertsRequest,
        alert::Severity,
        failed_messages_server,
        get_broker_status_response::{Management, link::State},
        queue_admin_client::QueueAdminClient,
    },
};

pub(super) async fn look(url: &str, server: &Server) -> Vec<Finding> {
    let told = format!(
        "the gateway at {url}, as it sees itself, its broker and its database. Settings of this shell do not count; its own, its certificates and its clock are looked at by courtier doctor on its machine"
    );
    let mut findings = vec![ok("looked at", told)];
    let channel = match server.connect().await {
        Ok(channel) => channel,
        Err(exit) => {
            findings.push(finding("gateway", How::Wrong, exit.message));
            return findings;
        }
    };
    findings.push(gateway(channel.clone()).await);
    let mut client = QueueAdminClient::new(channel.clone());
    match client.get_broker_status(GetBrokerStatusRequest {}).await {
        Ok(answer) => findings.extend(broker(&answer.into_inner())),
        Err(status) => findings.push(finding(
            "broker",
            How::Wrong,
            client::failed(&status).message,
        )),
    }
    findings.push(database(channel).await);
    match client.list_alerts(ListAlertsRequest {}).await {
        Ok(answer) => findings.extend(alerts(&answer.into_inner().alerts)),
        Err(status) => findings.push(finding(
            "alerts",
            How::Wrong,
            client::failed(&status).message,
        )),
    }
    findings
}

/// Its health as a whole.
pub(super) async fn gateway(channel: Channel) -> Finding {
    let what = "gateway";
    match health(channel, "").await {
        Ok(told) if told == "serving" => ok(what, told),
        Ok(told) => finding(
            what,
            How::Wrong,
            format!("{told}: courtier status says more"),
        ),
        Err(told) => finding(what, How::Wrong, told),
    }
}

async fn health(channel: Channel, service: &str) -> Result<String, String> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(channel).check(request).await;
    match answer {
        Ok(answer) => Ok(word(answer.into_inner().status().as_str_name(), "")),
        Err(status) => Err(client::failed(&status).message),
    }
}

fn broker(status: &GetBrokerStatusResponse) -> Vec<Finding> {
    let product = format!("{} {}", status.product, status.version);
    let product = product.trim();
    let mut findings = vec![match status.management() {
        Management::NotNeeded => finding(
            "broker",
            How::Warning,
            format!("{product}, which keeps nothing when that gateway ends"),
        ),
        _ => ok(
            "broker",
            format!("{product}, virtual host {:?}", status.virtual_host),
        ),
    }];
    for link in &status.links {
        let what = match link.name.as_str() {
            "publish" => "publish link",
            _ => "consume link",
        };
        findings.push(match link.state() {
            State::Up => ok(what, "up"),
            State::Blocked => finding(
                what,
                How::Wrong,
                "blocked: the broker takes no messages (memory or disk alarm)",
            ),
            State::Failing => finding(
                what,
                How::Wrong,
                "failing: it stands, and does not do its work; that gateway's log says why",
            ),
            State::Down | State::Unspecified => finding(
                what,
                How::Wrong,
                "down: that gateway's log says why, and so does courtier doctor on its machine",
            ),
        });
    }
    let what = "management API";
    match status.management() {
        Management::Up => findings.push(ok(what, "it answers")),
        Management::Down => findings.push(finding(what, How::Wrong, &*status.management_error)),
        Management::Off => findings.push(finding(
            what,
            How::Warning,
            "switched off (RABBITMQ_MANAGEMENT_PORT=0): lists, rates and alarms are missing",
        )),
        Management::NotNeeded | Management::Unspecified => {}
    }
    findings
}

async fn database(channel: Channel) -> Finding {
    let what = "database";
    match health(channel, failed_messages_server::SERVICE_NAME).await {
        Ok(told) if told == "serving" => ok(what, "failed messages are served"),
        Ok(told) => finding(
            what,
            How::Wrong,
            format!(
                "failed messages are {}: its database is away, or cannot be used; that gateway's log says why",
                told.replace('_', " ")
            ),
        ),
        Err(told) => finding(what, How::Wrong, told),
    }
}

fn alerts(standing: &[Alert]) -> Vec<Finding> {
    let what = "alerts";
    if standing.is_empty() {
        return vec![ok(what, "none")];
    }
    let told = standing.iter().map(|alert| {
        let how = match alert.severity() {
            Severity::Critical => How::Wrong,
            _ => How::Warning,
        };
        let name = match alert.subject.as_str() {
            "" => word(alert.kind().as_str_name(), "KIND_"),
            subject => format!("{} of {subject}", word(alert.kind().as_str_name(), "KIND_")),
        };
        finding(
            what,
            how,
            format!("{name}: {} ({})", alert.summary, alert.runbook),
        )
    });
    told.collect()
}
