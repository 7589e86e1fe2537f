//! Commands for those who look after the broker: what `courtier.v1.QueueAdmin` does, one file a noun.

pub(super) mod alerts;
pub(super) mod bindings;
pub(super) mod doctor;
pub(super) mod exchanges;
mod queue_changes;
mod queue_messages;
pub(super) mod queues;
pub(super) mod status;
pub(super) mod topology;

use clap::Args;
use prost_types::Struct;
use serde_json::{Value, json};
use tonic::{Request, transport::Channel};

use super::{
    Exit,
    client::{Gateway, Output},
    complain, print_json,
    show::visible,
    table::{Fit, Table},
};
use crate::grpc::{
    convert::json_text,
    proto::{
        TopologyChange,
        queue_admin_client::QueueAdminClient,
        topology_change::{Action, Difference},
    },
};

/// What all of these commands have.
#[derive(Args)]
struct Admin {
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
}

impl Admin {
    async fn connect(&self) -> Result<QueueAdminClient<Channel>, Exit> {
        let client = QueueAdminClient::new(self.gateway.connect().await?);
        // A message may be larger than what clients accept by default.
        Ok(client.max_decoding_message_size(usize::MAX))
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        self.gateway.ask(message)
    }
}

/// A count; "-": nobody tells.
fn known(count: Option<u64>) -> String {
    count.map_or_else(unknown, |count| count.to_string())
}

/// Messages a second.
fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(unknown, |rate| format!("{rate:.1}"))
}

/// A share, as a percentage.
fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(unknown, |ratio| format!("{:.0}%", ratio * 100.0))
}

fn unknown() -> String {
    "-".to_owned()
}

/// What the gateway says about its answer.
fn note(note: &str) {
    if !note.is_empty() {
        complain(note);
    }
}

/// What is said of a list with nothing in it, and a note of why there may be more.
fn none_of(what: &str, note: &str) -> String {
    match note {
        "" => format!("no {what}"),
        _ => format!("no such {what} among those that the gateway knows of"),
    }
}

/// Names and values, one a line; what would steer a terminal is written out.
fn lines(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max();
    let width = width.unwrap_or_default();
    let lines = fields.iter().map(|(name, value)| {
        let value = visible(value, |_| false);
        format!("{name:<width$}  {value}\n")
    });
    lines.collect()
}

/// The name of an enum's value, for people and programs: `SOURCE_AMQP` is `amqp`.
fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}

/// Arguments as JSON; what JSON cannot say is null.
fn arguments_json(arguments: &Struct) -> Value {
    let fields = arguments.fields.iter();
    let fields = fields.map(|(name, value)| (name.clone(), json_text(value).unwrap_or_default()));
    Value::Object(fields.collect())
}

/// What was, or would be, done about a topology.
fn topology_changes(
    changes: &[TopologyChange],
    told: &str,
    output: Output,
    dry_run: bool,
) -> Result<(), Exit> {
    let mut table = Table::new([
        ("WHAT", Fit::Whole),
        ("NAME", Fit::Whole),
        ("DONE", Fit::Whole),
        ("DIFFERENCE", Fit::Cut),
    ]);
    for change in changes {
        match output {
            Output::Json => print_json(change_json(change))?,
            Output::Text => table.row([
                word(change.kind().as_str_name(), "KIND_"),
                change.name.clone(),
                done(change.action(), dry_run).to_owned(),
                difference(change),
            ]),
        }
    }
    if !table.is_empty() {
        table.print()?;
    }
    note(told);
    Ok(())
}

fn done(action: Action, dry_run: bool) -> &'static str {
    match action {
        Action::Create if dry_run => "would be created",
        Action::Create => "created",
        Action::None => "is there",
        Action::Differs => "differs",
        Action::Unknown => "is there, not compared",
        Action::Extra => "is there besides",
        Action::Unspecified => "",
    }
}

fn difference(change: &TopologyChange) -> String {
    let of = |value: &str| {
        if value.is_empty() {
            unknown()
        } else {
            value.to_owned()
        }
    };
    let differences = change.differences.iter().map(|one: &Difference| {
        let (wanted, actual) = (of(&one.wanted), of(&one.actual));
        format!("{}: {wanted} wanted, {actual} there", one.argument)
    });
    let notes = std::iter::once(change.note.clone()).filter(|note| !note.is_empty());
    differences.chain(notes).collect::<Vec<_>>().join("; ")
}

fn change_json(change: &TopologyChange) -> Value {
    let differences = change
        .differences
        .iter()
        .map(|one| json!({"argument": one.argument, "wanted": one.wanted, "actual": one.actual}));
    json!({
        "kind": word(change.kind().as_str_name(), "KIND_"),
        "name": change.name,
        "action": word(change.action().as_str_name(), "ACTION_"),
        "differences": differences.collect::<Vec<_>>(),
        "note": change.note,
    })
}
