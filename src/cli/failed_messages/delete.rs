//! `courtier failed delete`.

use clap::Args;
use serde_json::json;
use tonic::Request;

use super::{Client, Tally, connect, filter::Filter, get, view};
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        confirm::Confirm,
        print, print_json,
    },
    grpc::proto::{
        DeleteFailedMessageRequest, DeleteFailedMessagesRequest, DeleteFailedMessagesResponse,
        failed_message::Status,
    },
};

/// Delete failed messages for good, payload and attempts included; RETRYING ones are left
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier failed delete 0193a3c4-1c2d-7000-8000-0123456789ab
  courtier failed delete --status resolved --before 30d --dry-run
  courtier failed delete --status resolved --before 30d --yes")]
pub(in crate::cli) struct Delete {
    /// Failed messages, as in `courtier failed list`
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// Every one that is not RETRYING
    #[arg(long, help_heading = "Which messages")]
    all: bool,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    confirm: Confirm,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) async fn run(delete: Delete) -> Result<(), Exit> {
    let bulk = delete.all || !delete.filter.is_empty();
    let problem = match (delete.ids.is_empty(), bulk) {
        (true, false) => "say which: ids, conditions such as --queue, or --all",
        (false, true) => "give ids or conditions, not both",
        _ => "",
    };
    if !problem.is_empty() {
        return Err(Exit::new(Exit::USAGE, problem));
    }
    if !delete.dry_run {
        delete.confirm.check()?;
    }
    let mut client = connect(&delete.gateway).await?;
    if bulk {
        return many(&mut client, &delete).await;
    }
    if !delete.dry_run {
        let count = delete.ids.len();
        let these = if count == 1 {
            "this failed message"
        } else {
            "these failed messages"
        };
        delete
            .confirm
            .ask(&format!("Delete {these} ({count}) for good?"))?;
    }
    let mut tally = Tally::default();
    for id in &delete.ids {
        let outcome = one(&mut client, &delete, id).await;
        let outcome = outcome.and_then(|()| match (delete.output, delete.dry_run) {
            (Output::Json, dry_run) => print_json(json!({"id": id, "deleted": !dry_run})),
            (Output::Text, true) => print(&format!("{id} would be deleted\n")),
            (Output::Text, false) => print(&format!("{id} deleted\n")),
        });
        tally.add(id, outcome);
    }
    tally.finish()
}

async fn one(client: &mut Client, delete: &Delete, id: &str) -> Result<(), Exit> {
    if delete.dry_run {
        let failed = get(client, &delete.gateway, id).await?;
        if failed.status() == Status::Retrying {
            let problem = format!("it is {}, and would be left", view::status(&failed));
            return Err(Exit::new(Exit::REFUSED, problem));
        }
        return Ok(());
    }
    let request = DeleteFailedMessageRequest { id: id.to_owned() };
    let answer = client.delete_failed_message(delete.gateway.ask(request));
    answer
        .await
        .map(drop)
        .map_err(|status| client::not_done(&status))
}

async fn many(client: &mut Client, delete: &Delete) -> Result<(), Exit> {
    let mut request = DeleteFailedMessagesRequest {
        filter: Some(delete.filter.filter()),
        dry_run: true,
        all: delete.all,
    };
    let counted = client.delete_failed_messages(delete.gateway.ask(request.clone()));
    let counted = counted.await.map_err(|status| client::failed(&status))?;
    let DeleteFailedMessagesResponse {
        matched,
        failed_before,
        ..
    } = counted.into_inner();
    if delete.dry_run {
        return match delete.output {
            Output::Json => print_json(json!({"matched": matched, "deleted": 0})),
            Output::Text => print(&format!("{matched} would be deleted\n")),
        };
    }
    if matched == 0 {
        return match delete.output {
            Output::Json => print_json(json!({"matched": 0, "deleted": 0})),
            Output::Text => print("0 deleted\n"),
        };
    }
    let question = format!("Delete {matched} failed messages for good?");
    delete.confirm.ask(&question)?;
    request.dry_run = false;
    // Not what failed while the question stood.
    request.filter.get_or_insert_default().failed_before = failed_before;
    // Without a deadline: it takes as long as there is to delete.
    let deleted = client.delete_failed_messages(Request::new(request)).await;
    let deleted = deleted.map_err(|status| {
        let Exit { code, message } = client::not_done(&status);
        Exit::new(
            code,
            format!("{message} (some may be deleted; call again for the rest)"),
        )
    })?;
    let deleted = deleted.into_inner().deleted;
    match delete.output {
        Output::Json => print_json(json!({"matched": deleted, "deleted": deleted})),
        Output::Text => print(&format!("{deleted} deleted\n")),
    }
}
