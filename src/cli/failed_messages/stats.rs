//! `courtier failed stats`.

use clap::Args;
use serde_json::json;

use super::connect;
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        complain, moment, print, print_json,
        table::{Fit, Table},
    },
    grpc::proto::{GetFailedMessageStatsRequest, get_failed_message_stats_response::QueueStats},
};

/// Count the failed messages of each queue
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier failed stats
  courtier failed stats --output json | jq '[.queues[].failed] | add'")]
pub(in crate::cli) struct Stats {
    /// Only this queue's
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    queue: String,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) async fn run(stats: Stats) -> Result<(), Exit> {
    let mut client = connect(&stats.gateway).await?;
    let request = GetFailedMessageStatsRequest { queue: stats.queue };
    let answer = client
        .get_failed_message_stats(stats.gateway.ask(request))
        .await;
    let answer = answer
        .map_err(|status| client::failed(&status))?
        .into_inner();
    if stats.output == Output::Json {
        let queues = answer.queues.iter().map(|of| {
            let QueueStats { queue, pending, retrying, failed, resolved } = of;
            json!({"queue": queue, "pending": pending, "retrying": retrying, "failed": failed, "resolved": resolved})
        });
        return print_json(json!({
            "queues": queues.collect::<Vec<_>>(),
            "oldest_failed_at": answer.oldest_failed_at.map(|time| time.to_string()),
        }));
    }
    let mut table = Table::new([
        ("QUEUE", Fit::Whole),
        ("PENDING", Fit::Whole),
        ("RETRYING", Fit::Whole),
        ("FAILED", Fit::Whole),
        ("RESOLVED", Fit::Whole),
    ]);
    for of in answer.queues {
        let counts =
            [of.pending, of.retrying, of.failed, of.resolved].map(|count| count.to_string());
        let [pending, retrying, failed, resolved] = counts;
        table.row([of.queue, pending, retrying, failed, resolved]);
    }
    if table.is_empty() {
        complain("no failed messages");
        return Ok(());
    }
    table.print()?;
    match answer.oldest_failed_at {
        Some(oldest) => print(&format!(
            "\nThe oldest that is not resolved failed {}.\n",
            moment::text(&oldest)
        )),
        None => Ok(()),
    }
}
