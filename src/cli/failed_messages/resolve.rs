//! `courtier failed resolve`.

use clap::Args;

use super::{Tally, connect, view};
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        print, print_json,
    },
    grpc::proto::ResolveFailedMessageRequest,
};

/// Say that failed messages are dealt with: they are not retried any more
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier failed resolve ID --comment 'refunded by hand'
  courtier failed list --queue orders_queue --output json | jq -r .id | xargs courtier failed resolve")]
pub(in crate::cli) struct Resolve {
    /// Failed messages, as in `courtier failed list`
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Why, for people; kept with the message
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    comment: String,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) async fn run(resolve: Resolve) -> Result<(), Exit> {
    let mut client = connect(&resolve.gateway).await?;
    let mut tally = Tally::default();
    for id in &resolve.ids {
        let request = resolve.gateway.ask(ResolveFailedMessageRequest {
            id: id.clone(),
            comment: resolve.comment.clone(),
        });
        let outcome = match client.resolve_failed_message(request).await {
            Err(status) => Err(client::not_done(&status)),
            Ok(answer) => {
                let failed = answer.into_inner().failed_message.unwrap_or_default();
                match resolve.output {
                    Output::Json => print_json(view::json(&failed)),
                    Output::Text => print(&format!("{id} {}\n", view::status(&failed))),
                }
            }
        };
        tally.add(id, outcome);
    }
    tally.finish()
}
