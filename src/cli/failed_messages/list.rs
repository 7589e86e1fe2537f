//! `courtier failed list`.

use std::io::{self, IsTerminal};

use clap::Args;

use super::{connect, filter::Filter, show, view};
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        complain, moment,
        pages::{PAGE, pages, say_more},
        print, print_json,
        table::{Fit, Table},
    },
    grpc::proto::{ListFailedMessagesRequest, list_failed_messages_request::View},
};

/// The most that the gateway answers at a time with payloads.
const FULL_PAGE: u64 = 100;

/// List failed messages, the newest first
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier failed list
  courtier failed list --status failed --queue orders_queue --after 24h
  courtier failed list --error-text Timeout --limit 1000 --output json | jq -r .id")]
pub(in crate::cli) struct List {
    #[command(flatten)]
    filter: Filter,
    /// So many at most
    #[arg(long, value_name = "NUMBER", default_value = "50", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Everything about each: payload, stack and attempts
    #[arg(long)]
    full: bool,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) async fn run(list: List) -> Result<(), Exit> {
    let mut client = connect(&list.gateway).await?;
    let most = if list.full { FULL_PAGE } else { PAGE };
    let view = if list.full { View::Full } else { View::Basic };
    let mut table = Table::new([
        ("ID", Fit::Whole),
        ("STATUS", Fit::Whole),
        ("RETRIES", Fit::Whole),
        ("AGE", Fit::Whole),
        ("QUEUE", Fit::Cut),
        ("ERROR", Fit::Cut),
    ]);
    let terminal = io::stdout().is_terminal();
    let mut unreadable = Vec::new();
    let ask = async |page_size, page_token| {
        let request = ListFailedMessagesRequest {
            filter: Some(list.filter.filter()),
            view: view.into(),
            page_size,
            page_token,
        };
        let answer = client.list_failed_messages(list.gateway.ask(request)).await;
        let page = answer
            .map_err(|status| client::failed(&status))?
            .into_inner();
        unreadable.extend(page.unreadable_ids);
        Ok((page.failed_messages, page.next_page_token))
    };
    let mut none = true;
    let more = pages(list.limit, most, ask, |failed| {
        match list.output {
            Output::Json => print_json(view::json(&failed))?,
            Output::Text if list.full => {
                let gap = if none { "" } else { "\n\n" };
                print(&format!("{gap}{}", show::text(&failed, terminal)))?;
            }
            Output::Text => table.row([
                failed.id.clone(),
                view::status(&failed).to_owned(),
                format!("{}/{}", failed.retry_count, failed.max_retries),
                moment::age(failed.failed_at.as_ref()),
                failed.queue.clone(),
                view::error(&failed),
            ]),
        }
        none = false;
        Ok(())
    })
    .await?;
    if list.output == Output::Text && (none || !list.full) {
        table.print_or("no failed messages match")?;
    }
    if !unreadable.is_empty() {
        complain(&format!(
            "not listed, because what is stored of them cannot be read: {}; courtier failed delete takes their ids",
            unreadable.join(" ")
        ));
    }
    if more {
        say_more(list.limit, "more conditions");
    }
    Ok(())
}
