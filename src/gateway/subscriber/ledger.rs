//! The books of one subscription: what is out, until when, and what became of what was settled.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    ack_id::{AckId, Nonce},
    progress::{Number, Progress},
    protocol::{Parcel, SettleResult},
};
use crate::broker::{Delivery, Tag};

/// How many settled deliveries are remembered, to tell a repeated settle from a late one.
const REMEMBERED: usize = 10_000;

/// How a delivery was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Ack,
    Retry,
    Requeue,
    DeadLetter,
    Discard,
    /// The gateway itself acked it (`auto_ack`).
    Automatic,
    /// Its deadline came: it went back to its queue.
    Lapsed,
}

/// What is to be done about a settle.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// The delivery is out: carry it out.
    Open(Tag),
    /// It is being carried out, in the same way: the answer is the same.
    UnderWay(Tag),
    /// Nothing: answer this.
    Answered(SettleResult),
}

/// A delivery that the client has.
#[derive(Debug)]
struct Out {
    delivery: Arc<Parcel>,
    number: Number,
    /// By its own clock; progress may give it more time.
    deadline: Option<Instant>,
    /// Being settled: the broker is asked for something that takes a while.
    under_way: Option<Settled>,
}

/// The books.
#[derive(Debug)]
pub struct Ledger {
    nonce: Nonce,
    /// `None`: deliveries have no deadline.
    ack_deadline: Option<Duration>,
    out: HashMap<Tag, Out>,
    /// Deliveries given so far.
    given: Number,
    progress: Progress,
    bytes: usize,
    /// The one that is out, if nothing else was out at any time since it was given.
    alone: Option<Tag>,
    deadlines: BTreeSet<(Instant, Tag)>,
    settled: HashMap<Tag, Settled>,
    order: VecDeque<Tag>,
    highest: Tag,
}

impl Ledger {
    /// Empty books. A delivery goes back when it is not settled within `ack_deadline` of when it was given, or of the last settle of
    /// something that was given before it.
    pub fn new(ack_deadline: Option<Duration>) -> Self {
        Self {
            nonce: Nonce::random(),
            ack_deadline,
            out: HashMap::new(),
            given: 0,
            progress: Progress::default(),
            bytes: 0,
            alone: None,
            deadlines: BTreeSet::new(),
            settled: HashMap::new(),
            order: VecDeque::new(),
            highest: 0,
        }
    }

    /// How many deliveries are out.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing is out.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// How many payload bytes are out.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The delivery that had no company from when it was given until now.
    pub fn alone(&self) -> Option<Tag> {
        self.alone
    }

    /// A delivery that is out.
    pub fn delivery(&self, tag: Tag) -> Option<&Delivery> {
        self.out.get(&tag).map(|out| &**out.delivery)
    }

    /// What is out and not being settled.
    pub fn unsettled(&self) -> impl Iterator<Item = Tag> {
        let open = self.out.iter().filter(|(_, out)| out.under_way.is_none());
        open.map(|(tag, _)| *tag)
    }

    /// The client gets a delivery.
    pub fn give(&mut self, delivery: Arc<Parcel>) -> String {
        let tag = delivery.tag;
        let deadline = self.ack_deadline.map(|time| Instant::now() + time);
        self.given += 1;
        self.highest = self.highest.max(tag);
        // A delivery of a stream comes again under its tag.
        self.settled.remove(&tag);
        self.bytes += delivery.message.payload.len();
        self.alone = self.out.is_empty().then_some(tag);
        self.deadlines.extend(deadline.map(|at| (at, tag)));
        let out = Out {
            delivery,
            number: self.given,
            deadline,
            under_way: None,
        };
        self.out.insert(tag, out);
        self.nonce.ack_id(tag)
    }

    /// The ack id of a delivery of this subscription.
    pub fn ack_id(&self, tag: Tag) -> String {
        self.nonce.ack_id(tag)
    }

    /// What a settle of `ack_id` as `how` means.
    pub fn claim(&self, ack_id: &str, how: Settled) -> Claim {
        let tag = match self.nonce.read(ack_id) {
            AckId::Malformed => return Claim::Answered(SettleResult::Invalid),
            AckId::Foreign => return Claim::Answered(SettleResult::Stale),
            AckId::Ours(tag) => tag,
        };
        match self.out.get(&tag) {
            Some(out) => match out.under_way {
                None => Claim::Open(tag),
                Some(under_way) if under_way == how => Claim::UnderWay(tag),
                Some(_) => Claim::Answered(SettleResult::AlreadySettled),
            },
            None => Claim::Answered(match self.settled.get(&tag) {
                Some(Settled::Lapsed) => SettleResult::Stale,
                Some(settled) if *settled == how => SettleResult::Ok,
                Some(_) => SettleResult::AlreadySettled,
                None if tag == 0 || tag > self.highest => SettleResult::Invalid,
                None => SettleResult::Stale,
            }),
        }
    }

    /// Begins to settle what takes a while; its deadline no longer runs.
    pub fn begin(&mut self, tag: Tag, how: Settled) -> Option<&Delivery> {
        let out = self.out.get_mut(&tag)?;
        out.under_way = Some(how);
        if let Some(deadline) = out.deadline.take() {
            self.deadlines.remove(&(deadline, tag));
        }
        let number = out.number;
        self.note_progress(number);
        self.delivery(tag)
    }

    /// What was begun failed: the delivery is out again, until `deadline`.
    pub fn reopen(&mut self, tag: Tag, deadline: Instant) {
        if let Some(out) = self.out.get_mut(&tag) {
            out.under_way = None;
        }
        self.extend(tag, deadline);
    }

    /// The delivery is settled.
    pub fn settle(&mut self, tag: Tag, how: Settled) {
        let Some(out) = self.out.remove(&tag) else {
            return;
        };
        if how != Settled::Lapsed && out.under_way.is_none() {
            self.note_progress(out.number);
        }
        self.bytes -= out.delivery.message.payload.len();
        self.alone = self.alone.filter(|alone| *alone != tag);
        if let Some(deadline) = out.deadline {
            self.deadlines.remove(&(deadline, tag));
        }
        self.settled.insert(tag, how);
        self.order.push_back(tag);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.settled.remove(&oldest);
        }
    }

    /// The client says what became of the delivery of this number.
    fn note_progress(&mut self, number: Number) {
        if self.ack_deadline.is_none() {
            return;
        }
        self.progress.settled(number, Instant::now());
        if self.progress.len() > 2 * self.out.len() + 16 {
            let out = self.out.values().map(|out| out.number);
            self.progress.forget_all_but(out.collect());
        }
    }

    /// A delivery gets another deadline.
    pub fn extend(&mut self, tag: Tag, deadline: Instant) {
        if let Some(out) = self.out.get_mut(&tag) {
            if let Some(before) = out.deadline.replace(deadline) {
                self.deadlines.remove(&(before, tag));
            }
            self.deadlines.insert((deadline, tag));
        }
    }

    /// When to ask next what is [`overdue`](Self::overdue).
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Whether the client settled something last that it was given after this one.
    pub fn was_overtaken(&self, tag: Tag) -> bool {
        let out = self.out.get(&tag);
        out.is_some_and(|out| self.progress.is_after(out.number))
    }

    /// The deliveries whose deadline has come.
    pub fn overdue(&mut self, now: Instant) -> Vec<Tag> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        let mut due: Vec<Tag> = due.map(|(_, tag)| *tag).collect();
        due.retain(|tag| match self.renewed(*tag) {
            Some(deadline) if deadline > now => {
                self.extend(*tag, deadline);
                false
            }
            _ => true,
        });
        due
    }

    /// Until when a delivery has time because of progress.
    fn renewed(&self, tag: Tag) -> Option<Instant> {
        let settled = self.progress.before(self.out.get(&tag)?.number)?;
        Some(settled + self.ack_deadline?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    const DEADLINE: Duration = Duration::from_secs(60);

    fn books() -> Ledger {
        Ledger::new(Some(DEADLINE))
    }

    fn given(ledger: &mut Ledger, tag: Tag) -> String {
        let delivery = Delivery {
            tag,
            queue: 0,
            exchange: String::new(),
            routing_key: String::new(),
            redelivered: false,
            message: Message::default(),
        };
        ledger.give(Arc::new(delivery.into()))
    }

    #[test]
    fn settling_twice_alike_is_ok_and_otherwise_already_settled() {
        let mut ledger = books();
        let id = given(&mut ledger, 1);
        assert_eq!(ledger.claim(&id, Settled::Ack), Claim::Open(1));
        ledger.settle(1, Settled::Ack);
        let answered = Claim::Answered;
        assert_eq!(ledger.claim(&id, Settled::Ack), answered(SettleResult::Ok));
        assert_eq!(
            ledger.claim(&id, Settled::Requeue),
            answered(SettleResult::AlreadySettled)
        );
    }

    #[test]
    fn what_lapsed_is_stale_and_what_was_never_given_is_invalid() {
        let mut ledger = books();
        let id = given(&mut ledger, 1);
        ledger.settle(1, Settled::Lapsed);
        let stale = Claim::Answered(SettleResult::Stale);
        assert_eq!(ledger.claim(&id, Settled::Ack), stale);
        let never = ledger.ack_id(2);
        let invalid = Claim::Answered(SettleResult::Invalid);
        assert_eq!(ledger.claim(&never, Settled::Ack), invalid);
        assert_eq!(books().claim(&id, Settled::Ack), stale);
    }

    #[test]
    fn a_settle_under_way_stops_the_deadline_and_its_failure_starts_it_again() {
        let mut ledger = books();
        let id = given(&mut ledger, 1);
        ledger.begin(1, Settled::Retry);
        assert_eq!(ledger.next_deadline(), None);
        assert_eq!(ledger.claim(&id, Settled::Retry), Claim::UnderWay(1));
        let later = Instant::now() + Duration::from_secs(1);
        ledger.reopen(1, later);
        assert_eq!(ledger.next_deadline(), Some(later));
        assert_eq!(ledger.claim(&id, Settled::Ack), Claim::Open(1));
    }

    #[test]
    fn alone_is_what_never_had_company() {
        let mut ledger = books();
        given(&mut ledger, 1);
        assert_eq!(ledger.alone(), Some(1));
        given(&mut ledger, 2);
        assert_eq!(ledger.alone(), None);
        ledger.settle(2, Settled::Ack);
        assert_eq!(ledger.alone(), None);
        ledger.settle(1, Settled::Ack);
        given(&mut ledger, 3);
        assert_eq!(ledger.alone(), Some(3));
        ledger.settle(3, Settled::Ack);
        assert_eq!(ledger.alone(), None);
    }

    #[test]
    fn memory_of_the_settled_is_bounded() {
        let mut ledger = books();
        for tag in 1..=20_000 {
            given(&mut ledger, tag);
            ledger.settle(tag, Settled::Ack);
        }
        assert_eq!(ledger.settled.len(), REMEMBERED);
        assert!(ledger.is_empty() && ledger.bytes() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_settle_gives_time_to_what_was_given_after_it() {
        let mut ledger = books();
        for tag in 1..=4 {
            given(&mut ledger, tag);
        }
        // It had more time already: it keeps it.
        ledger.extend(4, Instant::now() + 10 * DEADLINE);
        tokio::time::advance(DEADLINE / 2).await;
        ledger.settle(2, Settled::Ack);
        tokio::time::advance(DEADLINE / 2).await;
        assert_eq!(ledger.overdue(Instant::now()), [1], "it was overtaken");
        ledger.settle(1, Settled::Lapsed);
        tokio::time::advance(DEADLINE / 2).await;
        assert_eq!(
            ledger.overdue(Instant::now()),
            [3],
            "a lapse is no progress"
        );
        ledger.settle(3, Settled::Lapsed);
        tokio::time::advance(9 * DEADLINE).await;
        assert_eq!(ledger.overdue(Instant::now()), [4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_settles_in_order_never_lapses() {
        let mut ledger = books();
        for tag in 1..=300 {
            given(&mut ledger, tag);
        }
        for tag in 1..=300 {
            tokio::time::advance(DEADLINE / 2).await;
            assert_eq!(ledger.overdue(Instant::now()), [0; 0], "at {tag}");
            if tag % 2 == 0 {
                ledger.settle(tag, Settled::Ack);
            } else {
                ledger.begin(tag, Settled::Retry);
                ledger.settle(tag, Settled::Retry);
            }
        }
        assert!(ledger.is_empty() && ledger.progress.len() < 100);
    }

    #[test]
    fn beside_one_that_stays_out_the_settled_ones_are_forgotten() {
        let mut ledger = books();
        given(&mut ledger, 1);
        for tag in 2..=20_000 {
            given(&mut ledger, tag);
            ledger.settle(tag, Settled::Ack);
        }
        assert!(ledger.progress.len() < 100);
    }
}
