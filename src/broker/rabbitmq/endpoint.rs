//! Where the broker is: its URL, and what is read in it.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use async_compat::Compat;
use lapin::{
    AsyncTcpStream,
    tcp::OwnedTLSConfig,
    uri::{AMQPScheme, AMQPUri},
};
use reqwest::Url;
use secrecy::SecretString;
use tokio::{net::TcpStream, time::timeout};

pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The broker and the client each close a connection that was silent for two of these
/// (<https://www.rabbitmq.com/docs/heartbeats>).
const HEARTBEAT_SECONDS: u16 = 10;

/// Where the broker is, and what proves that it is the right one.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) uri: AMQPUri,
    pub(super) tls: OwnedTLSConfig,
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
