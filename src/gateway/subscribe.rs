//! Subscribing: one task a stream, between the client's requests and the broker's deliveries.
//!
//! The task never waits for the client to read: what it has to say stands in an outbox, and deliveries are taken only when the
//! outbox is empty. So ack deadlines run, and settles are carried out, also when the client does not read. What the broker sent
//! beyond that goes back after the same time: a client that hangs holds nothing for ever.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{FutureExt, Stream, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};

use super::{
    Gateway,
    dead_letter::{self, ErrorDetail, Next, NotStored},
    ledger::{Claim, Ledger, SettleResult, Settled},
    validate::Invalid,
};
use crate::{
    broker::{self, Delivery, Ended, Entity, Subscription, Tag},
    names,
    timer::until,
};

/// Queues of one subscription.
pub const MAX_QUEUES: usize = 32;
pub const MAX_CLIENT_ID_BYTES: usize = 128;
/// Ids of one settle or extension: as many deliveries as a subscription can ever have out.
pub const MAX_ACK_IDS: usize = u16::MAX as usize;
pub const DEFAULT_OUTSTANDING: u32 = 100;
pub const DEFAULT_ACK_DEADLINE: Duration = Duration::from_secs(60);
pub const MIN_ACK_DEADLINE: Duration = Duration::from_secs(1);
pub const MAX_ACK_DEADLINE: Duration = Duration::from_secs(15 * 60);
pub const MAX_RETRY_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long opening a subscription may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Deliveries that go into one event at most, by count and payload bytes; a larger one goes alone, so that events fit the
/// 4 MiB that clients receive by custom.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 1024 * 1024;
/// Results that go into one event. When so many are due, further requests wait.
const RESULTS: usize = 1_000;
/// Events that wait for a client that does not read, before its requests are left unread too.
const OUTBOX: usize = 64;
/// How long the last events may take to reach a client.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Start {
    pub queues: Vec<String>,
    /// 0: the default.
    pub max_outstanding: u32,
    /// 0: no limit.
    pub max_outstanding_bytes: u64,
    pub auto_ack: bool,
    pub ack_deadline: Option<Duration>,
    pub client_id: String,
    /// 0: no end.
    pub max_messages: u64,
}

/// What a client says after that.
#[derive(Debug)]
pub enum Request {
    Settle {
        acks: Vec<String>,
        nacks: Vec<Nack>,
    },
    Extend {
        ack_ids: Vec<String>,
        ack_deadline: Option<Duration>,
    },
    /// Not a request that may come here: the stream ends.
    Invalid(Invalid),
}

impl Request {
    /// How many results it asks for; at least 1, so that empty requests count too.
    fn results(&self) -> usize {
        let ids = match self {
            Self::Settle { acks, nacks } => acks.len() + nacks.len(),
            Self::Extend { ack_ids, .. } => ack_ids.len(),
            Self::Invalid(_) => 0,
        };
        ids.max(1)
    }
}

/// A delivery that was not processed. `None`: not a valid nack.
#[derive(Debug)]
pub struct Nack {
    pub ack_id: String,
    pub action: Option<Action>,
    pub error: ErrorDetail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Retry(Option<Duration>),
    Requeue,
    DeadLetter,
    Discard,
}

/// What the client is told.
#[derive(Debug)]
pub enum Event {
    Started {
        max_outstanding: u32,
        ack_deadline: Duration,
    },
    Deliveries(Vec<Given>),
    Results(Vec<(String, SettleResult)>),
    Revoked(Vec<String>),
    Draining {
        grace: Duration,
    },
    /// The last event.
    End(End),
}

/// A delivery as the client gets it.
#[derive(Debug)]
pub struct Given {
    pub ack_id: String,
    pub delivery: Arc<Delivery>,
    pub queue: String,
    /// From now; `None` with `auto_ack`.
    pub ack_deadline: Option<Duration>,
}

/// How a subscription ends.
#[derive(Debug)]
pub enum End {
    /// As the client wished.
    Done,
    Invalid(Invalid),
    QueueDeleted(String),
    BrokerDown,
    /// The gateway stops.
    Stopping,
    /// The stream's own deadline came.
    DeadlineExceeded,
}

/// Why a subscription was not opened.
#[derive(Debug)]
pub enum Refused {
    Invalid(Invalid),
    Broker(broker::Error),
    Stopping,
}

impl Gateway {
    /// Opens a subscription and serves it in a task of its own. `requests` ends when the client half-closes.
    /// When the receiver is dropped, the client is gone.
    pub async fn subscribe(
        &self,
        start: Start,
        requests: impl Stream<Item = Request> + Send + Unpin + 'static,
        stream_deadline: Option<Instant>,
    ) -> Result<mpsc::Receiver<Event>, Refused> {
        let plan = self.plan(start).map_err(Refused::Invalid)?;
        if self.stopping.is_cancelled() {
            return Err(Refused::Stopping);
        }
        let Ok(seat) = self.subscriptions.clone().try_acquire_owned() else {
            return Err(Refused::Broker(broker::Error::TooManySubscriptions));
        };
        let timeout = Instant::now() + OPEN_TIMEOUT;
        let subscribe = broker::Subscribe {
            queues: plan.queues.clone(),
            prefetch: plan.prefetch(),
            client_id: plan.client_id.clone(),
            deadline: stream_deadline.map_or(timeout, |deadline| deadline.min(timeout)),
        };
        let opened = self.broker.subscribe(subscribe).await;
        let subscription = opened.map_err(Refused::Broker)?;
        tracing::debug!(client = plan.client_id, queues = ?plan.queues, "subscribed");

        // With auto_ack a free place in the channel means that the transport took the event before: that is what is acked.
        let (events, receiver) = mpsc::channel(if plan.auto_ack { 1 } else { 16 });
        let mut session = Session {
            gateway: self.clone(),
            subscription,
            ledger: Ledger::default(),
            outbox: VecDeque::from([Event::Started {
                max_outstanding: plan.max_outstanding,
                ack_deadline: plan.ack_deadline,
            }]),
            events,
            copies: FuturesUnordered::new(),
            held: None,
            handed: Vec::new(),
            delivered: 0,
            phase: Phase::Running,
            last_word: false,
            stream_deadline,
            unread_since: None,
            plan,
            _seat: seat,
        };
        self.tasks.spawn(async move {
            let end = session.run(requests).await;
            session.close(end).await;
        });
        Ok(receiver)
    }

    /// Checks what a client asks for and fills in the defaults.
    fn plan(&self, start: Start) -> Result<Plan, Invalid> {
        let Start { queues, .. } = &start;
        if queues.is_empty() || queues.len() > MAX_QUEUES {
            return Err(Invalid::field(
                "start.queues",
                format!("must name 1 to {MAX_QUEUES} queues"),
            ));
        }
        for (index, queue) in queues.iter().enumerate() {
            names::queue(queue)
                .map_err(|refused| Invalid::name("start.queues", Entity::Queue, queue, refused))?;
            if queues[..index].contains(queue) {
                return Err(Invalid::field("start.queues", "names a queue twice"));
            }
        }
        let cap = self.limits.max_outstanding;
        if start.max_outstanding > cap {
            return Err(Invalid::field(
                "start.max_outstanding",
                format!("must be at most {cap}"),
            ));
        }
        let ack_deadline = start.ack_deadline.unwrap_or(DEFAULT_ACK_DEADLINE);
        check_ack_deadline("start.ack_deadline", ack_deadline)?;
        if start.client_id.len() > MAX_CLIENT_ID_BYTES
            || names::short_text(&start.client_id).is_err()
        {
            return Err(Invalid::field(
                "start.client_id",
                format!("must be at most {MAX_CLIENT_ID_BYTES} bytes without control characters"),
            ));
        }
        let max_outstanding = match start.max_outstanding {
            0 => DEFAULT_OUTSTANDING.min(cap),
            asked => asked,
        };
        Ok(Plan {
            max_outstanding,
            max_bytes: match start.max_outstanding_bytes {
                0 => usize::MAX,
                asked => usize::try_from(asked).unwrap_or(usize::MAX),
            },
            auto_ack: start.auto_ack,
            ack_deadline,
            client_id: if start.client_id.is_empty() {
                format!("courtier-{}", uuid::Uuid::new_v4().simple())
            } else {
                start.client_id
            },
            max_messages: match start.max_messages {
                0 => u64::MAX,
                asked => asked,
            },
            queues: start.queues,
        })
    }
}

/// Checks an ack deadline.
pub fn check_ack_deadline(field: &'static str, deadline: Duration) -> Result<(), Invalid> {
    if (MIN_ACK_DEADLINE..=MAX_ACK_DEADLINE).contains(&deadline) {
        Ok(())
    } else {
        Err(Invalid::field(field, "must be from 1 s to 15 min"))
    }
}

/// What a client asked for, every default filled in.
struct Plan {
    queues: Vec<String>,
    max_outstanding: u32,
    max_bytes: usize,
    auto_ack: bool,
    ack_deadline: Duration,
    client_id: String,
    max_messages: u64,
}

impl Plan {
    fn prefetch(&self) -> u16 {
        let wanted = self.max_messages.min(self.max_outstanding.into());
        u16::try_from(wanted).unwrap_or(u16::MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Deliveries flow.
    Running,
    /// The gateway stops: settling goes on until then.
    Draining(Instant),
}

/// Whether a copy for the dead-letter queue is stored.
type CopyDone = (Tag, Settled, usize, Result<(), NotStored>);

struct Session {
    gateway: Gateway,
    plan: Plan,
    subscription: Box<dyn Subscription>,
    ledger: Ledger,
    outbox: VecDeque<Event>,
    events: mpsc::Sender<Event>,
    copies: FuturesUnordered<futures::future::BoxFuture<'static, CopyDone>>,
    /// A delivery that was taken and exceeds the credit.
    held: Option<Delivery>,
    /// With `auto_ack`: deliveries of the event that is with the transport.
    handed: Vec<Tag>,
    delivered: u64,
    phase: Phase,
    /// The client said its last word (half-close) and settles nothing more: what is under way is finished.
    last_word: bool,
    stream_deadline: Option<Instant>,
    /// Since when the outbox waits for the client to read.
    unread_since: Option<Instant>,
    _seat: OwnedSemaphorePermit,
}

/// The client is gone, or the subscription ends.
enum Over {
    Gone,
    End(End),
}

impl Session {
    async fn run(&mut self, mut requests: impl Stream<Item = Request> + Send + Unpin) -> Over {
        let stopping = self.gateway.stopping.clone();
        let mut listening = true;
        loop {
            if let Some(end) = self.finished() {
                return Over::End(end);
            }
            self.unread_since = match self.unread_since {
                _ if self.outbox.is_empty() => None,
                None => Some(Instant::now()),
                since => since,
            };
            let busy_outbox = !self.outbox.is_empty() || !self.handed.is_empty();
            let timer = self.next_timer();
            let step = tokio::select! {
                biased;
                () = self.events.closed() => return Over::Gone,
                () = stopping.cancelled(), if self.phase == Phase::Running => {
                    self.drain().await;
                    Ok(())
                }
                permit = self.events.clone().reserve_owned(), if busy_outbox => match permit {
                    Ok(permit) => self.hand_out(permit).await,
                    Err(_) => return Over::Gone,
                },
                () = until(timer), if timer.is_some() => self.on_timer().await,
                Some(copied) = self.copies.next() => self.on_copied(copied).await,
                request = requests.next(), if listening && self.outbox.len() < OUTBOX => match request {
                    Some(request) => {
                        // What has arrived together is settled together: one frame to the broker instead of many.
                        let mut due = request.results();
                        let mut batch = vec![request];
                        while due < RESULTS
                            && let Some(Some(more)) = requests.next().now_or_never()
                        {
                            due += more.results();
                            batch.push(more);
                        }
                        self.on_requests(batch).await
                    }
                    None => {
                        listening = false;
                        self.on_half_close().await;
                        Ok(())
                    }
                },
                taken = self.subscription.next(), if self.listens() => self.on_delivery(taken).await,
            };
            if let Err(over) = step {
                return over;
            }
        }
    }

    /// Whether everything that was to happen has happened.
    fn finished(&self) -> Option<End> {
        let settled = self.ledger.is_empty() && self.handed.is_empty();
        let said = self.outbox.is_empty() && self.copies.is_empty();
        match self.phase {
            _ if self.last_word && said => Some(End::Done),
            Phase::Draining(_) if settled && said => Some(End::Stopping),
            Phase::Running if self.delivered >= self.plan.max_messages && settled && said => {
                Some(End::Done)
            }
            _ => None,
        }
    }

    /// Whether new deliveries are given at all.
    fn takes_more(&self) -> bool {
        self.phase == Phase::Running && !self.last_word
    }

    fn has_room(&self) -> bool {
        self.ready_to_take() && self.has_credit()
    }

    fn ready_to_take(&self) -> bool {
        self.takes_more() && self.outbox.is_empty() && self.held.is_none()
    }

    fn has_credit(&self) -> bool {
        let out = u32::try_from(self.ledger.len()).unwrap_or(u32::MAX);
        self.delivered < self.plan.max_messages
            && out < self.plan.max_outstanding
            && self.ledger.bytes() < self.plan.max_bytes
    }

    /// Whether the broker is listened to without credit: it sends nothing then, as a rule, and says when it is over. With
    /// several queues it may send, and what is taken early could go before what is ready later in an earlier queue.
    fn listens(&self) -> bool {
        self.ready_to_take() && (self.has_credit() || self.plan.queues.len() == 1)
    }

    /// Whether the client may have this one; the first of all fits however large it is.
    fn fits(&self, delivery: &Delivery) -> bool {
        let size = delivery.message.payload.len();
        self.has_credit()
            && (self.ledger.is_empty() || self.ledger.bytes() + size <= self.plan.max_bytes)
    }

    fn next_timer(&self) -> Option<Instant> {
        let drained = match self.phase {
            Phase::Draining(end) => Some(end),
            _ => None,
        };
        let timers = [
            self.ledger.next_deadline(),
            self.stream_deadline,
            self.unread_until(),
            drained,
        ];
        timers.into_iter().flatten().min()
    }

    /// When what the broker sent meanwhile goes back, because the client does not read.
    fn unread_until(&self) -> Option<Instant> {
        let since = self.unread_since.filter(|_| self.takes_more())?;
        Some(since + self.plan.ack_deadline)
    }

    /// Returns what the broker sent and the client was not yet given.
    async fn give_back(&mut self) -> Result<(), Over> {
        self.unread_since = None;
        let mut tags: Vec<Tag> = self.held.take().map(|held| held.tag).into_iter().collect();
        while let Some(taken) = self.subscription.try_next() {
            tags.push(taken.map_err(|ended| self.over(ended))?.tag);
        }
        if !tags.is_empty() {
            let returned = self.subscription.requeue(&tags).await;
            returned.map_err(|ended| self.over(ended))?;
        }
        Ok(())
    }

    async fn on_timer(&mut self) -> Result<(), Over> {
        let now = Instant::now();
        if self.stream_deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Over::End(End::DeadlineExceeded));
        }
        if matches!(self.phase, Phase::Draining(end) if end <= now) {
            return Err(Over::End(End::Stopping));
        }
        if self.unread_until().is_some_and(|until| until <= now) {
            self.give_back().await?;
        }
        let overdue = self.ledger.overdue(now);
        if overdue.is_empty() {
            return Ok(());
        }
        self.subscription
            .requeue(&overdue)
            .await
            .map_err(|ended| self.over(ended))?;
        for tag in &overdue {
            self.ledger.settle(*tag, Settled::Lapsed);
        }
        let ack_ids = overdue.iter().map(|tag| self.ledger.ack_id(*tag));
        self.outbox.push_back(Event::Revoked(ack_ids.collect()));
        self.release_held();
        Ok(())
    }

    /// The transport has a free place: what it took before is delivered, and the next event may go.
    async fn hand_out(&mut self, permit: mpsc::OwnedPermit<Event>) -> Result<(), Over> {
        self.unread_since = None;
        let event = self.outbox.pop_front();
        let taken = std::mem::take(&mut self.handed);
        if self.plan.auto_ack
            && let Some(Event::Deliveries(given)) = &event
        {
            self.handed.extend(given.iter().map(|g| g.delivery.tag));
        }
        if let Some(event) = event {
            permit.send(event);
        }
        if !taken.is_empty() {
            self.subscription
                .ack(&taken)
                .await
                .map_err(|ended| self.over(ended))?;
            for tag in taken {
                self.ledger.settle(tag, Settled::Automatic);
            }
            self.release_held();
        }
        Ok(())
    }

    async fn on_delivery(&mut self, taken: Result<Delivery, Ended>) -> Result<(), Over> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut next = Some(taken);
        let mut ended = None;
        while let Some(taken) = next {
            match taken {
                Ok(delivery) => {
                    let size = delivery.message.payload.len();
                    if !self.fits(&delivery) {
                        self.held = Some(delivery);
                        break;
                    }
                    if !batch.is_empty() && bytes + size > BATCH_BYTES {
                        // The outbox is no longer empty, so this one is the last.
                        let full = std::mem::take(&mut batch);
                        self.outbox.push_back(Event::Deliveries(full));
                    }
                    bytes += size;
                    batch.push(self.give(delivery));
                }
                Err(end) => {
                    ended = Some(end);
                    break;
                }
            }
            let full = batch.len() >= BATCH || bytes >= BATCH_BYTES || !self.has_room();
            next = if full {
                None
            } else {
                self.subscription.try_next()
            };
        }
        if !batch.is_empty() {
            self.outbox.push_back(Event::Deliveries(batch));
        }
        match ended {
            None => Ok(()),
            Some(ended) => Err(self.over(ended)),
        }
    }

    fn give(&mut self, delivery: Delivery) -> Given {
        let deadline = (!self.plan.auto_ack).then_some(self.plan.ack_deadline);
        let queue = self.plan.queues.get(delivery.queue).cloned();
        let delivery = Arc::new(delivery);
        let until = deadline.map(|deadline| Instant::now() + deadline);
        let ack_id = self.ledger.give(delivery.clone(), until);
        self.delivered += 1;
        Given {
            ack_id,
            delivery,
            queue: queue.unwrap_or_default(),
            ack_deadline: deadline,
        }
    }

    /// Credit came free: what waited for it goes out.
    fn release_held(&mut self) {
        if self.takes_more()
            && self.held.as_ref().is_some_and(|held| self.fits(held))
            && let Some(delivery) = self.held.take()
        {
            let given = self.give(delivery);
            self.outbox.push_back(Event::Deliveries(vec![given]));
        }
    }

    async fn on_requests(&mut self, requests: Vec<Request>) -> Result<(), Over> {
        let mut results = Vec::new();
        let (mut acked, mut requeued) = (Vec::new(), Vec::new());
        for request in requests {
            match request {
                Request::Settle { acks, nacks } => {
                    for ack_id in acks {
                        let result = self.settle(&ack_id, Settled::Ack, &mut acked);
                        results.push((ack_id, result));
                    }
                    for nack in nacks {
                        let how = nack.action.map(Action::settled);
                        let settled_at_once = match how {
                            None => Some(SettleResult::Invalid),
                            Some(how @ Settled::Requeue) => {
                                Some(self.settle(&nack.ack_id, how, &mut requeued))
                            }
                            Some(how @ (Settled::Retry | Settled::DeadLetter)) => {
                                self.begin_copy(&nack, how)
                            }
                            // The broker dead-letters what is rejected; only an ack drops a message.
                            Some(how) => Some(self.settle(&nack.ack_id, how, &mut acked)),
                        };
                        results.extend(settled_at_once.map(|result| (nack.ack_id, result)));
                    }
                }
                Request::Extend {
                    ack_ids,
                    ack_deadline,
                } => {
                    let deadline = Instant::now() + ack_deadline.unwrap_or(self.plan.ack_deadline);
                    results.extend(ack_ids.into_iter().map(|ack_id| {
                        let result = self.extend(&ack_id, deadline);
                        (ack_id, result)
                    }));
                }
                Request::Invalid(invalid) => return Err(Over::End(End::Invalid(invalid))),
            }
        }
        if !acked.is_empty() {
            self.subscription
                .ack(&acked)
                .await
                .map_err(|ended| self.over(ended))?;
        }
        if !requeued.is_empty() {
            self.subscription
                .requeue(&requeued)
                .await
                .map_err(|ended| self.over(ended))?;
        }
        let mut results = results.into_iter().peekable();
        while results.peek().is_some() {
            let some = results.by_ref().take(RESULTS).collect();
            self.outbox.push_back(Event::Results(some));
        }
        self.release_held();
        Ok(())
    }

    /// Books a settle that the broker carries out at once; `tags` collects what it is to be told.
    fn settle(&mut self, ack_id: &str, how: Settled, tags: &mut Vec<Tag>) -> SettleResult {
        match self.ledger.claim(ack_id, how) {
            Claim::Open(_) if self.plan.auto_ack => SettleResult::AlreadySettled,
            Claim::Open(tag) => {
                self.ledger.settle(tag, how);
                tags.push(tag);
                SettleResult::Ok
            }
            Claim::UnderWay(_) => SettleResult::AlreadySettled,
            Claim::Answered(result) => result,
        }
    }

    fn extend(&mut self, ack_id: &str, deadline: Instant) -> SettleResult {
        match self.ledger.claim(ack_id, Settled::Ack) {
            Claim::Open(_) if self.plan.auto_ack => SettleResult::AlreadySettled,
            Claim::Open(tag) => {
                self.ledger.extend(tag, deadline);
                SettleResult::Ok
            }
            // Acked before: there is nothing to extend.
            Claim::UnderWay(_) | Claim::Answered(SettleResult::Ok) => SettleResult::AlreadySettled,
            Claim::Answered(result) => result,
        }
    }

    /// Begins to move a delivery to its dead-letter queue. The answer follows when the copy is stored; or is this one.
    fn begin_copy(&mut self, nack: &Nack, how: Settled) -> Option<SettleResult> {
        let tag = match self.ledger.claim(&nack.ack_id, how) {
            Claim::Open(_) if self.plan.auto_ack => return Some(SettleResult::AlreadySettled),
            Claim::Open(tag) => tag,
            // It will be answered once, when the copy is stored.
            Claim::UnderWay(_) => return None,
            Claim::Answered(result) => return Some(result),
        };
        let next = match nack.action {
            Some(Action::Retry(delay)) => Next::Retry(delay),
            _ => Next::Park,
        };
        let delivery = self.ledger.begin(tag, how)?;
        let index = delivery.queue;
        let queue = self.plan.queues.get(index)?.clone();
        let copy = dead_letter::copy(delivery, &queue, next, &nack.error);
        let gateway = self.gateway.clone();
        self.copies.push(
            async move {
                let stored = gateway.dead_letter(queue, copy).await;
                (tag, how, index, stored)
            }
            .boxed(),
        );
        None
    }

    async fn on_copied(&mut self, (tag, how, index, stored): CopyDone) -> Result<(), Over> {
        let result = match stored {
            Ok(()) => {
                self.subscription
                    .ack(&[tag])
                    .await
                    .map_err(|ended| self.over(ended))?;
                self.ledger.settle(tag, how);
                SettleResult::Ok
            }
            Err(error) => {
                let queue = self.plan.queues.get(index);
                tracing::warn!(queue, %error, "a failed delivery stays in its queue");
                let deadline = Instant::now() + self.plan.ack_deadline;
                self.ledger.reopen(tag, deadline);
                SettleResult::NotSettled
            }
        };
        let answer = (self.ledger.ack_id(tag), result);
        self.outbox.push_back(Event::Results(vec![answer]));
        self.release_held();
        Ok(())
    }

    async fn on_half_close(&mut self) {
        if self.plan.auto_ack {
            return;
        }
        if self.takes_more() {
            self.subscription.stop().await;
        }
        self.last_word = true;
    }

    async fn drain(&mut self) {
        let grace = self.gateway.limits.shutdown_grace;
        if self.takes_more() {
            self.subscription.stop().await;
        }
        self.phase = Phase::Draining(Instant::now() + grace);
        if !self.last_word {
            self.outbox.push_back(Event::Draining { grace });
        }
    }

    fn over(&self, ended: Ended) -> Over {
        Over::End(match ended {
            Ended::BrokerDown => End::BrokerDown,
            Ended::QueueDeleted(index) => {
                let queue = self.plan.queues.get(index).cloned();
                End::QueueDeleted(queue.unwrap_or_default())
            }
        })
    }

    /// Returns what is unsettled to its queue, and then tells the client how it ended.
    async fn close(mut self, over: Over) {
        // A copy that is stored while its original returns would be a duplicate; the copies under way are worth waiting for.
        while let Some((tag, _, _, stored)) = self.copies.next().await {
            if stored.is_ok() && self.subscription.ack(&[tag]).await.is_err() {
                break;
            }
        }
        self.subscription.close().await;
        let Over::End(end) = over else { return };
        let last = async {
            for event in self.outbox {
                self.events.send(event).await?;
            }
            self.events.send(Event::End(end)).await
        };
        // A client that does not read learns it from the end of the stream.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, last).await;
    }
}

impl Action {
    fn settled(self) -> Settled {
        match self {
            Self::Retry(_) => Settled::Retry,
            Self::Requeue => Settled::Requeue,
            Self::DeadLetter => Settled::DeadLetter,
            Self::Discard => Settled::Discard,
        }
    }
}
