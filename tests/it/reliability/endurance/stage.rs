//! Where the suite plays: a RabbitMQ of its own with everything that an operation meets (what exists, what is missing, what its
//! user may not touch, what cannot be done), and the gateway as it is run.

use std::{path::Path, time::Duration};

use courtier::grpc::proto::{
    publisher_client::PublisherClient, queue_admin_client::QueueAdminClient,
};
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicConsumeOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::{Value, json};
use tonic::{Request, transport::Channel};

use super::{neighbours::harm, operations::publish};
use crate::{instance::Instance, process::Process};

/// Payloads above it are refused by the broker; the gateway's own limit is far above.
pub const MAX_MESSAGE_SIZE: usize = 64 * 1024;
/// Exchanges that the user may not write to, `forbidden-0` and so on.
pub const FORBIDDEN: usize = 50;
/// No call may need longer. Generous: the machine may be busy, and what hangs is wrong.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Connections that the calls are spread over.
const CONNECTIONS: usize = 4;

pub struct Stage {
    /// Holds the queue `locked` exclusively, and consumes from `held`.
    _rival: Connection,
    pub gateway: Process,
    clients: Vec<Client>,
    _instance: Instance,
}

/// One of the connections to the gateway.
#[derive(Clone)]
pub struct Client {
    pub publisher: PublisherClient<Channel>,
    pub admin: QueueAdminClient<Channel>,
    pub channel: Channel,
}

impl Stage {
    pub async fn set() -> Self {
        let instance = Instance::start_managed_with(configuration).await;
        let rival = rival(&instance.url).await;
        let url = instance.url.replace("guest:guest", "courtier:secret");
        let topology = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/topology.toml");
        let management = instance.management_port().to_string();
        let settings = [
            ("RABBITMQ_URL", url.as_str()),
            ("RABBITMQ_MANAGEMENT_PORT", &management),
            ("TOPOLOGY_FILE", topology),
            ("RUST_LOG", "info"),
        ];
        let gateway = Process::start(&instance, &settings).await;
        gateway.health([true; 3]).await;
        let connect = gateway.channels();
        let client = |_| {
            let channel = connect();
            Client {
                publisher: PublisherClient::new(channel.clone()),
                admin: QueueAdminClient::new(channel.clone()),
                channel,
            }
        };
        let clients = (0..CONNECTIONS).map(client).collect();
        let stage = Self {
            _rival: rival,
            gateway,
            clients,
            _instance: instance,
        };
        let parked = publish(stage.client(0), String::new(), "parked".to_owned(), 8).await;
        parked.expect("it is confirmed");
        // Everything works before anything is asked; and what is made once only is made now, not when memory is compared.
        for _ in 0..5 {
            assert_eq!(harm(&stage).await, [""; 0]);
        }
        stage
    }

    pub fn client(&self, number: usize) -> Client {
        self.clients[number % CONNECTIONS].clone()
    }
}

/// A request that does not wait for ever.
pub fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn configuration(dir: &Path) -> String {
    let path = dir.join("definitions.json");
    std::fs::write(&path, definitions().to_string()).expect("it is writable");
    format!(
        "max_message_size = {MAX_MESSAGE_SIZE}\nload_definitions = {}\n",
        path.display()
    )
}

fn definitions() -> Value {
    let queue = |name: &str, kind: &str| {
        json!({"name": name, "vhost": "/", "durable": true, "auto_delete": false,
               "arguments": {"x-queue-type": kind}})
    };
    let exchange = |name: String, kind: &str| {
        json!({"name": name, "vhost": "/", "type": kind, "durable": true, "auto_delete": false,
               "internal": false, "arguments": {}})
    };
    let bind = |exchange: &str, queue: &str, key: &str| {
        json!({"source": exchange, "vhost": "/", "destination": queue, "destination_type": "queue",
               "routing_key": key, "arguments": {}})
    };
    let all_but_forbidden = "^(?!forbidden)";
    let mut exchanges: Vec<_> = (0..FORBIDDEN)
        .map(|number| exchange(format!("forbidden-{number}"), "topic"))
        .collect();
    exchanges
        .extend((0..super::count()).map(|number| exchange(format!("existing-{number}"), "topic")));
    exchanges.extend([
        exchange("orders".into(), "direct"),
        exchange("events".into(), "topic"),
        exchange("strict".into(), "topic"),
    ]);
    // What is published only to see it confirmed ends here.
    let mut sink = queue("sink", "classic");
    sink["arguments"] =
        json!({"x-queue-type": "classic", "x-max-length": 1_000, "x-overflow": "drop-head"});
    json!({
        "vhosts": [{"name": "/"}],
        "users": [
            {"name": "guest", "password": "guest", "tags": "administrator"},
            {"name": "courtier", "password": "secret", "tags": "monitoring"},
        ],
        "permissions": [
            {"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
            {"user": "courtier", "vhost": "/", "configure": all_but_forbidden, "write": all_but_forbidden,
             "read": all_but_forbidden},
        ],
        "topic_permissions": [
            {"user": "courtier", "vhost": "/", "exchange": "events", "write": "^(order\\..*)?$", "read": ".*"},
            // Not even the empty key.
            {"user": "courtier", "vhost": "/", "exchange": "strict", "write": "^order\\..*", "read": ".*"},
        ],
        "queues": [
            sink, queue("work", "classic"), queue("neighbour", "classic"), queue("parked", "classic"),
            queue("empty", "classic"), queue("held", "classic"), queue("forbidden-queue", "classic"),
            queue("stream", "stream"), queue("quorum", "quorum"),
        ],
        "exchanges": exchanges,
        "bindings": [
            bind("orders", "work", "work"), bind("orders", "neighbour", "neighbour"), bind("orders", "sink", "sink"),
            bind("events", "sink", "order.#"), bind("strict", "sink", "order.#"),
        ],
    })
}

/// A service that speaks AMQP itself.
async fn rival(url: &str) -> Connection {
    let connection = Connection::connect(url, ConnectionProperties::default()).await;
    let connection = connection.expect("RabbitMQ runs");
    let channel = connection.create_channel().await.expect("a channel");
    let exclusive = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare("locked".into(), exclusive, FieldTable::default());
    declared.await.expect("declared");
    let consumer = channel.basic_consume(
        "held".into(),
        "rival".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    // Kept for as long as the connection: dropping it would cancel nothing, but its deliveries would pile up.
    std::mem::forget(consumer.await.expect("consumed"));
    std::mem::forget(channel);
    connection
}
