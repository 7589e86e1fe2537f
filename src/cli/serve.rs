//! `courtier serve`.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use clap::{Arg, ArgMatches, Args, FromArgMatches, error::Error};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Exit, block_on, report};
use crate::{
    config::{
        Config,
        reader::{Reader, flag},
        settings::{SETTINGS, Setting},
    },
    server, shutdown, telemetry,
    text::chain,
};

/// A flag for each setting.
pub(super) struct Flags(HashMap<String, String>);

impl Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        let command = command.after_help(
            "Every flag is also an environment variable, and a secret also a file that\n\
             NAME_FILE names. COURTIER_CONFIG names a TOML file with the same names in lower\n\
             case. Flags go first, then the environment, then the file.\n\
             Times: milliseconds, or 30s, 5m, 24h.\n\
             `courtier config print` shows what is in force, and where it is from.\n\n\
             Examples:\n  \
               courtier serve --topology-file examples/topology.toml\n  \
               RABBITMQ_URL=amqp://user:password@host:5672/%2f courtier serve",
        );
        command.args(SETTINGS.iter().map(argument))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn argument(setting: &'static Setting) -> Arg {
    let default = match setting.default {
        "" => String::new(),
        _ if setting.secret => String::new(),
        default => format!(" [default: {default}]"),
    };
    Arg::new(setting.name)
        .long(flag(setting).trim_start_matches('-').to_owned())
        .value_name("VALUE")
        .hide(setting.expert)
        .help(format!("{} [env: {}]{default}", setting.help, setting.name))
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = SETTINGS.iter().filter_map(|setting| {
            let value = matches.get_one::<String>(setting.name)?;
            Some((setting.name.to_owned(), value.clone()))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Flags {
    /// The configuration that these flags and the environment make.
    pub(super) fn reader(&self) -> Reader {
        Reader::new(
            |name| self.0.get(name).cloned(),
            |name| std::env::var(name).ok(),
        )
    }
}

pub(super) fn run(flags: &Flags) -> ExitCode {
    let config = Config::read(flags.reader());
    let config = config.map_err(|problems| Exit::new(Exit::USAGE, problems.to_string()));
    let ready = config.and_then(|config| match telemetry::start(&config.log) {
        Ok(()) => Ok(config),
        Err(error) => Err(Exit::new(Exit::USAGE, format!("RUST_LOG: {error}"))),
    });
    match ready {
        Ok(config) => block_on(serve(config)),
        Err(exit) => report(Err(exit)),
    }
}

async fn serve(config: Config) -> Result<(), Exit> {
    let address = config.app.address;
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let hint = "is another gateway running? APP_PORT=0 picks a free port";
        Exit::new(
            Exit::FAILED,
            format!("cannot listen on {address}: {error}; {hint}"),
        )
    })?;
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        service = config.app.name,
        environment = config.app.environment,
        "listening on {address}"
    );
    let bindings = config
        .topology
        .iter()
        .flat_map(|file| &file.topology.bindings);
    // Names that need no quotes: what is printed works when it is pasted.
    let example = bindings
        .filter(|binding| binding.routing_key == "#")
        .find(|binding| {
            [&binding.exchange, &binding.queue]
                .into_iter()
                .all(|name| is_plain(name))
        });
    let example = example.map(|binding| (binding.exchange.clone(), binding.queue.clone()));
    let mut steps = next_steps(address, example);
    if config.rabbitmq.is_none() {
        steps.push_str("\n  This is the embedded broker: it keeps nothing when the process ends. RABBITMQ_URL names a RabbitMQ.\n");
    }
    // A closed standard error is no reason not to serve.
    let _ = writeln!(io::stderr(), "{steps}");
    let cut = CancellationToken::new();
    let shutdown = async {
        if let Err(error) = shutdown::requested_then_cut(cut.clone()).await {
            tracing::error!(%error, "cannot wait for signals; stopping");
        }
    };
    let ended = cut.run_until_cancelled(server::serve(config, listener, shutdown));
    match ended.await {
        Some(ended) => ended.map_err(|error| Exit::new(Exit::FAILED, chain(&error))),
        None => {
            let problem = "cut by a second signal: publishes under way may be unanswered, and unsettled deliveries return to their queues";
            Err(Exit::new(Exit::FAILED, problem))
        }
    }
}

fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
}

/// What a newcomer types next. `example`: an exchange and a queue bound to it.
fn next_steps(address: SocketAddr, example: Option<(String, String)>) -> String {
    // All interfaces: the loopback one is among them, and is an address that clients can call.
    let address = match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        _ => address,
    };
    let courtier = std::env::args()
        .next()
        .unwrap_or_else(|| "courtier".to_owned());
    let look = format!(
        "  Look around:
    {courtier} health --server http://{address}
    curl http://{address}/readyz
    grpcurl -plaintext {address} describe courtier.v1.Publisher
"
    );
    let Some((exchange, queue)) = example else {
        return format!(
            "
  Publish and receive, with the names of your broker's exchange, routing key and queue (TOPOLOGY_FILE declares some):
    {courtier} publish --server http://{address} EXCHANGE KEY --text hello
    {courtier} subscribe --server http://{address} QUEUE
{look}"
        );
    };
    let key = "order.created";
    let publish = format!(
        r#"{{"exchange":"{exchange}","routing_key":"{key}","message":{{"json":{{"id":1}}}}}}"#
    );
    let subscribe = format!(r#"{{"start":{{"queues":["{queue}"],"auto_ack":true}}}}"#);
    let protocol = "--protocol grpc --http2-prior-knowledge";
    let url = format!("http://{address}/courtier.v1");
    format!(
        "
  Publish, and get the broker's answer:
    {courtier} publish --server http://{address} {exchange} {key} --text '{{\"id\":1}}'
    grpcurl -plaintext -d '{publish}' {address} courtier.v1.Publisher/Publish
    buf curl {protocol} -d '{publish}' {url}.Publisher/Publish
  Receive (Ctrl-C ends):
    {courtier} subscribe --server http://{address} {queue}
    grpcurl -plaintext -d '{subscribe}' {address} courtier.v1.Subscriber/Subscribe
    buf curl {protocol} -d '{subscribe}' {url}.Subscriber/Subscribe
{look}"
    )
}
