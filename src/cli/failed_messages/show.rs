//! `courtier failed show`.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal},
};

use clap::Args;

use super::{connect, get, view};
use crate::{
    cli::{
        Exit,
        client::{Gateway, Output},
        details::{at, exchange, headers, properties, section},
        moment, payload, print, print_json,
        show::{self, visible},
    },
    grpc::proto::{Attempt, FailedMessage, attempt::Outcome, failed_message::Resolution},
};

/// Show everything about a failed message: headers, payload, stack and attempts
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier failed show 0193a3c4-1c2d-7000-8000-0123456789ab
  courtier failed show --output json ID | jq -r .message.text")]
pub(in crate::cli) struct Show {
    /// The failed message's id, as in `courtier failed list`
    id: String,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) async fn run(show: Show) -> Result<(), Exit> {
    let mut client = connect(&show.gateway).await?;
    let failed = get(&mut client, &show.gateway, &show.id).await?;
    match show.output {
        Output::Text => print(&text(&failed, io::stdout().is_terminal())),
        Output::Json => print_json(view::json(&failed)),
    }
}

/// For people.
pub(super) fn text(of: &FailedMessage, terminal: bool) -> String {
    let mut out = String::new();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<14}{}", visible(value, |_| false));
        }
    };
    let message = of.message.clone().unwrap_or_default();
    field("id", &of.id);
    field("status", &status(of));
    field("queue", &of.queue);
    field("exchange", exchange(&of.exchange));
    field("routing key", &of.routing_key);
    field("error", &view::error(of));
    field("reason", view::reason(of));
    field("failed", &at(of.failed_at.as_ref()));
    if of.last_failed_at != of.failed_at {
        field("failed last", &at(of.last_failed_at.as_ref()));
    }
    field(
        "retries",
        &format!("{} of {}", of.retry_count, of.max_retries),
    );
    field("next retry", &at(of.next_retry_at.as_ref()));
    field("resolved", &at(of.resolved_at.as_ref()));
    field("comment", &of.comment);
    field("group", &of.fingerprint);
    field("operation", &of.operation_id);
    field("publish id", &of.publish_id);
    properties(&message, &mut field);
    section(
        &mut out,
        "attempts",
        of.attempts.iter().map(attempt).collect(),
    );
    headers(&mut out, &message);
    if !of.error_stack.is_empty() {
        let stack = if terminal {
            payload::lines(&of.error_stack)
        } else {
            of.error_stack.clone()
        };
        section(
            &mut out,
            "stack",
            stack.lines().map(str::to_owned).collect(),
        );
    }
    let bytes = show::payload(&message);
    let _ = writeln!(out, "\npayload ({} bytes)", bytes.len());
    if !bytes.is_empty() {
        out.push_str(&payload::text(bytes, terminal));
    }
    out
}

fn status(of: &FailedMessage) -> String {
    let status = view::status(of);
    match of.resolution() {
        Resolution::Unspecified => status.to_owned(),
        Resolution::Acked => format!("{status}: a consumer settled it"),
        Resolution::Assumed => format!("{status}: it did not die again in the quiet period"),
        Resolution::Manual => format!("{status}: by a person"),
    }
}

fn attempt(attempt: &Attempt) -> String {
    let mut text = format!("{} ", attempt.number);
    if attempt.manual {
        text.push_str("by hand, ");
    }
    text.push_str(match attempt.outcome() {
        Outcome::Unspecified => "under way",
        Outcome::Died => "died",
        Outcome::Acked => "acked",
        Outcome::Assumed => "did not die again",
        Outcome::Discarded => "discarded",
    });
    for (word, time) in [("sent", &attempt.started_at), ("ended", &attempt.ended_at)] {
        if let Some(time) = time {
            let _ = write!(text, ", {word} {}", moment::text(time));
        }
    }
    let error = view::in_one(&attempt.error_type, &attempt.error_message);
    if !error.is_empty() {
        let _ = write!(text, ": {error}");
    }
    visible(&text, |_| false)
}
