//! `courtier queues peek|move`.

use std::io::IsTerminal;

use clap::Args;
use serde_json::json;

use super::{Admin, lines};
use crate::{
    cli::{
        Exit,
        client::{self, Output},
        complain, details, payload, print, print_json, show,
    },
    grpc::proto::{MoveMessagesRequest, PeekMessagesRequest, PeekedMessage},
};

/// Show the first messages of a queue, and leave them there
#[derive(Args)]
#[command(after_help = "\
Messages that were looked at are marked as redelivered, and a consumer may get younger ones before them.
With --output json, each message is a line with the fields of courtier subscribe.")]
pub(in crate::cli) struct Peek {
    #[arg(value_name = "QUEUE")]
    queue: String,
    /// So many at most, up to 100
    #[arg(long, value_name = "NUMBER", default_value = "10", value_parser = clap::value_parser!(i32).range(1..=100))]
    limit: i32,
    #[command(flatten)]
    admin: Admin,
}

impl Peek {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let request = PeekMessagesRequest {
            queue: self.queue.clone(),
            limit: self.limit,
        };
        let answer = client.peek_messages(self.admin.ask(request)).await;
        let messages = answer
            .map_err(|status| client::failed(&status))?
            .into_inner()
            .messages;
        let terminal = std::io::stdout().is_terminal();
        for (index, peeked) in messages.iter().enumerate() {
            match self.admin.output {
                Output::Json => print_json(peeked_json(&self.queue, peeked))?,
                Output::Text => {
                    let gap = if index == 0 { "" } else { "\n" };
                    print(&format!("{gap}{}", peeked_text(peeked, terminal)))?;
                }
            }
        }
        if messages.is_empty() && self.admin.output == Output::Text {
            complain("no message is ready");
        }
        Ok(())
    }
}

/// As `courtier subscribe` writes it.
fn peeked_json(queue: &str, peeked: &PeekedMessage) -> serde_json::Value {
    let origin = (peeked.exchange.as_str(), peeked.routing_key.as_str());
    show::of_queue(peeked.message.as_ref(), queue, origin, peeked.redelivered).into()
}

fn peeked_text(peeked: &PeekedMessage, terminal: bool) -> String {
    let message = peeked.message.clone().unwrap_or_default();
    let mut fields: Vec<(&str, String)> = vec![
        ("exchange", details::exchange(&peeked.exchange).to_owned()),
        ("routing key", peeked.routing_key.clone()),
    ];
    if peeked.redelivered {
        fields.push(("redelivered", "yes".to_owned()));
    }
    let mut text = lines(&fields);
    let mut properties = Vec::new();
    details::properties(&message, &mut |name: &str, value: &str| {
        properties.push(format!("{name}: {value}"));
    });
    properties.retain(|line| !line.ends_with(": "));
    details::section(&mut text, "properties", properties);
    details::headers(&mut text, &message);
    let payload = payload::text(show::payload(&message), terminal);
    format!("{text}\n{payload}")
}

/// Move ready messages from one queue to another; each is confirmed there before it leaves
#[derive(Args)]
pub(in crate::cli) struct Move {
    #[arg(value_name = "FROM")]
    source: String,
    #[arg(value_name = "TO")]
    destination: String,
    /// So many at most; otherwise all that are ready now
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "0",
        hide_default_value = true
    )]
    limit: u64,
    #[command(flatten)]
    admin: Admin,
}

impl Move {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let request = MoveMessagesRequest {
            source: self.source,
            destination: self.destination,
            limit: self.limit,
        };
        // Without a deadline: it takes as long as there is to move.
        let answer = client.move_messages(request).await;
        let answer = answer
            .map_err(|status| client::not_done(&status))?
            .into_inner();
        let count = answer.moved_count;
        match self.admin.output {
            Output::Json => print_json(json!({
                "moved_count": count,
                "error": answer.error.as_ref().map(|error| &error.message),
            }))?,
            Output::Text => print(&format!("{count} moved\n"))?,
        }
        match answer.error {
            None => Ok(()),
            Some(error) => Err(Exit::new(
                Exit::NOT_DONE,
                format!("stopped early: {}", error.message),
            )),
        }
    }
}
