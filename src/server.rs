//! The server: one port for gRPC, gRPC-Web and HTTP, from start to orderly end.

mod connection;
mod descriptors;
mod listener;
mod seats;

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Server};
use tower::util::MapRequestLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};
use tracing::{info, warn};

use self::listener::Listener;
use crate::{
    broker::{
        Broker, Error, LinkState, Links,
        memory::MemoryBroker,
        rabbitmq::RabbitMq,
        topology::{DeadLetterSource, Topology},
    },
    config::{App, Config, Http, TopologyFile},
    failed_message::schedule::Policy,
    gateway::{
        Gateway, Limits, Parts,
        alerts::{self, Alerts, Probes},
        exposition::Exposition,
        failed_messages::{FailedMessages, Source},
        message_log::MessageLog,
        queue_admin::QueueAdmin,
    },
    grpc::{self, Health, deadline::DeadlineLayer, hangup, intake::Counter},
    http::{self as rest, unread},
    metrics::Metrics,
    origins::{BadOrigin, Origins},
    store::{OpenError, Store},
    traces::{BadEndpoint, Traces},
};

/// How long the broker may take to answer before the port opens without it.
const BROKER_PATIENCE: Duration = Duration::from_secs(5);
/// How long the database may take to answer before the port opens without it.
const DATABASE_PATIENCE: Duration = Duration::from_secs(5);
/// How often a topology that could not be declared is tried again.
const DECLARE_AGAIN: Duration = Duration::from_secs(2);
/// How long connections may take to end after the last stream did.
const SHUTDOWN_STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Receive windows: enough for a stream of small messages to never wait for the network's answer.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A request's headers, in all. Callers' tracing libraries may send large ones, which are no reason to refuse a call.
const HEADER_LIST: u32 = 128 * 1024;

/// Why the server could not start or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("RABBITMQ_URL: {0}")]
    Broker(#[from] crate::broker::rabbitmq::BadUrl),
    #[error("the database")]
    Database(#[from] OpenError),
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Traces(#[from] BadEndpoint),
    #[error("the API's description does not load")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("CORS_ORIGINS: {0}")]
    Origin(#[from] BadOrigin),
    #[error("the server failed")]
    Transport(#[from] tonic::transport::Error),
    #[error("streams were still open when the grace ended, and were cut")]
    Cut,
}

/// Serves on `listener` until `shutdown` completes, then winds up: health says NOT_SERVING, subscribers are told, publishes
/// in flight are answered, unsettled deliveries return to their queues.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    descriptors::raise_limit();
    let mut shutdown = pin!(shutdown);
    // Heard from the beginning, also while the database or the broker is waited for.
    let (backends, settings) = tokio::select! {
        biased;
        () = &mut shutdown => {
            info!("stopped before it began to serve");
            return Ok(());
        }
        prepared = prepare(config) => prepared?,
    };
    run(backends, settings, listener, shutdown).await
}

async fn prepare(config: Config) -> Result<(Backends, Settings), ServeError> {
    // First, because it may be unusable for good: then nothing else is begun.
    let store = Store::open(config.database.clone(), DATABASE_PATIENCE).await?;
    let log = MessageLog::start(store.clone(), config.message_log);
    let metrics = Metrics::default();
    let broker = connect(&config, &metrics).await?;
    let topology = config.topology.as_ref().map(|file| file.topology.clone());
    let sources = config.topology.as_ref();
    let sources = sources.map(|file| file.dead_letter_sources.clone());
    let traces = match &config.traces {
        Some(collector) => Traces::start(collector)?,
        None => Traces::default(),
    };
    if let Some(file) = config.topology {
        declare(broker.clone(), file).await;
    }
    let backends = Backends {
        broker,
        store,
        log,
        metrics,
        traces,
        topology,
        dead_letter_sources: sources.unwrap_or_default(),
    };
    let settings = Settings {
        app: config.app,
        http: config.http,
        limits: config.limits,
        retries: config.retries,
        alerts: config.alerts,
    };
    Ok((backends, settings))
}

/// What the gateway stands on.
pub struct Backends {
    pub broker: Arc<dyn Broker>,
    pub store: Store,
    pub log: MessageLog,
    pub metrics: Metrics,
    pub traces: Traces,
    /// What was declared at start; its queues' dead letters are collected from then on.
    pub topology: Option<Topology>,
    /// Other people's dead letters, which are collected as well.
    pub dead_letter_sources: Vec<DeadLetterSource>,
}

/// How the gateway does it.
pub struct Settings {
    pub app: App,
    pub http: Http,
    pub limits: Limits,
    pub retries: Policy,
    pub alerts: alerts::Options,
}

/// The one place that chooses the broker.
async fn connect(config: &Config, metrics: &Metrics) -> Result<Arc<dyn Broker>, ServeError> {
    Ok(match &config.rabbitmq {
        Some(options) => {
            let broker = RabbitMq::start(options, metrics)?;
            if !broker.connected(BROKER_PATIENCE).await {
                warn!(
                    "starting without the broker: reconnecting in the background; publishes are refused until it is back"
                );
            }
            broker
        }
        None => {
            warn!(
                "no RABBITMQ_HOST or RABBITMQ_URL: the embedded broker runs; it keeps nothing when this process ends"
            );
            MemoryBroker::new()
        }
    })
}

/// Declares the topology now, and again whenever the broker comes back: it may be another one, or have lost its data.
async fn declare(broker: Arc<dyn Broker>, file: TopologyFile) {
    let mut done = declared(&*broker, &file).await;
    let mut links = broker.links();
    tokio::spawn(async move {
        loop {
            while !done {
                tokio::time::sleep(DECLARE_AGAIN).await;
                done = declared(&*broker, &file).await;
            }
            let lost = |links: &Links| links.publish == LinkState::Down;
            if links.wait_for(lost).await.is_err() {
                return;
            }
            done = false;
        }
    });
}

/// `false`: worth trying again.
async fn declared(broker: &dyn Broker, file: &TopologyFile) -> bool {
    let path = file.path.display();
    match broker.declare(&file.topology).await {
        Ok(differences) => {
            for difference in &differences {
                let (what, name, detail) = (difference.what, &difference.name, &difference.detail);
                warn!(%what, name, detail, "differs from {path}; what exists is used as it is");
            }
            let queues = file.topology.queues.len();
            info!(queues, "declared {path}");
            true
        }
        Err(Error::Down | Error::TimedOut) => false,
        Err(error) => {
            warn!(%error, "cannot declare all of {path}; what is missing stays missing");
            true
        }
    }
}

/// Serves over a broker and a database that are there. See [`serve`].
pub async fn run(
    backends: Backends,
    settings: Settings,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Settings {
        app,
        http,
        limits,
        retries,
        alerts,
    } = settings;
    let stopping = CancellationToken::new();
    let grace = limits.shutdown_grace;
    let Backends {
        broker,
        store,
        log,
        metrics,
        traces,
        topology,
        dead_letter_sources,
    } = backends;
    let own = topology.as_ref().map(Topology::dead_lettered);
    let own = own.unwrap_or_default().into_iter().map(Source::of);
    let managed = own.chain(dead_letter_sources.into_iter().map(Source::from));
    let (failed, background) = FailedMessages::start(
        broker.clone(),
        store.clone(),
        Arc::new(retries),
        log.clone(),
        metrics.clone(),
        traces.clone(),
        managed,
    );
    let queues = QueueAdmin::new(broker.clone(), failed.clone(), limits.queues, topology);
    let probes = Probes {
        broker: broker.clone(),
        store: store.clone(),
        queues: queues.clone(),
        failed: failed.clone(),
        metrics: metrics.clone(),
        refused_before: 0,
    };
    let watching = TaskTracker::new();
    let alerts = Alerts::start(
        probes,
        alerts,
        &app.name,
        metrics.clone(),
        stopping.clone(),
        &watching,
    );
    let parts = Parts {
        broker: broker.clone(),
        failed_messages: failed,
        message_log: log.clone(),
        queue_admin: queues,
        alerts,
        metrics: metrics.clone(),
        traces: traces.clone(),
    };
    let gateway = Gateway::new(parts, limits, stopping.clone());
    let health = Health::starting().await;
    let following = tokio::spawn(follow(health.clone(), broker.clone()));
    let following_store = tokio::spawn(follow_store(health.clone(), store.clone()));

    let exposition = Exposition {
        metrics: metrics.clone(),
        links: broker.links(),
        store: store.clone(),
        log: log.clone(),
        gateway: gateway.clone(),
    };
    let rest = rest::routes(&app.name, &gateway, store.watch(), &http.cors_origins)?
        .merge(rest::metrics::route(exposition));
    let routes = grpc::routes(Routes::from(rest), &gateway, &health)?;
    let ended = CancellationToken::new();
    let counter = Counter::new(&gateway, http.request_idle_timeout);
    let unread_until = stopping.clone();
    let connections = Listener::new(listener, &http, &metrics).connections();
    let mut server = Server::builder();
    if let Some(age) = http.max_connection_age {
        server = server.max_connection_age(age);
    }
    let serving = server
        .accept_http1(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(HEADER_LIST)
        .max_concurrent_streams(http.max_streams_per_connection)
        .http2_keepalive_interval(Some(http.keepalive_interval))
        .http2_keepalive_timeout(Some(http.keepalive_timeout))
        .layer(MapRequestLayer::new(connection::begun))
        .layer(tower::util::option_layer(cors(&http.cors_origins)?))
        .layer(DeadlineLayer)
        .layer(MapRequestLayer::new(hangup::watch))
        .layer(MapRequestLayer::new(move |request| {
            unread::watch(request, &unread_until)
        }))
        .layer(MapRequestLayer::new(move |request| counter.count(request)))
        .add_routes(rest::rpc::explained(routes).prepare())
        .serve_with_incoming_shutdown(connections, ended.clone().cancelled_owned());
    let mut serving = tokio::spawn(serving);

    tokio::select! {
        failed = &mut serving => return Ok(failed.unwrap_or(Ok(()))?),
        () = shutdown => {}
    }
    info!(
        "stopping: subscribers have {grace:?} to settle; a second SIGTERM or SIGINT cuts that short"
    );
    following.abort();
    following_store.abort();
    health.stopping().await;
    stopping.cancel();
    ended.cancel();
    gateway.streams.tasks.close();
    watching.close();
    let _ = timeout(SHUTDOWN_STEP_TIMEOUT, watching.wait()).await;
    let _ = timeout(SHUTDOWN_STEP_TIMEOUT, background.stop()).await;
    let settled = timeout(grace + SHUTDOWN_STEP_TIMEOUT, gateway.streams.tasks.wait()).await;
    health.stopped().await;
    let closed = timeout(SHUTDOWN_STEP_TIMEOUT, &mut serving).await;
    serving.abort();
    broker.close().await;
    drop(gateway);
    // What consumers acked last.
    let _ = timeout(SHUTDOWN_STEP_TIMEOUT, background.flushed()).await;
    log.close(SHUTDOWN_STEP_TIMEOUT).await;
    traces.close().await;
    store.close().await;
    match (settled, closed) {
        (Ok(()), Ok(_)) => Ok(()),
        _ => Err(ServeError::Cut),
    }
}

/// Health follows the database.
async fn follow_store(health: Health, store: Store) {
    let mut presence = store.watch();
    loop {
        health.report_database(presence.trouble()).await;
        if !presence.changed().await {
            return;
        }
    }
}

/// Health follows the links.
async fn follow(health: Health, broker: Arc<dyn Broker>) {
    let mut links = broker.links();
    loop {
        let now = *links.borrow_and_update();
        health.report(now).await;
        if links.changed().await.is_err() {
            return;
        }
    }
}

/// Lets web pages of these origins call, and read what gRPC-Web answers in headers.
fn cors(origins: &[String]) -> Result<Option<CorsLayer>, BadOrigin> {
    let origin = match Origins::read(origins)? {
        Origins::All => AllowOrigin::any(),
        Origins::These(none, _) if none.is_empty() => return Ok(None),
        Origins::These(some, _) => AllowOrigin::list(some),
    };
    let exposed = ["grpc-status", "grpc-message", "grpc-status-details-bin"];
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list(
            exposed.map(http::HeaderName::from_static),
        ));
    Ok(Some(layer))
}
