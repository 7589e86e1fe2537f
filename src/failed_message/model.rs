//! A model of everything around one failed message (queues, collectors, replicas that retry, consumers, people), in which every
//! process may stop between any two of its steps, for a while or for good, and what must hold whatever happens.

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

/// What happens next. `steps` says after how many of its steps a process crashes; indexes choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    /// A consumer processes a copy. Steps: the ack at the broker, the note in the database (of consumers that are `ours`).
    Ack(usize, bool, u8),
    /// A consumer refuses a copy, and may `park` it. Steps: the dead letter is stored, the copy leaves the work queue.
    Refuse(usize, bool, u8),
    /// A collector takes a dead letter. Steps: committed, acked.
    Collect(usize, u8),
    /// A replica claims the row, because it is due or because a person wants it.
    Claim(By),
    /// The replica publishes what it claimed.
    Publish(usize, Fate),
    /// It writes down what became of it.
    Write(usize),
    /// It ends.
    Crash(usize),
    /// Any replica looks for leases and quiet periods that are over.
    Reap,
    /// A person says that it is done.
    Close,
    /// A person wants it retried when its turn comes.
    Ask,
    Wait(i64),
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

/// A message in the dead-letter queue.
#[derive(Clone, Copy, Debug)]
struct Letter {
    attempt: u32,
    park: bool,
    redelivered: bool,
}

/// A retry that a replica has in its hands.
#[derive(Clone, Debug)]
struct Retry {
    token: Uuid,
    by: By,
    attempt: u32,
    claimed_at: Time,
    fate: Option<Fate>,
}

#[derive(Debug)]
struct World {
    now: Time,
    /// Copies in the work queue, by the number of their attempt.
    work: Vec<u32>,
    dead: Vec<Letter>,
    row: Option<State>,
    /// Attempts whose death is in the history.
    died: BTreeSet<u32>,
    retries: Vec<Retry>,
    /// The row as it was before it was claimed.
    before: Option<State>,
    /// Some consumer has processed it.
    processed: bool,
    /// A person has said that it is done.
    closed: bool,
    /// Attempts that the broker took, and who asked for them last.
    published: BTreeMap<u32, By>,
    /// The broker has an edited copy, and since then nobody has asked for the original, nor did it die again.
    edited: bool,
}

impl World {
    fn new() -> Self {
        Self {
            now: DateTime::UNIX_EPOCH,
            work: vec![1],
            dead: Vec::new(),
            row: None,
            died: BTreeSet::new(),
            retries: Vec::new(),
            before: None,
            processed: false,
            closed: false,
            published: BTreeMap::new(),
            edited: false,
        }
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Wait(seconds) => self.now += TimeDelta::seconds(seconds),
            Event::Reap => self.reap()?,
            Event::Close => {
                if let Some(row) = &mut self.row {
                    let leased = row.lease.is_some();
                    let closed = row.close(self.now).is_ok();
                    prop_assert!(!(leased && closed), "its copy would be sent afterwards");
                    self.closed |= closed;
                }
            }
            Event::Ask => {
                if let Some(row) = &mut self.row
                    && row.ask(self.now).is_ok()
                {
                    self.edited = false;
                }
            }
            Event::Ack(copy, ours, steps) => self.ack(copy, ours, steps)?,
            Event::Refuse(copy, park, steps) => self.refuse(copy, park, steps),
            Event::Collect(letter, steps) => self.collect(letter, steps)?,
            Event::Claim(by) => self.claim(by)?,
            Event::Publish(retry, fate) => self.publish(retry, fate),
            Event::Write(retry) => self.write(retry)?,
            Event::Crash(retry) => {
                if !self.retries.is_empty() {
                    self.retries.remove(retry % self.retries.len());
                }
            }
        }
        self.check()
    }

    fn ack(&mut self, copy: usize, ours: bool, steps: u8) -> Result<(), TestCaseError> {
        if self.work.is_empty() {
            return Ok(());
        }
        // It was processed before it was acked, wherever the consumer crashes.
        self.processed = true;
        if steps < 1 {
            return Ok(());
        }
        let attempt = self.work.remove(copy % self.work.len());
        if steps >= 2
            && ours
            && attempt > 1
            && let Some(row) = &mut self.row
        {
            let newer = row.attempt > attempt;
            let noted = row.acked(attempt, self.now);
            prop_assert!(!(noted && newer), "an old copy ended a newer attempt");
        }
        Ok(())
    }

    fn refuse(&mut self, copy: usize, park: bool, steps: u8) {
        if self.work.is_empty() {
            return;
        }
        let index = copy % self.work.len();
        if steps >= 1 {
            self.dead.push(Letter {
                attempt: self.work[index],
                park,
                redelivered: false,
            });
        }
        if steps >= 2 {
            self.work.remove(index);
        }
    }

    fn collect(&mut self, letter: usize, steps: u8) -> Result<(), TestCaseError> {
        if self.dead.is_empty() {
            return Ok(());
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
                    let open = row.status != Status::Resolved;
                    let again_under_way = row.attempt == letter.attempt && row.lease.is_some();
                    prop_assert!(
                        !(recorded && open) || again_under_way,
                        "one death was counted twice: {letter:?}"
                    );
                    row.died(letter.attempt, again);
                    self.died.insert(letter.attempt);
                    self.before = None;
                    self.edited = false;
                }
                Some(_) => {}
            }
        }
        if steps >= 2 {
            self.dead.remove(index);
        }
        Ok(())
    }

    fn claim(&mut self, by: By) -> Result<(), TestCaseError> {
        let Some(row) = &mut self.row else {
            return Ok(());
        };
        let (token, before) = (Uuid::new_v4(), row.clone());
        if row.claim(by, token, self.now, self.now + LEASE).is_ok() {
            prop_assert!(
                by != By::Schedule || !self.edited,
                "the original is sent besides an edited copy, and nobody asked for that"
            );
            self.edited = false;
            self.retries.push(Retry {
                token,
                by,
                attempt: row.attempt,
                claimed_at: self.now,
                fate: None,
            });
            self.before = Some(before);
            // The number of an attempt that was given back, in doubt, is now whose this attempt is.
            self.published
                .entry(row.attempt)
                .and_modify(|whose| *whose = by);
        }
        Ok(())
    }

    fn publish(&mut self, retry: usize, fate: Fate) {
        if self.retries.is_empty() {
            return;
        }
        let index = retry % self.retries.len();
        let retry = &mut self.retries[index];
        if retry.fate.is_some() {
            return;
        }
        // The sender does not publish what it has had for so long.
        if self.now - retry.claimed_at >= LEASE / 2 {
            retry.fate = Some(Fate::NotSent);
            return;
        }
        retry.fate = Some(fate);
        if matches!(fate, Fate::Confirmed | Fate::InDoubt(true)) {
            if retry.by == By::Edit {
                // Another message from here on.
                self.edited = true;
            } else {
                self.work.push(retry.attempt);
                self.published.insert(retry.attempt, retry.by);
            }
        }
    }

    fn write(&mut self, retry: usize) -> Result<(), TestCaseError> {
        let (Some(row), false) = (&mut self.row, self.retries.is_empty()) else {
            return Ok(());
        };
        let index = retry % self.retries.len();
        let Some(fate) = self.retries[index].fate else {
            return Ok(());
        };
        let retry = self.retries.remove(index);
        let given_back = match fate {
            Fate::Confirmed if retry.by == By::Edit => {
                let replaced = row.replaced(retry.token, self.now);
                self.closed |= replaced;
                replaced
            }
            Fate::InDoubt(_) if retry.by == By::Edit => row.set_aside(retry.token),
            Fate::Confirmed => {
                row.sent(retry.token, self.now + QUIET);
                false
            }
            Fate::NotSent | Fate::InDoubt(_) => row.not_sent(retry.token, Some(self.now)),
            Fate::Returned => row.set_aside(retry.token),
        };
        if given_back {
            self.check_given_back()?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), TestCaseError> {
        let Some(row) = &mut self.row else {
            return Ok(());
        };
        let lapsed = row.lapse(self.now);
        row.assume(self.now);
        if lapsed {
            self.check_given_back()?;
        }
        Ok(())
    }

    /// An attempt that was given back leaves no trace in the numbers.
    fn check_given_back(&self) -> Result<(), TestCaseError> {
        if let (Some(row), Some(before)) = (&self.row, &self.before) {
            prop_assert_eq!(row.attempt, before.attempt);
            prop_assert_eq!(row.retry_count, before.retry_count);
        }
        Ok(())
    }

    /// What must hold at any moment.
    fn check(&self) -> Result<(), TestCaseError> {
        let row = self.row.as_ref();
        let open = row.is_some_and(|row| row.status != Status::Resolved);
        let somewhere = open || !self.work.is_empty() || !self.dead.is_empty();
        prop_assert!(somewhere || self.processed || self.closed, "lost");
        let Some(row) = row else { return Ok(()) };

        match row.resolution {
            Some(Resolution::Acked) => prop_assert!(self.processed, "nobody acked it"),
            Some(Resolution::Assumed) => prop_assert!(
                self.published.contains_key(&row.attempt),
                "resolved before its copy was confirmed"
            ),
            Some(Resolution::Manual) => prop_assert!(self.closed),
            None => {}
        }
        let resolved = row.status == Status::Resolved;
        prop_assert_eq!(resolved, row.resolution.is_some());
        prop_assert_eq!(resolved, row.resolved_at.is_some());
        let waits = row.status == Status::Pending;
        prop_assert!(!waits || row.next_retry_at.is_some(), "never due");
        // Something ends a retry, whatever becomes of it.
        let ends = row.lease.is_some() != row.assume_at.is_some();
        prop_assert_eq!(row.status == Status::Retrying, ends);

        let automatic = |attempt: &&u32| self.published.get(*attempt) == Some(&By::Schedule);
        let sent = self.published.keys().filter(automatic).count();
        prop_assert!(sent <= MAX_RETRIES as usize, "too many automatic retries");
        let failed = self.died.iter().filter(automatic).count();
        prop_assert!(
            failed <= row.retry_count as usize,
            "an automatic retry was not counted"
        );
        let highest = self.died.last().copied().unwrap_or(1);
        prop_assert!(
            row.attempt >= highest,
            "a number could be used for another attempt"
        );
        Ok(())
    }

    /// From here on nothing crashes, and consumers ack: it must come to an end.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.retries.clear();
        for _ in 0..20 {
            while !self.work.is_empty() {
                self.ack(0, true, 2)?;
            }
            while !self.dead.is_empty() {
                self.collect(0, 2)?;
            }
            let events = [
                Event::Wait(120),
                Event::Reap,
                Event::Claim(By::Schedule),
                Event::Publish(0, Fate::Confirmed),
                Event::Write(0),
                Event::Claim(By::Asked),
                Event::Publish(0, Fate::Confirmed),
                Event::Write(0),
            ];
            for event in &events {
                self.happen(event)?;
            }
        }
        Ok(())
    }
}

fn event() -> impl Strategy<Value = Event> {
    let fate = prop_oneof![
        4 => Just(Fate::Confirmed),
        1 => Just(Fate::NotSent),
        1 => any::<bool>().prop_map(Fate::InDoubt),
        1 => Just(Fate::Returned),
    ];
    let by = prop_oneof![
        8 => Just(By::Schedule),
        2 => Just(By::Person),
        1 => Just(By::Edit),
        2 => Just(By::Asked),
    ];
    let (some, often) = (any::<usize>(), prop::bool::weighted(0.8));
    let rarely = prop::bool::weighted(0.1);
    prop_oneof![
        2 => (some, often, 0..=2_u8).prop_map(|(copy, ours, steps)| Event::Ack(copy, ours, steps)),
        6 => (some, rarely, 0..=2_u8).prop_map(|(copy, park, steps)| Event::Refuse(copy, park, steps)),
        8 => (some, 0..=2_u8).prop_map(|(letter, steps)| Event::Collect(letter, steps)),
        6 => by.prop_map(Event::Claim),
        7 => (some, fate).prop_map(|(retry, fate)| Event::Publish(retry, fate)),
        6 => some.prop_map(Event::Write),
        1 => some.prop_map(Event::Crash),
        3 => Just(Event::Reap),
        1 => Just(Event::Close),
        1 => Just(Event::Ask),
        6 => prop_oneof![3 => Just(1_i64), 3 => Just(61), 1 => Just(1_000)].prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn nothing_is_lost_or_resolved_too_early_wherever_processes_stop(
        events in prop::collection::vec(event(), 1..80)
    ) {
        let mut world = World::new();
        for event in &events {
            world.happen(event)?;
        }
        world.settle()?;
        let row = world.row.as_ref().map(|row| row.status);
        prop_assert!(world.work.is_empty() && world.dead.is_empty());
        prop_assert!(matches!(row, None | Some(Status::Resolved | Status::Failed)), "{:?}", row);
        prop_assert!(world.processed || world.closed || row == Some(Status::Failed));
    }
}
