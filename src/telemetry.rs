//! Logs, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::Log;

/// The AMQP library logs returned messages with their payload at WARN; payloads are never logged.
const NEVER: &str = "lapin::returned_messages=off";
/// What it says of lost connections and refused channels, the gateway says better. RUST_LOG may ask for it.
const QUIET: &str = "lapin=off";

/// Starts logging. Errors when the filter cannot be read.
pub fn start(log: &Log) -> Result<(), tracing_subscriber::filter::ParseError> {
    let directives = format!("{QUIET},{},{NEVER}", log.filter);
    let filter = EnvFilter::builder().parse(directives)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log that nobody reads any more (`2>&1 | head`) must not end the gateway.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if log.json {
        lines.json().init();
    } else {
        lines.init();
    }
    Ok(())
}
