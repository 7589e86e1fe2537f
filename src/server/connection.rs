//! A client's connection: it counts as long as it lasts, and must begin a request soon.
//!
//! Whoever connects and stays silent would keep a descriptor for ever: neither HTTP/1 nor HTTP/2 has a limit before its first bytes.
//! A request has begun when HTTP/2's preface is complete (from then on the keepalive pings find out who is gone), or when the head of a
//! request of HTTP/1 has been read.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Request;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use super::seats::Seat;

/// What each connection of HTTP/2 begins with (<https://www.rfc-editor.org/rfc/rfc9113#section-3.4>).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// See the [module](self).
pub(super) struct Connection {
    stream: TcpStream,
    /// `None`: a request has begun.
    patience: Option<Pin<Box<Sleep>>>,
    /// How much of the preface has come; `None`: it is HTTP/1.
    preface: Option<usize>,
    begun: Begun,
    _seat: Seat,
}

/// Whether a connection's first request has come. Among the extensions of its requests.
#[derive(Clone, Default)]
pub(super) struct Begun(Arc<AtomicBool>);

impl Connection {
    pub(super) fn new(stream: TcpStream, seat: Seat, patience: Duration) -> Self {
        Self {
            stream,
            patience: Some(Box::pin(sleep(patience))),
            preface: Some(0),
            begun: Begun::default(),
            _seat: seat,
        }
    }

    /// Follows the preface through what was read.
    fn note(&mut self, read: &[u8]) {
        let Some(seen) = self.preface else { return };
        let expected = &PREFACE[seen..];
        let compared = expected.len().min(read.len());
        if expected[..compared] != read[..compared] {
            self.preface = None;
        } else if compared == expected.len() {
            self.patience = None;
        } else {
            self.preface = Some(seen + compared);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.patience.is_some() && self.begun.0.load(Ordering::Relaxed) {
            self.patience = None;
        }
        if let Some(patience) = &mut self.patience
            && patience.as_mut().poll(context).is_ready()
        {
            let silent = "no request began in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, silent)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.patience.is_some() {
            self.note(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = Begun;

    fn connect_info(&self) -> Begun {
        self.begun.clone()
    }
}

/// Tells a request's connection that it has begun.
pub(super) fn begun<B>(request: Request<B>) -> Request<B> {
    if let Some(begun) = request.extensions().get::<Begun>() {
        begun.0.store(true, Ordering::Relaxed);
    }
    request
}
