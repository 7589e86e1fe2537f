//! `courtier queues`: how queues do.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Admin, arguments_json, known, lines, none_of, note,
    queue_changes::{Create, Delete, Purge},
    queue_messages::{Move, Peek},
    rate, ratio, word,
};
use crate::{
    cli::{
        Exit,
        client::{self, Output},
        pages::{ALL, PAGE, pages},
        print, print_json,
        table::{Fit, Table},
    },
    grpc::proto::{
        GetQueueStatsRequest, ListQueuesRequest, Queue, QueueStats, WatchQueueStatsRequest,
    },
};

/// List queues, look into them, create and delete them
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  courtier queues list
  courtier queues show orders_queue
  courtier queues create orders_queue --argument x-max-length=500
  courtier queues peek orders_queue --limit 3
  courtier queues move orders_queue parked

Exit codes:
  0  all that was asked was done
  1  failed
  2  wrong usage
  3  refused as it is: no such queue, or it already exists with different arguments
  4  not done: broker away, gateway not reached, or not all of it
  5  in doubt: it may be done; look again")]
pub(in crate::cli) enum Command {
    List(List),
    Show(Show),
    Create(Create),
    Delete(Delete),
    Purge(Purge),
    Peek(Peek),
    Move(Move),
    Watch(Watch),
}

pub(in crate::cli) async fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::List(list) => list.run().await,
        Command::Show(show) => show.run().await,
        Command::Create(create) => create.run().await,
        Command::Delete(delete) => delete.run().await,
        Command::Purge(purge) => purge.run().await,
        Command::Peek(peek) => peek.run().await,
        Command::Move(moving) => moving.run().await,
        Command::Watch(watch) => watch.run().await,
    }
}

/// List queues with their counts; "-" is what nobody tells
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
        let (mut table, mut told) = (table(), String::new());
        let ask = async |page_size, page_token| {
            let request = ListQueuesRequest {
                name_contains: self.name_contains.clone(),
                page_size,
                page_token,
            };
            let answer = client.list_queues(self.admin.ask(request)).await;
            let page = answer
                .map_err(|status| client::failed(&status))?
                .into_inner();
            told = page.note;
            Ok((page.queues, page.next_page_token))
        };
        pages(ALL, PAGE, ask, |queue| {
            match self.admin.output {
                Output::Json => print_json(queue_json(&queue))?,
                Output::Text => table.row(row(&queue)),
            }
            Ok(())
        })
        .await?;
        if self.admin.output == Output::Text {
            table.print_or(&none_of("queues", &told))?;
        }
        note(&told);
        Ok(())
    }
}

fn table() -> Table {
    Table::new([
        ("QUEUE", Fit::Whole),
        ("TYPE", Fit::Whole),
        ("READY", Fit::Whole),
        ("UNACKED", Fit::Whole),
        ("CONSUMERS", Fit::Whole),
        ("IN/S", Fit::Whole),
        ("ACKED/S", Fit::Whole),
        ("FULL", Fit::Whole),
    ])
}

fn row(queue: &Queue) -> [String; 8] {
    let kind = match queue.r#type.as_str() {
        "" => "-",
        kind => kind,
    };
    [
        queue.name.clone(),
        kind.to_owned(),
        known(queue.ready_count),
        known(queue.unacked_count),
        known(queue.consumer_count),
        rate(queue.publish_rate),
        rate(queue.ack_rate),
        ratio(queue.capacity_ratio),
    ]
}

fn queue_json(queue: &Queue) -> serde_json::Value {
    json!({
        "name": queue.name,
        "type": queue.r#type,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "arguments": queue.arguments.as_ref().map(arguments_json),
        "message_count": queue.message_count,
        "ready_count": queue.ready_count,
        "unacked_count": queue.unacked_count,
        "consumer_count": queue.consumer_count,
        "publish_rate": queue.publish_rate,
        "deliver_rate": queue.deliver_rate,
        "ack_rate": queue.ack_rate,
        "capacity_ratio": queue.capacity_ratio,
        "source": word(queue.source().as_str_name(), "SOURCE_"),
    })
}

fn stats_json(stats: &QueueStats) -> serde_json::Value {
    let mut all = queue_json(stats.queue.as_ref().unwrap_or(&Queue::default()));
    all["time_to_drain_seconds"] = json!(stats.time_to_drain.as_ref().map(seconds));
    all["failed_count"] = json!(stats.failed_count);
    all["dead_letter_count"] = json!(stats.dead_letter_count);
    all
}

fn seconds(duration: &prost_types::Duration) -> i64 {
    duration.seconds
}

/// Everything about a queue
#[derive(Args)]
pub(in crate::cli) struct Show {
    #[arg(value_name = "QUEUE")]
    name: String,
    #[command(flatten)]
    admin: Admin,
}

impl Show {
    async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let request = GetQueueStatsRequest { name: self.name };
        let answer = client.get_queue_stats(self.admin.ask(request)).await;
        let answer = answer
            .map_err(|status| client::failed(&status))?
            .into_inner();
        let stats = answer.stats.unwrap_or_default();
        match self.admin.output {
            Output::Json => print_json(stats_json(&stats))?,
            Output::Text => print(&text(&stats))?,
        }
        note(&answer.note);
        Ok(())
    }
}

fn text(stats: &QueueStats) -> String {
    let default = Queue::default();
    let queue = stats.queue.as_ref().unwrap_or(&default);
    let drain = stats.time_to_drain.as_ref().map_or_else(
        || "-".to_owned(),
        |time| {
            let seconds = u64::try_from(time.seconds).unwrap_or_default();
            humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
        },
    );
    let mut fields = vec![
        ("queue", queue.name.clone()),
        ("type", row(queue)[1].clone()),
        ("ready", known(queue.ready_count)),
        ("unacked", known(queue.unacked_count)),
        ("consumers", known(queue.consumer_count)),
        ("published/s", rate(queue.publish_rate)),
        ("delivered/s", rate(queue.deliver_rate)),
        ("acked/s", rate(queue.ack_rate)),
        ("full", ratio(queue.capacity_ratio)),
        ("time to drain", drain),
        ("failed messages", known(stats.failed_count)),
        ("dead letters", known(stats.dead_letter_count)),
    ];
    if let Some(arguments) = &queue.arguments {
        fields.push(("arguments", arguments_json(arguments).to_string()));
    }
    lines(&fields)
}

/// Show how queues do, again and again
#[derive(Args)]
pub(in crate::cli) struct Watch {
    /// Which; none: all
    #[arg(value_name = "QUEUE")]
    names: Vec<String>,
    /// How often
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = client::time)]
    interval: std::time::Duration,
    #[command(flatten)]
    admin: Admin,
}

impl Watch {
    async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let request = WatchQueueStatsRequest {
            names: self.names,
            interval: prost_types::Duration::try_from(self.interval).ok(),
        };
        let opened = client.watch_queue_stats(request).await;
        let mut responses = opened
            .map_err(|status| client::failed(&status))?
            .into_inner();
        let mut told = String::new();
        while let Some(response) = responses
            .message()
            .await
            .map_err(|status| client::failed(&status))?
        {
            match self.admin.output {
                Output::Json => {
                    for stats in &response.stats {
                        print_json(stats_json(stats))?;
                    }
                }
                Output::Text => {
                    let mut table = table();
                    for stats in &response.stats {
                        table.row(row(stats.queue.as_ref().unwrap_or(&Queue::default())));
                    }
                    table.print()?;
                    print("\n")?;
                }
            }
            if response.note != told {
                note(&response.note);
                told = response.note;
            }
        }
        Ok(())
    }
}
