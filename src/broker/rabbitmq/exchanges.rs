//! Which exchanges may be published to. Asked on throw-away channels, because a wrong guess ends the channel that it is made on.

use std::{sync::Arc, time::Duration};

use lapin::{
    BasicProperties, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use moka::{Expiry, future::Cache};
use tokio::time::{Instant, timeout_at};

use super::{
    channel, error,
    link::{Link, Up},
};
use crate::broker::{Entity, Error};

/// How long an exchange is believed to exist, and how long to be missing. Within the first, a publish to an exchange that was
/// deleted meanwhile ends the lane's channel, and leaves in doubt what its neighbours had in flight.
const KNOWN_FOR: Duration = Duration::from_secs(5);
const MISSING_FOR: Duration = Duration::from_millis(500);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const REMEMBERED: u64 = 10_000;

/// What is known of exchanges: [`Error`] when they may not be published to.
pub(super) struct Exchanges {
    link: Link,
    known: Cache<String, Verdict>,
    /// Exchanges that took a probe. What it showed (not internal, writable) holds as long as the exchange does.
    probed: Cache<String, ()>,
}

type Verdict = Result<(), Error>;

struct Freshness;

impl Expiry<String, Verdict> for Freshness {
    fn expire_after_create(
        &self,
        _: &String,
        verdict: &Verdict,
        _: std::time::Instant,
    ) -> Option<Duration> {
        Some(match verdict {
            Ok(()) => KNOWN_FOR,
            Err(_) => MISSING_FOR,
        })
    }
}

impl Exchanges {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            known: Cache::builder()
                .max_capacity(REMEMBERED)
                .expire_after(Freshness)
                .build(),
            probed: Cache::new(REMEMBERED),
        }
    }

    pub(super) async fn check(&self, exchange: &str, deadline: Instant) -> Verdict {
        // The default exchange always exists and cannot be declared.
        if exchange.is_empty() {
            return Ok(());
        }
        let Some(up) = self.link.up() else {
            return Err(Error::Down);
        };
        if up.blocked {
            return Err(Error::Blocked);
        }
        if let Some(verdict) = self.known.get(exchange).await {
            return verdict;
        }
        // One question at a time for each exchange; failures to ask are nobody else's answer.
        let asked = self
            .known
            .try_get_with_by_ref(exchange, self.ask(up, exchange, deadline));
        match asked.await {
            Ok(verdict) => verdict,
            Err(failure) => Err(Arc::unwrap_or_clone(failure)),
        }
    }

    /// Forgets what it knows: something that it said proved wrong.
    pub(super) fn forget(&self) {
        self.known.invalidate_all();
        self.probed.invalidate_all();
    }

    /// The outer result says whether the broker could be asked.
    async fn ask(&self, up: Up, exchange: &str, deadline: Instant) -> Result<Verdict, Error> {
        let asking = async {
            let verdict = self.put(exists, &up, exchange).await?;
            if verdict.is_err() {
                self.probed.invalidate(exchange).await;
            } else if !self.probed.contains_key(exchange) {
                let verdict = self.put(accepts, &up, exchange).await?;
                if verdict.is_ok() {
                    self.probed.insert(exchange.to_owned(), ()).await;
                }
                return Ok(verdict);
            }
            Ok(verdict)
        };
        // Others wait for this answer too; whoever asks has no right to keep them for as long as its own deadline allows.
        let soon = Instant::now() + ASK_TIMEOUT;
        tokio::select! {
            answer = timeout_at(deadline.min(soon), asking) => {
                answer.unwrap_or(Err(Error::TimedOut))
            }
            // The probe itself may be what the broker blocks; nothing answers on this connection then.
            () = self.link.blocked() => Err(Error::Blocked),
        }
    }

    /// Puts one question, to its end.
    async fn put<F>(
        &self,
        question: impl FnOnce(Up, String) -> F,
        up: &Up,
        exchange: &str,
    ) -> Result<Verdict, Error>
    where
        F: Future<Output = Result<Verdict, Error>> + Send + 'static,
    {
        let (link, up) = (self.link.clone(), up.clone());
        let answer = question(up.clone(), exchange.to_owned());
        channel::to_the_end(async move { link.while_up(&up, answer).await }).await
    }
}

async fn exists(up: Up, exchange: String) -> Result<Verdict, Error> {
    let channel = channel::open(&up.connection).await?;
    let seen = channel::see_exchange(&channel, &exchange).await;
    if seen.is_ok() {
        let _ = channel.close(200, "seen".into()).await;
    }
    verdict(seen)
}

/// Publishes a message that the broker cannot accept: RabbitMQ checks write permission, existence and `internal` first, and
/// then the `expiration` property, which is malformed; so nothing is ever routed, and the error tells how far it came
/// (`basic.publish` in <https://github.com/rabbitmq/rabbitmq-server/blob/v3.10.8/deps/rabbit/src/rabbit_channel.erl>).
/// There is no other way to learn over AMQP that an exchange is internal or forbidden without ending a channel in use.
async fn accepts(up: Up, exchange: String) -> Result<Verdict, Error> {
    let channel = channel::open(&up.connection).await?;
    error::open(
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await,
    )?;
    let malformed = BasicProperties::default().with_expiration("probe".into());
    let published = channel
        .basic_publish(
            exchange.as_str().into(),
            "".into(),
            BasicPublishOptions::default(),
            &[],
            malformed,
        )
        .await;
    let outcome = match published {
        Ok(confirm) => confirm.await,
        Err(cause) => Err(cause),
    };
    match outcome {
        // A broker that does not look at `expiration` took it: then it may be published to.
        Ok(Confirmation::Ack(_) | Confirmation::Nack(_) | Confirmation::NotRequested) => {
            let _ = channel.close(200, "seen".into()).await;
            Ok(Ok(()))
        }
        Err(cause) if error::is_precondition_failed(&cause) => Ok(Ok(())),
        Err(cause) => verdict(Err(error::classify(&cause, Entity::Exchange, &exchange))),
    }
}

/// Tells a verdict from a failure to ask.
fn verdict(asked: Result<(), Error>) -> Result<Verdict, Error> {
    match asked {
        Ok(()) => Ok(Ok(())),
        Err(verdict @ (Error::NotFound { .. } | Error::Forbidden { .. })) => Ok(Err(verdict)),
        Err(failure) => Err(failure),
    }
}
