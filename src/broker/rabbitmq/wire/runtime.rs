//! The client library asks its runtime what a TCP stream is. This one is tokio's in everything, but for that: it is a [`Wire`].

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures::{
    Stream,
    io::{AsyncRead, AsyncWrite},
};

use super::Wire;

pub(in crate::broker::rabbitmq) type Kit = RuntimeParts<Tokio, Wires>;

/// The runtime of the moment.
pub(in crate::broker::rabbitmq) fn current() -> Runtime<Kit> {
    let tokio = Tokio::current();
    Runtime::new(Kit::new(tokio.clone(), Wires(tokio)))
}

#[derive(Clone, Debug)]
pub(in crate::broker::rabbitmq) struct Wires(Tokio);

impl Reactor for Wires {
    type TcpStream = Wire;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// Not used: connections are made by [`super::super::link`].
    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
