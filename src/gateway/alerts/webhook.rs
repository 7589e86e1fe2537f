//! Tells a URL of each alert that is raised or cleared.

use std::time::Duration;

use reqwest::{Client, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::{sync::broadcast, time::sleep};
use tokio_util::sync::CancellationToken;

use super::Alert;
use crate::text::chain;

const TIMEOUT: Duration = Duration::from_secs(10);
/// The pauses before it is tried again.
const AGAIN: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(25),
];

pub struct Webhook {
    url: SecretString,
    service: String,
    /// Could not be made, in which case nobody is told: no other client would do, as it would follow redirects.
    client: reqwest::Result<Client>,
}

impl Webhook {
    pub fn new(url: SecretString, service: &str) -> Self {
        let client = Client::builder()
            .timeout(TIMEOUT)
            // The URL may hold a secret, and alerts name queues: neither is for whoever a redirect leads to.
            .redirect(redirect::Policy::none())
            .referer(false);
        Self {
            url,
            service: service.to_owned(),
            client: client.build(),
        }
    }

    /// Tells of changes, one after the other, until it is stopped.
    pub async fn follow(self, mut changes: broadcast::Receiver<Alert>, stop: CancellationToken) {
        let following = async {
            loop {
                match changes.recv().await {
                    Ok(alert) => self.tell(&alert).await,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(
                            missed,
                            "the alert webhook is too slow; some alerts were not sent to it"
                        );
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        };
        stop.run_until_cancelled(following).await;
    }

    async fn tell(&self, alert: &Alert) {
        let body = self.body(alert);
        let mut pauses = AGAIN.into_iter();
        loop {
            let Err(problem) = self.post(&body).await else {
                return;
            };
            match pauses.next() {
                Some(pause) => sleep(pause).await,
                None => {
                    let kind = alert.kind;
                    tracing::warn!(%kind, problem, "the alert webhook does not take this alert; giving up");
                    return;
                }
            }
        }
    }

    /// The URL may hold a secret: errors are told without it.
    async fn post(&self, body: &Value) -> Result<(), String> {
        let client = self.client.as_ref().map_err(ToString::to_string)?;
        let posted = client.post(self.url.expose_secret()).json(body).send();
        let answer = posted.await.map_err(|error| chain(&error.without_url()))?;
        let status = answer.status();
        if status.is_success() {
            Ok(())
        } else if status.is_redirection() {
            Err(format!(
                "it answers {status}, and redirects are not followed: ALERT_WEBHOOK_URL must name the place itself"
            ))
        } else {
            Err(format!("it answers {status}"))
        }
    }

    fn body(&self, alert: &Alert) -> Value {
        json!({
            "service": self.service,
            "status": if alert.cleared_at.is_none() { "raised" } else { "cleared" },
            "kind": alert.kind.to_string(),
            "subject": alert.subject,
            "severity": alert.kind.severity().to_string(),
            "summary": alert.summary,
            "runbook": alert.kind.runbook(),
            "raised_at": alert.raised_at,
            "cleared_at": alert.cleared_at,
        })
    }
}
