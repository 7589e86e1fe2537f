//! The right to say what became of a publish: used exactly once, whatever happens to its holder.

use tokio::sync::{mpsc, oneshot};

use super::{Fate, InDoubt, NotSent};

/// Answers one publish. Dropped unanswered (a task died), it answers by itself what is then true:
/// not sent before [`handed_over`](Self::handed_over), in doubt after.
#[derive(Debug)]
pub struct Receipt {
    waiter: Option<Waiter>,
    handed_over: bool,
}

#[derive(Debug)]
enum Waiter {
    One(oneshot::Sender<Fate>),
    Many(usize, mpsc::UnboundedSender<(usize, Fate)>),
}

impl Receipt {
    /// A receipt with a waiter of its own.
    pub fn single() -> (Self, oneshot::Receiver<Fate>) {
        let (sender, receiver) = oneshot::channel();
        (Self::new(Waiter::One(sender)), receiver)
    }

    /// One of many receipts that answer to one waiter, each under its key. The waiter bounds how many are out.
    pub fn keyed(key: usize, answers: &mpsc::UnboundedSender<(usize, Fate)>) -> Self {
        Self::new(Waiter::Many(key, answers.clone()))
    }

    fn new(waiter: Waiter) -> Self {
        Self {
            waiter: Some(waiter),
            handed_over: false,
        }
    }

    /// From here on the broker may have the message.
    pub fn handed_over(&mut self) {
        self.handed_over = true;
    }

    /// Answers. Whoever waited may be gone; that is fine.
    pub fn answer(mut self, fate: Fate) {
        self.send(fate);
    }

    fn send(&mut self, fate: Fate) {
        match self.waiter.take() {
            Some(Waiter::One(sender)) => drop(sender.send(fate)),
            Some(Waiter::Many(key, sender)) => drop(sender.send((key, fate))),
            None => {}
        }
    }
}

impl Drop for Receipt {
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
    fn a_receipt_dropped_before_the_hand_over_says_not_sent() {
        let (receipt, mut answer) = Receipt::single();
        drop(receipt);
        assert_eq!(answer.try_recv(), Ok(Fate::NotSent(NotSent::BrokerDown)));
    }

    #[test]
    fn a_receipt_dropped_after_the_hand_over_says_in_doubt() {
        let (answers, mut inbox) = mpsc::unbounded_channel();
        let mut receipt = Receipt::keyed(7, &answers);
        receipt.handed_over();
        drop(receipt);
        assert_eq!(
            inbox.try_recv(),
            Ok((7, Fate::InDoubt(InDoubt::ConfirmLost)))
        );
    }

    #[test]
    fn an_answered_receipt_says_nothing_more() {
        let (answers, mut inbox) = mpsc::unbounded_channel();
        Receipt::keyed(1, &answers).answer(Fate::Confirmed);
        assert_eq!(inbox.try_recv(), Ok((1, Fate::Confirmed)));
        assert!(inbox.try_recv().is_err());
    }
}
