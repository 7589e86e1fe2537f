//! Makes one connection.

use std::{
    net::Shutdown,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_compat::Compat;
use async_rs::Runtime;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    uri::{AMQPScheme, AMQPUri},
};
use tokio::{net::TcpStream, time::timeout};

use super::{
    endpoint::{Endpoint, HANDSHAKE_TIMEOUT},
    wire::{self, Kit, Notes, Wire},
};

pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const ADMIN_FRAME_BYTES: u32 = 8 * 1024;

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
    /// Publishes to clients that wait for a reply: some addresses end the connection.
    Reply,
}

/// A connection that was just made.
pub(super) struct Connected {
    pub(super) connection: Connection,
    pub(super) generation: u64,
    pub(super) cord: Cord,
    pub(super) notes: Arc<Notes>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotConnected {
    #[error(transparent)]
    Client(#[from] lapin::Error),
    #[error("no handshake within {HANDSHAKE_TIMEOUT:?}")]
    Silent,
}

pub(super) async fn connect(
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

/// A second handle on the socket. The client library's thread waits for ever on a peer that went silent, in the handshake or
/// when blocked; shutting the socket down is the one way to end it.
#[derive(Clone, Default)]
pub(super) struct Cord(Arc<Mutex<Tie>>);

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

    pub(super) fn cut(&self) {
        let mut tie = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Tie::Tied(stream) = std::mem::replace(&mut *tie, Tie::Cut) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
