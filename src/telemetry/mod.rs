//! Logs, to standard error. No line grows with what a client sends: each field is cut ([`bounded`]).

mod bounded;

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::format::{JsonFields, format},
};

use self::bounded::{BoundedFields, BoundedJson};

/// What is logged, and how.
#[derive(Debug)]
pub struct Options {
    pub json: bool,
    /// As in `RUST_LOG`.
    pub filter: String,
}

/// The AMQP library logs returned messages with their payload at WARN; payloads are never logged.
const NEVER: &str = "lapin::returned_messages=off";
/// What it says of lost connections and refused channels, the gateway says better. RUST_LOG may ask for it.
const QUIET: &str = "lapin=off";

/// Reads what is to be logged. Errors when that cannot be read.
pub fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(format!("{QUIET},{directives},{NEVER}"))
}

/// Starts logging. Errors when the filter cannot be read.
pub fn start(log: &Options) -> Result<(), ParseError> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.filter)?)
        // A log that nobody reads any more (`2>&1 | head`) must not end the gateway.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if log.json {
        let json = BoundedJson(format().json());
        lines
            .fmt_fields(JsonFields::new())
            .event_format(json)
            .init();
    } else {
        lines.fmt_fields(BoundedFields).init();
    }
    Ok(())
}
