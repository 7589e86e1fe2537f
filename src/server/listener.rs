//! Accepts clients' connections, as many as there may be: in all, from one address, and as the descriptors allow.
//!
//! What is too many is closed at once, so that those who are connected go on as before. Refusals are counted by reason, one line of the
//! log in ten seconds tells of them, and the alert `connections_refused` stands while they last.

use std::{io, net::IpAddr, time::Duration};

use futures::{Stream, stream};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use super::{
    connection::Connection,
    descriptors,
    seats::{Most, Seats},
};
use crate::{
    config::Http,
    metrics::{ConnectionRefused, Metrics},
};

/// How long to wait when a connection cannot be accepted: the next attempt would fail as well.
const PAUSE: Duration = Duration::from_millis(100);
/// The log tells of refusals at most so often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Listener {
    socket: TcpListener,
    seats: Seats,
    patience: Duration,
    metrics: Metrics,
    untold: u64,
    told_at: Option<Instant>,
}

impl Listener {
    pub(super) fn new(socket: TcpListener, http: &Http, metrics: &Metrics) -> Self {
        let most = most(http, descriptors::left_for_clients());
        if most.in_all < http.max_connections {
            let (connections, wanted) = (most.in_all, http.max_connections);
            warn!(
                connections,
                wanted,
                "the limit of open files (ulimit -n) leaves room for fewer connections than MAX_CONNECTIONS; raise it"
            );
        }
        Self {
            socket,
            seats: Seats::new(most, metrics.clone()),
            patience: http.first_request_timeout,
            metrics: metrics.clone(),
            untold: 0,
            told_at: None,
        }
    }

    /// The connections, for as long as somebody asks for them.
    pub(super) fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold(self, |mut listener| async {
            let connection = listener.next().await;
            Some((Ok(connection), listener))
        })
    }

    async fn next(&mut self) -> Connection {
        loop {
            match self.socket.accept().await {
                Ok((stream, from)) => match self.seats.take(from.ip()) {
                    Ok(seat) => {
                        set_nodelay(&stream);
                        return Connection::new(stream, seat, self.patience);
                    }
                    Err(reason) => self.refused(reason, Some(from.ip()), None),
                },
                // It went away before it was accepted.
                Err(error) if is_the_clients(&error) => {
                    debug!(%error, "cannot accept a connection")
                }
                Err(error) => {
                    self.refused(ConnectionRefused::Descriptors, None, Some(&error));
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn refused(
        &mut self,
        reason: ConnectionRefused,
        address: Option<IpAddr>,
        error: Option<&io::Error>,
    ) {
        self.metrics.connection_refused(reason);
        self.untold += 1;
        if self.told_at.is_some_and(|told| told.elapsed() < TOLD_EVERY) {
            return;
        }
        let (
            connections,
            Most {
                in_all,
                from_one_address,
            },
        ) = (self.untold, self.seats.most());
        let address = address.map(tracing::field::display);
        match reason {
            ConnectionRefused::Limit => warn!(
                connections,
                address,
                limit = in_all,
                "refused connections: there are as many as there may be (MAX_CONNECTIONS, ulimit -n)"
            ),
            ConnectionRefused::AddressLimit => warn!(
                connections,
                address,
                limit = from_one_address,
                "refused connections: too many from one address (MAX_CONNECTIONS_PER_ADDRESS; a proxy in front is one address)"
            ),
            ConnectionRefused::Descriptors => warn!(
                connections,
                error = error.map(tracing::field::display),
                "cannot accept connections; raise the limit of open files (ulimit -n)"
            ),
        }
        (self.untold, self.told_at) = (0, Some(Instant::now()));
    }
}

/// A response is not to wait for the acknowledgement of the one before.
fn set_nodelay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
}

/// Errors of the connection itself: the next one may well be accepted
/// (<https://man7.org/linux/man-pages/man2/accept.2.html#ERRORS>).
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, TimedOut, WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | TimedOut
            | WouldBlock
    )
}

/// What the settings and the descriptors allow together.
fn most(http: &Http, descriptors: usize) -> Most {
    let in_all = http.max_connections.min(descriptors).max(1);
    let from_one_address = match http.max_connections_per_address {
        Some(most) => most.min(in_all),
        None => in_all.div_ceil(2),
    };
    Most {
        in_all,
        from_one_address,
    }
}
