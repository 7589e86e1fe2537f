//! What the broker takes, found out before it is published: a publish that is refused ends its channel, and with it what its
//! neighbours on that channel have in flight.
//!
//! A question is a publish in a transaction that is rolled back: the broker looks at the size, at the write permission, for the
//! exchange and at the permission for the key as it would for any other publish, and nothing is ever delivered
//! (`basic.publish` and `tx.rollback` in
//! <https://github.com/rabbitmq/rabbitmq-server/blob/v3.10.8/deps/rabbit/src/rabbit_channel.erl>). Its channel ends only when the
//! answer is no, so what is allowed can be asked as often as one likes.
//!
//! Keys matter only where the user has topic permissions (<https://www.rabbitmq.com/docs/access-control#topic-authorisation>). So each
//! exchange is asked once with a key that nobody uses: refused, every key of that exchange is asked by itself from then on; allowed,
//! none is. Rules that this does not find out come to light when a lane's channel is ended; [`Checks::look_again`] then finds the
//! culprit, and what it learns holds for everybody.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin::{
    BasicProperties, Channel,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable},
};
use moka::{Expiry, future::Cache};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    channel, error,
    link::{Link, Up},
};
use crate::broker::{Checked, Entity, Error, Refusal, Target};

/// How long an exchange or key is believed to be allowed, and how long to be refused. A yes is cheap to ask again; within its time
/// an exchange that is deleted by somebody else ends the lane's channel once.
const ALLOWED_FOR: Duration = Duration::from_secs(30);
const REFUSED_FOR: Duration = Duration::from_millis(500);
/// That an exchange's keys must be asked one by one is learnt at the price of a channel.
const BY_KEY_FOR: Duration = Duration::from_secs(10 * 60);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const REMEMBERED: u64 = 10_000;
/// Questions at a time.
const QUESTIONS: usize = 64;

/// No queue, no binding and no permission names it.
const UNUSED_KEY: &str = "courtier/check/unused";

/// The broker's answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Refused(Refusal),
}

impl Verdict {
    fn of(self, target: Target<'_>) -> Result<(), Error> {
        match self {
            Self::Allowed => Ok(()),
            Self::Refused(refusal) => Err(refusal.of(target)),
        }
    }
}

/// What is known of an exchange.
#[derive(Clone, Copy, Debug)]
enum Known {
    /// Any key may be published.
    Open,
    /// Each key must be asked.
    ByKey,
    Refused(Refusal),
}

/// What the broker takes.
pub(super) struct Checks {
    /// The questions' own connection.
    link: Link,
    /// Where the messages go: nothing can be published while it is down or blocked.
    publish: Link,
    exchanges: Cache<String, Known>,
    keys: Cache<(String, String), Verdict>,
    sizes: Sizes,
    /// Counts what was learnt the hard way. What was checked before must be checked again.
    epoch: AtomicU64,
    asker: Arc<Asker>,
}

struct Freshness;

/// How long an answer is believed.
trait Answer {
    fn holds_for(&self) -> Duration;
}

impl Answer for Known {
    fn holds_for(&self) -> Duration {
        match self {
            Self::Open => ALLOWED_FOR,
            Self::ByKey => BY_KEY_FOR,
            Self::Refused(_) => REFUSED_FOR,
        }
    }
}

impl Answer for Verdict {
    fn holds_for(&self) -> Duration {
        match self {
            Self::Allowed => ALLOWED_FOR,
            Self::Refused(_) => REFUSED_FOR,
        }
    }
}

impl<K, A: Answer> Expiry<K, A> for Freshness {
    fn expire_after_create(&self, _: &K, answer: &A, _: std::time::Instant) -> Option<Duration> {
        Some(answer.holds_for())
    }

    /// What is learnt in the place of something else holds as long as if it were new; by itself the cache would go on counting.
    fn expire_after_update(
        &self,
        _: &K,
        answer: &A,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(answer.holds_for())
    }
}

impl Checks {
    pub(super) fn new(link: Link, publish: Link) -> Self {
        Self {
            link,
            publish,
            exchanges: Cache::builder()
                .max_capacity(REMEMBERED)
                .expire_after(Freshness)
                .build(),
            keys: Cache::builder()
                .max_capacity(REMEMBERED)
                .expire_after(Freshness)
                .build(),
            sizes: Sizes::default(),
            // 0 is never current: it marks what was not checked at all.
            epoch: AtomicU64::new(1),
            asker: Arc::default(),
        }
    }

    /// Whether what was checked then may be published without another look.
    pub(super) fn holds(&self, checked: Checked) -> bool {
        checked.0 == self.epoch.load(Ordering::Relaxed)
    }

    /// Whether the broker takes this.
    pub(super) async fn check(
        &self,
        target: Target<'_>,
        deadline: Instant,
    ) -> Result<Checked, Error> {
        let up = self.publish.up().ok_or(Error::Down)?;
        if up.blocked {
            return Err(Error::Blocked);
        }
        let epoch = Checked(self.epoch.load(Ordering::Relaxed));
        let size = self.check_size(target.size, up.generation(), deadline);
        size.await?.of(target)?;
        let exchange = target.exchange;
        let known = match self.exchanges.get(exchange).await {
            Some(known) => known,
            // One question at a time for each exchange; failures to ask are nobody else's answer.
            None => {
                let asking = self.ask_exchange(exchange, deadline);
                let asked = self.exchanges.try_get_with_by_ref(exchange, asking);
                asked.await.map_err(Arc::unwrap_or_clone)?
            }
        };
        let verdict = match known {
            Known::Open => Verdict::Allowed,
            Known::Refused(refusal) => Verdict::Refused(refusal),
            Known::ByKey => self.check_key(target, deadline).await?,
        };
        verdict.of(target)?;
        Ok(epoch)
    }

    async fn check_key(&self, target: Target<'_>, deadline: Instant) -> Result<Verdict, Error> {
        let key = (target.exchange.to_owned(), target.routing_key.to_owned());
        let asking = self.ask(Question::of(target), deadline);
        let asked = self.keys.try_get_with_by_ref(&key, asking).await;
        asked.map_err(Arc::unwrap_or_clone)
    }

    /// The broker has a limit of its own (`max_message_size`). It is asked for as much as is about to be sent, rounded up, so that
    /// what is asked stays in proportion to what is sent.
    async fn check_size(
        &self,
        size: usize,
        generation: u64,
        deadline: Instant,
    ) -> Result<Verdict, Error> {
        if let Some(verdict) = self.sizes.verdict(size, generation) {
            return Ok(verdict);
        }
        for asked in [size.next_power_of_two(), size] {
            let verdict = self.ask(Question::size(asked), deadline).await?;
            if verdict == Verdict::Refused(Refusal::TooLarge) {
                self.sizes.refused(asked);
            } else {
                self.sizes.accepted(asked);
                return Ok(Verdict::Allowed);
            }
        }
        Ok(Verdict::Refused(Refusal::TooLarge))
    }

    async fn ask_exchange(&self, exchange: &str, deadline: Instant) -> Result<Known, Error> {
        let question = Question {
            exchange: exchange.to_owned(),
            routing_key: UNUSED_KEY.to_owned(),
            size: 0,
        };
        Ok(match self.ask(question, deadline).await? {
            Verdict::Allowed => Known::Open,
            // Of the default exchange no key matters.
            Verdict::Refused(Refusal::Forbidden) if !exchange.is_empty() => Known::ByKey,
            Verdict::Refused(refusal) => Known::Refused(refusal),
        })
    }

    /// Errors when the broker could not be asked.
    async fn ask(&self, question: Question, deadline: Instant) -> Result<Verdict, Error> {
        // Others may wait for this answer too; whoever asks has no right to keep them for as long as its own deadline allows.
        let deadline = deadline.min(Instant::now() + ASK_TIMEOUT);
        let asking = async {
            let ready = self.link.ready(ASK_TIMEOUT);
            let up = ready.await.ok_or(Error::Down)?;
            let asker = self.asker.clone();
            channel::to_the_end(async move { up.while_up(asker.ask(&up, question)).await }).await
        };
        tokio::select! {
            answer = timeout_at(deadline, asking) => answer.unwrap_or(Err(Error::TimedOut)),
            // The question itself may be what the broker blocks; nothing answers on that connection then.
            () = self.link.blocked() => Err(Error::Blocked),
        }
    }

    /// A lane's channel was ended because `refusal` holds for one of these. Asks about each, whatever was believed so far, and
    /// remembers the answers: which of them are refused. None of them, when the broker does not say.
    pub(super) async fn look_again(&self, refusal: Refusal, targets: &[Target<'_>]) -> Vec<bool> {
        // What was checked until now, and what is while this is found out, must be checked again.
        self.epoch.fetch_add(1, Ordering::Relaxed);
        let answers = self.answers(refusal, targets).await;
        self.epoch.fetch_add(1, Ordering::Relaxed);
        answers.unwrap_or_else(|| vec![false; targets.len()])
    }

    async fn answers(&self, refusal: Refusal, targets: &[Target<'_>]) -> Option<Vec<bool>> {
        let mut seen: HashMap<(&str, &str, usize), bool> = HashMap::new();
        let mut answers = Vec::with_capacity(targets.len());
        if refusal == Refusal::TooLarge {
            self.sizes.forget();
        }
        for target in targets {
            let asked = match refusal {
                Refusal::TooLarge => ("", "", target.size),
                Refusal::NoExchange => (target.exchange, "", 0),
                Refusal::Forbidden | Refusal::NoReplyAddress => {
                    (target.exchange, target.routing_key, 0)
                }
            };
            let refused = match seen.get(&asked) {
                Some(refused) => *refused,
                None => self.is_refused(refusal, *target).await?,
            };
            seen.insert(asked, refused);
            answers.push(refused);
        }
        Some(answers)
    }

    /// `None`: the broker does not say.
    async fn is_refused(&self, refusal: Refusal, target: Target<'_>) -> Option<bool> {
        let deadline = Instant::now() + ASK_TIMEOUT;
        let question = match refusal {
            Refusal::TooLarge => Question::size(target.size),
            _ => Question::of(target),
        };
        let refused = match self.ask(question, deadline).await.ok()? {
            // Of a question of size, only that counts.
            Verdict::Refused(found) if refusal != Refusal::TooLarge || found == refusal => found,
            _ => return Some(false),
        };
        self.learn(target, refused).await;
        Some(true)
    }

    async fn learn(&self, target: Target<'_>, refusal: Refusal) {
        let exchange = target.exchange.to_owned();
        match refusal {
            // Such addresses are never asked about: the broker would deliver.
            Refusal::NoReplyAddress => {}
            Refusal::TooLarge => self.sizes.refused(target.size),
            Refusal::NoExchange => {
                self.exchanges
                    .insert(exchange, Known::Refused(refusal))
                    .await;
            }
            Refusal::Forbidden => {
                let key = (exchange.clone(), target.routing_key.to_owned());
                self.keys.insert(key, Verdict::Refused(refusal)).await;
                let known = if exchange.is_empty() {
                    Known::Refused(refusal)
                } else {
                    Known::ByKey
                };
                self.exchanges.insert(exchange, known).await;
            }
        }
    }

    /// Forgets an exchange that this gateway changes itself.
    pub(super) async fn forget(&self, exchange: &str) {
        self.exchanges.invalidate(exchange).await;
        self.keys.invalidate_all();
    }
}

/// Sizes that the broker takes and refuses, as far as it was asked on the publish link's connection of this generation: another
/// broker may be behind the next.
struct Sizes {
    generation: AtomicU64,
    accepted: AtomicUsize,
    /// The smallest; the largest number: none is known.
    refused: AtomicUsize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            generation: AtomicU64::new(0),
            accepted: AtomicUsize::new(0),
            refused: AtomicUsize::new(usize::MAX),
        }
    }
}

impl Sizes {
    fn verdict(&self, size: usize, generation: u64) -> Option<Verdict> {
        if self.generation.swap(generation, Ordering::Relaxed) != generation {
            self.forget();
        }
        if size <= self.accepted.load(Ordering::Relaxed) {
            return Some(Verdict::Allowed);
        }
        let is_refused = size >= self.refused.load(Ordering::Relaxed);
        is_refused.then_some(Verdict::Refused(Refusal::TooLarge))
    }

    fn accepted(&self, size: usize) {
        self.accepted.fetch_max(size, Ordering::Relaxed);
    }

    fn refused(&self, size: usize) {
        self.refused.fetch_min(size, Ordering::Relaxed);
    }

    fn forget(&self) {
        self.accepted.store(0, Ordering::Relaxed);
        self.refused.store(usize::MAX, Ordering::Relaxed);
    }
}

/// What is asked.
#[derive(Debug)]
struct Question {
    exchange: String,
    routing_key: String,
    /// Bytes of the payload.
    size: usize,
}

impl Question {
    /// Whether it may be published, apart from its size. On the default exchange the key must not be the real one: to some keys,
    /// those of direct replies, the broker delivers although nothing was committed.
    fn of(target: Target<'_>) -> Self {
        let routing_key = match target.exchange {
            "" => UNUSED_KEY,
            _ => target.routing_key,
        };
        Self {
            exchange: target.exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            size: 0,
        }
    }

    /// The size is looked at before anything else. On the default exchange, with a key that is nobody's queue.
    fn size(size: usize) -> Self {
        Self {
            exchange: String::new(),
            routing_key: UNUSED_KEY.to_owned(),
            size,
        }
    }
}

/// Puts questions on channels that are used again as long as they last.
struct Asker {
    /// Channels in transaction mode, each with the generation of its connection.
    idle: Mutex<Vec<(u64, Channel)>>,
    at_a_time: Semaphore,
}

impl Default for Asker {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
            at_a_time: Semaphore::new(QUESTIONS),
        }
    }
}

impl Asker {
    async fn ask(&self, up: &Up, question: Question) -> Result<Verdict, Error> {
        let _one = self.at_a_time.acquire().await.map_err(|_| Error::Down)?;
        let channel = self.channel(up).await?;
        match put(&channel, &question).await {
            Ok(()) => {
                self.lock().push((up.generation(), channel));
                Ok(Verdict::Allowed)
            }
            Err(cause) => match up
                .notes()
                .closed_with(channel.id())
                .and_then(error::refused)
            {
                Some(refusal) => Ok(Verdict::Refused(refusal)),
                None => Err(error::classify(&cause, Entity::Exchange, "")),
            },
        }
    }

    async fn channel(&self, up: &Up) -> Result<Channel, Error> {
        let idle = {
            let mut idle = self.lock();
            idle.retain(|(generation, channel)| {
                *generation == up.generation() && channel.status().connected()
            });
            idle.pop()
        };
        if let Some((_, channel)) = idle {
            return Ok(channel);
        }
        let channel = channel::open(up).await?;
        error::open(channel.tx_select().await)?;
        Ok(channel)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Channel)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn put(channel: &Channel, question: &Question) -> lapin::Result<()> {
    // An exchange that remembers what passes it is asked not to
    // (https://github.com/rabbitmq/rabbitmq-server/tree/main/deps/rabbitmq_recent_history_exchange#disabling-the-storage-of-a-message).
    let mut headers = FieldTable::default();
    headers.insert("x-recent-history-no-store".into(), AMQPValue::Boolean(true));
    channel
        .basic_publish(
            question.exchange.as_str().into(),
            question.routing_key.as_str().into(),
            BasicPublishOptions::default(),
            &vec![0; question.size],
            BasicProperties::default().with_headers(headers),
        )
        .await?
        .await?;
    channel.tx_rollback().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_between_the_accepted_and_the_refused_are_not_known() {
        let sizes = Sizes::default();
        assert_eq!(sizes.verdict(1, 1), None);
        sizes.accepted(64);
        sizes.refused(1_024);
        sizes.refused(2_048);
        assert_eq!(sizes.verdict(64, 1), Some(Verdict::Allowed));
        assert_eq!(sizes.verdict(65, 1), None);
        assert_eq!(sizes.verdict(1_023, 1), None);
        assert_eq!(
            sizes.verdict(1_024, 1),
            Some(Verdict::Refused(Refusal::TooLarge))
        );
        // Another connection, perhaps another broker.
        assert_eq!(sizes.verdict(64, 2), None);
    }
}
