//! Settling: what the client says of its deliveries, and what the broker is told.

use futures::FutureExt;
use tokio::time::Instant;

use super::{CopyDone, Over, Session};
use crate::{
    broker::Tag,
    failed_message::{Next, Time},
    gateway::{
        failed_messages::dead_letter,
        message_log,
        subscriber::{
            ledger::{Claim, Settled},
            protocol::{Action, End, Event, Nack, Request, SettleResult},
        },
    },
};

/// Results that go into one event. When so many are due, further requests wait.
pub(super) const RESULTS: usize = 1_000;

impl Request {
    /// How many results it asks for; at least 1, so that empty requests count too.
    pub(super) fn results(&self) -> usize {
        let ids = match self {
            Self::Settle { acks, nacks } => acks.len() + nacks.len(),
            Self::Extend { ack_ids, .. } => ack_ids.len(),
            Self::Invalid(_) | Self::Interrupted(_) | Self::Gone => 0,
        };
        ids.max(1)
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

impl Session {
    pub(super) async fn on_requests(&mut self, requests: Vec<Request>) -> Result<(), Over> {
        let mut results = Vec::new();
        let (mut acked, mut requeued) = (Vec::new(), Vec::new());
        let mut over = None;
        let now = message_log::now();
        for request in requests {
            match request {
                Request::Settle { acks, nacks } => {
                    for ack_id in acks {
                        let result = self.settle(&ack_id, Settled::Ack, now, &mut acked);
                        results.push((ack_id, result));
                    }
                    for nack in nacks {
                        let how = nack.action.map(Action::settled);
                        let settled_at_once = match how {
                            None => Some(SettleResult::Invalid),
                            Some(how @ Settled::Requeue) => {
                                Some(self.settle(&nack.ack_id, how, now, &mut requeued))
                            }
                            Some(how @ (Settled::Retry | Settled::DeadLetter)) => {
                                self.begin_copy(&nack, how, now)
                            }
                            // The broker dead-letters what is rejected; only an ack drops a message.
                            Some(how) => Some(self.settle(&nack.ack_id, how, now, &mut acked)),
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
                // What came before it is carried out.
                Request::Invalid(invalid) => over = Some(Over::End(End::Invalid(invalid))),
                Request::Interrupted(why) => over = Some(Over::End(End::Interrupted(why))),
                Request::Gone => over = Some(Over::Gone),
            }
            if over.is_some() {
                break;
            }
        }
        if !acked.is_empty() {
            self.subscription
                .ack(&acked)
                .await
                .map_err(|ended| self.over(ended))?;
            self.note_resolved();
        }
        if !requeued.is_empty() {
            self.subscription
                .requeue(&requeued)
                .await
                .map_err(|ended| self.over(ended))?;
        }
        if let Some(over) = over {
            return Err(over);
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
    fn settle(
        &mut self,
        ack_id: &str,
        how: Settled,
        now: Time,
        tags: &mut Vec<Tag>,
    ) -> SettleResult {
        match self.ledger.claim(ack_id, how) {
            Claim::Open(_) if self.plan.auto_ack => SettleResult::AlreadySettled,
            Claim::Open(tag) => {
                self.settled(tag, how, now);
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
    fn begin_copy(&mut self, nack: &Nack, how: Settled, now: Time) -> Option<SettleResult> {
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
        let letters = self.service.dead_letters.clone();
        self.copies.push(
            async move {
                let stored = letters.add(queue, copy).await;
                CopyDone {
                    tag,
                    how,
                    queue: index,
                    asked_at: now,
                    stored,
                }
            }
            .boxed(),
        );
        None
    }

    pub(super) async fn on_copied(&mut self, copy: CopyDone) -> Result<(), Over> {
        let CopyDone { tag, how, .. } = copy;
        let result = match copy.stored {
            Ok(()) => {
                self.subscription
                    .ack(&[tag])
                    .await
                    .map_err(|ended| self.over(ended))?;
                self.settled(tag, how, copy.asked_at);
                SettleResult::Ok
            }
            Err(error) => {
                let queue = self.plan.queues.get(copy.queue);
                tracing::warn!(queue, %error, "cannot store a dead letter: the delivery stays with its consumer until its deadline, and may be settled again");
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
}
