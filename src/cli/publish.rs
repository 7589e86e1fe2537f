//! `courtier publish`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tonic::{Request, Status};
use uuid::Uuid;

use super::{
    Exit,
    client::{self, Output, Server, time},
    compose::{Properties, Source},
    say,
};
use crate::grpc::proto::{
    Message, Outcome, PublishRequest, message::Payload, publisher_client::PublisherClient,
};

/// Publish a message and say what became of it
///
/// Answers when the broker has decided: confirmed means that it stored the message in at least one queue. The payload is --text,
/// --json, a file, or what comes in on standard input.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier publish orders_exchange order.created --text '{\"id\":1}'
  courtier publish orders_exchange order.created --json '{\"id\":1}' --header tenant=7
  echo hello | courtier publish \"\" orders_queue
  courtier publish orders_exchange order.created --lines --data-file orders.jsonl

Exit codes (with --lines: the highest of all lines):
  0  confirmed
  1  failed
  2  wrong usage
  3  refused as it is: no queue takes it, no such exchange, a bad field
  4  not done, try again: queue full, broker down, gateway not reached
  5  in doubt: it may be stored. Publish it again with the message id that is
     printed, so that consumers can drop the duplicate")]
pub(super) struct Publish {
    /// The exchange; "" is the default exchange, on which the routing key names a queue
    exchange: String,
    /// What the exchange routes by
    routing_key: String,
    #[command(flatten)]
    pub(super) source: Source,
    /// Each line of the input is a message (without its line break); all go over one stream, in order
    #[arg(long, conflicts_with_all = ["text", "json", "message_id"])]
    pub(super) lines: bool,
    /// A message that no queue takes is dropped, and counts as confirmed
    #[arg(long)]
    allow_unroutable: bool,
    /// How long the answer may take; with --lines, how long the gateway may be silent
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(super) timeout: Duration,
    /// With --lines, json writes the outcome of each line
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) server: Server,
    #[command(flatten)]
    properties: Properties,
}

impl Publish {
    /// One publish of this payload, under an id of its own: it is known also when the answer gets lost.
    pub(super) fn request(&self, payload: Payload) -> PublishRequest {
        let mut message = Message {
            message_id: Uuid::now_v7().to_string(),
            payload: Some(payload),
            ..Message::default()
        };
        if self.source.is_json() {
            message.content_type = "application/json".to_owned();
        }
        self.properties.put_on(&mut message);
        PublishRequest {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            allow_unroutable: self.allow_unroutable,
            message: Some(message),
        }
    }
}

pub(super) async fn run(publish: Publish) -> Result<(), Exit> {
    let message = publish.request(publish.source.payload()?);
    let message_id = message
        .message
        .iter()
        .map(|m| m.message_id.clone())
        .collect::<String>();
    let mut client = PublisherClient::new(publish.server.connect().await?);
    let mut request = Request::new(message);
    request.set_timeout(publish.timeout);
    match client.publish(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            say(match publish.output {
                Output::Text => format!("confirmed, message id {}", answer.message_id),
                Output::Json => json!({
                    "outcome": "CONFIRMED",
                    "message_id": answer.message_id,
                    "publish_id": answer.publish_id,
                })
                .to_string(),
            });
            Ok(())
        }
        Err(status) => Err(failed(&status, message_id, publish.output)),
    }
}

fn failed(status: &Status, message_id: String, output: Output) -> Exit {
    let outcome = client::publish_outcome(status);
    if output == Output::Json {
        say(json!({
            "outcome": outcome_name(outcome),
            "reason": client::reason(status),
            "message_id": message_id,
            "message": status.message(),
        }));
    }
    let again = match outcome {
        Outcome::InDoubt => format!(" (--message-id {message_id})"),
        _ => String::new(),
    };
    let told = client::describe(status);
    Exit::new(
        client::outcome_exit_code(outcome),
        format!("{}: {told}{again}", in_words(outcome)),
    )
}

/// Without the prefix, as in `publish_outcome`.
pub(super) fn outcome_name(outcome: Outcome) -> &'static str {
    outcome.as_str_name().trim_start_matches("OUTCOME_")
}

pub(super) fn in_words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Confirmed => "confirmed",
        Outcome::Unroutable => "unroutable",
        Outcome::Rejected => "rejected",
        Outcome::NotSent => "not sent",
        Outcome::InDoubt | Outcome::Unspecified => "in doubt",
        Outcome::Invalid => "invalid",
    }
}
