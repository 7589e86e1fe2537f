//! `courtier alerts`.

use clap::Args;
use serde_json::json;

use super::{Admin, word};
use crate::{
    cli::{
        Exit,
        client::{self, Output},
        moment, print, print_json,
        show::visible,
        table::{Fit, Table},
    },
    grpc::proto::{Alert, ListAlertsRequest, WatchAlertsRequest},
};

/// Show what is wrong now, or tell of it as it comes and goes
///
/// docs/runbook.md says of each alert what to do.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier alerts
  courtier alerts --watch
  courtier alerts --output json | jq -r 'select(.severity == \"critical\") | .summary'")]
pub(in crate::cli) struct Alerts {
    /// Go on, and tell of changes
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    admin: Admin,
}

pub(in crate::cli) async fn run(alerts: Alerts) -> Result<(), Exit> {
    let mut client = alerts.admin.connect().await?;
    if alerts.watch {
        let opened = client.watch_alerts(WatchAlertsRequest {}).await;
        let mut responses = opened
            .map_err(|status| client::failed(&status))?
            .into_inner();
        loop {
            let response = responses.message().await;
            let Some(response) = response.map_err(|status| client::failed(&status))? else {
                return Ok(());
            };
            for alert in &response.alerts {
                match alerts.admin.output {
                    Output::Json => print_json(json(alert))?,
                    Output::Text => print(&line(alert))?,
                }
            }
        }
    }
    let request = alerts.admin.ask(ListAlertsRequest {});
    let answer = client.list_alerts(request).await;
    let standing = answer
        .map_err(|status| client::failed(&status))?
        .into_inner()
        .alerts;
    let mut table = Table::new([
        ("SEVERITY", Fit::Whole),
        ("ALERT", Fit::Whole),
        ("OF", Fit::Whole),
        ("SINCE", Fit::Whole),
        ("WHAT", Fit::Cut),
    ]);
    for alert in standing {
        match alerts.admin.output {
            Output::Json => print_json(json(&alert))?,
            Output::Text => table.row([
                severity(&alert),
                kind(&alert),
                alert.subject.clone(),
                moment::age(alert.raised_at.as_ref()),
                alert.summary,
            ]),
        }
    }
    match alerts.admin.output {
        Output::Json => Ok(()),
        Output::Text => table.print_or("nothing is wrong"),
    }
}

fn kind(alert: &Alert) -> String {
    word(alert.kind().as_str_name(), "KIND_")
}

fn severity(alert: &Alert) -> String {
    word(alert.severity().as_str_name(), "SEVERITY_")
}

fn line(alert: &Alert) -> String {
    let (state, at) = match &alert.cleared_at {
        Some(at) => ("cleared", Some(at)),
        None => ("raised", alert.raised_at.as_ref()),
    };
    let at = at.map(moment::text).unwrap_or_default();
    let text = format!(
        "{at} {state} {} {} {}: {}",
        severity(alert),
        kind(alert),
        alert.subject,
        alert.summary
    );
    format!("{}\n", visible(&text, |_| false))
}

fn json(alert: &Alert) -> serde_json::Value {
    let time = |time: &Option<prost_types::Timestamp>| time.as_ref().map(ToString::to_string);
    json!({
        "status": if alert.cleared_at.is_none() { "raised" } else { "cleared" },
        "kind": kind(alert),
        "subject": alert.subject,
        "severity": severity(alert),
        "summary": alert.summary,
        "runbook": alert.runbook,
        "raised_at": time(&alert.raised_at),
        "cleared_at": time(&alert.cleared_at),
    })
}
