//! The right to say what became of a publish: used exactly once, whatever happens to its holder.

use tokio::sync::{mpsc, oneshot};

use super::{Fate, InDoubt, NotSent};

/// Learns what became of a publish, whether or not anybody waits for it. Must not block.
pub struct OutcomeObserver(Box<dyn FnOnce(Fate) + Send>);

impl OutcomeObserver {
    pub fn new(observer: impl FnOnce(Fate) + Send + 'static) -> Self {
        Self(Box::new(observer))
    }
}

impl std::fmt::Debug for OutcomeObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OutcomeObserver")
    }
}

/// Answers one publish. Dropped unanswered (a task died), it answers by itself what is then true:
/// not sent before [`handed_over`](Self::handed_over), in doubt after.
#[derive(Debug)]
pub struct PublishReply {
    waiter: Option<Waiter>,
    observer: Option<OutcomeObserver>,
    handed_over: bool,
}

#[derive(Debug)]
enum Waiter {
    One(oneshot::Sender<Fate>),
    Many(usize, mpsc::UnboundedSender<(usize, Fate)>),
}

impl PublishReply {
    /// A reply with a waiter of its own.
    pub fn single() -> (Self, oneshot::Receiver<Fate>) {
        let (sender, receiver) = oneshot::channel();
        (Self::new(Waiter::One(sender)), receiver)
    }

    /// One of many replies that answer to one waiter, each under its key. The waiter bounds how many are out.
    pub fn keyed(key: usize, answers: &mpsc::UnboundedSender<(usize, Fate)>) -> Self {
        Self::new(Waiter::Many(key, answers.clone()))
    }

    fn new(waiter: Waiter) -> Self {
        Self {
            waiter: Some(waiter),
            observer: None,
            handed_over: false,
        }
    }

    /// Lets somebody else know the answer too, before whoever waits for it.
    pub fn observed(mut self, observer: OutcomeObserver) -> Self {
        self.observer = Some(observer);
        self
    }

    /// From here on the broker may have the message.
    pub fn handed_over(&mut self) {
        self.handed_over = true;
    }

    /// The broker certainly does not have the message, although it was handed over.
    pub fn taken_back(&mut self) {
        self.handed_over = false;
    }

    /// Answers. Whoever waited may be gone; that is fine.
    pub fn answer(mut self, fate: Fate) {
        self.send(fate);
    }

    fn send(&mut self, fate: Fate) {
        let Some(waiter) = self.waiter.take() else {
            return;
        };
        if let Some(OutcomeObserver(observer)) = self.observer.take() {
            observer(fate);
        }
        match waiter {
            Waiter::One(sender) => drop(sender.send(fate)),
            Waiter::Many(key, sender) => drop(sender.send((key, fate))),
        }
    }
}

impl Drop for PublishReply {
    fn drop(&mut self) {
        self.send(if self.handed_over {
            Fate::InDoubt(InDoubt::ConfirmLost)
        } else {
            Fate::NotSent(NotSent::BrokerDown)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_dropped_before_the_hand_over_says_not_sent() {
        let (reply, mut answer) = PublishReply::single();
        drop(reply);
        assert_eq!(answer.try_recv(), Ok(Fate::NotSent(NotSent::BrokerDown)));
    }

    #[test]
    fn a_reply_dropped_after_the_hand_over_says_in_doubt() {
        let (answers, mut inbox) = mpsc::unbounded_channel();
        let mut reply = PublishReply::keyed(7, &answers);
        reply.handed_over();
        drop(reply);
        assert_eq!(
            inbox.try_recv(),
            Ok((7, Fate::InDoubt(InDoubt::ConfirmLost)))
        );
    }

    #[test]
    fn an_observer_learns_the_fate_once_although_nobody_waits() {
        let (told, heard) = std::sync::mpsc::channel();
        let observer = || {
            let told = told.clone();
            OutcomeObserver::new(move |fate| {
                let _ = told.send(fate);
            })
        };
        let (reply, answer) = PublishReply::single();
        drop(answer);
        reply.observed(observer()).answer(Fate::Confirmed);
        assert_eq!(heard.try_recv(), Ok(Fate::Confirmed));
        let (reply, _answer) = PublishReply::single();
        drop(reply.observed(observer()));
        assert_eq!(heard.try_recv(), Ok(Fate::NotSent(NotSent::BrokerDown)));
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn an_answered_reply_says_nothing_more() {
        let (answers, mut inbox) = mpsc::unbounded_channel();
        PublishReply::keyed(1, &answers).answer(Fate::Confirmed);
        assert_eq!(inbox.try_recv(), Ok((1, Fate::Confirmed)));
        assert!(inbox.try_recv().is_err());
    }
}
