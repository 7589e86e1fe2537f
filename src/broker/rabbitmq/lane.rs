//! A publish lane: one channel in confirm mode, owned by one task, so that acks and nacks belong to their message.
//!
//! The lane keeps up to [`WINDOW`] publishes in flight, without a barrier between them, and queues the rest. It answers each
//! receipt exactly once, at the latest at its deadline:
//! - not handed to the client library: not sent, whatever happens; nothing is handed to it after its deadline;
//! - the client library says that the frames were not wholly written: not sent;
//! - written and resolved: what [`super::verdict`] says;
//! - written, and the channel broke or the deadline came: in doubt.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};
use uuid::Uuid;

use super::{
    convert,
    exchanges::Exchanges,
    inflight::InFlight,
    link::{Link, State, Up},
    verdict::{Resolved, Verdicts},
};
use crate::{
    broker::{Fate, InDoubt, NotSent, Publish, Receipt},
    message::header,
    metrics,
    timer::until,
};

/// Publishes in flight whose caller still waits: as many as one stream may leave unanswered by default.
const WINDOW: usize = 1_024;
/// Publishes in flight in all, those included that nobody waits for any more because their deadline came. A channel with so
/// many unanswered ones is given up: its queues do not confirm.
const STUCK: usize = 4 * WINDOW;
/// Once this many messages wait for the fate of others, none is added until their fate is known.
const WAITING_MAX: usize = 64;
/// Headers, and what else is in their frame, must fit into one frame of RabbitMQ's 131,072 bytes; the broker ends the whole
/// connection otherwise (<https://www.rabbitmq.com/docs/configure#config-items>, `frame_max`). Dead-letter copies of messages with
/// large native headers may come here; clients' own are limited to far less.
const HEADERS_MAX: usize = 120 * 1024;
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
const REOPEN_DELAY: Duration = Duration::from_millis(200);

pub(super) type Job = (Publish, Receipt);

/// Hands jobs to the lane's task.
pub(super) struct Lane(mpsc::UnboundedSender<Job>);

impl Lane {
    /// The lane takes no more once `stop` is cancelled, and ends when every receipt is answered.
    pub(super) fn start(
        link: &Link,
        exchanges: Arc<Exchanges>,
        tasks: &TaskTracker,
        stop: CancellationToken,
        figures: metrics::Lane,
    ) -> Self {
        let (sender, jobs) = mpsc::unbounded_channel();
        let worker = Worker {
            link: link.watch(),
            exchanges,
            backlog: VecDeque::new(),
            unanswered: 0,
            next_deadline: None,
            figures,
        };
        tasks.spawn(run(worker, jobs, stop));
        Self(sender)
    }

    /// Queues a job. How many wait is bounded by the gateway's admission.
    pub(super) fn publish(&self, job: Job) {
        // A lane that is gone drops the job, and the receipt says that it was not sent.
        let _ = self.0.send(job);
    }
}

/// A publish in flight. Its caller may have had its answer already (the deadline came); the entry then only keeps count.
struct Entry {
    receipt: Option<Receipt>,
    deadline: Instant,
    publish_id: Uuid,
}

/// How the client library ended one publish.
enum Output {
    NotWritten(lapin::Error),
    ConfirmLost(lapin::Error),
    /// `None`: a return came attached that carries no publish-id, so it is not of this channel.
    Resolved(Option<Resolved>),
}

/// The channel of the moment, and all that belongs to it.
struct Open {
    channel: Channel,
    generation: u64,
    /// Something happened that ends this channel's use.
    broken: bool,
    inflight: InFlight<Entry, Output>,
    verdicts: Verdicts<Entry>,
}

/// The lane's task.
struct Worker {
    link: watch::Receiver<State>,
    exchanges: Arc<Exchanges>,
    backlog: VecDeque<Job>,
    /// Entries in flight or waiting with a caller that waits.
    unanswered: usize,
    /// Not later than the earliest deadline of all unanswered jobs.
    next_deadline: Option<Instant>,
    figures: metrics::Lane,
}

async fn run(mut worker: Worker, mut jobs: mpsc::UnboundedReceiver<Job>, stop: CancellationToken) {
    let mut open: Option<Open> = None;
    let mut opening = Opening::default();
    let mut incoming = Vec::new();
    let mut ready = Vec::new();
    let mut accepting = true;
    while accepting || worker.unanswered > 0 || !worker.backlog.is_empty() {
        let broken = open.as_ref().is_some_and(|open| !worker.serves(open));
        if broken && let Some(open) = open.take() {
            worker.give_up(open);
        }
        if open.is_none() {
            opening.begin(&worker.link);
        }
        let deadline = worker.next_deadline;
        tokio::select! {
            () = stop.cancelled(), if !jobs.is_closed() => jobs.close(),
            count = jobs.recv_many(&mut incoming, 256), if accepting => {
                accepting = count > 0;
                worker.enqueue(&mut incoming);
            }
            () = drain(&mut open, &mut ready) => {
                if let Some(open) = &mut open {
                    worker.settle(open, &mut ready);
                }
            }
            opened = opening.opened() => open = opened.map(Open::new),
            () = until(deadline), if deadline.is_some() => worker.expire(open.as_mut()),
            // A link whose supervisor is gone never changes again, and is down.
            changed = worker.link.changed(), if worker.link.has_changed().is_ok() => drop(changed),
        }
        worker.feed(open.as_mut());
        let (backlog, unconfirmed) = (worker.backlog.len(), worker.unanswered);
        worker.figures.set(backlog, unconfirmed);
    }
    if let Some(open) = open {
        let closing = open.channel.close(200, "bye".into());
        let _ = timeout(Duration::from_secs(1), closing).await;
    }
}

async fn drain(open: &mut Option<Open>, ready: &mut Vec<(Entry, Output)>) {
    match open {
        Some(open) => open.inflight.drain(ready).await,
        None => std::future::pending().await,
    }
}

impl Worker {
    fn enqueue(&mut self, incoming: &mut Vec<Job>) {
        for job in incoming.drain(..) {
            self.note_deadline(job.0.deadline);
            self.backlog.push_back(job);
        }
    }

    fn note_deadline(&mut self, deadline: Instant) {
        self.next_deadline = Some(
            self.next_deadline
                .map_or(deadline, |next| next.min(deadline)),
        );
    }

    /// Whether the channel still stands on the link's connection.
    fn serves(&self, open: &Open) -> bool {
        let generation = self.link.borrow().up().map(|up| up.generation);
        !open.broken
            && open.channel.status().connected()
            && generation == Some(open.generation)
            && open.inflight.len() < STUCK
    }

    /// Moves jobs from the backlog into flight, or answers them when the broker cannot take them.
    fn feed(&mut self, open: Option<&mut Open>) {
        let refusal = match &*self.link.borrow() {
            State::Down => Some(NotSent::BrokerDown),
            State::Up(up) if up.blocked => Some(NotSent::BrokerBlocked),
            State::Up(_) => None,
        };
        if let Some(reason) = refusal {
            for (_, receipt) in self.backlog.drain(..) {
                receipt.answer(Fate::NotSent(reason));
            }
            return;
        }
        let Some(open) = open.filter(|open| self.serves(open)) else {
            return;
        };
        while self.unanswered < WINDOW && open.verdicts.waiting() < WAITING_MAX {
            let Some((publish, mut receipt)) = self.backlog.pop_front() else {
                return;
            };
            // It may have come too late already, or have waited while this process was stopped.
            if publish.deadline <= Instant::now() {
                receipt.answer(Fate::NotSent(NotSent::Overloaded));
                continue;
            }
            if convert::header_bytes(&publish.message.headers) > HEADERS_MAX {
                receipt.answer(Fate::NotSent(NotSent::HeadersTooLarge));
                continue;
            }
            receipt.handed_over();
            let entry = Entry {
                receipt: Some(receipt),
                deadline: publish.deadline,
                publish_id: publish.publish_id,
            };
            let flight = fly(open.channel.clone(), publish).boxed();
            self.unanswered += 1;
            open.inflight.push(entry, flight);
        }
    }

    /// Answers what resolved.
    fn settle(&mut self, open: &mut Open, ready: &mut Vec<(Entry, Output)>) {
        let mut resolved = Vec::with_capacity(ready.len());
        for (entry, output) in ready.drain(..) {
            let fate = match output {
                Output::Resolved(Some(outcome)) => {
                    resolved.push((entry.publish_id, entry, outcome));
                    continue;
                }
                Output::Resolved(None) => {
                    warn!("the broker returned a message that this channel never published");
                    Fate::InDoubt(InDoubt::ConfirmLost)
                }
                Output::NotWritten(error) => {
                    debug!(%error, "publish not written");
                    Fate::NotSent(NotSent::BrokerDown)
                }
                Output::ConfirmLost(error) => {
                    debug!(%error, "confirm lost");
                    Fate::InDoubt(InDoubt::ConfirmLost)
                }
            };
            open.broken = true;
            self.answer(entry, fate);
        }
        // On a channel that broke, an empty flight proves nothing: confirms are missing.
        let idle = open.inflight.len() == 0 && !open.broken;
        let unanswered = &mut self.unanswered;
        open.verdicts.round(resolved, idle, |entry, fate| {
            answer(unanswered, entry, fate);
        });
    }

    fn answer(&mut self, entry: Entry, fate: Fate) {
        answer(&mut self.unanswered, entry, fate);
    }

    /// Answers what is overdue. Entries in flight stay, to keep count, without a caller.
    fn expire(&mut self, open: Option<&mut Open>) {
        let now = Instant::now();
        self.next_deadline = None;
        for job in std::mem::take(&mut self.backlog) {
            if job.0.deadline <= now {
                job.1.answer(Fate::NotSent(NotSent::Overloaded));
            } else {
                self.note_deadline(job.0.deadline);
                self.backlog.push_back(job);
            }
        }
        let Some(open) = open else { return };
        let late = Fate::InDoubt(InDoubt::ConfirmTimeout);
        let expired: Vec<_> = open
            .verdicts
            .expire(|entry| entry.deadline <= now)
            .collect();
        for entry in expired {
            self.answer(entry, late);
        }
        let mut next = self.next_deadline;
        let waiting = open.verdicts.entries().map(|entry| entry.deadline);
        let mut keep = |deadline: Instant| {
            next = Some(next.map_or(deadline, |next| next.min(deadline)));
        };
        waiting.for_each(&mut keep);
        for entry in open.inflight.entries_mut() {
            if entry.receipt.is_none() {
                continue;
            }
            if entry.deadline > now {
                keep(entry.deadline);
            } else if let Some(receipt) = entry.receipt.take() {
                self.unanswered -= 1;
                receipt.answer(late);
            }
        }
        self.next_deadline = next;
    }

    /// The channel is lost. What the client library can still tell is asked for once; the rest is in doubt.
    fn give_up(&mut self, mut open: Open) {
        // Most likely an exchange that was deleted meanwhile; the next publish to it must not end the next channel too.
        self.exchanges.forget();
        let mut ready = Vec::new();
        let _ = open.inflight.drain(&mut ready).now_or_never();
        self.settle(&mut open, &mut ready);
        let waiting: Vec<_> = open.verdicts.abandon().collect();
        for entry in waiting {
            self.answer(entry, Fate::InDoubt(InDoubt::ConfirmLost));
        }
        for entry in open.inflight.entries_mut() {
            if let Some(receipt) = entry.receipt.take() {
                self.unanswered -= 1;
                receipt.answer(Fate::InDoubt(InDoubt::ConfirmLost));
            }
        }
        self.close_later(&open.channel);
    }

    /// Nobody waits for the broker's answer to this close; it may never come.
    fn close_later(&self, channel: &Channel) {
        let channel = channel.clone();
        tokio::spawn(async move {
            let closing = channel.close(200, "given up".into());
            let _ = timeout(OPEN_TIMEOUT, closing).await;
        });
    }
}

fn answer(unanswered: &mut usize, mut entry: Entry, fate: Fate) {
    if let Some(receipt) = entry.receipt.take() {
        *unanswered -= 1;
        receipt.answer(fate);
    }
}

/// Publishes. The first poll queues the frames in the client library, so that the order of the pushes is the order on the wire.
async fn fly(channel: Channel, publish: Publish) -> Output {
    let id = publish.publish_id.hyphenated().to_string();
    let properties = convert::properties(&publish.message, (header::PUBLISH_ID, id));
    let options = BasicPublishOptions {
        mandatory: publish.mandatory,
        ..BasicPublishOptions::default()
    };
    let written = channel
        .basic_publish(
            publish.exchange.into(),
            publish.routing_key.into(),
            options,
            &publish.message.payload,
            properties,
        )
        .await;
    // From here on only the confirm is awaited; the message itself need not stay in memory.
    drop((publish.message, publish.admission));
    match written {
        Err(error) => Output::NotWritten(error),
        Ok(confirm) => match confirm.await {
            Ok(confirmation) => Output::Resolved(read(confirmation)),
            Err(error) => Output::ConfirmLost(error),
        },
    }
}

fn read(confirmation: Confirmation) -> Option<Resolved> {
    let positive = confirmation.is_ack();
    let carried = match confirmation.take_message() {
        None => None,
        Some(returned) => Some(publish_id(&returned.properties)?),
    };
    Some(Resolved { positive, carried })
}

fn publish_id(properties: &lapin::BasicProperties) -> Option<Uuid> {
    let headers = properties.headers().as_ref()?;
    match headers.inner().get(header::PUBLISH_ID)? {
        lapin::types::AMQPValue::LongString(text) => Uuid::try_parse_ascii(text.as_bytes()).ok(),
        _ => None,
    }
}

impl Open {
    fn new((channel, generation): (Channel, u64)) -> Self {
        Self {
            channel,
            generation,
            broken: false,
            inflight: InFlight::new(),
            verdicts: Verdicts::new(),
        }
    }
}

/// At most one attempt to open a channel, kept while other things happen.
#[derive(Default)]
struct Opening(Option<Attempt>);

struct Attempt {
    generation: u64,
    channel: BoxFuture<'static, Option<(Channel, u64)>>,
}

impl Opening {
    /// Begins an attempt unless one is under way. One on a connection that is gone would only run into its timeout.
    fn begin(&mut self, link: &watch::Receiver<State>) {
        let up = link.borrow().up().cloned();
        let generation = up.as_ref().map(|up| up.generation);
        if self.0.as_ref().map(|attempt| attempt.generation) != generation {
            self.0 = up.map(|up| Attempt {
                generation: up.generation,
                channel: open_channel(up).boxed(),
            });
        }
    }

    async fn opened(&mut self) -> Option<(Channel, u64)> {
        match &mut self.0 {
            None => std::future::pending().await,
            Some(attempt) => {
                let opened = (&mut attempt.channel).await;
                self.0 = None;
                opened
            }
        }
    }
}

async fn open_channel(up: Up) -> Option<(Channel, u64)> {
    let open = async {
        let channel = up.connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok::<_, lapin::Error>(channel)
    };
    match timeout(OPEN_TIMEOUT, open).await {
        Ok(Ok(channel)) => return Some((channel, up.generation)),
        Ok(Err(error)) => warn!(%error, "cannot open a publish lane"),
        Err(_) => warn!("the broker does not open a publish lane"),
    }
    tokio::time::sleep(REOPEN_DELAY).await;
    None
}
