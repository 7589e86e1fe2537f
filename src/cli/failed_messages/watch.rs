//! `courtier failed watch`.

use std::collections::HashSet;

use chrono::{SecondsFormat, Utc};
use clap::Args;
use serde_json::json;
use tonic::Request;

use super::{connect, filter::Filter, view};
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        complain, print, print_json,
        show::visible,
    },
    grpc::proto::{
        FailedMessage, WatchFailedMessagesRequest,
        watch_failed_messages_response::{Change, change::Kind},
    },
    shutdown,
};

/// Print each change of failed messages as it happens
///
/// Runs until Ctrl-C. What is printed is a message's latest state; states in between may be left out. To miss nothing, list after
/// this command has said that it watches.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier failed watch
  courtier failed watch --queue orders_queue --output json | jq -c '[.kind, .failed_message.status]'

Exit codes:
  0  ended as asked: Ctrl-C, or the pipe was closed
  1  failed
  2  wrong usage
  3  refused as it is
  4  the gateway or its database went away: watch and list again")]
pub(in crate::cli) struct Watch {
    #[command(flatten)]
    filter: Filter,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) async fn run(watch: Watch) -> Result<(), Exit> {
    let mut client = connect(&watch.gateway).await?;
    let request = WatchFailedMessagesRequest {
        filter: Some(watch.filter.filter()),
    };
    let changes = client.watch_failed_messages(Request::new(request)).await;
    let mut changes = changes
        .map_err(|status| client::failed(&status))?
        .into_inner();
    complain("watching; Ctrl-C ends");
    let interrupted = shutdown::requested();
    tokio::pin!(interrupted);
    let everything = watch.filter.is_empty();
    // Deletions are told of whatever the filter.
    let mut seen = HashSet::new();
    loop {
        let response = tokio::select! {
            response = changes.message() => response,
            _ = &mut interrupted => return Ok(()),
        };
        let response = response.map_err(|status| client::failed(&status))?;
        let Some(response) = response else {
            return Err(Exit::new(Exit::NOT_DONE, "the gateway ended the watch"));
        };
        if response.missed_changes {
            complain(
                "changes were missed, because they were read too slowly: list again to see them",
            );
        }
        for change in response.changes {
            let Some(failed) = &change.failed_message else {
                continue;
            };
            let deleted = change.kind() == Kind::Deleted;
            if !everything {
                if deleted && !seen.remove(&failed.id) {
                    continue;
                }
                if !deleted {
                    seen.insert(failed.id.clone());
                }
            }
            match watch.output {
                Output::Text => print(&text(failed, deleted))?,
                Output::Json => print_json(json(&change, failed, deleted))?,
            }
        }
    }
}

fn text(failed: &FailedMessage, deleted: bool) -> String {
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    let id = &failed.id;
    if deleted {
        return format!("{now} DELETED  {id}\n");
    }
    let (status, queue) = (view::status(failed), &failed.queue);
    let line = format!("{now} {status:<8} {id} {queue} {}", view::error(failed));
    visible(&line, |_| false) + "\n"
}

fn json(change: &Change, failed: &FailedMessage, deleted: bool) -> serde_json::Value {
    let kind = change.kind().as_str_name().trim_start_matches("KIND_");
    let failed = if deleted {
        json!({"id": failed.id})
    } else {
        view::json(failed)
    };
    json!({"kind": kind, "failed_message": failed})
}
