//! Keeps a link's connection: makes it, follows it, makes it anew when it is lost, and another in its place before it wears out
//! (see [`super::link`]).

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use lapin::Event;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    connect::{CLOSE_TIMEOUT, Connected, Cord, Role, connect},
    endpoint::Endpoint,
    link::{Connector, Line, Link, State, Up},
    selfcheck::{self, Failures},
};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often a connection that was replaced is looked at: whether somebody uses it still.
const UNUSED_LOOK: Duration = Duration::from_millis(500);

/// Starts a link and whoever keeps it.
pub(super) fn start(connector: &Connector, role: Role) -> Link {
    let (sender, state) = watch::channel(State::Down);
    let supervised = supervise(connector.clone(), role, sender);
    connector.tasks.spawn(supervised);
    Link::following(state)
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
                        warn!(link = %role, generation, cause, "lost the connection to the broker");
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
