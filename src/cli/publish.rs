//! `courtier publish`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, IsTerminal, Read},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use prost_types::{Struct, Value, value::Kind};
use serde_json::json;
use tonic::{Request, Status};
use uuid::Uuid;

use super::{
    Exit,
    client::{self, Output, Server, time},
    complain, publish_lines, say,
};
use crate::grpc::proto::{
    Message, Outcome, PublishRequest, message::Payload, publisher_client::PublisherClient,
};

/// Integers up to here keep their digits in a header.
const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53

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
    source: Source,
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

/// Where the payload is.
#[derive(Args)]
#[group(multiple = false)]
struct Source {
    /// The payload, as it is
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// The payload, checked to be JSON and sent as it is; the content type becomes application/json
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    json: Option<String>,
    /// The payload is this file's content; - is standard input
    #[arg(long, value_name = "FILE")]
    data_file: Option<String>,
    /// Standard input; so it is too when no payload is given
    #[arg(value_name = "-", value_parser = ["-"], hide_possible_values = true)]
    stdin: Option<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Properties")]
struct Properties {
    /// Names the message; made when it is not given
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// The event's name, such as order.created
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The service that made the message
    #[arg(long, value_name = "ID")]
    app_id: Option<String>,
    /// Ties a reply or a workflow together
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// Where an answer is wanted
    #[arg(long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// MIME type of the payload
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// 0 to 255; only queues declared with priorities look at it
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u8>,
    /// How long the message may wait in a queue, such as 30s
    #[arg(long, value_name = "TIME", value_parser = time)]
    ttl: Option<Duration>,
    /// A header, NAME=VALUE; may be repeated. A number, true, false and null are sent as such, anything else as text
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, Value)>,
}

impl Publish {
    /// One publish of this payload, under an id of its own: it is known also when the answer gets lost.
    pub(super) fn request(&self, payload: Payload) -> PublishRequest {
        let given = &self.properties;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let headers: BTreeMap<_, _> = given.headers.iter().cloned().collect();
        let mut content_type = text(&given.content_type);
        if self.source.json.is_some() && content_type.is_empty() {
            content_type = "application/json".to_owned();
        }
        PublishRequest {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            allow_unroutable: self.allow_unroutable,
            message: Some(Message {
                message_id: given
                    .message_id
                    .clone()
                    .unwrap_or_else(|| Uuid::now_v7().to_string()),
                payload: Some(payload),
                content_type,
                content_encoding: String::new(),
                headers: (!headers.is_empty()).then_some(Struct { fields: headers }),
                r#type: text(&given.kind),
                app_id: text(&given.app_id),
                correlation_id: text(&given.correlation_id),
                reply_to: text(&given.reply_to),
                timestamp: None,
                priority: given.priority.unwrap_or_default().into(),
                ttl: given.ttl.and_then(|ttl| ttl.try_into().ok()),
            }),
        }
    }

    fn payload(&self) -> Result<Payload, Exit> {
        if let Some(text) = &self.source.text {
            return Ok(Payload::Text(text.clone()));
        }
        if let Some(text) = &self.source.json {
            // Sent as it was written: a JSON value would not keep the digits of large numbers.
            return match serde_json::from_str::<serde::de::IgnoredAny>(text) {
                Ok(_) => Ok(Payload::Text(text.clone())),
                Err(error) => Err(Exit::new(Exit::USAGE, format!("--json: {error}"))),
            };
        }
        let mut data = Vec::new();
        let (name, mut input) = self.input()?;
        match input.read_to_end(&mut data) {
            Ok(_) => Ok(Payload::Data(Bytes::from(data))),
            Err(error) => Err(Exit::new(
                Exit::USAGE,
                format!("cannot read {name}: {error}"),
            )),
        }
    }

    /// What is read, and its name.
    pub(super) fn input(&self) -> Result<(String, Box<dyn Read + Send>), Exit> {
        match self.source.data_file.as_deref() {
            Some(path) if path != "-" => match File::open(path) {
                Ok(file) => Ok((path.to_owned(), Box::new(file))),
                Err(error) => Err(Exit::new(
                    Exit::USAGE,
                    format!("cannot read {path}: {error}"),
                )),
            },
            _ => {
                if io::stdin().is_terminal() {
                    complain("reading from the terminal; Ctrl-D at the start of a line ends it");
                }
                Ok(("standard input".to_owned(), Box::new(io::stdin())))
            }
        }
    }
}

fn header(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    let kind = match serde_json::from_str(value) {
        Ok(serde_json::Value::Null) => Kind::NullValue(0),
        Ok(serde_json::Value::Bool(value)) => Kind::BoolValue(value),
        Ok(serde_json::Value::Number(number)) => match number.as_f64() {
            // An id of twenty digits would arrive as another one.
            Some(double) if double.abs() <= EXACT || number.is_f64() => Kind::NumberValue(double),
            _ => Kind::StringValue(value.to_owned()),
        },
        _ => Kind::StringValue(value.to_owned()),
    };
    Ok((name.to_owned(), Value { kind: Some(kind) }))
}

pub(super) async fn run(publish: Publish) -> Result<(), Exit> {
    if publish.lines {
        return publish_lines::run(publish).await;
    }
    let message = publish.request(publish.payload()?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_what_they_look_like() {
        let kind = |text| header(text).ok().and_then(|(_, value)| value.kind);
        let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
        assert_eq!(kind("n=7"), Some(Kind::NumberValue(7.0)));
        assert_eq!(kind("b=true"), Some(Kind::BoolValue(true)));
        assert_eq!(kind("v=null"), Some(Kind::NullValue(0)));
        assert_eq!(kind("t=a=b"), text("a=b"));
        assert_eq!(kind("o={}"), text("{}"));
        assert_eq!(kind("e="), text(""));
        assert_eq!(
            kind("id=12345678901234567890"),
            text("12345678901234567890")
        );
        assert!(header("nothing").is_err());
    }
}
