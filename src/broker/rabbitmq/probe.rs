//! Looks at a RabbitMQ once, step by step, so that what is wrong can be named: the network, TLS, the user, or the virtual host.

use std::{
    io,
    time::{Duration, SystemTime},
};

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    BadUrl, Options,
    connect::{NotConnected, Once, Role},
    endpoint::{self, Endpoint},
};

/// How long whoever listens may take to say what it speaks.
const TELLING: Duration = Duration::from_secs(3);

/// What there is to say of a RabbitMQ that is asked once.
#[derive(Debug)]
pub struct Probe {
    /// Its host and port.
    pub address: String,
    pub user: String,
    pub virtual_host: String,
    /// Whether it takes a connection of this user to this virtual host.
    pub amqp: Result<(), Trouble>,
    pub management: ManagementProbe,
}

/// What there is to say of its management API.
#[derive(Debug)]
pub enum ManagementProbe {
    /// It is not used.
    Off,
    Answers {
        /// What its clock says, if it says that.
        clock: Option<SystemTime>,
    },
    /// Why it does not answer, for people.
    Fails(String),
}

/// Why it takes none.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Nobody listens there, or the name leads nowhere.
    #[error("{0}")]
    Unreachable(#[source] io::Error),
    /// The URL says amqps, and AMQP without TLS is spoken there.
    #[error("what listens there speaks AMQP without TLS")]
    IsPlain,
    /// The URL says amqp, and TLS is spoken there.
    #[error("what listens there speaks TLS")]
    IsEncrypted,
    /// It speaks TLS, but not so that it is trusted.
    #[error("{0}")]
    Tls(#[source] io::Error),
    /// It knows no such user, or not with this password.
    #[error("it refuses the user or the password")]
    Credentials,
    /// There is no such virtual host, or the user may not use it.
    #[error("{0}")]
    VirtualHost(String),
    #[error("{0}")]
    Other(String),
}

impl Trouble {
    /// Whether it is about encryption.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::IsPlain | Self::IsEncrypted | Self::Tls(_))
    }
}

/// Asks once.
pub async fn probe(options: &Options) -> Result<Probe, BadUrl> {
    let endpoint = options.endpoint()?;
    let management = options.management(&endpoint)?;
    let asking = async {
        match &management {
            None => ManagementProbe::Off,
            Some(management) => match management.probe().await {
                Ok(clock) => ManagementProbe::Answers { clock },
                Err(problem) => ManagementProbe::Fails(problem),
            },
        }
    };
    let (amqp, management) = tokio::join!(amqp(&endpoint), asking);
    let (host, port) = endpoint.address();
    Ok(Probe {
        address: format!("{host}:{port}"),
        user: endpoint.credentials().0,
        virtual_host: endpoint.virtual_host(),
        amqp,
        management,
    })
}

async fn amqp(endpoint: &Endpoint) -> Result<(), Trouble> {
    let stream = endpoint::reach(endpoint)
        .await
        .map_err(Trouble::Unreachable)?;
    if !endpoint.is_encrypted() {
        // Not kept: it may be one connection too many.
        drop(stream);
    } else if let Err(error) = endpoint::encrypt(endpoint, stream).await {
        return Err(match spoken(endpoint).await {
            Some(Spoken::Amqp) => Trouble::IsPlain,
            _ => Trouble::Tls(error),
        });
    }
    let error = match Once::connect(endpoint, Role::Admin).await {
        Ok(connection) => return connection.close().await.map_err(Trouble::Other),
        Err(error) => error,
    };
    if let NotConnected::Client(error) = &error
        && let lapin::ErrorKind::ProtocolError(refusal) = error.kind()
    {
        match refusal.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => return Err(Trouble::Credentials),
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                return Err(Trouble::VirtualHost(refusal.get_message().to_string()));
            }
            _ => {}
        }
    }
    if !endpoint.is_encrypted() && matches!(spoken(endpoint).await, Some(Spoken::Tls)) {
        return Err(Trouble::IsEncrypted);
    }
    Err(Trouble::Other(error.to_string()))
}

/// What a port speaks.
enum Spoken {
    Amqp,
    Tls,
}

/// Says hello in AMQP, and looks at how the answer begins: with a method, with the version that is spoken there, or with an alert of
/// TLS (<https://www.rfc-editor.org/rfc/rfc8446#section-5.1>).
async fn spoken(endpoint: &Endpoint) -> Option<Spoken> {
    let asking = async {
        let mut stream = endpoint::reach(endpoint).await.ok()?;
        stream.write_all(b"AMQP\0\0\x09\x01").await.ok()?;
        stream.read_u8().await.ok()
    };
    match timeout(TELLING, asking).await.ok()?? {
        1 | b'A' => Some(Spoken::Amqp),
        21 => Some(Spoken::Tls),
        _ => None,
    }
}
