//! The command line: the server, and a client for people and scripts.

mod client;
mod compose;
mod config;
mod confirm;
mod details;
mod failed_messages;
mod health;
mod log;
mod migrate;
mod moment;
mod pages;
mod payload;
mod publish;
mod publish_lines;
mod queue_admin;
mod serve;
mod show;
mod subscribe;
mod table;

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// A gRPC gateway in front of RabbitMQ that tells the truth about every message.
#[derive(Parser)]
#[command(name = "courtier", version, propagate_version = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage or configuration
  3  refused as it is: do not repeat
  4  not done: try again
  5  in doubt: publish again with the same message id

Try it, the second and third in another terminal:
  courtier serve --topology-file examples/topology.toml
  courtier publish orders_exchange order.created --text '{\"id\":1}'
  courtier subscribe orders_queue
  courtier failed list
  courtier queues list";

#[derive(Subcommand)]
enum Command {
    /// Run the gateway
    Serve(serve::Flags),
    Publish(Box<publish::Publish>),
    Subscribe(subscribe::Subscribe),
    #[command(subcommand)]
    Failed(failed_messages::Command),
    #[command(subcommand)]
    Log(log::Command),
    #[command(subcommand)]
    Queues(queue_admin::queues::Command),
    #[command(subcommand)]
    Exchanges(queue_admin::exchanges::Command),
    #[command(subcommand)]
    Bindings(queue_admin::bindings::Command),
    #[command(subcommand)]
    Topology(queue_admin::topology::Command),
    Alerts(queue_admin::alerts::Alerts),
    Status(queue_admin::status::Status),
    Doctor(queue_admin::doctor::Doctor),
    Health(health::Health),
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Check or show the configuration that `serve` would use
    #[command(subcommand)]
    Config(config::Command),
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(flags) => serve::run(&flags),
        Command::Publish(publish) if publish.lines => block_on(publish_lines::run(*publish)),
        Command::Publish(publish) => block_on(publish::run(*publish)),
        Command::Subscribe(subscribe) => block_on(subscribe::run(subscribe)),
        Command::Failed(command) => block_on(failed_messages::run(command)),
        Command::Log(command) => block_on(log::run(command)),
        Command::Queues(command) => block_on(queue_admin::queues::run(command)),
        Command::Exchanges(command) => block_on(queue_admin::exchanges::run(command)),
        Command::Bindings(command) => block_on(queue_admin::bindings::run(command)),
        Command::Topology(command) => block_on(queue_admin::topology::run(command)),
        Command::Alerts(alerts) => block_on(queue_admin::alerts::run(alerts)),
        Command::Status(status) => block_on(queue_admin::status::run(status)),
        Command::Doctor(doctor) => queue_admin::doctor::run(&doctor),
        Command::Health(health) => block_on(health::run(health)),
        Command::Migrate(command) => migrate::run(&command),
        Command::Config(command) => config::run(&command),
    }
}

/// What went wrong, and the exit code that says so.
struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    const DONE: u8 = 0;
    const FAILED: u8 = 1;
    const USAGE: u8 = 2;
    /// Doing the same again cannot help.
    const REFUSED: u8 = 3;
    /// Certainly not done; doing the same again may help.
    const NOT_DONE: u8 = 4;
    /// Perhaps done.
    const IN_DOUBT: u8 = 5;

    fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Runs a command on a runtime, and reports its failure.
fn block_on(command: impl Future<Output = Result<(), Exit>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(command);
            // Who is done, or was told to stop twice, waits for no thread that still reads or flushes something.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Exit::new(Exit::FAILED, error.to_string())),
    };
    report(outcome)
}

fn report(outcome: Result<(), Exit>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit { code, message }) => {
            if !message.is_empty() {
                complain(&message);
            }
            ExitCode::from(code)
        }
    }
}

/// A line on standard output. `println!` would panic when nobody reads any more.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Text on standard output, for those who have more to write: a reader that went away ends the command, quietly.
fn print(text: &str) -> Result<(), Exit> {
    let mut output = io::stdout().lock();
    let written = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Exit::new(Exit::DONE, ""),
        _ => Exit::new(Exit::FAILED, format!("cannot write: {error}")),
    })
}

/// A line of JSON on standard output, likewise.
fn print_json(value: impl Display) -> Result<(), Exit> {
    print(&format!("{value}\n"))
}

/// A line on standard error.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "courtier: {line}");
}
