//! What the gateway costs: each workload through Courtier and directly, interleaved (A B A B …) in one run on one machine.
//! An absolute figure on a shared machine means little, the ratio within a run does; so medians come with min and max.
//!
//! `make bench` starts a RabbitMQ of its own for it. This process generates the load; the gateway is a process of its own,
//! the release build of the binary, whose CPU time is read from the kernel.

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod direct;
mod gateway;
mod management;
mod report;

use std::time::{Duration, Instant};

use clap::Parser;

use crate::{
    direct::Direct,
    gateway::Gateway,
    report::{Pairs, Table, percentile},
};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Bytes of a message.
const PAYLOAD: usize = 1_024;
/// The queue that everything goes through: durable, quorum, no limits.
const QUEUE: &str = "bench";

#[derive(Parser)]
struct Options {
    /// RabbitMQ's AMQP URL
    #[arg(long, env = "COURTIER_TEST_AMQP_URL")]
    amqp_url: String,
    /// RabbitMQ's management port; the row that needs it is left out without
    #[arg(long, env = "COURTIER_TEST_MANAGEMENT_PORT")]
    management_port: Option<u16>,
    /// Pairs of each row
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Messages of each run of a throughput row
    #[arg(long, default_value_t = 60_000)]
    messages: usize,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// The gateway's AUDIT_LOG: into SQLite
    #[arg(long, default_value = "on")]
    audit_log: AuditLog,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, clap::ValueEnum, strum::Display)]
#[strum(serialize_all = "lowercase")]
enum AuditLog {
    On,
    Off,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut direct = Direct::connect(&options.amqp_url).await?;
    direct.fresh_queue().await?;
    let gateway = Gateway::start(Some(&options.amqp_url), options.audit_log).await?;
    println!(
        "{PAYLOAD} B, persistent, quorum queue, confirmed; {} pairs of {} messages; {} cores; audit log {}, no authentication",
        options.pairs,
        options.messages,
        std::thread::available_parallelism()?,
        options.audit_log
    );
    let mut table = Table::default();
    let wanted = |name: &str| name.contains(&options.only);

    for (name, target, through) in [
        ("PublishStream, window 1,024", 1.0, Through::Stream),
        ("PublishBatch of 100, 4 at a time", 1.0, Through::Batch),
        ("Publish unary, 256 at a time", 0.85, Through::Unary),
    ] {
        if wanted(name) {
            let pairs = publish_row(&options, &mut direct, &gateway, through).await?;
            table.ratio(name, "direct, 4 channels, 1,024 in flight", target, &pairs);
        }
    }
    for (name, target, every) in [
        ("Subscribe, ack every 100", 1.0, 100),
        ("Subscribe, ack each", 0.9, 1),
    ] {
        if wanted(name) {
            let pairs = subscribe_row(&options, &mut direct, &gateway, every).await?;
            table.ratio(name, "direct consumer, alike", target, &pairs);
        }
    }
    if wanted("latency") {
        latency_row(&options, &mut direct, &gateway, &mut table).await?;
    }
    if wanted("connect") {
        connect_row(&options, &mut direct, &gateway, &mut table).await?;
    }
    if wanted("management")
        && let Some(port) = options.management_port
    {
        management_row(&options, port, &mut direct, &gateway, &mut table).await?;
    }
    if wanted("memory") {
        table.line(
            "resident memory, after all of this",
            &mebibytes(gateway.resident()?),
        );
        // Nothing to deliver: subscriptions that nobody reads would fill their connection's window.
        direct.fresh_queue().await?;
        memory_rows(&options, &mut table).await?;
    }
    if wanted("embedded") {
        embedded_row(&options, &mut table).await?;
    }
    println!("\n{table}");
    Ok(())
}

#[derive(Clone, Copy)]
enum Through {
    Stream,
    Batch,
    Unary,
}

/// One run: how many messages a second, and the gateway's CPU time a message.
struct Run {
    rate: f64,
    cpu: Option<Duration>,
}

async fn publish_row(
    options: &Options,
    direct: &mut Direct,
    gateway: &Gateway,
    through: Through,
) -> Result<Pairs> {
    let count = options.messages;
    let mut pairs = Pairs::default();
    for _ in 0..options.pairs {
        direct.fresh_queue().await?;
        let ours = timed(count, Some(gateway), async {
            match through {
                Through::Stream => gateway.publish_stream(count, 1_024).await,
                Through::Batch => gateway.publish_batches(count, 100, 4).await,
                Through::Unary => gateway.publish_unary(count, 256).await,
            }
        })
        .await?;
        direct.fresh_queue().await?;
        let theirs = timed(count, None, direct.publish(count, 4, 256)).await?;
        pairs.add(ours.rate, theirs.rate, ours.cpu);
    }
    Ok(pairs)
}

async fn subscribe_row(
    options: &Options,
    direct: &mut Direct,
    gateway: &Gateway,
    ack_every: usize,
) -> Result<Pairs> {
    let count = options.messages;
    let mut pairs = Pairs::default();
    for _ in 0..options.pairs {
        direct.fresh_queue().await?;
        direct.publish(count, 4, 256).await?;
        let ours = timed(count, Some(gateway), gateway.subscribe(count, ack_every)).await?;
        direct.publish(count, 4, 256).await?;
        let theirs = timed(count, None, direct.consume(count, ack_every)).await?;
        pairs.add(ours.rate, theirs.rate, ours.cpu);
    }
    Ok(pairs)
}

async fn timed(
    count: usize,
    gateway: Option<&Gateway>,
    work: impl Future<Output = Result<()>>,
) -> Result<Run> {
    let cpu = gateway.map(Gateway::cpu).transpose()?;
    let start = Instant::now();
    work.await?;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let cpu = match (cpu, gateway) {
        (Some(before), Some(gateway)) => Some((gateway.cpu()? - before) / u32::try_from(count)?),
        _ => None,
    };
    Ok(Run { rate, cpu })
}

/// One publish in flight: the time that the gateway adds to the median.
async fn latency_row(
    options: &Options,
    direct: &mut Direct,
    gateway: &Gateway,
    table: &mut Table,
) -> Result<()> {
    let count = (options.messages / 30).max(500);
    let mut added = Vec::new();
    let mut alone = Vec::new();
    for _ in 0..options.pairs {
        direct.fresh_queue().await?;
        let ours = gateway.one_at_a_time(count).await?;
        let theirs = direct.one_at_a_time(count).await?;
        let (ours, theirs) = (percentile(ours, 50), percentile(theirs, 50));
        added.push(ours.as_secs_f64() * 1e6 - theirs.as_secs_f64() * 1e6);
        alone.push(theirs.as_secs_f64() * 1e6);
    }
    table.spread(
        "Publish unary, one at a time: p50 added (µs; at most 200)",
        &added,
    );
    table.spread("  direct, p50 (µs)", &alone);
    Ok(())
}

async fn connect_row(
    options: &Options,
    direct: &mut Direct,
    gateway: &Gateway,
    table: &mut Table,
) -> Result<()> {
    const ROUNDS: u32 = 50;
    let mut pairs = Pairs::default();
    for _ in 0..options.pairs {
        direct.fresh_queue().await?;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            gateway.connect_publish_close().await?;
        }
        let ours = f64::from(ROUNDS) / start.elapsed().as_secs_f64();
        let start = Instant::now();
        for _ in 0..ROUNDS {
            Direct::connect_publish_close(&options.amqp_url).await?;
        }
        let theirs = f64::from(ROUNDS) / start.elapsed().as_secs_f64();
        pairs.add(ours, theirs, None);
    }
    table.ratio(
        "connect + publish one + close",
        "direct, alike",
        6.0,
        &pairs,
    );
    Ok(())
}

async fn management_row(
    options: &Options,
    port: u16,
    direct: &mut Direct,
    gateway: &Gateway,
    table: &mut Table,
) -> Result<()> {
    let mut pairs = Pairs::default();
    for _ in 0..options.pairs {
        direct.fresh_queue().await?;
        let count = 4_000;
        let ours = timed(count, Some(gateway), gateway.publish_unary(count, 8)).await?;
        let count = 500;
        let theirs = timed(count, None, management::publish(port, count, 8)).await?;
        pairs.add(ours.rate, theirs.rate, ours.cpu);
    }
    table.ratio(
        "Publish unary, 8 at a time",
        "management HTTP API, 8 clients",
        12.0,
        &pairs,
    );
    Ok(())
}

async fn memory_rows(options: &Options, table: &mut Table) -> Result<()> {
    const SUBSCRIPTIONS: usize = 1_000;
    let gateway = Gateway::start(Some(&options.amqp_url), options.audit_log).await?;
    table.line(
        "resident memory, idle (at most 40 MiB)",
        &mebibytes(gateway.resident()?),
    );
    let subscriptions = gateway.idle_subscriptions(SUBSCRIPTIONS).await?;
    table.line(
        "resident memory, 1,000 idle subscriptions (at most 100 MiB)",
        &mebibytes(gateway.resident()?),
    );
    drop(subscriptions);
    Ok(())
}

/// The gateway alone: what its own work allows.
async fn embedded_row(options: &Options, table: &mut Table) -> Result<()> {
    let mut rates = Vec::new();
    for _ in 0..options.pairs {
        // A fresh one each time: the embedded broker keeps what nobody consumes in memory.
        let gateway = Gateway::start(None, options.audit_log).await?;
        let count = options.messages.min(100_000);
        let run = timed(count, Some(&gateway), gateway.publish_stream(count, 1_024)).await?;
        rates.push(run.rate);
    }
    table.spread(
        "embedded broker, PublishStream (msg/s; at least 100,000)",
        &rates,
    );
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}
