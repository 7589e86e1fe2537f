//! `courtier status`.

use clap::Args;
use serde_json::json;

use super::{Admin, known, lines, word};
use crate::{
    cli::{
        Exit,
        client::{self, Output},
        print, print_json,
        table::{Fit, Table},
    },
    grpc::proto::{
        GetBrokerStatusRequest, GetBrokerStatusResponse,
        get_broker_status_response::{Node, link::State},
    },
};

/// Show the links to the broker, its management API and its nodes
///
/// Exits with 4 when a link is down or blocked.
#[derive(Args)]
pub(in crate::cli) struct Status {
    #[command(flatten)]
    admin: Admin,
}

pub(in crate::cli) async fn run(status: Status) -> Result<(), Exit> {
    let mut client = status.admin.connect().await?;
    let request = status.admin.ask(GetBrokerStatusRequest {});
    let answer = client.get_broker_status(request).await;
    let broker = answer
        .map_err(|status| client::failed(&status))?
        .into_inner();
    match status.admin.output {
        Output::Json => print_json(json(&broker))?,
        Output::Text => text(&broker)?,
    }
    let down = broker.links.iter().find(|link| link.state() != State::Up);
    match down {
        None => Ok(()),
        Some(link) => Err(Exit::new(
            Exit::NOT_DONE,
            format!(
                "the {} link is {}: courtier doctor finds out why",
                link.name,
                word(link.state().as_str_name(), "STATE_")
            ),
        )),
    }
}

fn text(broker: &GetBrokerStatusResponse) -> Result<(), Exit> {
    let product = format!("{} {}", broker.product, broker.version);
    let management = word(broker.management().as_str_name(), "MANAGEMENT_");
    let management = match broker.management_error.as_str() {
        "" => management.replace('_', " "),
        error => format!("{management}: {error}"),
    };
    let mut fields = vec![("broker", product.trim().to_owned())];
    if !broker.cluster.is_empty() {
        fields.push(("cluster", broker.cluster.clone()));
    }
    fields.push(("virtual host", broker.virtual_host.clone()));
    for link in &broker.links {
        let name = match link.name.as_str() {
            "publish" => "publish link",
            _ => "consume link",
        };
        fields.push((name, word(link.state().as_str_name(), "STATE_")));
    }
    fields.push(("management API", management));
    fields.push(("connections", known(broker.connection_count)));
    print(&lines(&fields))?;
    if broker.nodes.is_empty() {
        return Ok(());
    }
    print("\n")?;
    let mut table = Table::new([
        ("NODE", Fit::Whole),
        ("STATE", Fit::Whole),
        ("MEMORY", Fit::Whole),
        ("DISK FREE", Fit::Whole),
    ]);
    for node in &broker.nodes {
        table.row([
            node.name.clone(),
            state(node),
            share(node.memory_used, node.memory_limit),
            bytes(node.disk_free),
        ]);
    }
    table.print()
}

fn state(node: &Node) -> String {
    let states = [
        (!node.running, "down"),
        (node.memory_alarm, "memory alarm"),
        (node.disk_alarm, "disk alarm"),
    ];
    let states: Vec<_> = states.into_iter().filter(|(is, _)| *is).collect();
    match states.as_slice() {
        [] => "up".to_owned(),
        some => some
            .iter()
            .map(|(_, name)| *name)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn share(used: Option<u64>, most: Option<u64>) -> String {
    format!("{} of {}", bytes(used), bytes(most))
}

fn bytes(bytes: Option<u64>) -> String {
    let mebibytes = bytes.map(|bytes| bytes / (1024 * 1024));
    mebibytes.map_or_else(super::unknown, |n| format!("{n} MiB"))
}

fn json(broker: &GetBrokerStatusResponse) -> serde_json::Value {
    let links = broker.links.iter().map(
        |link| json!({"name": link.name, "state": word(link.state().as_str_name(), "STATE_")}),
    );
    let nodes = broker.nodes.iter().map(|node| {
        json!({
            "name": node.name,
            "running": node.running,
            "memory_used": node.memory_used,
            "memory_limit": node.memory_limit,
            "memory_alarm": node.memory_alarm,
            "disk_free": node.disk_free,
            "disk_free_limit": node.disk_free_limit,
            "disk_alarm": node.disk_alarm,
        })
    });
    json!({
        "product": broker.product,
        "version": broker.version,
        "cluster": broker.cluster,
        "virtual_host": broker.virtual_host,
        "links": links.collect::<Vec<_>>(),
        "management": word(broker.management().as_str_name(), "MANAGEMENT_"),
        "management_error": broker.management_error,
        "nodes": nodes.collect::<Vec<_>>(),
        "connection_count": broker.connection_count,
    })
}
