//! A supervised connection: when it breaks, the supervisor builds a fresh one, for ever.
//!
//! Users watch [`State`] and take what they need from the connection of the moment; nothing survives a generation.
//! The client library's own recovery is left off: each user must know exactly which generation its work was on.

use std::{
    net::{IpAddr, Ipv6Addr, Shutdown},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_compat::Compat;
use async_rs::{Runtime, Tokio, TokioRuntime};
use futures::StreamExt;
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
use tracing::{debug, info, warn};

use crate::{broker::Error, metrics::Metrics};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The broker and the client each close a connection that was silent for two of these
/// (<https://www.rabbitmq.com/docs/heartbeats>).
const HEARTBEAT_SECONDS: u16 = 10;

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

/// What a link is for. Each role has connections of its own, so that a blocked publisher never stops acks.
#[derive(Clone, Copy, Debug, strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(super) enum Role {
    Publish,
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
    pub(super) connection: Arc<Connection>,
    /// Counts connections of this link, from 1.
    pub(super) generation: u64,
    /// The broker takes no messages from this connection (<https://www.rabbitmq.com/docs/connection-blocked>).
    pub(super) blocked: bool,
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

    /// Does what needs the connection of `up`, as long as it lasts. On one that is about to end, the client library may wait for
    /// an answer for ever.
    pub(super) async fn while_up<T>(
        &self,
        up: &Up,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut state = self.watch();
        let replaced = |state: &State| state.up().map(|now| now.generation) != Some(up.generation);
        tokio::select! {
            done = work => done,
            _ = state.wait_for(replaced) => Err(Error::Down),
        }
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
    let Connector {
        endpoint,
        stop,
        metrics,
        ..
    } = connector;
    let mut stood = false;
    let mut generation = 0;
    let mut failures = 0;
    loop {
        generation += 1;
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = connect(&endpoint, role, generation) => outcome,
        };
        match outcome {
            Ok((connection, cord)) => {
                failures = 0;
                metrics.connected(role.into(), stood);
                stood = true;
                info!(link = %role, generation, "connected to the broker");
                let cause = live(connection, generation, &state, &stop).await;
                state.send_replace(State::Down);
                cord.cut();
                match cause {
                    Some(cause) => warn!(link = %role, generation, cause, "lost the broker"),
                    None => return,
                }
            }
            // Every failure matters at first; during a long outage one line in ten is enough.
            Err(cause) if failures % 10 == 0 => {
                warn!(link = %role, failures, cause, "cannot reach the broker; trying on");
            }
            Err(cause) => debug!(link = %role, failures, cause, "cannot reach the broker"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(backoff(failures)) => {}
        }
        failures += 1;
    }
}

/// Full jitter, so that a hundred gateways do not return in step.
fn backoff(failures: u32) -> Duration {
    let ceiling = BACKOFF_MIN
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(BACKOFF_MAX);
    ceiling.mul_f64(fastrand::f64())
}

async fn connect(
    endpoint: &Endpoint,
    role: Role,
    generation: u64,
) -> Result<(Connection, Cord), String> {
    let host = gethostname::gethostname();
    let name = format!("courtier/{role}/{}/{generation}", host.to_string_lossy());
    let properties = ConnectionProperties::default().with_connection_name(name.into());

    let cord = Cord::default();
    // Also when whoever waits gives up.
    let abandoned = Abandoned(Some(cord.clone()));
    let (tls, kept) = (endpoint.tls.clone(), cord.clone());
    let connector = async move |uri: AMQPUri, _: Runtime<Tokio>| {
        let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        kept.tie(&stream)?;
        let stream = AsyncTcpStream::Plain(Compat::new(stream));
        match uri.scheme {
            AMQPScheme::AMQP => Ok(stream),
            AMQPScheme::AMQPS => Ok(stream.into_tls(host, tls.as_ref()).await?),
        }
    };
    let mut uri = endpoint.uri.clone();
    if matches!(role, Role::Admin) {
        // The client library's buffers are 64 frames large; nothing that is administered needs large ones.
        uri.query.frame_max.get_or_insert(ADMIN_FRAME_BYTES);
    }
    let connecting =
        Connection::connector(uri, TokioRuntime::tokio_current(), connector, properties);
    match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => {
            abandoned.not();
            Ok((connection, cord))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no handshake within {HANDSHAKE_TIMEOUT:?}")),
    }
}

/// A connection for one purpose, that nothing else depends on. Nobody builds it anew; it ends when it is dropped.
pub(super) struct Once {
    pub(super) connection: Connection,
    cord: Cord,
}

impl Once {
    /// The error is for people.
    pub(super) async fn connect(endpoint: &Endpoint, role: Role) -> Result<Self, String> {
        let (connection, cord) = connect(endpoint, role, 0).await?;
        Ok(Self { connection, cord })
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

/// Connects once, and leaves. The error is for people.
pub(super) async fn probe(endpoint: &Endpoint) -> Result<(), String> {
    Once::connect(endpoint, Role::Admin).await?.close().await
}

/// Follows one connection to its end. `None`: it was closed on request.
async fn live(
    connection: Connection,
    generation: u64,
    state: &watch::Sender<State>,
    stop: &CancellationToken,
) -> Option<String> {
    let mut events = std::pin::pin!(connection.events_listener());
    let connection = Arc::new(connection);
    let publish = |blocked| {
        state.send_replace(State::Up(Up {
            connection: connection.clone(),
            generation,
            blocked,
        }));
    };
    publish(connection.status().blocked());
    loop {
        // The events tell at once; the look at the status makes sure that an end before the listener stood is seen.
        let event = tokio::select! {
            () = stop.cancelled() => {
                let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "bye".into())).await;
                return None;
            }
            event = timeout(Duration::from_secs(1), events.next()) => event,
        };
        match event {
            Ok(Some(Event::ConnectionBlocked(reason))) => {
                warn!(reason, "the broker takes no messages");
                publish(true);
            }
            Ok(Some(Event::ConnectionUnblocked)) => {
                info!("the broker takes messages again");
                publish(false);
            }
            // Errors of channels come here too; those are their users' business.
            Ok(Some(Event::Error(error))) if !connection.status().connected() => {
                return Some(error.to_string());
            }
            Ok(Some(_)) => {}
            Ok(None) => return Some("closed".into()),
            Err(_) if connection.status().connected() => {}
            Err(_) => return Some("no longer connected".into()),
        }
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
