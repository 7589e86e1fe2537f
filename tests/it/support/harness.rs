//! A real server on a free port, and clients for it.

use std::{sync::Arc, time::Duration};

use courtier::{
    broker::{
        Broker,
        memory::MemoryBroker,
        rabbitmq::{self, ManagementAt},
        topology::{DeadLetterSource, Topology},
    },
    config::{Config, reader::Reader},
    gateway::{Limits, message_log::MessageLog},
    grpc::proto::{publisher_client::PublisherClient, subscriber_client::SubscriberClient},
    metrics::Metrics,
    server,
    store::{Place, Store},
    traces::Traces,
};
use secrecy::SecretString;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use uuid::Uuid;

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway under test, and its broker. Stops when it is dropped.
pub struct Gateway {
    pub address: String,
    pub broker: Arc<dyn Broker>,
    pub log: MessageLog,
    stop: CancellationToken,
    serving: Option<JoinHandle<Result<(), server::ServeError>>>,
    prefix: String,
}

/// How a gateway under test differs from the defaults.
pub struct Setup {
    pub config: Config,
    /// How long its start waits for the database.
    database_patience: Duration,
    /// As if it had been declared at start.
    pub topology: Option<Topology>,
    pub dead_letter_sources: Vec<DeadLetterSource>,
    pub metrics: Metrics,
    pub traces: Traces,
}

impl Setup {
    /// A database server that is not there.
    pub fn without_database(&mut self) {
        let nobody = SecretString::from("postgres://nobody@127.0.0.1:1/none".to_owned());
        self.config.database.place = Place::Server(nobody);
        // Nobody will come.
        self.database_patience = Duration::ZERO;
    }
}

impl Gateway {
    /// On an embedded broker of its own.
    pub async fn embedded() -> Self {
        Self::start(MemoryBroker::new(), |_| {}).await
    }

    /// On the RabbitMQ of this test run.
    pub async fn rabbitmq() -> Self {
        Self::start(connect().await, |_| {}).await
    }

    /// On any broker, with other limits, and without a database.
    pub async fn start(broker: Arc<dyn Broker>, change: impl FnOnce(&mut Limits)) -> Self {
        Self::start_with(broker, |setup| {
            setup.without_database();
            change(&mut setup.config.limits);
        })
        .await
    }

    /// On any broker and a database of its own, with whatever else is different.
    pub async fn start_with(broker: Arc<dyn Broker>, change: impl FnOnce(&mut Setup)) -> Self {
        let data = TempDir::new().expect("a temporary folder");
        let mut config = Config::read(Reader::fixed(&[])).expect("the defaults are valid");
        config.database.place = Place::File(data.path().join("courtier.db"));
        let mut setup = Setup {
            config,
            database_patience: PATIENCE / 10,
            topology: None,
            dead_letter_sources: Vec::new(),
            metrics: Metrics::default(),
            traces: Traces::default(),
        };
        change(&mut setup);
        let Setup {
            config,
            database_patience,
            topology,
            dead_letter_sources,
            metrics,
            traces,
        } = setup;
        let store = Store::open(config.database.clone(), database_patience).await;
        let store = store.expect("the database opens");
        let log = MessageLog::start(store.clone(), config.message_log);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let backends = server::Backends {
            broker: broker.clone(),
            store,
            log: log.clone(),
            metrics,
            traces,
            topology,
            dead_letter_sources,
        };
        let serving = tokio::spawn(async move {
            let settings = server::Settings {
                app: config.app,
                http: config.http,
                limits: config.limits,
                retries: config.retries,
                alerts: config.alerts,
            };
            let served = server::run(backends, settings, listener, stopped).await;
            drop(data);
            served
        });
        Self {
            address,
            broker,
            log,
            stop,
            serving: Some(serving),
            prefix: format!("it-{}-", Uuid::now_v7()),
        }
    }

    /// A name of this test's own.
    pub fn name(&self, short: &str) -> String {
        format!("{}{short}", self.prefix)
    }

    /// A fresh connection.
    pub async fn channel(&self) -> Channel {
        let url = format!("http://{}", self.address);
        let endpoint = Channel::from_shared(url).expect("a valid URL");
        endpoint.connect().await.expect("the server listens")
    }

    pub async fn publisher(&self) -> PublisherClient<Channel> {
        PublisherClient::new(self.channel().await)
    }

    pub async fn subscriber(&self) -> SubscriberClient<Channel> {
        SubscriberClient::new(self.channel().await)
    }

    /// Tells the gateway to stop, as SIGTERM does.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Waits until it has stopped.
    pub async fn stopped(mut self) -> Result<(), server::ServeError> {
        self.stop.cancel();
        let serving = self.serving.take().expect("not stopped yet");
        serving.await.expect("the server did not panic")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A backend of one's own on the RabbitMQ of this test run.
pub async fn connect() -> Arc<rabbitmq::RabbitMq> {
    let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
    let broker = connect_to(&url);
    assert!(broker.connected(PATIENCE).await);
    broker
}

/// The same, with its management API.
pub async fn connect_managed() -> Arc<rabbitmq::RabbitMq> {
    let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
    let port = std::env::var("COURTIER_TEST_MANAGEMENT_PORT").expect("set by make test");
    let port = port.parse().expect("a port");
    let broker = connect_with(&url, ManagementAt::Port(Some(port)));
    assert!(broker.connected(PATIENCE).await);
    broker
}

/// A backend on that RabbitMQ, connected or not.
pub fn connect_to(url: &str) -> Arc<rabbitmq::RabbitMq> {
    connect_with(url, ManagementAt::Off)
}

/// The same, with a management API.
pub fn connect_with(url: &str, management: ManagementAt) -> Arc<rabbitmq::RabbitMq> {
    connect_counted(url, management, &Metrics::default())
}

/// The same, with figures that the test looks at.
pub fn connect_counted(
    url: &str,
    management: ManagementAt,
    metrics: &Metrics,
) -> Arc<rabbitmq::RabbitMq> {
    let options = rabbitmq::Options {
        url: SecretString::from(url.to_owned()),
        ca_pem: None,
        management,
    };
    rabbitmq::RabbitMq::start(&options, metrics).expect("a valid URL")
}

/// Waits until `condition` holds: the way to wait for what happens on its own.
pub async fn eventually<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
