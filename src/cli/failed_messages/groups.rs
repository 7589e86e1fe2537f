//! `courtier failed groups`.

use clap::Args;
use serde_json::{Value, json};

use super::{connect, view};
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        moment,
        pages::{PAGE, pages, say_more},
        print_json,
        table::{Fit, Table},
    },
    grpc::proto::{FailedMessageGroup, ListFailedMessageGroupsRequest},
};

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
    let ask = async |page_size, page_token| {
        let request = ListFailedMessageGroupsRequest {
            queue: groups.queue.clone(),
            page_size,
            page_token,
        };
        let answer = client
            .list_failed_message_groups(groups.gateway.ask(request))
            .await;
        let page = answer
            .map_err(|status| client::failed(&status))?
            .into_inner();
        Ok((page.groups, page.next_page_token))
    };
    let more = pages(groups.limit, PAGE, ask, |group| {
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
        Ok(())
    })
    .await?;
    if groups.output == Output::Text {
        table.print_or("no failed messages")?;
    }
    if more {
        say_more(groups.limit, "--queue");
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
