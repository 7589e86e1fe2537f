//! Replies to clients that wait for them by [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to): published to an address that
//! names the client's channel instead of a queue.
//!
//! The broker reads the address while it routes. One that it cannot read, or whose node it does not know (a stale one, one of another
//! broker), is an error within the broker: it ends the whole connection that the message came on (541, RabbitMQ 3.10.8; RabbitMQ 4 drops
//! what goes to a node that it does not know). So replies
//! have a connection of their own, which is opened for the first of them, and are published one at a time: what ends the connection is
//! then known to be the one in flight. It is refused, nothing of it was delivered, and nobody else's reply was under way. What is
//! certainly no address is not sent at all, and one that ended a connection is not tried again for a while.
//!
//! What cannot be told is whether anybody got the reply: the broker drops it without a word where the client is gone, and
//! returns it, if it is mandatory, although it arrives. So it is never mandatory.

use std::{collections::VecDeque, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{FutureExt, future::BoxFuture};
use lapin::{
    Channel,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    protocol::{AMQPErrorKind, AMQPHardError},
};
use moka::sync::Cache;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    channel,
    connect::{Once, Role},
    convert,
    endpoint::Endpoint,
    error,
    lane::{HEADERS_MAX, Job},
    link::Link,
};
use crate::{
    broker::{Fate, InDoubt, NotSent, Publish, PublishReply, Refusal},
    message::header,
    names,
    timer::until,
};

/// How long an address that ended a connection is not tried again: its node may be away for a moment only.
const DEAD_FOR: Duration = Duration::from_secs(30);
const DEAD_MAX: u64 = 10_000;

/// Hands jobs to the task that publishes replies.
pub(super) struct Replies(mpsc::UnboundedSender<Job>);

impl Replies {
    /// It takes no more once `stop` is cancelled, and ends when every publish is answered. `publish`: the link whose state says
    /// whether the broker takes messages.
    pub(super) fn start(
        endpoint: &Endpoint,
        publish: &Link,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (sender, jobs) = mpsc::unbounded_channel();
        let sending = Sending {
            endpoint: endpoint.clone(),
            publish: publish.clone(),
            open: None,
            dead: Cache::builder()
                .max_capacity(DEAD_MAX)
                .time_to_live(DEAD_FOR)
                .build(),
        };
        tasks.spawn(run(sending, jobs, stop));
        Self(sender)
    }

    /// Queues a job. How many wait is bounded by the gateway's admission.
    pub(super) fn publish(&self, job: Job) {
        // When the task is gone, the dropped `PublishReply` says that it was not sent.
        let _ = self.0.send(job);
    }
}

async fn run(sending: Sending, mut jobs: mpsc::UnboundedReceiver<Job>, stop: CancellationToken) {
    let mut idle = Some(sending);
    let mut flight: Option<BoxFuture<'static, Sending>> = None;
    let mut waiting = Waiting::default();
    let mut incoming = Vec::new();
    let mut accepting = true;
    while accepting || flight.is_some() || !waiting.jobs.is_empty() {
        if let Some(sending) = idle.take() {
            match waiting.jobs.pop_front() {
                Some(job) => flight = Some(sending.send(job).boxed()),
                None => idle = Some(sending),
            }
        }
        let deadline = waiting.next_deadline;
        tokio::select! {
            () = stop.cancelled(), if !jobs.is_closed() => jobs.close(),
            count = jobs.recv_many(&mut incoming, 256), if accepting => {
                accepting = count > 0;
                waiting.add(&mut incoming);
            }
            sending = landed(&mut flight) => {
                flight = None;
                idle = Some(sending);
            }
            () = until(deadline), if deadline.is_some() => waiting.expire(),
        }
    }
}

async fn landed(flight: &mut Option<BoxFuture<'static, Sending>>) -> Sending {
    match flight {
        Some(flight) => flight.await,
        None => std::future::pending().await,
    }
}

/// What waits for its turn.
#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Not later than the earliest deadline of all jobs.
    next_deadline: Option<Instant>,
}

impl Waiting {
    fn add(&mut self, incoming: &mut Vec<Job>) {
        for job in incoming.drain(..) {
            let deadline = job.0.deadline;
            let next = self.next_deadline.get_or_insert(deadline);
            *next = deadline.min(*next);
            self.jobs.push_back(job);
        }
    }

    /// Answers what is overdue.
    fn expire(&mut self) {
        let now = Instant::now();
        let jobs = std::mem::take(&mut self.jobs).into_iter();
        let (overdue, left): (VecDeque<_>, _) =
            jobs.partition(|(publish, _)| publish.deadline <= now);
        for (_, publish_reply) in overdue {
            publish_reply.answer(Fate::NotSent(NotSent::Overloaded));
        }
        self.jobs = left;
        self.next_deadline = self.jobs.iter().map(|(publish, _)| publish.deadline).min();
    }
}

/// Publishes one reply after the other.
struct Sending {
    endpoint: Endpoint,
    publish: Link,
    open: Option<Open>,
    /// Addresses that ended a connection.
    dead: Cache<String, ()>,
}

struct Open {
    channel: Channel,
    connection: Once,
}

/// Why a reply has no outcome yet.
struct Lost {
    /// Whether the broker may have it.
    written: bool,
    cause: lapin::Error,
}

impl Sending {
    async fn send(mut self, (publish, mut publish_reply): Job) -> Self {
        let fate = match self.refuse(&publish) {
            Some(fate) => fate,
            None => self.deliver(&publish, &mut publish_reply).await,
        };
        publish_reply.answer(fate);
        self
    }

    /// What is not to be sent at all.
    fn refuse(&self, publish: &Publish) -> Option<Fate> {
        if publish.deadline <= Instant::now() {
            return Some(Fate::NotSent(NotSent::Overloaded));
        }
        match self.publish.up() {
            None => return Some(Fate::NotSent(NotSent::BrokerDown)),
            Some(up) if up.blocked => return Some(Fate::NotSent(NotSent::BrokerBlocked)),
            Some(_) => {}
        }
        if convert::header_bytes(&publish.message.headers) > HEADERS_MAX {
            return Some(Fate::NotSent(NotSent::HeadersTooLarge));
        }
        let address = publish.routing_key.as_str();
        let dead = !is_address(address) || self.dead.contains_key(address);
        dead.then_some(Fate::Refused(Refusal::NoReplyAddress))
    }

    async fn deliver(&mut self, publish: &Publish, publish_reply: &mut PublishReply) -> Fate {
        let fresh = !self.stands();
        let lost = match self.attempt(publish, publish_reply).await {
            Ok(fate) => return fate,
            Err(lost) => lost,
        };
        self.open = None;
        if lost.written || fresh {
            return self.fate_of(publish, &lost);
        }
        // The connection had ended before, unnoticed: the broker has nothing of it.
        match self.attempt(publish, publish_reply).await {
            Ok(fate) => fate,
            Err(lost) => {
                self.open = None;
                self.fate_of(publish, &lost)
            }
        }
    }

    fn stands(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| {
            open.channel.status().connected() && open.connection.connection.status().connected()
        })
    }

    async fn attempt(
        &mut self,
        publish: &Publish,
        publish_reply: &mut PublishReply,
    ) -> Result<Fate, Lost> {
        if !self.stands() {
            self.open = None;
            let opened = timeout_at(publish.deadline, open(&self.endpoint)).await;
            self.open = opened.ok().flatten();
        }
        let Some(open) = &self.open else {
            return Ok(Fate::NotSent(NotSent::BrokerDown));
        };
        publish_reply.handed_over();
        let sent = timeout_at(publish.deadline, send(&open.channel, publish)).await;
        match sent {
            Ok(Ok(true)) => Ok(Fate::Confirmed),
            Ok(Ok(false)) => Ok(Fate::Rejected),
            Ok(Err(lost)) => {
                if !lost.written {
                    publish_reply.taken_back();
                }
                Err(lost)
            }
            Err(_) => {
                // Its answer may come yet, and would be taken for the next one's.
                self.open = None;
                Ok(Fate::InDoubt(InDoubt::ConfirmTimeout))
            }
        }
    }

    /// What became of a reply whose connection or channel ended.
    fn fate_of(&self, publish: &Publish, lost: &Lost) -> Fate {
        if let Some(refusal) = error::refusal(&lost.cause) {
            return Fate::Refused(refusal);
        }
        let internal = AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR);
        if lost.written && error::protocol(&lost.cause) == Some(&internal) {
            debug!(
                "the broker does not know the address of a reply; it ended the connection of replies"
            );
            self.dead.insert(publish.routing_key.clone(), ());
            return Fate::Refused(Refusal::NoReplyAddress);
        }
        debug!(error = %lost.cause, written = lost.written, "a reply ended with its connection");
        match lost.written {
            true => Fate::InDoubt(InDoubt::ConfirmLost),
            false => Fate::NotSent(NotSent::BrokerDown),
        }
    }
}

async fn open(endpoint: &Endpoint) -> Option<Open> {
    let connection = match Once::connect(endpoint, Role::Reply).await {
        Ok(connection) => connection,
        Err(cause) => {
            warn!(%cause, "no connection to publish replies on");
            return None;
        }
    };
    let opening = async {
        let channel = channel::open_on(&connection.connection).await?;
        let confirming = channel.confirm_select(ConfirmSelectOptions::default());
        error::open(confirming.await)?;
        Ok::<_, crate::broker::Error>(channel)
    };
    match opening.await {
        Ok(channel) => Some(Open {
            channel,
            connection,
        }),
        Err(error) => {
            warn!(%error, "no channel to publish replies on");
            None
        }
    }
}

/// Publishes; whether the broker acked.
async fn send(channel: &Channel, publish: &Publish) -> Result<bool, Lost> {
    let id = publish.publish_id.hyphenated().to_string();
    let properties = convert::properties(&publish.message, (header::PUBLISH_ID, id));
    let written = channel
        .basic_publish(
            publish.exchange.as_str().into(),
            publish.routing_key.as_str().into(),
            BasicPublishOptions::default(),
            &publish.message.payload,
            properties,
        )
        .await;
    let lost = |written| move |cause| Lost { written, cause };
    let confirmation = written.map_err(lost(false))?.await.map_err(lost(true))?;
    Ok(confirmation.is_ack())
}

/// Whether this is an address as RabbitMQ makes them: the channel's process as Erlang writes it
/// (<https://www.erlang.org/doc/apps/erts/erl_ext_dist.html#new_pid_ext>) and a key, both in base64. What is none would end
/// the connection: see `rabbit_direct_reply_to` in
/// <https://github.com/rabbitmq/rabbitmq-server/blob/v3.10.8/deps/rabbit/src/rabbit_direct_reply_to.erl>.
fn is_address(text: &str) -> bool {
    let parts = text.strip_prefix(names::DIRECT_REPLY);
    let Some((process, key)) = parts.and_then(|parts| parts.split_once('.')) else {
        return false;
    };
    let process = STANDARD.decode(process);
    !key.is_empty() && !key.contains('.') && process.is_ok_and(|process| is_process(&process))
}

fn is_process(bytes: &[u8]) -> bool {
    const VERSION: u8 = 131;
    // Number, serial and creation follow the node's name: four bytes each, or one for an old creation.
    let (rest, numbers) = match bytes {
        [VERSION, 88, rest @ ..] => (rest, 12),
        [VERSION, 103, rest @ ..] => (rest, 9),
        _ => return false,
    };
    // The name is an atom of one of two encodings, with a length of one or two bytes.
    let (length, rest) = match rest {
        [115 | 119, length, rest @ ..] => (usize::from(*length), rest),
        [100 | 118, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return false,
    };
    let name = rest.get(..length).unwrap_or_default();
    rest.len() == length + numbers && name.contains(&b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(process: &[u8], key: &str) -> String {
        format!("{}{}.{key}", names::DIRECT_REPLY, STANDARD.encode(process))
    }

    fn process(tag: u8, atom: &[u8], name: &str, numbers: usize) -> Vec<u8> {
        [&[131, tag], atom, name.as_bytes(), &vec![1; numbers]].concat()
    }

    #[test]
    fn addresses_are_told_from_what_only_looks_like_them() {
        let name = "generated@12345678";
        let process_of = |numbers| process(88, &[100, 0, 18], name, numbers);
        let good = [
            address(&process_of(12), "Zm9v"),
            address(&process(88, &[119, 18], name, 12), "Zm9v"),
            address(&process(103, &[100, 0, 18], name, 9), "Zm9v"),
        ];
        for text in good {
            assert!(is_address(&text), "{text}");
        }
        let bad = [
            names::DIRECT_REPLY.to_owned(),
            format!("{}x", names::DIRECT_REPLY),
            format!("{}x.y", names::DIRECT_REPLY),
            format!("{}.y", names::DIRECT_REPLY),
            address(&process_of(12), ""),
            address(&process_of(12), "a.b"),
            address(&process_of(11), "Zm9v"),
            address(&process_of(13), "Zm9v"),
            address(&process(88, &[100, 0, 200], name, 12), "Zm9v"),
            address(&process(88, &[100, 0, 4], "node", 12), "Zm9v"),
            // Something else that Erlang reads: an atom.
            address(&[131, 100, 0, 1, b'x'], "Zm9v"),
            address(&[], "Zm9v"),
        ];
        for text in bad {
            assert!(!is_address(&text), "{text}");
        }
    }
}
