//! RabbitMQ's management API (HTTP): lists, rates and alarms, which AMQP does not tell.
//! <https://www.rabbitmq.com/docs/http-api-reference>
//!
//! Fields come and go from version to version (3.10 to 4.x are read), so each may be absent. The figures are up to
//! `collect_statistics_interval` (5 s) old.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Certificate, Client, Response, StatusCode, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    broker::{
        Error,
        admin::{BindingInfo, Destination, ExchangeInfo, Flow, Node, QueueInfo, Source},
        topology::{QueueKind, argument},
    },
    message::{Table, Value},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Requests at a time, each a connection; and how many more may wait for their turn. It is a neighbour's, who counts on it too.
const AT_A_TIME: usize = 8;
const WAITING: usize = 256;
/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(30);
/// How long an API that does not answer is left alone: nobody waits for it again and again.
const LEAVE_ALONE: Duration = Duration::from_secs(3);
/// What of a queue is asked for; the rest of what RabbitMQ tells is larger than this by far.
const QUEUE_COLUMNS: &str = "name,type,durable,auto_delete,arguments,effective_policy_definition,messages_ready,\
    messages_unacknowledged,message_bytes_ready,consumers,message_stats";
const EXCHANGE_COLUMNS: &str = "name,type,durable,internal,arguments";
const BINDING_COLUMNS: &str = "source,destination,destination_type,routing_key,arguments";
const NODE_COLUMNS: &str =
    "name,running,mem_used,mem_limit,mem_alarm,disk_free,disk_free_limit,disk_free_alarm";

/// Where the management API is.
#[derive(Clone, Debug)]
pub struct Options {
    pub url: Url,
    pub user: String,
    pub password: SecretString,
    pub virtual_host: String,
    /// Certificates (PEM) to trust besides the public ones.
    pub ca_pem: Option<String>,
}

/// A client of it.
pub(super) struct Management {
    client: Client,
    options: Options,
    trouble: Mutex<Option<Trouble>>,
    /// For requests that are under way or wait, and for those under way.
    places: Semaphore,
    turns: Semaphore,
}

struct Trouble {
    since: Instant,
    reason: String,
}

impl Management {
    /// The error is for people.
    pub(super) fn new(options: Options) -> Result<Self, String> {
        let mut client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(AT_A_TIME)
            .pool_idle_timeout(IDLE)
            // It is a neighbour: a proxy for the world outside has no business here.
            .no_proxy()
            // Credentials are for it alone.
            .redirect(redirect::Policy::none())
            .referer(false);
        if let Some(pem) = &options.ca_pem {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes());
            for certificate in certificates.map_err(|error| error.to_string())? {
                client = client.add_root_certificate(certificate);
            }
        }
        Ok(Self {
            client: client.build().map_err(|error| error.to_string())?,
            options,
            trouble: Mutex::new(None),
            places: Semaphore::new(AT_A_TIME + WAITING),
            turns: Semaphore::new(AT_A_TIME),
        })
    }

    pub(super) async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        let queues: Vec<Queue> = self.all("queues", QUEUE_COLUMNS).await?;
        Ok(queues.into_iter().map(QueueInfo::from).collect())
    }

    /// `None`: it knows of no such queue (yet).
    pub(super) async fn queue(&self, name: &str) -> Result<Option<QueueInfo>, Error> {
        let found: Option<Queue> = self.one("queues", name, QUEUE_COLUMNS).await?;
        Ok(found.map(QueueInfo::from))
    }

    pub(super) async fn exchanges(&self) -> Result<Vec<ExchangeInfo>, Error> {
        let exchanges: Vec<Exchange> = self.all("exchanges", EXCHANGE_COLUMNS).await?;
        Ok(exchanges.into_iter().map(ExchangeInfo::from).collect())
    }

    /// `None`: it knows of no such exchange (yet).
    pub(super) async fn exchange(&self, name: &str) -> Result<Option<ExchangeInfo>, Error> {
        let found: Option<Exchange> = self.one("exchanges", name, EXCHANGE_COLUMNS).await?;
        Ok(found.map(ExchangeInfo::from))
    }

    pub(super) async fn bindings(&self) -> Result<Vec<BindingInfo>, Error> {
        let bindings: Vec<Binding> = self.all("bindings", BINDING_COLUMNS).await?;
        let named = bindings.into_iter().filter(|one| !one.source.is_empty());
        Ok(named.map(BindingInfo::from).collect())
    }

    pub(super) async fn overview(&self) -> Result<Overview, Error> {
        let overview = self.get("overview").await?;
        overview.ok_or_else(|| Error::ManagementDown(self.elsewhere()))
    }

    /// Why it knows not even what each of its kind knows.
    fn elsewhere(&self) -> String {
        let url = &self.options.url;
        format!(
            "{url} has no api/overview: with a management.path_prefix in RabbitMQ's configuration, RABBITMQ_MANAGEMENT_URL must have it too, as in http://rabbitmq:15672/prefix"
        )
    }

    /// Users without the tag `monitoring` may not ask.
    pub(super) async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let nodes: Vec<NodeStatus> = self.list(&format!("nodes?columns={NODE_COLUMNS}")).await?;
        Ok(nodes.into_iter().map(Node::from).collect())
    }

    /// Asks once; the clock of whoever answers. The error is for people.
    pub(super) async fn probe(&self) -> Result<Option<SystemTime>, String> {
        let answer = self.send("overview").await;
        let answer = match answer {
            Ok(answer) => answer.ok_or_else(|| self.elsewhere())?,
            Err(Refused::Forbidden(reason) | Refused::Odd(reason) | Refused::Down(reason)) => {
                return Err(reason);
            }
        };
        let date = answer.headers().get(reqwest::header::DATE);
        let date = date.and_then(|date| {
            let date = chrono::DateTime::parse_from_rfc2822(date.to_str().ok()?).ok()?;
            Some(SystemTime::from(date))
        });
        Ok(date)
    }

    /// All of a kind in this virtual host.
    async fn all<T: DeserializeOwned>(&self, kind: &str, columns: &str) -> Result<Vec<T>, Error> {
        let host = escape(&self.options.virtual_host);
        self.list(&format!("{kind}/{host}?columns={columns}")).await
    }

    /// One of a kind in this virtual host. `None`: there is no such thing.
    async fn one<T: DeserializeOwned + Named>(
        &self,
        kind: &str,
        name: &str,
        columns: &str,
    ) -> Result<Option<T>, Error> {
        let host = escape(&self.options.virtual_host);
        // In a path, each spelling of these means this place or the one above it (https://url.spec.whatwg.org/#double-dot-path-segment):
        // another thing would be asked for.
        if !matches!(name, "." | "..") {
            let name = escape(name);
            return self
                .get(&format!("{kind}/{host}/{name}?columns={columns}"))
                .await;
        }
        // A page of those whose names match, of which there is one (https://www.rabbitmq.com/docs/http-api-reference#pagination).
        let pattern = escape(&format!("^{}$", name.replace('.', "\\.")));
        let page = "page=1&page_size=10&use_regex=true";
        let path = format!("{kind}/{host}?columns={columns}&{page}&name={pattern}");
        let page: Option<PageOf<T>> = self.get(&path).await?;
        let mut found = page.into_iter().flat_map(|page| page.items);
        Ok(found.find(|one| one.name() == name))
    }

    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Error> {
        if let Some(list) = self.get(path).await? {
            return Ok(list);
        }
        // Or it is no such API at all.
        self.overview().await?;
        let host = &self.options.virtual_host;
        Err(Error::ManagementDown(format!(
            "it knows no virtual host {host:?}"
        )))
    }

    /// `None`: there is no such thing.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Error> {
        self.spared()?;
        let overrun = || Error::ManagementDown("too many questions wait for it".to_owned());
        let _place = self.places.try_acquire().map_err(|_| overrun())?;
        let turn = timeout(TIMEOUT, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| overrun())?;
        // Whoever was before may have found out that it does not answer.
        self.spared()?;
        match self.ask(path).await {
            Ok(answer) => {
                self.note(None);
                Ok(answer)
            }
            Err(Refused::Forbidden(reason)) => Err(Error::ManagementDown(reason)),
            // It answers, if not this: others are not to do without it.
            Err(Refused::Odd(reason)) => {
                self.note(None);
                tracing::debug!(
                    path,
                    reason,
                    "an answer of RabbitMQ's management API is no use"
                );
                Err(Error::ManagementDown(reason))
            }
            Err(Refused::Down(reason)) => {
                self.note(Some(Trouble {
                    since: Instant::now(),
                    reason: reason.clone(),
                }));
                Err(Error::ManagementDown(reason))
            }
        }
    }

    /// An error while it is left alone.
    fn spared(&self) -> Result<(), Error> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &*trouble {
            Some(trouble) if trouble.since.elapsed() < LEAVE_ALONE => {
                Err(Error::ManagementDown(trouble.reason.clone()))
            }
            _ => Ok(()),
        }
    }

    fn note(&self, now: Option<Trouble>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*trouble, &now) {
            (None, Some(Trouble { reason, .. })) => {
                tracing::warn!(
                    reason,
                    "RabbitMQ's management API does not answer; lists and rates are missing"
                );
            }
            (Some(_), None) => tracing::info!("RabbitMQ's management API answers again"),
            _ => {}
        }
        *trouble = now;
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Refused> {
        let Some(answer) = self.send(path).await? else {
            return Ok(None);
        };
        let read = answer.bytes().await.map_err(|error| self.down(&error))?;
        serde_json::from_slice(&read).map(Some).map_err(|error| {
            let url = &self.options.url;
            Refused::Odd(format!("{url} answers what cannot be read: {error}"))
        })
    }

    fn down(&self, error: &reqwest::Error) -> Refused {
        Refused::Down(format!("{}: {}", self.options.url, root(error)))
    }

    /// `None`: there is no such thing.
    async fn send(&self, path: &str) -> Result<Option<Response>, Refused> {
        let Options {
            url,
            user,
            password,
            ..
        } = &self.options;
        let target = format!("{}/api/{path}", url.as_str().trim_end_matches('/'));
        let request = self.client.get(target);
        let request = request.basic_auth(user, Some(password.expose_secret()));
        let answer = request.send().await;
        let answer = answer.map_err(|error| self.down(&error))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Refused::Forbidden(format!(
                "it refuses user {user:?}: give the user the tag \"monitoring\" (rabbitmqctl set_user_tags)"
            ))),
            status if status.is_success() => Ok(Some(answer)),
            status if status.is_redirection() => Err(Refused::Down(format!(
                "{url} answers {status}, and redirects are not followed: RABBITMQ_MANAGEMENT_URL must name the place itself"
            ))),
            // Who is in front of it cannot reach it, or it has too much to do. Other errors are about what was asked.
            status @ (StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => Err(Refused::Down(format!("{url} answers {status}"))),
            status => Err(Refused::Odd(format!("{url} answers {status}"))),
        }
    }
}

enum Refused {
    /// It answers, and does not allow this.
    Forbidden(String),
    /// It answers, and nobody can use that. It says nothing of other questions.
    Odd(String),
    Down(String),
}

/// What is at the bottom of an error; what is above it names the URL again.
fn root(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

fn escape(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

/// What has a name.
trait Named {
    fn name(&self) -> &str;
}

impl Named for Queue {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Exchange {
    fn name(&self) -> &str {
        &self.name
    }
}

/// A page of a list.
#[derive(Deserialize)]
struct PageOf<T> {
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Queue {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    durable: Option<bool>,
    auto_delete: Option<bool>,
    arguments: serde_json::Value,
    effective_policy_definition: serde_json::Value,
    messages_ready: Option<u64>,
    messages_unacknowledged: Option<u64>,
    message_bytes_ready: Option<u64>,
    consumers: Option<u64>,
    message_stats: serde_json::Value,
}

impl From<Queue> for QueueInfo {
    fn from(queue: Queue) -> Self {
        let arguments = table(&queue.arguments);
        let flow = |name| {
            let rate = &queue.message_stats[format!("{name}_details")]["rate"];
            Flow {
                total: queue.message_stats[name].as_u64(),
                // RabbitMQ has been seen to answer tiny negative rates after a restart of its statistics.
                per_second: rate.as_f64().map(|rate| rate.max(0.0)),
            }
        };
        let policy = &queue.effective_policy_definition;
        // Of an argument and a policy, the smaller one holds (https://www.rabbitmq.com/docs/parameters#policies).
        let smallest = |name: &str| {
            let argument = arguments.get(name).and_then(Value::as_integer);
            let argument = argument.and_then(|n| u64::try_from(n).ok());
            let policy = policy[name.trim_start_matches("x-")].as_u64();
            argument.into_iter().chain(policy).min()
        };
        let ratio = |held: Option<u64>, most: Option<u64>| match (held, most) {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            (Some(held), Some(most)) if most > 0 => Some(held as f64 / most as f64),
            _ => None,
        };
        let ratios = [
            ratio(queue.messages_ready, smallest(argument::MAX_LENGTH)),
            ratio(
                queue.message_bytes_ready,
                smallest(argument::MAX_LENGTH_BYTES),
            ),
        ];
        let delivery_limit = smallest(argument::DELIVERY_LIMIT);
        Self {
            kind: queue.kind.or_else(|| Some(QueueKind::Classic.to_string())),
            durable: queue.durable,
            auto_delete: queue.auto_delete,
            ready: queue.messages_ready,
            unacked: queue.messages_unacknowledged,
            consumers: queue.consumers,
            publish: flow("publish"),
            deliver: flow("deliver_get"),
            ack: ["deliver_no_ack", "get_no_ack"]
                .into_iter()
                .map(flow)
                .fold(flow("ack"), Flow::and),
            capacity_ratio: ratios.into_iter().flatten().reduce(f64::max),
            delivery_limit: delivery_limit.and_then(|limit| u32::try_from(limit).ok()),
            source: Source::Management,
            arguments: Some(arguments),
            name: queue.name,
        }
    }
}

#[derive(Deserialize)]
struct Exchange {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    durable: Option<bool>,
    internal: Option<bool>,
    #[serde(default)]
    arguments: serde_json::Value,
}

impl From<Exchange> for ExchangeInfo {
    fn from(exchange: Exchange) -> Self {
        Self {
            arguments: Some(table(&exchange.arguments)),
            name: exchange.name,
            kind: exchange.kind,
            durable: exchange.durable,
            internal: exchange.internal,
        }
    }
}

#[derive(Deserialize)]
struct Binding {
    source: String,
    destination: String,
    destination_type: String,
    #[serde(default)]
    routing_key: String,
    #[serde(default)]
    arguments: serde_json::Value,
}

impl From<Binding> for BindingInfo {
    fn from(binding: Binding) -> Self {
        Self {
            exchange: binding.source,
            destination: match binding.destination_type.as_str() {
                "exchange" => Destination::Exchange(binding.destination),
                _ => Destination::Queue(binding.destination),
            },
            routing_key: binding.routing_key,
            arguments: table(&binding.arguments),
        }
    }
}

/// The cluster as a whole.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Overview {
    pub(super) rabbitmq_version: Option<String>,
    pub(super) cluster_name: Option<String>,
    object_totals: serde_json::Value,
}

impl Overview {
    pub(super) fn connections(&self) -> Option<u64> {
        self.object_totals["connections"].as_u64()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    name: String,
    running: bool,
    mem_used: Option<u64>,
    mem_limit: Option<u64>,
    mem_alarm: bool,
    // "disk_free_monitoring_disabled", where it is.
    disk_free: serde_json::Value,
    disk_free_limit: serde_json::Value,
    disk_free_alarm: bool,
}

impl From<NodeStatus> for Node {
    fn from(node: NodeStatus) -> Self {
        Self {
            name: node.name,
            running: node.running,
            memory_used: node.mem_used,
            memory_limit: node.mem_limit,
            memory_alarm: node.mem_alarm,
            disk_free: node.disk_free.as_u64(),
            disk_free_limit: node.disk_free_limit.as_u64(),
            disk_alarm: node.disk_free_alarm,
        }
    }
}

/// Arguments; what is no object (RabbitMQ writes an empty one as a list) is none.
fn table(json: &serde_json::Value) -> Table {
    let entries = json.as_object().into_iter().flatten();
    entries
        .map(|(name, json)| (name.clone(), value(json)))
        .collect()
}

fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::Void,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::I64(integer),
            None => Value::F64(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::text(text.clone()),
        Json::Array(values) => Value::Array(values.iter().map(value).collect()),
        Json::Object(_) => Value::Table(table(json)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers nothing until as many requests are there as it may get at a time, and then that it knows no such thing.
    async fn serve(listener: TcpListener, now: Arc<AtomicUsize>, most: Arc<AtomicUsize>) {
        let enough = Arc::new(Semaphore::new(0));
        loop {
            let (mut socket, _) = listener.accept().await.expect("somebody asks");
            let (now, most, enough) = (now.clone(), most.clone(), enough.clone());
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while socket.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let waiting = now.fetch_add(1, SeqCst) + 1;
                    most.fetch_max(waiting, SeqCst);
                    if waiting >= AT_A_TIME {
                        enough.add_permits(1_000_000);
                    }
                    let _ = enough.acquire().await;
                    now.fetch_sub(1, SeqCst);
                    let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
                    let _ = socket.write_all(answer).await;
                }
            });
        }
    }

    #[tokio::test]
    async fn few_requests_are_made_at_a_time_and_only_so_many_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (now, most) = (Arc::default(), Arc::default());
        tokio::spawn(serve(listener, now, Arc::clone(&most)));
        let management = Management::new(Options {
            url: url.parse().expect("a URL"),
            user: "guest".to_owned(),
            password: "guest".to_owned().into(),
            virtual_host: "/".to_owned(),
            ca_pem: None,
        });
        let management = management.expect("a client");
        let names: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
        let asked = names.iter().map(|name| management.queue(name));
        let answers = futures::future::join_all(asked).await;
        let refused = answers.iter().filter(|answer| answer.is_err()).count();
        assert_eq!(refused, 1_000 - AT_A_TIME - WAITING);
        assert_eq!(most.load(SeqCst), AT_A_TIME);
        assert!(
            management.queue("later").await.is_ok(),
            "it does not count as down"
        );
    }

    fn queue(json: serde_json::Value) -> QueueInfo {
        let queue: Queue = serde_json::from_value(json).expect("tolerated");
        queue.into()
    }

    #[test]
    fn what_a_version_does_not_tell_is_not_known() {
        let bare = queue(serde_json::json!({"name": "q"}));
        assert_eq!(bare.ready, None);
        assert_eq!(bare.publish, Flow::default());
        assert_eq!(bare.capacity_ratio, None);
    }

    #[test]
    fn the_smaller_of_argument_and_policy_is_the_capacity() {
        let full = queue(serde_json::json!({
            "name": "q",
            "messages_ready": 50,
            "arguments": {"x-max-length": 500},
            "effective_policy_definition": {"max-length": 100},
        }));
        assert_eq!(full.capacity_ratio, Some(0.5));
        // 3.10 writes an empty policy as a list.
        let without = queue(serde_json::json!({
            "name": "q", "messages_ready": 50, "arguments": {}, "effective_policy_definition": [],
        }));
        assert_eq!(without.capacity_ratio, None);
    }

    #[test]
    fn rates_are_those_of_the_api() {
        let busy = queue(serde_json::json!({
            "name": "q",
            "message_stats": {
                "publish": 10, "publish_details": {"rate": 2.5},
                "deliver_get": 7, "deliver_get_details": {"rate": -0.1},
                "ack": 3,
            },
        }));
        let flow = |total, per_second| Flow {
            total: Some(total),
            per_second,
        };
        assert_eq!(busy.publish, flow(10, Some(2.5)));
        assert_eq!(busy.deliver, flow(7, Some(0.0)));
        assert_eq!(busy.ack, flow(3, None));
    }
}
