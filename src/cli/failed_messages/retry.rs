//! `courtier failed retry`.

use clap::Args;
use serde_json::json;

use super::{Client, Tally, connect, filter::Conditions, operation, view};
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        complain,
        confirm::Confirm,
        print, print_json,
    },
    grpc::proto::{FailedMessage, RetryFailedMessageRequest, RetryFailedMessagesRequest},
};

/// Send failed messages once more to the queue where they failed
///
/// With ids: each one now; done when the broker has stored the copy. With conditions: a bulk retry, which the gateways carry out
/// at a limited rate, the oldest first; this command follows it until the last copy was processed. It goes on when this command
/// ends, and stops by itself when more than half fail again.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier failed retry 0193a3c4-1c2d-7000-8000-0123456789ab
  courtier failed retry --queue orders_queue --status failed --dry-run
  courtier failed retry --queue orders_queue --status failed --rate 50
  courtier failed retry --fingerprint GROUP --max 10     try ten of them first
  courtier failed retry --operation ID                   follow one
  courtier failed retry --operation ID --stop

Exit codes:
  0  all were sent; of a bulk retry: none failed again
  1  failed
  2  wrong usage, or --yes is missing where nobody can be asked
  3  refused as it is: no such message, or it is RETRYING or RESOLVED
  4  not done, or not all: some failed again, queue full, broker or database away
  5  in doubt: a copy may be in the queue; show the message before retrying again")]
pub(in crate::cli) struct Retry {
    /// Failed messages, as in `courtier failed list`
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    conditions: Conditions,
    /// Every PENDING and FAILED one
    #[arg(long, help_heading = "Which messages")]
    all: bool,
    /// So many a second, over all gateways [default: 10]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// So many at most
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    /// Follow this bulk retry instead of starting one
    #[arg(long, value_name = "ID")]
    operation: Option<String>,
    /// Stop the one that --operation names; what it has sent is not called back
    #[arg(long, requires = "operation")]
    stop: bool,
    #[command(flatten)]
    confirm: Confirm,
    /// json writes a line for each message; of a bulk retry, how far it is, about every second
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) async fn run(retry: Retry) -> Result<(), Exit> {
    let bulk = retry.all || !retry.conditions.is_empty();
    let ways = [!retry.ids.is_empty(), bulk, retry.operation.is_some()];
    let only_bulk = retry.rate.is_some() || retry.max.is_some() || retry.dry_run;
    let problem = match ways.into_iter().filter(|way| *way).count() {
        0 => "say which: ids, conditions such as --queue, or --all",
        1 if only_bulk && !bulk => "--rate, --max and --dry-run are for conditions or --all",
        1 => "",
        _ => "give ids, conditions or --operation, one kind of them",
    };
    if !problem.is_empty() {
        return Err(Exit::new(Exit::USAGE, problem));
    }
    if bulk {
        return many(&retry).await;
    }
    let mut client = connect(&retry.gateway).await?;
    if let Some(operation_id) = retry.operation.clone() {
        let request = RetryFailedMessagesRequest {
            operation_id,
            stop: retry.stop,
            ..Default::default()
        };
        return operation::run(&mut client, request, retry.output).await;
    }
    let mut tally = Tally::default();
    for id in &retry.ids {
        let outcome = one(&mut client, &retry.gateway, id).await;
        let outcome = match (outcome, retry.output) {
            (Ok(failed), Output::Json) => print_json(view::json(&failed)),
            (Ok(failed), Output::Text) => print(&format!("{id} {}\n", view::status(&failed))),
            (Err(exit), Output::Text) => Err(exit),
            (Err(exit), Output::Json) => {
                print_json(json!({"id": id, "error": exit.message}))?;
                Err(exit)
            }
        };
        tally.add(id, outcome);
    }
    tally.finish()
}

async fn one(client: &mut Client, gateway: &Gateway, id: &str) -> Result<FailedMessage, Exit> {
    let request = gateway.ask(RetryFailedMessageRequest { id: id.to_owned() });
    let answer = client.retry_failed_message(request).await;
    let answer = answer.map_err(|status| client::not_done(&status))?;
    Ok(answer.into_inner().failed_message.unwrap_or_default())
}

async fn many(retry: &Retry) -> Result<(), Exit> {
    if !retry.dry_run {
        retry.confirm.check()?;
    }
    let mut client = connect(&retry.gateway).await?;
    let request = RetryFailedMessagesRequest {
        filter: Some(retry.conditions.filter()),
        rate: retry.rate.unwrap_or_default(),
        limit: retry.max.unwrap_or_default(),
        all: retry.all,
        ..Default::default()
    };
    let matched = count(&mut client, &retry.gateway, &request).await?;
    let wanted = retry.max.unwrap_or(u64::MAX).min(matched);
    if retry.dry_run {
        return match retry.output {
            Output::Json => print_json(json!({"matched": matched, "would_retry": wanted})),
            Output::Text => print(&format!("{wanted} of {matched} would be retried\n")),
        };
    }
    if wanted == 0 {
        complain("no PENDING or FAILED message matches");
        return operation::nothing(retry.output);
    }
    let rate = match retry.rate {
        Some(rate) => format!(", {rate} a second"),
        None => String::new(),
    };
    let question = format!("Retry {wanted} of {matched} failed messages that match{rate}?");
    retry.confirm.ask(&question)?;
    operation::run(&mut client, request, retry.output).await
}

async fn count(
    client: &mut Client,
    gateway: &Gateway,
    request: &RetryFailedMessagesRequest,
) -> Result<u64, Exit> {
    let request = RetryFailedMessagesRequest {
        dry_run: true,
        ..request.clone()
    };
    let answer = client.retry_failed_messages(gateway.ask(request)).await;
    let mut answer = answer
        .map_err(|status| client::failed(&status))?
        .into_inner();
    let first = answer.message().await;
    let first = first.map_err(|status| client::failed(&status))?;
    Ok(first.unwrap_or_default().matched)
}
