//! A publish lane: one channel in confirm mode, owned by one task, so that acks and nacks belong to their message.
//!
//! The lane keeps up to [`WINDOW`] publishes in flight, without a barrier between them, and queues the rest. It answers each
//! reply exactly once, at the latest at its deadline:
//! - not handed to the client library: not sent, whatever happens; nothing is handed to it after its deadline;
//! - the client library says that the frames were not wholly written: not sent;
//! - written and resolved: what [`super::verdict`] says;
//! - written, and the channel broke or the deadline came: in doubt;
//! - the broker ended the channel because it refuses a publish for good: what [`super::refused`] says.
//!
//! When the link's connection is renewed, the lane first lets what is in flight end on the old one, so that order is kept.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};
use uuid::Uuid;

use super::{
    checks::Checks,
    convert,
    flight::{Entry, Failed, OPEN_TIMEOUT, Open, Opening, Output},
    link::{Link, State, Up},
    refused::{self, Looking},
};
use crate::{
    broker::{Checked, Error, Fate, InDoubt, NotSent, Publish, PublishReply},
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
pub(super) const HEADERS_MAX: usize = 120 * 1024;

pub(super) type Job = (Publish, PublishReply);

/// Hands jobs to the lane's task.
pub(super) struct Lane(mpsc::UnboundedSender<Job>);

impl Lane {
    /// The lane takes no more once `stop` is cancelled, and ends when every reply is answered.
    pub(super) fn start(
        link: &Link,
        checks: Arc<Checks>,
        tasks: &TaskTracker,
        stop: CancellationToken,
        figures: metrics::Lane,
    ) -> Self {
        let (sender, jobs) = mpsc::unbounded_channel();
        let worker = Worker {
            link: link.watch(),
            checks,
            backlog: VecDeque::new(),
            unanswered: 0,
            next_deadline: None,
            checking: None,
            looking: None,
            figures,
        };
        tasks.spawn(run(worker, jobs, stop));
        Self(sender)
    }

    /// Queues a job. How many wait is bounded by the gateway's admission.
    pub(super) fn publish(&self, job: Job) {
        // A lane that is gone drops the job, and the reply says that it was not sent.
        let _ = self.0.send(job);
    }
}

/// The lane's task.
struct Worker {
    link: watch::Receiver<State>,
    checks: Arc<Checks>,
    backlog: VecDeque<Job>,
    /// Entries in flight, waiting or looked into, with a caller that waits.
    unanswered: usize,
    /// Not later than the earliest deadline of all unanswered jobs.
    next_deadline: Option<Instant>,
    /// The job at the front of the backlog is checked again, since something was learnt after it was checked.
    checking: Option<BoxFuture<'static, (Uuid, Result<Checked, Error>)>>,
    /// What ended with a channel that the broker ended, while it is found out which of them it refused.
    looking: Option<Looking>,
    figures: metrics::Lane,
}

async fn run(mut worker: Worker, mut jobs: mpsc::UnboundedReceiver<Job>, stop: CancellationToken) {
    let mut open: Option<Open> = None;
    let mut opening = Opening::default();
    let mut incoming = Vec::new();
    let mut ready = Vec::new();
    let mut accepting = true;
    while accepting || worker.unanswered > 0 || !worker.backlog.is_empty() {
        if open.as_ref().is_some_and(|open| worker.is_over(open))
            && let Some(open) = open.take()
        {
            worker.give_up(open);
        }
        if open.is_none() {
            opening.begin(&worker.link);
        }
        let deadline = worker.next_deadline;
        let ending = open.as_ref().and_then(Open::ending);
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
            opened = opening.opened(), if open.is_none() => open = opened,
            () = until(deadline), if deadline.is_some() => worker.expire(open.as_mut()),
            () = until(ending), if ending.is_some() => {}
            checked = checked(&mut worker.checking) => worker.checked(checked),
            found = refused::found(&mut worker.looking) => worker.found(&found),
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

async fn checked(
    checking: &mut Option<BoxFuture<'static, (Uuid, Result<Checked, Error>)>>,
) -> (Uuid, Result<Checked, Error>) {
    match checking {
        Some(running) => {
            let checked = running.await;
            *checking = None;
            checked
        }
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

    /// Whether the channel takes publishes.
    fn serves(&self, open: &Open) -> bool {
        !open.broken
            && open.channel.status().connected()
            && self.is_current(open)
            && open.inflight.len() < STUCK
    }

    /// Whether the channel stands on the link's connection of the moment.
    fn is_current(&self, open: &Open) -> bool {
        let generation = self.link.borrow().up().map(Up::generation);
        generation == Some(open.up.generation())
    }

    /// Whether the channel is to be given up now.
    fn is_over(&self, open: &Open) -> bool {
        if self.serves(open) {
            return false;
        }
        if !open.up.stands() || open.inflight.len() >= STUCK {
            return true;
        }
        // The connection was renewed: what is in flight ends on the old one first.
        let renewed = !open.broken && open.channel.status().connected();
        if renewed {
            return self.unanswered == 0;
        }
        // All that was in flight is needed to say what became of each.
        open.ending().is_none_or(|ending| ending <= Instant::now())
    }

    /// Moves jobs from the backlog into flight, or answers them when the broker cannot take them.
    fn feed(&mut self, open: Option<&mut Open>) {
        let refusal = match &*self.link.borrow() {
            State::Down => Some(NotSent::BrokerDown),
            State::Up(up) if up.blocked => Some(NotSent::BrokerBlocked),
            State::Up(_) => None,
        };
        if let Some(reason) = refusal {
            for (_, reply) in self.backlog.drain(..) {
                reply.answer(Fate::NotSent(reason));
            }
            return;
        }
        let Some(open) = open.filter(|open| self.serves(open)) else {
            return;
        };
        while self.may_fly(open) {
            let Some((publish, reply)) = self.backlog.pop_front() else {
                return;
            };
            // It may have come too late already, or have waited while this process was stopped.
            if publish.deadline <= Instant::now() {
                reply.answer(Fate::NotSent(NotSent::Overloaded));
                continue;
            }
            if convert::header_bytes(&publish.message.headers) > HEADERS_MAX {
                reply.answer(Fate::NotSent(NotSent::HeadersTooLarge));
                continue;
            }
            if !self.checks.holds(publish.checked) {
                self.checking = Some(check(self.checks.clone(), &publish).boxed());
                self.backlog.push_front((publish, reply));
                return;
            }
            self.unanswered += 1;
            open.fly(publish, reply);
        }
    }

    fn may_fly(&self, open: &Open) -> bool {
        self.unanswered < WINDOW
            && open.verdicts.waiting() < WAITING_MAX
            && self.checking.is_none()
            // What ended with the last channel goes first.
            && self.looking.is_none()
    }

    /// The job at the front was checked again, unless it is gone meanwhile.
    fn checked(&mut self, (publish_id, checked): (Uuid, Result<Checked, Error>)) {
        let front = self.backlog.pop_front();
        let Some((mut publish, reply)) = front else {
            return;
        };
        if publish.publish_id == publish_id {
            match checked {
                Ok(checked) => publish.checked = checked,
                Err(error) => return reply.answer(error.into()),
            }
        }
        self.backlog.push_front((publish, reply));
    }

    /// Answers what resolved.
    fn settle(&mut self, open: &mut Open, ready: &mut Vec<(Entry, Output)>) {
        let mut resolved = Vec::with_capacity(ready.len());
        for (entry, output) in ready.drain(..) {
            match output {
                Output::Resolved(Some(outcome)) => {
                    resolved.push((entry.publish_id, entry, outcome));
                }
                Output::Resolved(None) => {
                    warn!("the broker returned a message that this channel never published");
                    open.broken = true;
                    self.answer(entry, Fate::InDoubt(InDoubt::ConfirmLost));
                }
                Output::Failed(failed) => {
                    if let Some((entry, failed)) = open.fail(entry, *failed) {
                        self.answer_failed(entry, &failed);
                    }
                }
            }
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

    /// Answers what ended with its channel.
    fn answer_failed(&mut self, entry: Entry, failed: &Failed) {
        debug!(error = %failed.cause, written = failed.written, "a publish ended with its channel");
        let fate = if failed.written {
            Fate::InDoubt(InDoubt::ConfirmLost)
        } else {
            Fate::NotSent(NotSent::BrokerDown)
        };
        self.answer(entry, fate);
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
        let late = Fate::InDoubt(InDoubt::ConfirmTimeout);
        let mut next = self.next_deadline;
        let mut keep = |deadline: Instant| {
            next = Some(next.map_or(deadline, |next| next.min(deadline)));
        };
        let mut unanswered = self.unanswered;
        let mut expire = |entry: &mut Entry| {
            if entry.reply.is_none() {
                return;
            }
            if entry.deadline > now {
                keep(entry.deadline);
            } else if let Some(reply) = entry.reply.take() {
                unanswered -= 1;
                reply.answer(late);
            }
        };
        if let Some(looking) = &mut self.looking {
            looking.entries_mut().for_each(&mut expire);
        }
        if let Some(open) = open {
            let expired: Vec<_> = open
                .verdicts
                .expire(|entry| entry.deadline <= now)
                .collect();
            for mut entry in expired {
                expire(&mut entry);
            }
            open.inflight.entries_mut().for_each(&mut expire);
            let refused = open.refused.iter_mut();
            let failed = refused.flat_map(|refused| &mut refused.failed);
            failed.for_each(|(entry, _)| expire(entry));
            let waiting = open.verdicts.entries().map(|entry| entry.deadline);
            waiting.for_each(&mut keep);
        }
        self.unanswered = unanswered;
        self.next_deadline = next;
    }

    /// The channel is lost. What the client library can still tell is asked for once; the rest is in doubt.
    fn give_up(&mut self, mut open: Open) {
        let mut ready = Vec::new();
        let _ = open.inflight.drain(&mut ready).now_or_never();
        self.settle(&mut open, &mut ready);
        let waiting: Vec<_> = open.verdicts.abandon().collect();
        for entry in waiting {
            self.answer(entry, Fate::InDoubt(InDoubt::ConfirmLost));
        }
        for entry in open.inflight.entries_mut() {
            if let Some(reply) = entry.reply.take() {
                self.unanswered -= 1;
                reply.answer(Fate::InDoubt(InDoubt::ConfirmLost));
            }
        }
        if let Some(refused) = open.refused.take() {
            if self.looking.is_none() {
                self.looking = Some(Looking::begin(refused, self.checks.clone()));
            } else {
                for (entry, failed) in refused.failed {
                    self.answer_failed(entry, &failed);
                }
            }
        }
        // Nobody waits for the broker's answer to this close; it may never come.
        tokio::spawn(async move {
            let closing = open.channel.close(200, "given up".into());
            let _ = timeout(OPEN_TIMEOUT, closing).await;
        });
    }

    /// It is known which publishes the broker refuses, of those that ended with their channel.
    fn found(&mut self, refuses: &[bool]) {
        let Some(looking) = self.looking.take() else {
            return;
        };
        let mut again = VecDeque::new();
        for (entry, publish, fate) in looking.fates(refuses) {
            match (fate, entry.reply) {
                (_, None) => {}
                (Some(fate), Some(reply)) => {
                    self.unanswered -= 1;
                    reply.answer(fate);
                }
                (None, Some(mut reply)) => {
                    self.unanswered -= 1;
                    reply.taken_back();
                    again.push_back((publish, reply));
                }
            }
        }
        for (publish, _) in &again {
            self.note_deadline(publish.deadline);
        }
        again.append(&mut self.backlog);
        self.backlog = again;
    }
}

fn answer(unanswered: &mut usize, mut entry: Entry, fate: Fate) {
    if let Some(reply) = entry.reply.take() {
        *unanswered -= 1;
        reply.answer(fate);
    }
}

/// Checks a job again.
fn check(
    checks: Arc<Checks>,
    publish: &Publish,
) -> impl Future<Output = (Uuid, Result<Checked, Error>)> + Send + use<> {
    let (id, deadline) = (publish.publish_id, publish.deadline);
    let target = refused::OwnedTarget::of(publish);
    async move {
        let checked = checks.check(target.borrowed(), deadline).await;
        (id, checked)
    }
}
