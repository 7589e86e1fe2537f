//! `courtier exchanges`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Admin, arguments_json, none_of, note,
    queue_changes::{NamedArgument, argument, arguments},
};
use crate::{
    cli::{
        Exit,
        client::{self, Output},
        confirm::Confirm,
        details,
        pages::{ALL, PAGE, pages},
        print, print_json,
        table::{Fit, Table},
    },
    grpc::proto::{CreateExchangeRequest, DeleteExchangeRequest, ListExchangesRequest},
};

/// List exchanges, create and delete them
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  courtier exchanges list
  courtier exchanges create orders_exchange --type topic
  courtier exchanges create by_customer --type x-consistent-hash --argument hash-header=customer
  courtier exchanges delete orders_exchange --if-unused")]
pub(in crate::cli) enum Command {
    List(List),
    Create(Create),
    Delete(Delete),
}

pub(in crate::cli) async fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::List(list) => list.run().await,
        Command::Create(create) => create.run().await,
        Command::Delete(delete) => delete.run().await,
    }
}

/// List exchanges
#[derive(Args)]
pub(in crate::cli) struct List {
    /// Part of the name
    #[arg(value_name = "TEXT", default_value = "", hide_default_value = true)]
    name_contains: String,
    #[command(flatten)]
    admin: Admin,
}

impl List {
    async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let mut table = Table::new([("EXCHANGE", Fit::Whole), ("TYPE", Fit::Whole)]);
        let mut told = String::new();
        let ask = async |page_size, page_token| {
            let request = ListExchangesRequest {
                name_contains: self.name_contains.clone(),
                page_size,
                page_token,
            };
            let answer = client.list_exchanges(self.admin.ask(request)).await;
            let page = answer
                .map_err(|status| client::failed(&status))?
                .into_inner();
            told = page.note;
            Ok((page.exchanges, page.next_page_token))
        };
        pages(ALL, PAGE, ask, |exchange| {
            match self.admin.output {
                Output::Json => print_json(json!({
                    "name": exchange.name,
                    "type": exchange.r#type,
                    "durable": exchange.durable,
                    "internal": exchange.internal,
                    "arguments": exchange.arguments.as_ref().map(arguments_json),
                }))?,
                Output::Text => {
                    let name = details::exchange(&exchange.name).to_owned();
                    table.row([name, exchange.r#type]);
                }
            }
            Ok(())
        })
        .await?;
        if self.admin.output == Output::Text {
            table.print_or(&none_of("exchanges", &told))?;
        }
        note(&told);
        Ok(())
    }
}

/// Create a durable exchange
#[derive(Args)]
pub(in crate::cli) struct Create {
    #[arg(value_name = "EXCHANGE")]
    name: String,
    /// direct, topic, fanout, headers, or one of a plugin of the broker (x-consistent-hash)
    #[arg(long = "type", value_name = "TYPE", default_value = "topic")]
    kind: String,
    /// An argument of its type, such as hash-header=customer
    #[arg(long = "argument", value_name = "NAME=VALUE", value_parser = argument)]
    arguments: Vec<NamedArgument>,
    #[command(flatten)]
    admin: Admin,
}

impl Create {
    async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let name = self.name;
        let request = CreateExchangeRequest {
            name: name.clone(),
            r#type: self.kind,
            arguments: Some(arguments(self.arguments)),
        };
        let answer = client.create_exchange(self.admin.ask(request)).await;
        let answer = answer.map_err(|status| client::not_done(&status))?;
        let created = answer.into_inner().created;
        match (self.admin.output, created) {
            (Output::Json, created) => print_json(json!({"exchange": name, "created": created})),
            (Output::Text, true) => print(&format!("{name} created\n")),
            (Output::Text, false) => print(&format!("{name} is there already\n")),
        }
    }
}

/// Delete an exchange and its bindings
#[derive(Args)]
pub(in crate::cli) struct Delete {
    #[arg(value_name = "EXCHANGE")]
    name: String,
    /// Only if nothing is bound to it
    #[arg(long)]
    if_unused: bool,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    admin: Admin,
}

impl Delete {
    async fn run(self) -> Result<(), Exit> {
        self.confirm.check()?;
        let mut client = self.admin.connect().await?;
        let name = self.name;
        self.confirm
            .ask(&format!("Delete exchange {name} and its bindings?"))?;
        let request = DeleteExchangeRequest {
            name: name.clone(),
            if_unused: self.if_unused,
        };
        let answer = client.delete_exchange(self.admin.ask(request)).await;
        answer.map_err(|status| client::not_done(&status))?;
        match self.admin.output {
            Output::Json => print_json(json!({"exchange": name, "deleted": true})),
            Output::Text => print(&format!("{name} deleted\n")),
        }
    }
}
