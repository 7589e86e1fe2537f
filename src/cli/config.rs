//! `courtier config`.

use std::process::ExitCode;

use clap::Subcommand;

use super::{Exit, report, say, serve::Flags};
use crate::config::{Config, reader::Reader};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Read everything as `serve` would, and say what is wrong; connects to nothing
    Check(Flags),
    /// Show every setting in force and where it is from; secrets are hidden
    Print(Print),
}

#[derive(clap::Args)]
pub(super) struct Print {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(command: &Command) -> ExitCode {
    report(match command {
        Command::Check(flags) => check(flags.reader()),
        Command::Print(print) => {
            show(&print.flags.reader(), print.json);
            Ok(())
        }
    })
}

fn check(reader: Reader) -> Result<(), Exit> {
    let config =
        Config::read(reader).map_err(|problems| Exit::new(Exit::USAGE, problems.to_string()))?;
    let broker = if config.rabbitmq.is_some() {
        "RabbitMQ"
    } else {
        "the embedded broker (keeps nothing)"
    };
    let port = config.app.address.port();
    say(format!(
        "The configuration is usable: port {port}, {broker}."
    ));
    Ok(())
}

fn show(reader: &Reader, json: bool) {
    let settings = reader.print();
    if json {
        let entry =
            |(setting, value, from): &(&crate::config::settings::Setting, String, String)| {
                (
                    setting.name.to_owned(),
                    serde_json::json!({"value": value, "from": from}),
                )
            };
        let object: serde_json::Map<_, _> = settings.iter().map(entry).collect();
        say(serde_json::Value::Object(object));
        return;
    }
    for (setting, value, from) in settings {
        let (name, help) = (setting.name, setting.help);
        say(format!("{name:<27} {value:<24} # {from}; {help}"));
    }
}
