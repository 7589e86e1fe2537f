//! A model of everything around one failed message (queues, collector, scheduler, consumers, people), in which every process
//! may crash between any two of its steps, and what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta};
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    Resolution, State, Status, Time,
    machine::{Again, By},
};

const MAX_RETRIES: u32 = 3;
const LEASE: TimeDelta = TimeDelta::seconds(60);
const QUIET: TimeDelta = TimeDelta::seconds(900);
const DELAY: TimeDelta = TimeDelta::seconds(60);

/// What happens next. Where a process takes several steps, `steps` says after how many it crashes.
#[derive(Clone, Debug)]
enum Event {
    /// A consumer takes a copy and acks it. Steps: the ack at the broker, the note in the database.
    Ack {
        copy: usize,
        ours: bool,
        steps: u8,
    },
    /// A consumer refuses a copy. Steps: the dead letter is stored, the copy leaves the work queue.
    Refuse {
        copy: usize,
        park: bool,
        steps: u8,
    },
    /// The collector takes a dead letter. Steps: committed, acked.
    Collect {
        letter: usize,
        steps: u8,
    },
    /// A replica retries. Steps: claimed, published, written.
    Retry {
        by_person: bool,
        fate: Fate,
        steps: u8,
    },
    /// A replica looks for leases and quiet periods that are over.
    Reap,
    /// A person says that it is done.
    Close,
    Wait {
        seconds: i64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Confirmed,
    /// The queue was full, or the broker away.
    NotSent,
    /// Nobody knows; `true`: the broker has it.
    InDoubt(bool),
    Returned,
}

/// A message in the work queue.
#[derive(Clone, Copy, Debug)]
struct Copy {
    attempt: u32,
}

/// A message in the dead-letter queue.
#[derive(Clone, Copy, Debug)]
struct Letter {
    attempt: u32,
    park: bool,
    redelivered: bool,
}

#[derive(Debug)]
struct World {
    now: Time,
    work: Vec<Copy>,
    dead: Vec<Letter>,
    row: Option<State>,
    /// Attempts whose death is in the history.
    died: BTreeSet<u32>,
    /// Some consumer has processed it.
    processed: bool,
    /// A person has said that it is done.
    closed: bool,
    /// Copies that the broker has confirmed or taken, and who asked for the number last.
    published: BTreeMap<u32, By>,
}

impl World {
    fn new() -> Self {
        Self {
            now: DateTime::UNIX_EPOCH,
            work: vec![Copy { attempt: 1 }],
            dead: Vec::new(),
            row: None,
            died: BTreeSet::new(),
            processed: false,
            closed: false,
            published: BTreeMap::new(),
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Wait { seconds } => self.now += TimeDelta::seconds(seconds),
            Event::Reap => {
                if let Some(row) = &mut self.row {
                    row.lapse(self.now);
                    row.assume(self.now);
                }
            }
            Event::Close => {
                if let Some(row) = &mut self.row
                    && row.close(self.now).is_ok()
                {
                    self.closed = true;
                }
            }
            Event::Ack { copy, ours, steps } => self.ack(copy, ours, steps),
            Event::Refuse { copy, park, steps } => self.refuse(copy, park, steps),
            Event::Collect { letter, steps } => self.collect(letter, steps),
            Event::Retry {
                by_person,
                fate,
                steps,
            } => self.retry(by_person, fate, steps),
        }
    }

    fn ack(&mut self, copy: usize, ours: bool, steps: u8) {
        if self.work.is_empty() {
            return;
        }
        let index = copy % self.work.len();
        // It was processed before it was acked, wherever the consumer crashes.
        self.processed = true;
        if steps >= 1 {
            let copy = self.work.remove(index);
            if steps >= 2
                && ours
                && copy.attempt > 1
                && let Some(row) = &mut self.row
            {
                row.acked(copy.attempt, self.now);
            }
        }
    }

    fn refuse(&mut self, copy: usize, park: bool, steps: u8) {
        if self.work.is_empty() {
            return;
        }
        let index = copy % self.work.len();
        let attempt = self.work[index].attempt;
        if steps >= 1 {
            self.dead.push(Letter {
                attempt,
                park,
                redelivered: false,
            });
        }
        if steps >= 2 {
            self.work.remove(index);
        }
    }

    fn collect(&mut self, letter: usize, steps: u8) {
        if self.dead.is_empty() {
            return;
        }
        let index = letter % self.dead.len();
        let letter = self.dead[index];
        self.dead[index].redelivered = true;
        if steps >= 1 {
            let again = Again {
                at: (!letter.park).then(|| self.now + DELAY),
            };
            let recorded = self.died.contains(&letter.attempt);
            match &mut self.row {
                None => {
                    self.row = Some(State::dead(letter.attempt, MAX_RETRIES, again));
                    self.died.insert(letter.attempt);
                }
                Some(row) if row.is_news(letter.attempt, recorded, letter.redelivered) => {
                    row.died(letter.attempt, again);
                    self.died.insert(letter.attempt);
                }
                Some(_) => {}
            }
        }
        if steps >= 2 {
            self.dead.remove(index);
        }
    }

    fn retry(&mut self, by_person: bool, fate: Fate, steps: u8) {
        let Some(row) = &mut self.row else { return };
        let by = if by_person { By::Person } else { By::Schedule };
        let token = Uuid::new_v4();
        if steps < 1 || row.claim(by, token, self.now, self.now + LEASE).is_err() {
            return;
        }
        let attempt = row.attempt;
        if steps < 2 {
            return;
        }
        if matches!(fate, Fate::Confirmed | Fate::InDoubt(true)) {
            self.work.push(Copy { attempt });
            self.published.insert(attempt, by);
        }
        if steps < 3 {
            return;
        }
        match fate {
            Fate::Confirmed => row.sent(token, self.now + QUIET),
            Fate::NotSent | Fate::InDoubt(_) => row.not_sent(token, Some(self.now)),
            Fate::Returned => row.returned(token),
        };
    }

    /// What must hold at any moment.
    fn check(&self) -> Result<(), TestCaseError> {
        let open = self
            .row
            .as_ref()
            .is_some_and(|row| row.status != Status::Resolved);
        let somewhere = open || !self.work.is_empty() || !self.dead.is_empty();
        prop_assert!(somewhere || self.processed || self.closed, "lost: {self:?}");
        let Some(row) = &self.row else {
            return Ok(());
        };
        match row.resolution {
            Some(Resolution::Acked) => prop_assert!(self.processed, "nobody acked it: {self:?}"),
            Some(Resolution::Assumed) => prop_assert!(
                self.published.contains_key(&row.attempt),
                "resolved before it was confirmed: {self:?}"
            ),
            Some(Resolution::Manual) => prop_assert!(self.closed),
            None => {}
        }
        prop_assert_eq!(row.status == Status::Resolved, row.resolution.is_some());
        prop_assert_eq!(row.status == Status::Resolved, row.resolved_at.is_some());
        let waits = row.status == Status::Pending;
        prop_assert!(!waits || row.next_retry_at.is_some(), "never due: {self:?}");
        let on_its_way = row.lease.is_some() || row.assume_at.is_some();
        prop_assert_eq!(row.status == Status::Retrying, on_its_way);
        let automatic = self.published.values().filter(|by| **by == By::Schedule);
        prop_assert!(automatic.count() <= MAX_RETRIES as usize, "{self:?}");
        // Every copy that is about can be told by its number.
        let highest = self.published.keys().last().copied().unwrap_or(1);
        prop_assert!(row.attempt + 1 >= highest, "{self:?}");
        Ok(())
    }

    /// From here on nothing crashes, and consumers ack: it must come to an end.
    fn settle(&mut self) {
        for _ in 0..20 {
            while !self.work.is_empty() {
                self.ack(0, true, 2);
            }
            while !self.dead.is_empty() {
                self.collect(0, 2);
            }
            self.now += LEASE + DELAY;
            self.happen(&Event::Reap);
            self.retry(false, Fate::Confirmed, 3);
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let fate = prop_oneof![
        4 => Just(Fate::Confirmed),
        1 => Just(Fate::NotSent),
        1 => any::<bool>().prop_map(Fate::InDoubt),
        1 => Just(Fate::Returned),
    ];
    prop_oneof![
        2 => (any::<usize>(), any::<bool>(), 0..=2_u8).prop_map(|(copy, ours, steps)| Event::Ack { copy, ours, steps }),
        6 => (any::<usize>(), prop::bool::weighted(0.1), 0..=2_u8).prop_map(|(copy, park, steps)| Event::Refuse { copy, park, steps }),
        8 => (any::<usize>(), 0..=2_u8).prop_map(|(letter, steps)| Event::Collect { letter, steps }),
        6 => (prop::bool::weighted(0.2), fate, 0..=3_u8)
            .prop_map(|(by_person, fate, steps)| Event::Retry { by_person, fate, steps }),
        4 => Just(Event::Reap),
        1 => Just(Event::Close),
        6 => prop_oneof![Just(1_i64), Just(61), Just(1_000)].prop_map(|seconds| Event::Wait { seconds }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn nothing_is_lost_and_nothing_resolved_too_early_wherever_processes_crash(
        events in prop::collection::vec(event(), 1..60)
    ) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            world.check()?;
        }
        let parked = world.row.as_ref().is_some_and(|row| row.status == Status::Failed);
        world.settle();
        world.check()?;
        let at_rest = world.row.as_ref().is_none_or(|row| {
            row.status == Status::Resolved || row.status == Status::Failed
        });
        prop_assert!(at_rest && world.work.is_empty() && world.dead.is_empty(), "{world:?}");
        prop_assert!(world.processed || world.closed || parked
            || world.row.is_some_and(|row| row.status == Status::Failed));
    }
}
