//! A supervised connection: when it breaks, the supervisor builds a fresh one, for ever.
//!
//! Users watch [`State`] and take what they need from the connection of the moment; nothing survives a generation.
//! The client library's own recovery is left off: each user must know exactly which generation its work was on.
//!
//! A connection also wears out. lapin 4.12 keeps the error with which the broker ended a channel under that channel's number, and a
//! later channel of the same number fails with it at once. Numbers are few (2,047) and come again, so that a connection on which
//! questions keep being refused runs out of usable ones. It is therefore renewed in time: when half of its numbers are spoilt, a
//! fresh connection takes its place, and the old one serves whoever still uses it until nobody does.

use std::{
    net::{IpAddr, Ipv6Addr, Shutdown},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_compat::Compat;
use async_rs::Runtime;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties, Event,
    tcp::OwnedTLSConfig,
    uri::{AMQPScheme, AMQPUri},
};
use reqwest::Url;
use secrecy::SecretString;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use super::{
    selfcheck::{self, Failures},
    wire::{self, Kit, Notes, Wire},
};
use crate::{broker::Error, metrics::Metrics};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The broker and the client each close a connection that was silent for two of these
/// (<https://www.rabbitmq.com/docs/heartbeats>).
const HEARTBEAT_SECONDS: u16 = 10;

/// How often a connection that was replaced is looked at: whether somebody uses it still.
const UNUSED_LOOK: Duration = Duration::from_millis(500);

const ADMIN_FRAME_BYTES: u32 = 8 * 1024;

/// Where the broker is, and what proves that it is the right one.
#[derive(Clone)]
pub(super) struct Endpoint {
    uri: AMQPUri,
    tls: OwnedTLSConfig,
}

impl Endpoint {
    /// `ca_pem`: certificates to trust besides the public ones.
    pub(super) fn parse(url: &str, ca_pem: Option<String>) -> Result<Self, String> {
        let mut uri: AMQPUri = url.parse()?;
        let user = &uri.authority.userinfo;
        if (user.username.as_str(), user.password.as_str()) == ("guest", "guest") && !is_local(&uri)
        {
            return Err(
                "guest/guest is everybody's password; make a user for the gateway \
                        (https://www.rabbitmq.com/docs/access-control#default-state)"
                    .to_owned(),
            );
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        let tls = OwnedTLSConfig {
            identity: None,
            cert_chain: ca_pem,
        };
        Ok(Self { uri, tls })
    }

    /// Host and port.
    pub(super) fn address(&self) -> (&str, u16) {
        (&self.uri.authority.host, self.uri.authority.port)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self.uri.scheme, AMQPScheme::AMQPS)
    }

    pub(super) fn is_local(&self) -> bool {
        is_local(&self.uri)
    }

    pub(super) fn virtual_host(&self) -> String {
        self.uri.vhost.clone()
    }

    pub(super) fn credentials(&self) -> (String, SecretString) {
        let user = &self.uri.authority.userinfo;
        (user.username.clone(), user.password.clone().into())
    }

    /// The management API's usual place on the same host (<https://www.rabbitmq.com/docs/networking#ports>).
    pub(super) fn management_url(&self, port: Option<u16>) -> Result<Url, String> {
        let (scheme, usual) = match self.uri.scheme {
            AMQPScheme::AMQP => ("http", 15672),
            AMQPScheme::AMQPS => ("https", 15671),
        };
        let (host, port) = (&self.uri.authority.host, port.unwrap_or(usual));
        let host = match host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => host.clone(),
        };
        let url = format!("{scheme}://{host}:{port}/");
        url.parse().map_err(|error| format!("{url}: {error}"))
    }
}

fn is_local(uri: &AMQPUri) -> bool {
    match uri.authority.host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => uri.authority.host == "localhost",
    }
}

/// Connects to where the broker is, and no further.
pub(super) async fn reach(endpoint: &Endpoint) -> std::io::Result<TcpStream> {
    let stream = timeout(HANDSHAKE_TIMEOUT, TcpStream::connect(endpoint.address())).await;
    stream.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

/// Makes an encrypted connection of a plain one, as links do.
pub(super) async fn encrypt(endpoint: &Endpoint, stream: TcpStream) -> std::io::Result<()> {
    let stream = AsyncTcpStream::Plain(Compat::new(stream));
    let handshake = stream.into_tls(endpoint.address().0, endpoint.tls.as_ref());
    let done = timeout(HANDSHAKE_TIMEOUT, handshake).await;
    done.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
        .map(drop)
}

/// What a link is for. Each role has connections of its own, so that a blocked publisher never stops acks.
#[derive(Clone, Copy, Debug, strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(super) enum Role {
    Publish,
    /// Asks what the broker takes, before it is published.
    Check,
    Consume,
    Admin,
    Fetch,
}

/// The connection of the moment.
#[derive(Clone)]
pub(super) enum State {
    Down,
    Up(Up),
}

#[derive(Clone)]
pub(super) struct Up {
    line: Arc<Line>,
    /// The broker takes no messages from this connection (<https://www.rabbitmq.com/docs/connection-blocked>).
    pub(super) blocked: bool,
    /// It stands, and does not do its work ([`selfcheck`]).
    pub(super) failing: bool,
}

/// One connection, for as long as somebody uses it.
struct Line {
    connection: Connection,
    /// Counts connections of this link, from 1.
    generation: u64,
    notes: Arc<Notes>,
    /// Cancelled when the connection is over.
    ended: CancellationToken,
}

impl Up {
    pub(super) fn connection(&self) -> &Connection {
        &self.line.connection
    }

    pub(super) fn generation(&self) -> u64 {
        self.line.generation
    }

    pub(super) fn notes(&self) -> &Notes {
        &self.line.notes
    }

    /// Whether the connection stands; it may have been replaced all the same.
    pub(super) fn stands(&self) -> bool {
        !self.line.ended.is_cancelled() && self.line.connection.status().connected()
    }

    /// Does what needs this connection, as long as it lasts. On one that is about to end, the client library may wait for an answer
    /// for ever.
    pub(super) async fn while_up<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            () = self.line.ended.cancelled() => Err(Error::Down),
        }
    }
}

impl State {
    pub(super) fn up(&self) -> Option<&Up> {
        match self {
            Self::Down => None,
            Self::Up(up) => Some(up),
        }
    }
}

/// A supervised connection. Closed by its token.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
}

/// What all links are made with.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) endpoint: Endpoint,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) metrics: Metrics,
}

impl Link {
    pub(super) fn start(connector: &Connector, role: Role) -> Self {
        let (sender, state) = watch::channel(State::Down);
        let supervised = supervise(connector.clone(), role, sender);
        connector.tasks.spawn(supervised);
        Self { state }
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    pub(super) fn up(&self) -> Option<Up> {
        self.state.borrow().up().cloned()
    }

    /// Waits until the broker takes no messages from this link, maybe for ever.
    pub(super) async fn blocked(&self) {
        let mut state = self.watch();
        let blocked = |state: &State| state.up().is_some_and(|up| up.blocked);
        if state.wait_for(blocked).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the first attempt to connect succeeded, at most for `patience`.
    pub(super) async fn ready(&self, patience: Duration) -> Option<Up> {
        let mut state = self.watch();
        let up = timeout(patience, state.wait_for(|state| state.up().is_some())).await;
        up.ok()?.ok()?.up().cloned()
    }
}

async fn supervise(connector: Connector, role: Role, state: watch::Sender<State>) {
    let mut stood = false;
    let mut generation = 0;
    let mut failures = 0;
    loop {
        generation += 1;
        let outcome = tokio::select! {
            () = connector.stop.cancelled() => return,
            outcome = connect(&connector.endpoint, role, generation) => outcome,
        };
        match outcome {
            Ok(connected) => {
                failures = 0;
                connector.metrics.connected(role.into(), stood);
                stood = true;
                info!(link = %role, generation, "connected to the broker");
                let followed = follow(&connector, role, connected, &state).await;
                state.send_replace(State::Down);
                match followed {
                    Some(lost) => {
                        generation = lost.generation;
                        let cause = lost.cause;
                        warn!(link = %role, generation, cause, "lost the broker");
                    }
                    None => return,
                }
            }
            // Every failure matters at first; during a long outage one line in ten is enough.
            Err(cause) if failures % 10 == 0 => {
                warn!(link = %role, failures, %cause, "cannot reach the broker; retrying in the background");
            }
            Err(cause) => debug!(link = %role, failures, %cause, "cannot reach the broker"),
        }
        tokio::select! {
            () = connector.stop.cancelled() => return,
            () = sleep(backoff(failures)) => {}
        }
        failures += 1;
    }
}

/// How a link's connection was lost.
struct Lost {
    generation: u64,
    cause: String,
}

/// Follows a connection, and those that replace it while it stands, until one is lost. `None`: it was closed on request.
async fn follow(
    connector: &Connector,
    role: Role,
    first: Connected,
    state: &watch::Sender<State>,
) -> Option<Lost> {
    let mut current = Followed::new(first, Failures::default());
    loop {
        current.tell(state);
        match current.live(connector, role, state).await {
            Over::Stopped => return None,
            Over::Lost(cause) => {
                let generation = current.line.generation;
                return Some(Lost { generation, cause });
            }
            Over::Replaced(fresh) => {
                let fresh = Followed::new(*fresh, current.failures);
                let worn = std::mem::replace(&mut current, fresh);
                let generation = current.line.generation;
                info!(link = %role, generation, spoilt = worn.spoilt, "renewed the connection to the broker");
                let stop = connector.stop.clone();
                connector.tasks.spawn(worn.serve_on(stop));
            }
        }
    }
}

/// Full jitter, so that a hundred gateways do not return in step.
fn backoff(failures: u32) -> Duration {
    let ceiling = BACKOFF_MIN
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(BACKOFF_MAX);
    ceiling.mul_f64(fastrand::f64())
}

/// A connection that was just made.
struct Connected {
    connection: Connection,
    generation: u64,
    cord: Cord,
    notes: Arc<Notes>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotConnected {
    #[error(transparent)]
    Client(#[from] lapin::Error),
    #[error("no handshake within {HANDSHAKE_TIMEOUT:?}")]
    Silent,
}

async fn connect(
    endpoint: &Endpoint,
    role: Role,
    generation: u64,
) -> Result<Connected, NotConnected> {
    let host = gethostname::gethostname();
    let name = format!("courtier/{role}/{}/{generation}", host.to_string_lossy());
    let properties = ConnectionProperties::default().with_connection_name(name.into());

    let cord = Cord::default();
    // Also when whoever waits gives up.
    let abandoned = Abandoned(Some(cord.clone()));
    let (tls, kept) = (endpoint.tls.clone(), cord.clone());
    let notes = Arc::<Notes>::default();
    let marks = notes.clone();
    let connector = async move |uri: AMQPUri, _: Runtime<Kit>| {
        let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        kept.tie(&stream)?;
        let stream = AsyncTcpStream::Plain(Compat::new(stream));
        let stream = match uri.scheme {
            AMQPScheme::AMQP => stream,
            AMQPScheme::AMQPS => stream.into_tls(host, tls.as_ref()).await?,
        };
        // Plain to the client library: what it reads is decrypted already.
        Ok(AsyncTcpStream::Plain(Wire::new(stream, marks.clone())))
    };
    let mut uri = endpoint.uri.clone();
    if matches!(role, Role::Admin | Role::Check) {
        // The client library's buffers are 64 frames large; nothing that is asked or administered needs large ones.
        uri.query.frame_max.get_or_insert(ADMIN_FRAME_BYTES);
    }
    let connecting = Connection::connector(uri, wire::runtime(), connector, properties);
    match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => {
            abandoned.not();
            Ok(Connected {
                connection,
                generation,
                cord,
                notes,
            })
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(NotConnected::Silent),
    }
}

/// A connection for one purpose, that nothing else depends on. Nobody builds it anew; it ends when it is dropped.
pub(super) struct Once {
    pub(super) connection: Connection,
    pub(super) notes: Arc<Notes>,
    cord: Cord,
}

impl Once {
    pub(super) async fn connect(endpoint: &Endpoint, role: Role) -> Result<Self, NotConnected> {
        let Connected {
            connection,
            cord,
            notes,
            ..
        } = connect(endpoint, role, 0).await?;
        Ok(Self {
            connection,
            notes,
            cord,
        })
    }

    /// Ends it in order. The error is for people.
    pub(super) async fn close(&self) -> Result<(), String> {
        match timeout(CLOSE_TIMEOUT, self.connection.close(200, "bye".into())).await {
            Ok(closed) => closed.map_err(|error| error.to_string()),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        self.cord.cut();
    }
}

/// Why a connection is not followed any more.
enum Over {
    Stopped,
    Lost(String),
    Replaced(Box<Connected>),
}

/// A connection and what its supervisor knows of it. Dropped, it is over.
struct Followed {
    line: Arc<Line>,
    events: BoxStream<'static, Event>,
    cord: Cord,
    /// Channels that the broker ended by an error: their numbers cannot be used again.
    spoilt: u32,
    blocked: bool,
    /// Of the self-check, on this connection and those that it replaced.
    failures: Failures,
    /// It is to be replaced although it stands.
    worn: bool,
}

impl Followed {
    fn new(connected: Connected, failures: Failures) -> Self {
        let Connected {
            connection,
            generation,
            cord,
            notes,
        } = connected;
        Self {
            events: connection.events_listener().boxed(),
            blocked: connection.status().blocked(),
            failures,
            worn: false,
            line: Arc::new(Line {
                connection,
                generation,
                notes,
                ended: CancellationToken::new(),
            }),
            cord,
            spoilt: 0,
        }
    }

    fn up(&self) -> Up {
        Up {
            line: self.line.clone(),
            blocked: self.blocked,
            failing: self.failures.is_failing(),
        }
    }

    fn tell(&self, state: &watch::Sender<State>) {
        state.send_replace(State::Up(self.up()));
    }

    /// Serves until the connection is lost, or a fresh one stands in its place.
    async fn live(
        &mut self,
        connector: &Connector,
        role: Role,
        state: &watch::Sender<State>,
    ) -> Over {
        let mut replacing: Option<BoxFuture<'_, Connected>> = None;
        let mut asking = selfcheck::next_answer(self.up()).boxed();
        loop {
            if replacing.is_none() && self.worn {
                let from = self.line.generation;
                replacing = Some(replacement(&connector.endpoint, role, from).boxed());
            }
            let event = tokio::select! {
                () = connector.stop.cancelled() => {
                    self.close().await;
                    return Over::Stopped;
                }
                fresh = async { replacing.as_mut()?.await.into() }, if replacing.is_some() => {
                    match fresh {
                        Some(fresh) => return Over::Replaced(Box::new(fresh)),
                        None => continue,
                    }
                }
                answer = &mut asking => {
                    self.note(&answer, role, state);
                    asking = selfcheck::next_answer(self.up()).boxed();
                    continue;
                }
                event = self.event() => event,
            };
            match event {
                Seen::Lost(cause) => return Over::Lost(cause),
                Seen::Blocked(reason) => {
                    warn!(reason, "the broker takes no messages");
                    self.blocked = true;
                    self.tell(state);
                }
                Seen::Unblocked => {
                    info!("the broker takes messages again");
                    self.blocked = false;
                    self.tell(state);
                }
                Seen::Nothing => {}
            }
        }
    }

    /// Notes an answer of the self-check.
    fn note(&mut self, answer: &Result<(), String>, role: Role, state: &watch::Sender<State>) {
        // What was asked before the broker blocked may not be answered.
        if self.blocked {
            return;
        }
        let was_failing = self.failures.is_failing();
        self.failures.count(answer);
        if let Err(problem) = answer {
            warn!(link = %role, problem, "the connection to the broker stands, but does not do its work");
            self.worn |= self.failures.renews();
        }
        if self.failures.is_failing() == was_failing {
            return;
        }
        if was_failing {
            info!(link = %role, "the link to the broker works again");
        } else {
            error!(link = %role, "the link to the broker fails: not ready until it works again");
        }
        self.tell(state);
    }

    /// Serves whoever still uses the connection, until nobody does.
    async fn serve_on(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.event() => {
                    if matches!(event, Seen::Lost(_)) {
                        return;
                    }
                }
                () = sleep(UNUSED_LOOK) => {
                    if Arc::strong_count(&self.line) == 1 {
                        break;
                    }
                }
            }
        }
        self.close().await;
    }

    /// What happens next. The events tell at once; the look at the status makes sure that an end before the listener stood is seen.
    async fn event(&mut self) -> Seen {
        let event = timeout(Duration::from_secs(1), self.events.next()).await;
        let connected = self.line.connection.status().connected();
        match event {
            Ok(Some(Event::ConnectionBlocked(reason))) => Seen::Blocked(reason),
            Ok(Some(Event::ConnectionUnblocked)) => Seen::Unblocked,
            Ok(Some(Event::Error(error))) if !connected => Seen::Lost(error.to_string()),
            // Of a channel, and its user's business; only that its number is spoilt matters here.
            Ok(Some(Event::Error(_))) => {
                self.spoilt += 1;
                let numbers = u32::from(self.line.connection.configuration().channel_max());
                self.worn |= self.spoilt > numbers / 2;
                Seen::Nothing
            }
            Ok(Some(_)) => Seen::Nothing,
            Ok(None) => Seen::Lost("closed".into()),
            Err(_) if connected => Seen::Nothing,
            Err(_) => Seen::Lost("no longer connected".into()),
        }
    }

    async fn close(&mut self) {
        let closing = self.line.connection.close(200, "bye".into());
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.line.ended.cancel();
        self.cord.cut();
    }
}

/// What happened on a connection.
enum Seen {
    Lost(String),
    Blocked(String),
    Unblocked,
    Nothing,
}

/// A connection to take the place of the one of generation `from`, however often it takes.
async fn replacement(endpoint: &Endpoint, role: Role, from: u64) -> Connected {
    let mut failures = 0;
    loop {
        match connect(endpoint, role, from + 1).await {
            Ok(connected) => return connected,
            Err(cause) => {
                warn!(link = %role, %cause, "cannot renew the connection to the broker; retrying")
            }
        }
        sleep(backoff(failures)).await;
        failures += 1;
    }
}

/// A second handle on the socket. The client library's thread waits for ever on a peer that went silent, in the handshake or
/// when blocked; shutting the socket down is the one way to end it.
#[derive(Clone, Default)]
struct Cord(Arc<Mutex<Tie>>);

/// Cuts the cord when it is dropped, unless it was told not to.
struct Abandoned(Option<Cord>);

impl Abandoned {
    fn not(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(cord) = &self.0 {
            cord.cut();
        }
    }
}

#[derive(Default)]
enum Tie {
    #[default]
    Loose,
    Tied(std::net::TcpStream),
    Cut,
}

impl Cord {
    fn tie(&self, stream: &TcpStream) -> std::io::Result<()> {
        let stream = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        let mut tie = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*tie, Tie::Cut) {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        *tie = Tie::Tied(stream);
        Ok(())
    }

    fn cut(&self) {
        let mut tie = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Tie::Tied(stream) = std::mem::replace(&mut *tie, Tie::Cut) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_to_its_ceiling_and_no_further() {
        for failures in [0, 1, 10, u32::MAX] {
            assert!(backoff(failures) <= BACKOFF_MAX);
        }
        assert!(backoff(0) <= BACKOFF_MIN);
    }
}
