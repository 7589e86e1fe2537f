//! `courtier failed groups`.

use clap::Args;
use serde_json::{Value, json};

use super::{connect, view};
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        complain, moment, print_json,
        table::{Fit, Table},
    },
    grpc::proto::{FailedMessageGroup, ListFailedMessageGroupsRequest},
};

/// The most that the gateway answers at a time.
const PAGE: u64 = 1_000;

/// List what goes wrong: failed messages of one queue that failed alike, counted
///
/// COUNT is all of them, FAILED those that wait for a person; --output json has the other figures too.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier failed groups
  courtier failed groups --queue orders_queue
  courtier failed retry --fingerprint GROUP      all that failed alike")]
pub(in crate::cli) struct Groups {
    /// Only those of this queue
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    queue: String,
    /// So many at most
    #[arg(long, value_name = "NUMBER", default_value = "50", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) async fn run(groups: Groups) -> Result<(), Exit> {
    let mut client = connect(&groups.gateway).await?;
    let mut table = Table::new([
        ("GROUP", Fit::Whole),
        ("COUNT", Fit::Whole),
        ("FAILED", Fit::Whole),
        ("LAST", Fit::Whole),
        ("QUEUE", Fit::Cut),
        ("ERROR", Fit::Cut),
    ]);
    let mut left = groups.limit;
    let mut request = ListFailedMessageGroupsRequest {
        queue: groups.queue.clone(),
        ..Default::default()
    };
    let more = 'pages: loop {
        // One more than is wanted tells whether there are more.
        let size = left.saturating_add(1).min(PAGE);
        request.page_size = i32::try_from(size).unwrap_or(i32::MAX);
        let answer = client
            .list_failed_message_groups(groups.gateway.ask(request.clone()))
            .await;
        let page = answer
            .map_err(|status| client::failed(&status))?
            .into_inner();
        for group in page.groups {
            if left == 0 {
                break 'pages true;
            }
            left -= 1;
            match groups.output {
                Output::Json => print_json(json(&group))?,
                Output::Text => table.row([
                    group.fingerprint.clone(),
                    group.count.to_string(),
                    group.failed.to_string(),
                    moment::age(group.last_seen.as_ref()),
                    group.queue.clone(),
                    error(&group),
                ]),
            }
        }
        if page.next_page_token.is_empty() {
            break false;
        }
        request.page_token = page.next_page_token;
    };
    if !table.is_empty() {
        table.print()?;
    } else if groups.output == Output::Text {
        complain("no failed messages");
    }
    if more {
        let limit = groups.limit;
        complain(&format!(
            "there are more than these {limit}: --limit, or --queue"
        ));
    }
    Ok(())
}

fn error(group: &FailedMessageGroup) -> String {
    let error = view::in_one(&group.error_type, &group.error_message);
    if error.is_empty() {
        "(nobody told)".to_owned()
    } else {
        error
    }
}

fn json(group: &FailedMessageGroup) -> Value {
    let time = |time: &Option<prost_types::Timestamp>| time.map(|time| time.to_string());
    json!({
        "fingerprint": group.fingerprint,
        "queue": group.queue,
        "error_type": group.error_type,
        "error_message": group.error_message,
        "count": group.count,
        "pending": group.pending,
        "retrying": group.retrying,
        "failed": group.failed,
        "resolved": group.resolved,
        "first_seen": time(&group.first_seen),
        "last_seen": time(&group.last_seen),
    })
}
