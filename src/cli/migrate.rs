//! `courtier migrate`: the database's schema, apart from a running gateway.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit, block_on,
    client::{Output, root},
    print, print_json, report,
    serve::Flags,
    table::{Fit, Table},
};
use crate::{
    config::Config,
    store::{self, OpenError, Options},
    text::chain,
};

/// Bring the schema of the database up to date, or say whether it is
///
/// Reads the same settings as `serve`. A gateway does it by itself at start, unless DB_MIGRATE is off.
#[derive(Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(super) enum Command {
    /// Apply the steps that are missing
    #[command(after_help = AFTER_HELP)]
    Up(Migrate),
    /// List the steps, and change nothing
    #[command(after_help = AFTER_HELP)]
    Status(Migrate),
}

const AFTER_HELP: &str = "\
Settings are read from flags, the environment and the file that COURTIER_CONFIG names,
in this order. Those of the database: DATABASE_URL, or DB_CONNECTION, DB_HOST, DB_PORT,
DB_DATABASE, DB_USERNAME and DB_PASSWORD; for SQLite DATA_DIR.

Examples:
  courtier migrate status
  DATABASE_URL=postgres://courtier:secret@db/courtier courtier migrate up

Exit codes:
  0  the schema is up to date
  1  failed
  2  wrong usage or configuration
  3  the schema is newer than this version of courtier
  4  steps are missing, or the database is away or in use";

#[derive(Args)]
pub(super) struct Migrate {
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(command: &Command) -> ExitCode {
    let (Command::Up(given) | Command::Status(given)) = command;
    let config = match Config::read(given.flags.reader()) {
        Ok(config) => config,
        Err(problems) => return report(Err(Exit::new(Exit::USAGE, problems.to_string()))),
    };
    match command {
        Command::Up(_) => block_on(up(config.database, given.output)),
        Command::Status(_) => block_on(status(config.database, given.output)),
    }
}

async fn up(options: Options, output: Output) -> Result<(), Exit> {
    let applied = store::migrate(&options).await.map_err(failed)?;
    match output {
        Output::Json => print_json(json!({"applied": applied})),
        Output::Text if applied.is_empty() => print("up to date already\n"),
        Output::Text => print(
            &applied
                .iter()
                .map(|step| format!("applied {step}\n"))
                .collect::<String>(),
        ),
    }
}

async fn status(options: Options, output: Output) -> Result<(), Exit> {
    let status = store::schema_status(&options).await.map_err(failed)?;
    if output == Output::Json {
        print_json(json!({
            "applied": status.applied,
            "pending": status.pending,
            "unknown": status.unknown,
        }))?;
    } else {
        let mut table = Table::new([("STEP", Fit::Whole), ("STATE", Fit::Whole)]);
        let steps = [
            (&status.applied, "applied"),
            (&status.pending, "pending"),
            (&status.unknown, "of a newer version"),
        ];
        for (steps, state) in steps {
            for step in steps {
                table.row([step.clone(), state.to_owned()]);
            }
        }
        table.print()?;
    }
    if !status.unknown.is_empty() {
        return Err(failed(OpenError::Newer(status.unknown.join(", "))));
    }
    match status.pending.len() {
        0 => Ok(()),
        missing => {
            let problem = format!("{missing} steps are missing: courtier migrate up applies them");
            Err(Exit::new(Exit::NOT_DONE, problem))
        }
    }
}

fn failed(error: OpenError) -> Exit {
    match &error {
        OpenError::Newer(_) => Exit::new(Exit::REFUSED, chain(&error)),
        OpenError::InUse(path) => Exit::new(
            Exit::NOT_DONE,
            format!(
                "a running gateway uses {}, and keeps its schema up to date; stop it first",
                path.display()
            ),
        ),
        OpenError::Database(place, cause) => Exit::new(
            Exit::NOT_DONE,
            format!(
                "the database is away, or refuses ({place}: {}); courtier config print shows where it is looked for",
                root(cause)
            ),
        ),
        OpenError::Behind
        | OpenError::Folder(..)
        | OpenError::File(..)
        | OpenError::Migration(_) => Exit::new(Exit::FAILED, chain(&error)),
    }
}
