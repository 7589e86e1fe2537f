//! RabbitMQ over AMQP 0-9-1. The one place that knows the client library (lapin).
//!
//! Links by role ([`link`]), publishes on lanes ([`lane`]) whose outcomes are exact ([`verdict`]), replies to clients that wait for them
//! apart ([`reply`]), subscriptions on channels of their own ([`consumer`]) over shared connections ([`pool`]).

mod admin;
mod channel;
mod checks;
mod connect;
mod consumer;
mod convert;
mod declare;
mod endpoint;
mod error;
mod fetch;
mod flight;
mod inflight;
mod lane;
mod link;
mod management;
mod pool;
mod probe;
mod refused;
mod reply;
mod selfcheck;
mod stream_queue;
mod supervise;
mod verdict;
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use percent_encoding::percent_decode_str;
use reqwest::{Certificate, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::probe::{ManagementProbe, Probe, Trouble, probe};
use self::{
    checks::Checks,
    connect::Role,
    endpoint::Endpoint,
    link::{Connector, Link, State},
    management::Management,
    pool::Pool,
    reply::Replies,
};
use super::{
    Broker, Checked, Error, Lane, LinkState, Links, Publish, PublishReply, Subscribe, Subscription,
    Target,
    admin::Admin,
    topology::{Difference, Topology},
};
use crate::{metrics::Metrics, names, url};

/// Channels that publishes are spread over. A stream or batch has one of them, which keeps its order.
const LANES: usize = 8;
/// Queues that are fetched from at a time.
const MAX_FETCHES: usize = 16;
/// How long an administrative call waits for its link.
const LINK_PATIENCE: Duration = Duration::from_secs(2);
const DECLARE_TIMEOUT: Duration = Duration::from_secs(60);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where RabbitMQ is.
#[derive(Debug)]
pub struct Options {
    /// `amqp://` or `amqps://`, with credentials.
    pub url: SecretString,
    /// Certificates (PEM) to trust besides the public ones.
    pub ca_pem: Option<String>,
    pub management: ManagementAt,
}

/// Where RabbitMQ's management API is.
#[derive(Clone, Debug, Default)]
pub enum ManagementAt {
    /// It is not used.
    #[default]
    Off,
    /// On the host of the AMQP URL, with https where that has amqps. `None`: the port that is usual for it.
    Port(Option<u16>),
    Url(Url),
}

impl Options {
    /// Checks everything that can be without connecting: what is accepted here, [`RabbitMq::start`] accepts.
    pub fn check(&self) -> Result<(), BadUrl> {
        self.management(&self.endpoint()?).map(drop)
    }

    /// Whether it is an `amqps://` URL.
    pub fn is_encrypted(&self) -> bool {
        self.endpoint()
            .is_ok_and(|endpoint| endpoint.is_encrypted())
    }

    /// Whether the broker is on this machine.
    pub fn is_local(&self) -> bool {
        self.endpoint().is_ok_and(|endpoint| endpoint.is_local())
    }

    fn endpoint(&self) -> Result<Endpoint, BadUrl> {
        let url = self.url.expose_secret();
        // Of one that it cannot read, the client library tells all of it.
        url::of_server(url, "amqp:// or amqps://").map_err(|bad| BadUrl(bad.to_string()))?;
        if names_dots(url) {
            let problem =
                "names a virtual host . or .., which no URL can: it would mean another one";
            return Err(BadUrl(problem.to_owned()));
        }
        Endpoint::parse(url, self.ca_pem.clone()).map_err(BadUrl)
    }

    fn management(&self, endpoint: &Endpoint) -> Result<Option<Management>, BadUrl> {
        let url = match &self.management {
            ManagementAt::Off => return Ok(None),
            ManagementAt::Port(port) => endpoint.management_url(*port).map_err(BadUrl)?,
            ManagementAt::Url(url) => url.clone(),
        };
        // Credentials in the URL go before those of AMQP, and nowhere else: errors name the URL.
        let (user, password) = match (url.username(), url.password()) {
            ("", _) => endpoint.credentials(),
            (user, password) => (decoded(user), decoded(password.unwrap_or_default()).into()),
        };
        let mut url = url;
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        let client = Management::new(management::Options {
            url,
            user,
            password,
            virtual_host: endpoint.virtual_host(),
            ca_pem: self.ca_pem.clone(),
        });
        client.map(Some).map_err(BadUrl)
    }
}

/// Whether a text is certificates (PEM) that can be used as [`Options::ca_pem`].
pub fn holds_certificates(pem: &str) -> bool {
    let read = Certificate::from_pem_bundle(pem.as_bytes());
    read.is_ok_and(|read| !read.is_empty())
}

/// Whether the path of a URL is one of those that are [folded away](https://url.spec.whatwg.org/#double-dot-path-segment).
fn names_dots(url: &str) -> bool {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let last = path.splitn(4, '/').nth(3).unwrap_or_default();
    matches!(decoded(last).as_str(), "." | "..")
}

/// A part of a URL as it is meant.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The RabbitMQ backend.
pub struct RabbitMq {
    publish: Link,
    admin: Link,
    lanes: Vec<lane::Lane>,
    next_lane: AtomicUsize,
    replies: Replies,
    checks: Arc<Checks>,
    pool: Pool,
    /// `None`: it is switched off.
    management: Option<Management>,
    endpoint: Endpoint,
    metrics: Metrics,
    /// Each is a connection.
    fetches: Arc<Semaphore>,
    links: watch::Receiver<Links>,
    stop_lanes: CancellationToken,
    lane_tasks: TaskTracker,
    stop_links: CancellationToken,
    link_tasks: TaskTracker,
}

/// The URL is not one of a RabbitMQ server.
#[derive(Debug, thiserror::Error)]
#[error("not a usable AMQP URL: {0}")]
pub struct BadUrl(String);

impl RabbitMq {
    /// Starts connecting, and goes on for ever: an absent broker is no error.
    pub fn start(options: &Options, metrics: &Metrics) -> Result<Arc<Self>, BadUrl> {
        let endpoint = options.endpoint()?;
        let management = options.management(&endpoint)?;
        let (stop_lanes, lane_tasks) = (CancellationToken::new(), TaskTracker::new());
        let (stop_links, link_tasks) = (CancellationToken::new(), TaskTracker::new());
        let connector = Connector {
            endpoint: endpoint.clone(),
            tasks: link_tasks.clone(),
            stop: stop_links.clone(),
            metrics: metrics.clone(),
        };
        let link = |role| supervise::start(&connector, role);
        let (publish, consume) = (link(Role::Publish), link(Role::Consume));
        let (admin, check) = (link(Role::Admin), link(Role::Check));
        let checks = Arc::new(Checks::new(check.clone(), publish.clone()));
        let lane = |index| {
            let stop = stop_lanes.clone();
            let figures = metrics.lane(index);
            lane::Lane::start(&publish, checks.clone(), &lane_tasks, stop, figures)
        };
        let lanes = (0..LANES).map(lane).collect();
        let replies = Replies::start(&endpoint, &publish, &lane_tasks, stop_lanes.clone());
        Ok(Arc::new(Self {
            links: follow([&publish, &check, &consume], &link_tasks),
            checks,
            pool: Pool::new(consume, connector),
            publish,
            admin,
            management,
            endpoint,
            metrics: metrics.clone(),
            fetches: Arc::new(Semaphore::new(MAX_FETCHES)),
            lanes,
            replies,
            next_lane: AtomicUsize::new(0),
            stop_lanes,
            lane_tasks,
            stop_links,
            link_tasks,
        }))
    }

    /// Waits until the links stand, at most for `patience`.
    pub async fn connected(&self, patience: Duration) -> bool {
        let mut links = self.links();
        let up = links
            .wait_for(|links| links.publish == LinkState::Up && links.consume == LinkState::Up);
        let ready = timeout(patience, up).await;
        matches!(ready, Ok(Ok(_))) && self.publish.up().is_some()
    }
}

/// Sums up the links, at each change: those that publish, check what is published, and consume.
fn follow(links: [&Link; 3], tasks: &TaskTracker) -> watch::Receiver<Links> {
    fn sum([publish, check, consume]: &[watch::Receiver<State>; 3]) -> Links {
        let state = |link: &watch::Receiver<State>| match &*link.borrow() {
            State::Down => LinkState::Down,
            State::Up(up) if up.blocked => LinkState::Blocked,
            State::Up(up) if up.failing => LinkState::Failing,
            State::Up(_) => LinkState::Up,
        };
        Links {
            // What cannot be checked is not published.
            publish: match (state(publish), state(check)) {
                (publish, check) if check.is_sound() => publish,
                (LinkState::Down, _) => LinkState::Down,
                (_, check) => check,
            },
            consume: state(consume),
        }
    }
    let mut links = links.map(Link::watch);
    let (sender, receiver) = watch::channel(sum(&links));
    tasks.spawn(async move {
        let mut supervised = true;
        while supervised {
            let [publish, check, consume] = &mut links;
            tokio::select! {
                changed = publish.changed(), if publish.has_changed().is_ok() => drop(changed),
                changed = check.changed(), if check.has_changed().is_ok() => drop(changed),
                changed = consume.changed(), if consume.has_changed().is_ok() => drop(changed),
                else => supervised = false,
            }
            let now = sum(&links);
            sender.send_if_modified(|links| std::mem::replace(links, now) != now);
        }
    });
    receiver
}

#[async_trait]
impl Broker for RabbitMq {
    async fn check(&self, target: Target<'_>, deadline: Instant) -> Result<Checked, Error> {
        self.checks.check(target, deadline).await
    }

    fn lane(&self) -> Lane {
        Lane(self.next_lane.fetch_add(1, Ordering::Relaxed) % LANES)
    }

    fn publish(&self, lane: Lane, publish: Publish, reply: PublishReply) {
        if names::is_direct_reply(&publish.exchange, &publish.routing_key) {
            self.replies.publish((publish, reply));
        } else if let Some(lane) = self.lanes.get(lane.0) {
            lane.publish((publish, reply));
        }
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>, Error> {
        let deadline = subscribe.deadline;
        // Where the refusal of a missing queue costs no subscription its channel's number.
        timeout_at(deadline, self.see_queues(&subscribe.queues))
            .await
            .map_err(|_| Error::TimedOut)??;
        let place = self.pool.place(deadline).await?;
        let running = channel::to_the_end(consumer::subscribe(place, subscribe));
        let running = timeout_at(deadline, running);
        let running = running.await.map_err(|_| Error::TimedOut)??;
        Ok(Box::new(running))
    }

    async fn declare(&self, topology: &Topology) -> Result<Vec<Difference>, Error> {
        let up = self.admin.ready(LINK_PATIENCE).await.ok_or(Error::Down)?;
        let (topology, endpoint) = (topology.clone(), self.endpoint.clone());
        let declaring = channel::to_the_end(async move {
            let declaring = declare::declare(&up, &endpoint, &topology);
            up.while_up(declaring).await
        });
        timeout(DECLARE_TIMEOUT, declaring)
            .await
            .unwrap_or(Err(Error::TimedOut))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn links(&self) -> watch::Receiver<Links> {
        self.links.clone()
    }

    async fn close(&self) {
        // First the publishes in flight, then the connections that they need.
        for (stop, tasks) in [
            (&self.stop_lanes, &self.lane_tasks),
            (&self.stop_links, &self.link_tasks),
        ] {
            stop.cancel();
            tasks.close();
            let _ = timeout(CLOSE_TIMEOUT, tasks.wait()).await;
        }
    }
}
