//! Subscribing: one task a stream, between the client's requests and the broker's deliveries.
//!
//! The task never waits for the client to read: what it has to say stands in an outbox, and deliveries are given out only when the
//! outbox is empty. So ack deadlines run, and settles are carried out, also when the client does not read. What the broker sent
//! beyond that waits in the [`backlog`], and goes back after the same time: a client that hangs holds nothing for ever.

mod backlog;
mod log;
mod quarantine;
mod settle;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};

use self::{
    backlog::{Backlog, Lost},
    log::SessionLog,
    quarantine::{Quarantine, Taken},
};
use super::{
    Plan, Subscriber,
    dead_letters::NotStored,
    ledger::{Ledger, Settled},
    protocol::{End, Event, Given, Request},
};
use crate::{
    broker::{Delivery, Ended, Subscription, Tag},
    failed_message::Time,
    gateway::message_log,
    store::Ack,
    timer::until,
};

/// Deliveries that go into one event at most, by count and payload bytes; a larger one goes alone, so that events fit the
/// 4 MiB that clients receive by custom.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 1024 * 1024;
/// Events that wait for a client that does not read, before its requests are left unread too.
const OUTBOX: usize = 64;
/// How often it is looked whether others have left room for what was missed.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(50);
/// Deliveries that are taken from the broker before anything else is done.
const ARRIVALS: usize = 1_024;
/// How long the last events may take to reach a client.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Deliveries flow.
    Running,
    /// The gateway stops: settling goes on until then.
    Draining(Instant),
}

/// Whether a copy for the dead-letter queue is stored.
struct CopyDone {
    tag: Tag,
    how: Settled,
    queue: usize,
    /// When the client asked for it.
    asked_at: Time,
    stored: Result<(), NotStored>,
}

pub(super) struct Session {
    service: Subscriber,
    plan: Plan,
    subscription: Box<dyn Subscription>,
    ledger: Ledger,
    outbox: VecDeque<Event>,
    events: mpsc::Sender<Event>,
    copies: FuturesUnordered<BoxFuture<'static, CopyDone>>,
    /// What has arrived.
    backlog: Backlog,
    /// A delivery that is next and exceeds the credit, or must travel alone.
    held: Option<Taken>,
    quarantine: Quarantine,
    log: SessionLog,
    /// With `auto_ack`: deliveries of the event that is with the transport.
    handed: Vec<Tag>,
    /// Acks of retries that the broker is to be told of first.
    resolved: Vec<Ack>,
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
pub(super) enum Over {
    Gone,
    End(End),
}

impl Session {
    /// A session whose first word is that it stands. `seat` is its place among all subscriptions.
    pub(super) fn new(
        service: Subscriber,
        plan: Plan,
        subscription: Box<dyn Subscription>,
        events: mpsc::Sender<Event>,
        stream_deadline: Option<Instant>,
        seat: OwnedSemaphorePermit,
    ) -> Self {
        let log = SessionLog::new(&service, &plan);
        let account = service.memory.account();
        let backlog = Backlog::new(account, plan.queues.len(), plan.max_bytes);
        Self {
            backlog,
            service,
            subscription,
            ledger: Ledger::new(plan.deadline()),
            outbox: VecDeque::from([Event::Started {
                max_outstanding: plan.max_outstanding,
                ack_deadline: plan.ack_deadline,
            }]),
            events,
            copies: FuturesUnordered::new(),
            held: None,
            quarantine: Quarantine::default(),
            log,
            handed: Vec::new(),
            resolved: Vec::new(),
            delivered: 0,
            phase: Phase::Running,
            last_word: false,
            stream_deadline,
            unread_since: None,
            plan,
            _seat: seat,
        }
    }

    /// Serves until it is over, and winds up.
    pub(super) async fn serve(mut self, mut requests: impl Stream<Item = Request> + Send + Unpin) {
        let mut over = self.run(&mut requests).await;
        if matches!(over, Over::Gone) {
            over = self.last_settles(requests).await;
        }
        self.close(over).await;
    }

    /// Carries out what a client that is gone had still said.
    async fn last_settles(&mut self, mut requests: impl Stream<Item = Request> + Unpin) -> Over {
        while !self.last_word
            && let Some(request) = requests.next().now_or_never()
        {
            match request {
                Some(request) => {
                    if let Err(over) = self.on_requests(vec![request]).await {
                        if !matches!(over, Over::Gone) {
                            return over;
                        }
                        break;
                    }
                }
                None => self.last_word = true,
            }
        }
        self.vanished();
        Over::Gone
    }

    async fn run(&mut self, requests: &mut (impl Stream<Item = Request> + Send + Unpin)) -> Over {
        let stopping = self.service.streams.stopping.clone();
        let mut listening = true;
        loop {
            self.give_out();
            if let Some(end) = self.finished() {
                return Over::End(end);
            }
            if let Err(over) = self.ask_again().await {
                return over;
            }
            self.log.outstanding(self.ledger.len());
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
                Some(moved) = self.quarantine.moving.next() => self.on_moved(moved).await,
                Some(tag) = self.quarantine.resting.next() => self.on_rested(tag).await,
                request = requests.next(), if listening && self.outbox.len() < OUTBOX => match request {
                    Some(request) => {
                        // What has arrived together is settled together: one frame to the broker instead of many.
                        let mut due = request.results();
                        let mut batch = vec![request];
                        while due < settle::RESULTS
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
                arrived = self.subscription.next(), if self.takes_more() => self.on_arrival(arrived),
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
        !self.is_isolating()
            && self.delivered < self.plan.max_messages
            && out < self.plan.max_outstanding
            && self.ledger.bytes() < self.plan.max_bytes
    }

    /// Whether the client may have this one now; the first of all fits however large it is, and whatever others died of it.
    fn fits(&self, taken: &Taken) -> bool {
        let size = taken.delivery.message.payload.len();
        let joins = || self.ledger.bytes() + size <= self.plan.max_bytes && !self.must_wait(taken);
        self.has_credit() && (self.ledger.is_empty() || joins())
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
            self.waits_until(),
            self.looks_at(),
            drained,
        ];
        timers.into_iter().flatten().min()
    }

    /// When what the broker sent meanwhile goes back, because the client does not read.
    fn unread_until(&self) -> Option<Instant> {
        let since = self.unread_since.filter(|_| self.takes_more())?;
        Some(since + self.plan.ack_deadline)
    }

    /// When it is looked whether there is room for what was missed.
    fn looks_at(&self) -> Option<Instant> {
        self.would_ask_again()
            .then(|| Instant::now() + LOOK_FOR_ROOM)
    }

    /// Only what the client could have at once is asked for again.
    fn would_ask_again(&self) -> bool {
        self.backlog.misses_some() && !self.backlog.has_waiting() && self.has_room()
    }

    async fn ask_again(&mut self) -> Result<(), Over> {
        if !self.would_ask_again() {
            return Ok(());
        }
        let tags = self.backlog.ask_again(Instant::now());
        self.return_to_queues(&tags).await
    }

    /// What the client never had.
    async fn return_to_queues(&mut self, tags: &[Tag]) -> Result<(), Over> {
        if tags.is_empty() {
            return Ok(());
        }
        let returned = self.subscription.give_back(tags).await;
        returned.map_err(|ended| self.over(ended))
    }

    /// Returns what the broker sent and the client was not yet given.
    async fn give_back(&mut self) -> Result<(), Over> {
        self.unread_since = None;
        let held = self.held.take().map(|held| held.delivery.tag);
        let mut tags: Vec<Tag> = held.into_iter().collect();
        tags.extend(self.backlog.empty());
        self.return_to_queues(&tags).await
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
        if self.waits_until().is_some_and(|until| until <= now) {
            self.end_wait();
        }
        let overdue = self.ledger.overdue(now);
        if overdue.is_empty() {
            return Ok(());
        }
        self.subscription
            .requeue(&overdue)
            .await
            .map_err(|ended| self.over(ended))?;
        self.lapsed(&overdue);
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
        if let Some(Event::Deliveries(given)) = &event {
            self.log.delivered(given);
            if self.plan.auto_ack {
                self.handed.extend(given.iter().map(|g| g.delivery.tag));
            }
        }
        if let Some(event) = event {
            permit.send(event);
        }
        if !taken.is_empty() {
            self.subscription
                .ack(&taken)
                .await
                .map_err(|ended| self.over(ended))?;
            let now = message_log::now();
            for tag in taken {
                self.settled(tag, Settled::Automatic, now);
            }
            self.note_resolved();
            self.release_held();
        }
        Ok(())
    }

    /// Takes what the broker has sent, whether the client can have it now or not.
    fn on_arrival(&mut self, arrived: Result<Delivery, Ended>) -> Result<(), Over> {
        let mut next = Some(arrived);
        for left in (0..ARRIVALS).rev() {
            match next {
                Some(Ok(delivery)) => {
                    if let Err(Lost) = self.backlog.put(delivery) {
                        return Err(Over::End(End::Overloaded));
                    }
                }
                Some(Err(ended)) => {
                    // What came before goes before.
                    self.give_out();
                    return Err(self.over(ended));
                }
                None => break,
            }
            next = (left > 0).then(|| self.subscription.try_next()).flatten();
        }
        Ok(())
    }

    /// Gives the client what has arrived, as far as it has credit.
    fn give_out(&mut self) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH
            && bytes < BATCH_BYTES
            && self.has_room()
            && let Some(delivery) = self.backlog.pop()
        {
            let Some(taken) = self.examine(delivery) else {
                continue;
            };
            let size = taken.delivery.message.payload.len();
            if !self.fits(&taken) {
                self.held = Some(taken);
                break;
            }
            if !batch.is_empty() && bytes + size > BATCH_BYTES {
                // The outbox is no longer empty, so this one is the last.
                let full = std::mem::take(&mut batch);
                self.outbox.push_back(Event::Deliveries(full));
            }
            bytes += size;
            batch.push(self.give(taken));
        }
        if !batch.is_empty() {
            self.outbox.push_back(Event::Deliveries(batch));
        }
    }

    fn give(&mut self, taken: Taken) -> Given {
        self.note_failed(taken.delivery.tag, &taken);
        let attempt = taken.attempt();
        let delivery = taken.delivery;
        let queue = self.plan.queues.get(delivery.queue).cloned();
        let delivery = Arc::new(delivery);
        let ack_id = self.ledger.give(delivery.clone());
        self.delivered += 1;
        Given {
            ack_id,
            delivery,
            queue: queue.unwrap_or_default(),
            attempt,
            ack_deadline: self.plan.deadline(),
        }
    }

    /// Credit came free: what waited for it goes out.
    fn release_held(&mut self) {
        if self.takes_more()
            && self.held.as_ref().is_some_and(|held| self.fits(held))
            && let Some(taken) = self.held.take()
        {
            let given = self.give(taken);
            self.outbox.push_back(Event::Deliveries(vec![given]));
        }
    }

    async fn on_half_close(&mut self) {
        if self.plan.auto_ack {
            return;
        }
        self.stop_taking().await;
        self.last_word = true;
    }

    /// Nothing more is given out: others may have what has arrived.
    async fn stop_taking(&mut self) {
        if self.takes_more() {
            self.subscription.stop().await;
            let tags = self.backlog.empty();
            // Should the link be lost, that is noticed by whatever is settled next.
            let _ = self.return_to_queues(&tags).await;
        }
    }

    async fn drain(&mut self) {
        let grace = self.service.limits.shutdown_grace;
        self.stop_taking().await;
        self.phase = Phase::Draining(Instant::now() + grace);
        if !self.last_word {
            self.outbox.push_back(Event::Draining { grace });
        }
    }

    fn over(&self, ended: Ended) -> Over {
        Over::End(match ended {
            Ended::BrokerDown => End::BrokerDown,
            Ended::ConsumerTimeout(queue) => End::ConsumerTimeout(queue),
            Ended::QueueDeleted(index) => {
                let queue = self.plan.queues.get(index).cloned();
                End::QueueDeleted(queue.unwrap_or_default())
            }
        })
    }

    /// Returns what is unsettled to its queue, and then tells the client how it ended.
    async fn close(mut self, over: Over) {
        if let Over::End(End::ConsumerTimeout(queue)) = over {
            self.timed_out(queue);
        }
        // A copy that is stored while its original returns would be a duplicate; the copies under way are worth waiting for.
        while let Some(copy) = self.copies.next().await {
            if copy.stored.is_err() {
                continue;
            }
            self.log_settled(copy.tag, copy.how, copy.asked_at);
            if self.subscription.ack(&[copy.tag]).await.is_err() {
                break;
            }
        }
        self.finish_moves().await;
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
