//! The right to say what became of a publish: used exactly once, whatever happens to its holder.

use tokio::sync::{mpsc, oneshot};

use super::{Fate, InDoubt, NotSent};

/// Learns what became of a publish, whether or not anybody waits for it. Must not block.
pub struct Witness(Box<dyn FnOnce(Fate) + Send>);

impl Witness {
    pub fn new(witness: impl FnOnce(Fate) + Send + 'static) -> Self {
        Self(Box::new(witness))
    }
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Witness")
    }
}

/// Answers one publish. Dropped unanswered (a task died), it answers by itself what is then true:
/// not sent before [`handed_over`](Self::handed_over), in doubt after.
#[derive(Debug)]
pub struct Receipt {
    waiter: Option<Waiter>,
    witness: Option<Witness>,
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
            witness: None,
            handed_over: false,
        }
    }

    /// Lets somebody else know the answer too, before whoever waits for it.
    pub fn witnessed(mut self, witness: Witness) -> Self {
        self.witness = Some(witness);
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
        if let Some(Witness(witness)) = self.witness.take() {
            witness(fate);
        }
        match waiter {
            Waiter::One(sender) => drop(sender.send(fate)),
            Waiter::Many(key, sender) => drop(sender.send((key, fate))),
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
    fn a_witness_learns_the_fate_once_although_nobody_waits() {
        let (told, heard) = std::sync::mpsc::channel();
        let witness = || {
            let told = told.clone();
            Witness::new(move |fate| {
                let _ = told.send(fate);
            })
        };
        let (receipt, answer) = Receipt::single();
        drop(answer);
        receipt.witnessed(witness()).answer(Fate::Confirmed);
        assert_eq!(heard.try_recv(), Ok(Fate::Confirmed));
        let (receipt, _answer) = Receipt::single();
        drop(receipt.witnessed(witness()));
        assert_eq!(heard.try_recv(), Ok(Fate::NotSent(NotSent::BrokerDown)));
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn an_answered_receipt_says_nothing_more() {
        let (answers, mut inbox) = mpsc::unbounded_channel();
        Receipt::keyed(1, &answers).answer(Fate::Confirmed);
        assert_eq!(inbox.try_recv(), Ok((1, Fate::Confirmed)));
        assert!(inbox.try_recv().is_err());
    }
}
