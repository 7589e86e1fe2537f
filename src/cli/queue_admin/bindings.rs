//! `courtier bindings`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Admin, arguments_json};
use crate::{
    cli::{
        Exit,
        client::{self, Output},
        pages::{ALL, PAGE, pages},
        print, print_json,
        table::{Fit, Table},
    },
    grpc::proto::{self, CreateBindingRequest, DeleteBindingRequest, ListBindingsRequest},
};

/// List bindings, create and delete them
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  courtier bindings list --queue orders_queue
  courtier bindings create orders_exchange orders_queue 'order.#'
  courtier bindings delete orders_exchange orders_queue 'order.#'")]
pub(in crate::cli) enum Command {
    List(List),
    Create(Create),
    Delete(Delete),
}

pub(in crate::cli) async fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::List(list) => list.run().await,
        Command::Create(Create { binding, admin }) => {
            let mut client = admin.connect().await?;
            let request = CreateBindingRequest {
                binding: Some(binding.of()),
            };
            let answer = client.create_binding(admin.ask(request)).await;
            answer.map_err(|status| client::not_done(&status))?;
            binding.say(admin.output, "bound")
        }
        Command::Delete(Delete { binding, admin }) => {
            let mut client = admin.connect().await?;
            let request = DeleteBindingRequest {
                binding: Some(binding.of()),
            };
            let answer = client.delete_binding(admin.ask(request)).await;
            answer.map_err(|status| client::not_done(&status))?;
            binding.say(admin.output, "not bound any more")
        }
    }
}

/// List bindings; RabbitMQ tells them over its management API only
#[derive(Args)]
pub(in crate::cli) struct List {
    /// Of this exchange
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    exchange: String,
    /// Of this queue
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    queue: String,
    #[command(flatten)]
    admin: Admin,
}

impl List {
    async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let mut table = Table::new([
            ("EXCHANGE", Fit::Whole),
            ("TO", Fit::Whole),
            ("ROUTING KEY", Fit::Whole),
            ("ARGUMENTS", Fit::Cut),
        ]);
        let ask = async |page_size, page_token| {
            let request = ListBindingsRequest {
                exchange: self.exchange.clone(),
                queue: self.queue.clone(),
                page_size,
                page_token,
            };
            let answer = client.list_bindings(self.admin.ask(request)).await;
            let page = answer
                .map_err(|status| client::failed(&status))?
                .into_inner();
            Ok((page.bindings, page.next_page_token))
        };
        pages(ALL, PAGE, ask, |binding| {
            let arguments = binding.arguments.as_ref().map(arguments_json);
            match self.admin.output {
                Output::Json => print_json(json!({
                    "exchange": binding.exchange,
                    "queue": binding.queue,
                    "destination_exchange": binding.destination_exchange,
                    "routing_key": binding.routing_key,
                    "arguments": arguments,
                }))?,
                Output::Text => {
                    let to = match binding.queue.as_str() {
                        "" => format!("exchange {}", binding.destination_exchange),
                        queue => queue.to_owned(),
                    };
                    let arguments = arguments.map(|json| json.to_string());
                    let arguments = arguments.unwrap_or_default();
                    table.row([binding.exchange, to, binding.routing_key, arguments]);
                }
            }
            Ok(())
        })
        .await?;
        match self.admin.output {
            Output::Json => Ok(()),
            Output::Text => table.print_or("no bindings"),
        }
    }
}

/// Bind a queue to an exchange
#[derive(Args)]
pub(in crate::cli) struct Create {
    #[command(flatten)]
    binding: Binding,
    #[command(flatten)]
    admin: Admin,
}

/// Remove a binding
#[derive(Args)]
pub(in crate::cli) struct Delete {
    #[command(flatten)]
    binding: Binding,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Args)]
struct Binding {
    #[arg(value_name = "EXCHANGE")]
    exchange: String,
    #[arg(value_name = "QUEUE")]
    queue: String,
    #[arg(
        value_name = "ROUTING_KEY",
        default_value = "",
        hide_default_value = true
    )]
    routing_key: String,
}

impl Binding {
    fn of(&self) -> proto::Binding {
        proto::Binding {
            exchange: self.exchange.clone(),
            queue: self.queue.clone(),
            routing_key: self.routing_key.clone(),
            ..Default::default()
        }
    }

    fn say(&self, output: Output, done: &str) -> Result<(), Exit> {
        let Self {
            exchange,
            queue,
            routing_key,
        } = self;
        match output {
            Output::Json => print_json(
                json!({"exchange": exchange, "queue": queue, "routing_key": routing_key}),
            ),
            Output::Text => print(&format!("{exchange} -> {queue} ({routing_key}): {done}\n")),
        }
    }
}
