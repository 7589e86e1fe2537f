//! `courtier topology`.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Subcommand};
use prost_types::{Duration, Struct, Value, value::Kind};

use super::{Admin, topology_changes};
use crate::{
    broker::topology::file::{Argument, File, FileQueue, TimeText},
    cli::{Exit, client, client::Output, complain},
    grpc::proto::{
        ApplyTopologyRequest, Binding, Exchange, GetTopologyDriftRequest, Topology, TopologyQueue,
    },
};

/// Declare exchanges, queues and bindings from a file, and see what differs
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  courtier topology apply examples/topology.toml --dry-run
  courtier topology apply examples/topology.toml
  courtier topology drift")]
pub(in crate::cli) enum Command {
    Apply(Apply),
    Drift(Drift),
}

pub(in crate::cli) async fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::Apply(apply) => apply.run().await,
        Command::Drift(drift) => drift.run().await,
    }
}

/// Declare what is missing; what differs is reported and left alone, and nothing is deleted
#[derive(Args)]
#[command(after_help = "\
max_retries and retry_delays of queues, and dead_letter_sources, are the gateway's business: they count in its own TOPOLOGY_FILE only.")]
pub(in crate::cli) struct Apply {
    /// A topology file (TOML); examples/topology.toml shows all there is
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: Admin,
}

impl Apply {
    async fn run(self) -> Result<(), Exit> {
        let path = self.file.display();
        let bad = |problem: String| Exit::new(Exit::USAGE, format!("{path}: {problem}"));
        let text = std::fs::read_to_string(&self.file).map_err(|error| bad(error.to_string()))?;
        let file = File::parse(&text).map_err(|error| bad(error.to_string()))?;
        let request = ApplyTopologyRequest {
            topology: Some(topology(file).map_err(bad)?),
            validate_only: self.dry_run,
        };
        let mut client = self.admin.connect().await?;
        let answer = client.apply_topology(self.admin.ask(request)).await;
        let answer = answer
            .map_err(|status| client::not_done(&status))?
            .into_inner();
        topology_changes(
            &answer.changes,
            &answer.note,
            self.admin.output,
            self.dry_run,
        )
    }
}

/// Compare the broker with the gateway's TOPOLOGY_FILE
#[derive(Args)]
pub(in crate::cli) struct Drift {
    #[command(flatten)]
    admin: Admin,
}

impl Drift {
    async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let request = self.admin.ask(GetTopologyDriftRequest {});
        let answer = client.get_topology_drift(request).await;
        let answer = answer
            .map_err(|status| client::failed(&status))?
            .into_inner();
        if answer.changes.is_empty() && self.admin.output == Output::Text {
            complain("no drift");
        }
        topology_changes(&answer.changes, &answer.note, self.admin.output, true)
    }
}

/// The file as the API has it. The error is for people.
fn topology(file: File) -> Result<Topology, String> {
    let exchanges = file.exchanges.into_iter().map(|exchange| Exchange {
        name: exchange.name,
        r#type: exchange.kind.to_string(),
        arguments: arguments(exchange.arguments),
        ..Default::default()
    });
    let bindings = file.bindings.into_iter().map(|binding| Binding {
        exchange: binding.exchange,
        queue: binding.queue,
        routing_key: binding.routing_key,
        arguments: arguments(binding.arguments),
        ..Default::default()
    });
    Ok(Topology {
        exchanges: exchanges.collect(),
        queues: file
            .queues
            .into_iter()
            .map(queue)
            .collect::<Result<_, _>>()?,
        bindings: bindings.collect(),
    })
}

fn queue(queue: FileQueue) -> Result<TopologyQueue, String> {
    let name = queue.name.as_str();
    let limit = |field: &str, time: Option<TimeText>| {
        let time = time.map(|time| time.limit()).transpose();
        let time = time.map_err(|problem| format!("queue {name:?}: {field}: {problem}"))?;
        // 0 says that there is no limit.
        let time = time.map(|limit| Duration::try_from(limit.unwrap_or_default()));
        time.transpose().map_err(|error| error.to_string())
    };
    Ok(TopologyQueue {
        r#type: queue.kind.map(|kind| kind.to_string()).unwrap_or_default(),
        message_ttl: limit("message_ttl", queue.message_ttl)?,
        expires: limit("expires", queue.expires)?,
        auto_delete: queue.auto_delete,
        max_length: queue.max_length,
        max_priority: queue.max_priority.unwrap_or_default().into(),
        delivery_limit: queue.delivery_limit,
        dead_letter: queue.dead_letter,
        name: queue.name,
    })
}

fn arguments(arguments: BTreeMap<String, Argument>) -> Option<Struct> {
    let is_any = !arguments.is_empty();
    let fields = arguments.into_iter();
    let fields = fields.map(|(name, argument)| (name, value(argument)));
    is_any.then(|| Struct {
        fields: fields.collect(),
    })
}

fn value(argument: Argument) -> Value {
    let kind = match argument {
        Argument::Bool(value) => Kind::BoolValue(value),
        #[expect(clippy::cast_precision_loss, reason = "JSON's numbers are doubles")]
        Argument::Integer(value) => Kind::NumberValue(value as f64),
        Argument::Text(text) => Kind::StringValue(text),
    };
    Value { kind: Some(kind) }
}
