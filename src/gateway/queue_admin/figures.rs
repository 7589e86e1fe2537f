//! What there is, and how it does.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::time::timeout;

use super::{Error, QueueAdmin, TURN, is_stream, note, own_exchange, queue_name};
use crate::{
    broker::{
        self,
        admin::{BindingInfo, Destination, ExchangeInfo, Management, QueueInfo},
        topology::dead_letter_queue,
    },
    gateway::page::{self, Listed},
    names,
    store::QueueCounts,
};

/// Queues of a list that are asked about over AMQP at the most.
const MOST_UNCOUNTED: usize = 100;
/// Questions to the broker at a time, where each queue is asked about by itself.
const AT_A_TIME: usize = 16;

/// An answer, and why it is not a full one.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    pub found: T,
    /// For people; empty: it is a full answer.
    pub note: String,
    /// Of a list: why nobody tells all of it.
    pub(super) untold: Option<broker::Error>,
}

impl<T> Answer<T> {
    /// Of a list: there may be more than was found. Of one thing: more may be known about it.
    pub fn is_partial(&self) -> bool {
        !self.note.is_empty()
    }
}

impl<T> Answer<Vec<T>> {
    fn of_list(found: Vec<T>, management: Management) -> Self {
        Self {
            found,
            note: note(&management),
            untold: match management {
                Management::Up | Management::NotNeeded => None,
                Management::Off => Some(broker::Error::ManagementOff),
                Management::Down(reason) => Some(broker::Error::ManagementDown(reason)),
            },
        }
    }

    /// The list; an error instead of one that is empty because nobody tells what there is.
    pub fn told(self) -> Result<Self, Error> {
        match self.untold {
            Some(why) if self.found.is_empty() => Err(why.into()),
            untold => Ok(Self { untold, ..self }),
        }
    }

    /// Those whose name contains a text, in any case of letters, by name; one page of them. See [`told`](Self::told).
    fn page(
        self,
        kind: &str,
        name: impl Fn(&T) -> &str,
        containing: &str,
        size: u32,
        token: &str,
    ) -> Result<Answer<Listed<T>>, Error> {
        let list = page::list(kind, &containing);
        let containing = containing.to_lowercase();
        let mut told = self.told()?;
        told.found
            .retain(|one| name(one).to_lowercase().contains(&containing));
        let key = |one: &T| name(one).to_owned();
        Ok(Answer {
            found: page::of(told.found, key, size, token, &list)?,
            note: told.note,
            untold: told.untold,
        })
    }
}

/// How a queue does.
#[derive(Clone, Debug)]
pub struct QueueStats {
    pub queue: QueueInfo,
    /// How long a message that arrives now waits until all before it are acked, at the pace of now.
    pub time_to_drain: Option<Duration>,
    /// Failed messages that are not resolved.
    pub failed: Option<u64>,
    /// Messages in its dead-letter queue.
    pub dead_letters: Option<u64>,
}

impl QueueAdmin {
    /// Queues whose name contains a text, in any case of letters, by name.
    pub async fn queues(
        &self,
        containing: &str,
        size: u32,
        token: &str,
    ) -> Result<Answer<Listed<QueueInfo>>, Error> {
        let all = self.all_queues().await?;
        all.page("queues", |queue| &queue.name, containing, size, token)
    }

    /// All queues, as far as anybody can tell.
    pub async fn all_queues(&self) -> Result<Answer<Vec<QueueInfo>>, Error> {
        let this = self.clone();
        self.listed.ask((), async move { this.list().await }).await
    }

    async fn list(&self) -> Result<Answer<Vec<QueueInfo>>, Error> {
        let admin = self.broker.admin();
        let (mut found, management) = match listed(admin.queues().await)? {
            List::Whole(found) => (self.counted(found).await, Management::Up),
            List::Unknown(management) => {
                let known = self.known.queues().into_iter();
                let asked = known.map(async |name| (self.ask(&name).await, name));
                let forget = |name: &str| self.known.forget_queue(name);
                (there(asked, forget).await?, management)
            }
        };
        for queue in &mut found {
            self.rates.complete(queue);
        }
        let names: HashSet<&str> = found.iter().map(|queue| queue.name.as_str()).collect();
        self.rates.keep(|name| names.contains(name));
        Ok(Answer::of_list(found, management))
    }

    /// Asks over AMQP about queues that the management API has not counted yet: those that are new.
    async fn counted(&self, mut queues: Vec<QueueInfo>) -> Vec<QueueInfo> {
        let uncounted = queues.iter().filter(|queue| queue.ready.is_none());
        let names: Vec<String> = uncounted
            .take(MOST_UNCOUNTED)
            .map(|queue| queue.name.clone())
            .collect();
        let asked = stream::iter(names).map(|name| async move { self.ask(&name).await.ok() });
        let asked = asked.buffer_unordered(AT_A_TIME).collect::<Vec<_>>();
        for counted in asked.await.into_iter().flatten() {
            if let Some(queue) = queues.iter_mut().find(|queue| queue.name == counted.name) {
                *queue = counted;
            }
        }
        queues
    }

    /// One queue.
    pub async fn queue(&self, name: &str) -> Result<Answer<QueueInfo>, Error> {
        queue_name("name", name)?;
        let mut queue = self.ask(name).await?;
        self.rates.complete(&mut queue);
        let note = match queue.source {
            broker::admin::Source::Amqp => "only what AMQP tells is known: RabbitMQ's management API is switched off, does not answer, or does not know the queue yet".to_owned(),
            _ => String::new(),
        };
        Ok(Answer {
            found: queue,
            note,
            untold: None,
        })
    }

    /// One queue, its consumers' lag, and its failed messages.
    pub async fn stats(&self, name: &str) -> Result<Answer<QueueStats>, Error> {
        let queue = self.queue(name).await?;
        Ok(Answer {
            found: self.stats_of(queue.found).await,
            note: queue.note,
            untold: None,
        })
    }

    /// All queues, by name, with the same: without asking about each where the list has them all.
    pub async fn all_stats(&self) -> Result<Answer<Vec<QueueStats>>, Error> {
        let (all, failed) = tokio::join!(self.all_queues(), self.failed.stats(None));
        let mut all = all?;
        all.found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let failed = failed.ok().map(|stats| {
            let of_queues = stats.queues.into_iter();
            let open = of_queues.map(|of| (of.queue.clone(), open(&of)));
            open.collect::<HashMap<_, _>>()
        });
        let ready = all
            .found
            .iter()
            .map(|queue| (queue.name.clone(), queue.ready));
        let ready: HashMap<_, _> = ready.collect();
        let partial = all.is_partial();
        let stats = stream::iter(all.found).map(|queue| {
            let letters = ready.get(&dead_letter_queue(&queue.name)).copied();
            let failed = failed.as_ref();
            let failed = failed.map(|of| of.get(&queue.name).copied().unwrap_or_default());
            async move {
                let dead_letters = match letters {
                    Some(ready) => ready,
                    None if partial => self.dead_letters(&queue.name).await,
                    None => None,
                };
                QueueStats {
                    time_to_drain: time_to_drain(&queue),
                    failed,
                    dead_letters,
                    queue,
                }
            }
        });
        Ok(Answer {
            found: stats.buffered(AT_A_TIME).collect().await,
            note: all.note,
            untold: all.untold,
        })
    }

    async fn stats_of(&self, queue: QueueInfo) -> QueueStats {
        let letters = self.dead_letters(&queue.name);
        let failed = self.failed.stats(Some(&queue.name));
        let (letters, failed) = tokio::join!(letters, failed);
        QueueStats {
            time_to_drain: time_to_drain(&queue),
            failed: failed.ok().map(|stats| stats.queues.iter().map(open).sum()),
            dead_letters: letters,
            queue,
        }
    }

    /// What is ready in a queue's dead-letter queue; `None`: there is none, or nobody tells.
    async fn dead_letters(&self, queue: &str) -> Option<u64> {
        let letters = dead_letter_queue(queue);
        // The longest names have none.
        names::queue(&letters).ok()?;
        self.ask(&letters).await.ok()?.ready
    }

    /// Asks the broker about a queue: once for all who ask at once, and about so many queues at a time.
    async fn ask(&self, name: &str) -> Result<QueueInfo, broker::Error> {
        let (broker, turns, of) = (self.broker.clone(), self.turns.clone(), name.to_owned());
        let asking = async move {
            let turn = timeout(TURN, turns.acquire()).await;
            let _turn = turn.map_err(|_| broker::Error::TimedOut)?;
            broker.admin().queue(&of).await
        };
        self.asked.ask(name.to_owned(), asking).await
    }

    /// Exchanges whose name contains a text, in any case of letters, by name.
    pub async fn exchanges(
        &self,
        containing: &str,
        size: u32,
        token: &str,
    ) -> Result<Answer<Listed<ExchangeInfo>>, Error> {
        let all = self.all_exchanges().await?;
        all.page("exchanges", |one| &one.name, containing, size, token)
    }

    pub(super) async fn all_exchanges(&self) -> Result<Answer<Vec<ExchangeInfo>>, Error> {
        let admin = self.broker.admin();
        let (found, management) = match listed(admin.exchanges().await)? {
            List::Whole(found) => (found, Management::Up),
            List::Unknown(management) => {
                let known = self.known.exchanges().into_iter();
                let asked = known.map(async |name| (admin.exchange(&name).await, name));
                let forget = |name: &str| self.known.forget_exchange(name);
                (there(asked, forget).await?, management)
            }
        };
        Ok(Answer::of_list(found, management))
    }

    /// Bindings of an exchange, of a queue, or all.
    pub async fn bindings(
        &self,
        exchange: Option<&str>,
        queue: Option<&str>,
        size: u32,
        token: &str,
    ) -> Result<Listed<BindingInfo>, Error> {
        if let Some(queue) = queue {
            queue_name("queue", queue)?;
        }
        if let Some(exchange) = exchange.filter(|name| !name.starts_with("amq.")) {
            own_exchange("exchange", exchange)?;
        }
        let list = page::list("bindings", &(exchange, queue));
        let mut all = self.broker.admin().bindings().await?;
        all.retain(|binding| {
            let leads_to =
                |queue: &str| binding.destination == Destination::Queue(queue.to_owned());
            exchange.is_none_or(|exchange| binding.exchange == exchange)
                && queue.is_none_or(leads_to)
        });
        let key = |binding: &BindingInfo| {
            let (is_queue, name) = match &binding.destination {
                Destination::Queue(name) => (true, name.clone()),
                Destination::Exchange(name) => (false, name.clone()),
            };
            // Two bindings may differ in their arguments alone.
            let arguments = format!("{:?}", binding.arguments);
            let key = binding.routing_key.clone();
            (binding.exchange.clone(), is_queue, name, key, arguments)
        };
        Ok(page::of(all, key, size, token, &list)?)
    }
}

/// Failed messages that are not resolved.
fn open(of: &QueueCounts) -> u64 {
    of.counts.pending + of.counts.retrying + of.counts.failed
}

/// A list that only RabbitMQ's management API can give.
pub(super) enum List<T> {
    Whole(Vec<T>),
    /// Why nobody can give it.
    Unknown(Management),
}

/// Tells a list that nobody can give from one that failed.
pub(super) fn listed<T>(list: Result<Vec<T>, broker::Error>) -> Result<List<T>, broker::Error> {
    match list {
        Ok(list) => Ok(List::Whole(list)),
        Err(broker::Error::ManagementOff) => Ok(List::Unknown(Management::Off)),
        Err(broker::Error::ManagementDown(reason)) => Ok(List::Unknown(Management::Down(reason))),
        Err(error) => Err(error),
    }
}

/// Of each that is asked about by itself, what is there. What is not there is forgotten; what is somebody else's alone is left out.
async fn there<T, F>(
    questions: impl Iterator<Item = F>,
    forget: impl Fn(&str),
) -> Result<Vec<T>, broker::Error>
where
    F: Future<Output = (Result<T, broker::Error>, String)>,
{
    use broker::Error::{Forbidden, Locked, NotFound};
    let mut found = Vec::new();
    let mut answers = stream::iter(questions).buffer_unordered(AT_A_TIME);
    while let Some((answer, name)) = answers.next().await {
        match answer {
            Ok(one) => found.push(one),
            Err(NotFound { .. }) => forget(&name),
            Err(Locked { .. } | Forbidden { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// See [`QueueStats::time_to_drain`].
pub(in crate::gateway) fn time_to_drain(queue: &QueueInfo) -> Option<Duration> {
    if is_stream(queue) {
        return None;
    }
    let pace = queue.ack.per_second.filter(|rate| *rate > 0.0)?;
    let waiting = queue.ready? + queue.unacked.unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a time for people")]
    let seconds = waiting as f64 / pace;
    Duration::try_from_secs_f64(seconds).ok()
}
