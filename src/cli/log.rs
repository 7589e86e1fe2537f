//! `courtier log`: what was published, and what became of it.

use std::io::{self, IsTerminal};

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    Exit,
    client::{self, Gateway, Output},
    details::{at, exchange, headers, properties, section},
    moment::{self, moment},
    pages::{PAGE, pages, say_more},
    payload, print, print_json,
    show::{self, visible},
    table::{Fit, Table},
};
use crate::grpc::proto::{
    GetMessageRequest, GetMessageResponse, ListMessagesRequest, LoggedMessage, MessageLogFilter,
    get_message_response::{Event, event::Kind},
    logged_message,
    message_log_client::MessageLogClient,
};

/// Look up what was published through the gateway, and what became of it
///
/// Needs a gateway whose AUDIT_LOG is on, as it is by default. The log is written a little later than things happen, and is no proof.
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  courtier log list --exchange orders_exchange --after 1h
  courtier log show order-1

Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  refused as it is: no such message, or the gateway keeps no log
  4  not done: database away, gateway not reached")]
pub(super) enum Command {
    List(List),
    Show(Show),
}

/// List published messages, the newest first
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier log list
  courtier log list --status failed --after 24h
  courtier log list --correlation-id order-1
  courtier log list --limit 1000 --output json | jq -r .message_id")]
pub(super) struct List {
    /// Published to this exchange
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    exchange: String,
    /// Published with this routing key
    #[arg(
        long,
        value_name = "KEY",
        default_value = "",
        hide_default_value = true
    )]
    routing_key: String,
    /// Published with this correlation id: a request and its answer, or the steps of a workflow
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    correlation_id: String,
    /// Stands there
    #[arg(long)]
    status: Option<Status>,
    /// Published then or later: 2026-11-22T08:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    after: Option<Timestamp>,
    /// Published before that
    #[arg(long, value_name = "TIME", value_parser = moment)]
    before: Option<Timestamp>,
    /// So many at most
    #[arg(long, value_name = "NUMBER", default_value = "50", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

/// Show a published message and its timeline
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier log show order-1
  courtier log show order-1 --output json | jq .timeline")]
pub(super) struct Show {
    /// The publisher's id of the message, or the one that the gateway made
    message_id: String,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Clone, Copy, ValueEnum)]
enum Status {
    /// The broker confirmed it
    Published,
    /// A consumer acked it
    Delivered,
    /// It became a failed message
    Failed,
}

pub(super) async fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::List(list) => self::list(list).await,
        Command::Show(show) => self::show(show).await,
    }
}

async fn list(list: List) -> Result<(), Exit> {
    let mut client =
        MessageLogClient::new(list.gateway.connect().await?).max_decoding_message_size(usize::MAX);
    let mut table = Table::new([
        ("MESSAGE ID", Fit::Whole),
        ("STATUS", Fit::Whole),
        ("AGE", Fit::Whole),
        ("BYTES", Fit::Whole),
        ("EXCHANGE", Fit::Cut),
        ("ROUTING KEY", Fit::Cut),
    ]);
    let status = match list.status {
        None => logged_message::Status::Unspecified,
        Some(Status::Published) => logged_message::Status::Published,
        Some(Status::Delivered) => logged_message::Status::Delivered,
        Some(Status::Failed) => logged_message::Status::Failed,
    };
    let filter = MessageLogFilter {
        exchange: list.exchange,
        routing_key: list.routing_key,
        correlation_id: list.correlation_id,
        status: status.into(),
        published_after: list.after,
        published_before: list.before,
    };
    let ask = async |page_size, page_token| {
        let request = ListMessagesRequest {
            filter: Some(filter.clone()),
            page_size,
            page_token,
        };
        let answer = client.list_messages(list.gateway.ask(request)).await;
        let page = answer
            .map_err(|status| client::failed(&status))?
            .into_inner();
        Ok((page.messages, page.next_page_token))
    };
    let more = pages(list.limit, PAGE, ask, |logged| {
        match list.output {
            Output::Json => print_json(Value::from(json(&logged)))?,
            Output::Text => table.row([
                logged.message_id.clone(),
                status_name(&logged).to_owned(),
                moment::age(logged.published_at.as_ref()),
                logged.payload_size.to_string(),
                logged.exchange,
                logged.routing_key,
            ]),
        }
        Ok(())
    })
    .await?;
    if list.output == Output::Text {
        table.print_or("no such message in the log")?;
    }
    if more {
        say_more(list.limit, "more conditions");
    }
    Ok(())
}

async fn show(show: Show) -> Result<(), Exit> {
    let mut client =
        MessageLogClient::new(show.gateway.connect().await?).max_decoding_message_size(usize::MAX);
    let message_id = show.message_id;
    let answer = client
        .get_message(show.gateway.ask(GetMessageRequest { message_id }))
        .await;
    let answer = answer
        .map_err(|status| client::failed(&status))?
        .into_inner();
    match show.output {
        Output::Text => print(&text(&answer, io::stdout().is_terminal())),
        Output::Json => {
            let entry = answer.entry.unwrap_or_default();
            let timeline: Vec<_> = answer.timeline.iter().map(event_json).collect();
            print_json(json!({"entry": json(&entry), "timeline": timeline}))
        }
    }
}

fn text(of: &GetMessageResponse, terminal: bool) -> String {
    use std::fmt::Write as _;
    let entry = of.entry.clone().unwrap_or_default();
    let message = entry.message.clone().unwrap_or_default();
    let mut out = String::new();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<14}{}", visible(value, |_| false));
        }
    };
    field("status", status_name(&entry));
    field("exchange", exchange(&entry.exchange));
    field("routing key", &entry.routing_key);
    field("published", &at(entry.published_at.as_ref()));
    field("delivered", &at(entry.delivered_at.as_ref()));
    field("failed", &at(entry.failed_at.as_ref()));
    field("publish id", &entry.publish_id);
    properties(&message, &mut field);
    section(
        &mut out,
        "timeline",
        of.timeline.iter().map(event_text).collect(),
    );
    headers(&mut out, &message);
    let _ = writeln!(out, "\npayload ({} bytes)", entry.payload_size);
    match (&message.payload, show::payload(&message)) {
        (None, _) if entry.payload_size > 0 => {
            out.push_str("not kept: larger than AUDIT_MAX_PAYLOAD\n")
        }
        (_, []) => {}
        (_, bytes) => out.push_str(&payload::text(bytes, terminal)),
    }
    out
}

fn event_text(event: &Event) -> String {
    let mut text = event.time.as_ref().map_or_else(String::new, moment::text);
    text.push_str(match event.kind() {
        Kind::Unspecified => " ?",
        Kind::Published => " published",
        Kind::Delivered => " delivered",
        Kind::Settled => " settled",
        Kind::Failed => " failed",
        Kind::Retried => " retried",
    });
    if !event.queue.is_empty() {
        text.push_str(&format!(" in {}", event.queue));
    }
    if event.attempt > 0 {
        text.push_str(&format!(", attempt {}", event.attempt));
    }
    if !event.detail.is_empty() {
        text.push_str(&format!(": {}", event.detail));
    }
    visible(&text, |_| false)
}

fn status_name(of: &LoggedMessage) -> &'static str {
    of.status().as_str_name().trim_start_matches("STATUS_")
}

fn json(of: &LoggedMessage) -> Map<String, Value> {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    put("message_id", json!(of.message_id));
    put("publish_id", json!(of.publish_id));
    put("exchange", json!(of.exchange));
    put("routing_key", json!(of.routing_key));
    put("message", show::message(of.message.as_ref()).into());
    put("payload_size", json!(of.payload_size));
    put("status", json!(status_name(of)));
    let times = [
        ("published_at", &of.published_at),
        ("delivered_at", &of.delivered_at),
        ("failed_at", &of.failed_at),
    ];
    for (name, time) in times {
        if let Some(time) = time {
            put(name, json!(time.to_string()));
        }
    }
    object
}

fn event_json(event: &Event) -> Value {
    json!({
        "kind": event.kind().as_str_name().trim_start_matches("KIND_"),
        "time": event.time.map(|time| time.to_string()),
        "queue": event.queue,
        "attempt": event.attempt,
        "detail": event.detail,
    })
}
