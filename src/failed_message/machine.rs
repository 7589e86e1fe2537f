//! The state machine of one failed message. Pure, so that a model can be checked against it: every step is a method that
//! changes the state or says why not; time is an argument.
//!
//! ```text
//!  death ──► PENDING ──claim──► RETRYING (leased) ──sent──► RETRYING ──ack──► RESOLVED/ACKED
//!              ▲  ▲                │                         │ │ └─quiet──► RESOLVED/ASSUMED
//!              │  └──not sent,─────┘                         │ │
//!              │     lease over                              │ │
//!              └────────────── death, retries left ──────────┘ └─ death, none left ──► FAILED
//! ```
//!
//! What makes it safe at any crash: an attempt's number is taken before its copy is published, so every copy of a message
//! carries its row's id and a number, and what comes back late or twice is recognised by them. An attempt that was perhaps
//! published is given back under the same number; its copy, if there is one, then looks like the next one's.

use uuid::Uuid;

use super::{Resolution, Status, Time};

/// Everything about a failed message that changes.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub status: Status,
    /// The number of the last delivery attempt; 1 is the first delivery.
    pub attempt: u32,
    /// Automatic retries so far.
    pub retry_count: u32,
    pub max_retries: u32,
    /// The retry that waits or runs was asked for by a person.
    pub manual: bool,
    /// While PENDING: when it is due.
    pub next_retry_at: Option<Time>,
    pub last_retry_at: Option<Time>,
    /// While RETRYING: set until the broker confirmed the copy.
    pub lease: Option<Lease>,
    /// While RETRYING: when it counts as done, unless it dies again.
    pub assume_at: Option<Time>,
    pub resolution: Option<Resolution>,
    pub resolved_at: Option<Time>,
}

/// A replica's right to publish the retry.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    pub token: Uuid,
    pub until: Time,
    /// What the row was, and is again should the copy not be sent.
    pub before: Before,
}

/// What a row was before it was claimed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::IntoStaticStr,
)]
#[strum(serialize_all = "snake_case")]
pub enum Before {
    Pending,
    Failed,
    /// PENDING because a person asked for a retry.
    Asked,
    /// The same two, claimed to be published edited.
    EditedPending,
    EditedAsked,
}

impl Before {
    fn edited(self) -> Self {
        match self {
            Self::Pending => Self::EditedPending,
            Self::Asked => Self::EditedAsked,
            // FAILED it is again in any case.
            before => before,
        }
    }

    fn is_edited(self) -> bool {
        matches!(self, Self::EditedPending | Self::EditedAsked)
    }
}

/// Who wants a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The schedule, for rows that are due.
    Schedule,
    /// The gateway, for rows that a person asked to be retried.
    Asked,
    /// A person, for this row and now.
    Person,
    /// A person, for an edited copy of this row and now.
    Edit,
}

impl By {
    /// Whether a person names this very row.
    pub fn is_for_one(self) -> bool {
        matches!(self, Self::Person | Self::Edit)
    }
}

/// The state forbids it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is {0}")]
pub struct Conflict(pub Status);

/// When a message that died is retried, if retries are left; `None`: a consumer wants no more of them.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    pub at: Option<Time>,
}

impl State {
    /// Of a message that died the first time in attempt `attempt`.
    pub fn dead(attempt: u32, max_retries: u32, again: Again) -> Self {
        let mut state = Self {
            status: Status::Failed,
            attempt,
            // Earlier attempts were automatic, as far as anybody knows.
            retry_count: attempt.saturating_sub(1).min(max_retries),
            max_retries,
            manual: false,
            next_retry_at: None,
            last_retry_at: None,
            lease: None,
            assume_at: None,
            resolution: None,
            resolved_at: None,
        };
        state.bury(again);
        state
    }

    fn bury(&mut self, again: Again) {
        let at = again.at.filter(|_| self.retry_count < self.max_retries);
        self.status = match at {
            Some(_) => Status::Pending,
            None => Status::Failed,
        };
        self.next_retry_at = at;
        self.manual = false;
        self.lease = None;
        self.assume_at = None;
        self.resolution = None;
        self.resolved_at = None;
    }

    /// Whether the death of attempt `attempt` is news. `recorded`: that attempt's death is in the history;
    /// `redelivered`: the broker has handed this very dead letter out before.
    pub fn is_news(&self, attempt: u32, recorded: bool, redelivered: bool) -> bool {
        match self.status {
            Status::Retrying => attempt >= self.attempt,
            Status::Pending | Status::Failed => attempt > self.attempt,
            // A copy of a retry that a consumer has acked.
            Status::Resolved if attempt > 1 && self.resolution == Some(Resolution::Acked) => {
                attempt > self.attempt
            }
            // Somebody has it again, and it died: better reopened than lost. Only what was collected before is dropped.
            Status::Resolved => !(recorded && redelivered),
        }
    }

    /// Attempt `attempt` died, and that is news.
    pub fn died(&mut self, attempt: u32, again: Again) {
        if attempt > self.attempt {
            // An attempt that was given back, because nobody knew whether its copy was sent. It was.
            self.retry_count = (self.retry_count + 1).min(self.max_retries);
            self.attempt = attempt;
        }
        self.bury(again);
    }

    /// Takes the row for one attempt: its number is used from here on.
    pub fn claim(&mut self, by: By, token: Uuid, now: Time, until: Time) -> Result<(), Conflict> {
        let due = self.next_retry_at.is_some_and(|at| at <= now);
        let before = match (by, self.status) {
            (By::Schedule, Status::Pending)
                if due && !self.manual && self.retry_count < self.max_retries =>
            {
                Before::Pending
            }
            (By::Asked, Status::Pending) if due && self.manual => Before::Asked,
            (By::Person | By::Edit, Status::Pending) if self.manual => Before::Asked,
            (By::Person | By::Edit, Status::Pending) => Before::Pending,
            (By::Person | By::Edit, Status::Failed) => Before::Failed,
            (_, status) => return Err(Conflict(status)),
        };
        let before = match by {
            By::Edit => before.edited(),
            _ => before,
        };
        self.status = Status::Retrying;
        self.attempt += 1;
        self.manual = by != By::Schedule;
        if !self.manual {
            self.retry_count += 1;
        }
        self.last_retry_at = Some(now);
        self.lease = Some(Lease {
            token,
            until,
            before,
        });
        Ok(())
    }

    fn holds(&self, token: Uuid) -> bool {
        self.lease
            .as_ref()
            .is_some_and(|lease| lease.token == token)
    }

    /// The broker confirmed the copy. `false`: the lease is no longer held (it died, was acked, or the lease is over).
    pub fn sent(&mut self, token: Uuid, assume_at: Time) -> bool {
        if !self.holds(token) {
            return false;
        }
        self.lease = None;
        self.next_retry_at = None;
        self.assume_at = Some(assume_at);
        true
    }

    /// The copy was not sent, or nobody knows: the attempt's number is given back. `again`: when it is due if it was PENDING; what a
    /// person took out of turn is due when it was due before.
    pub fn not_sent(&mut self, token: Uuid, again: Option<Time>) -> bool {
        if !self.holds(token) {
            return false;
        }
        let Some(lease) = self.lease.take() else {
            return false;
        };
        self.attempt -= 1;
        if !self.manual {
            self.retry_count -= 1;
        }
        let (pending, asked) = match lease.before {
            Before::Pending | Before::EditedPending => (true, false),
            Before::Asked | Before::EditedAsked => (true, true),
            Before::Failed => (false, false),
        };
        let again = again.filter(|_| !(self.manual && pending && !asked));
        self.manual = asked;
        self.status = if pending {
            Status::Pending
        } else {
            Status::Failed
        };
        self.next_retry_at = match self.status {
            Status::Pending => again.or(self.next_retry_at),
            _ => None,
        };
        true
    }

    /// No queue took the copy, or nobody knows of an edited one: a person must look at it.
    pub fn set_aside(&mut self, token: Uuid) -> bool {
        let held = self.not_sent(token, None);
        if held {
            self.bury(Again { at: None });
        }
        held
    }

    /// The lease is over: whoever held it may or may not have sent the copy. After an edit the original is not sent by itself.
    pub fn lapse(&mut self, now: Time) -> bool {
        match &self.lease {
            Some(lease) if lease.until <= now && lease.before.is_edited() => {
                self.set_aside(lease.token)
            }
            Some(lease) if lease.until <= now => self.not_sent(lease.token, Some(now)),
            _ => false,
        }
    }

    /// A consumer acked attempt `attempt`.
    pub fn acked(&mut self, attempt: u32, now: Time) -> bool {
        let settled = match self.status {
            Status::Resolved => self.resolution == Some(Resolution::Assumed),
            _ => true,
        };
        // An older copy's ack does not end a newer attempt.
        if !settled || attempt < self.attempt {
            return false;
        }
        self.attempt = attempt;
        self.resolve(Resolution::Acked, now);
        true
    }

    /// The quiet period has passed.
    pub fn assume(&mut self, now: Time) -> bool {
        let quiet = self.status == Status::Retrying && self.assume_at.is_some_and(|at| at <= now);
        if quiet {
            self.resolve(Resolution::Assumed, now);
        }
        quiet
    }

    /// A person says that it is done.
    pub fn close(&mut self, now: Time) -> Result<(), Conflict> {
        if self.status == Status::Resolved || self.lease.is_some() {
            return Err(Conflict(self.status));
        }
        self.resolve(Resolution::Manual, now);
        Ok(())
    }

    /// An edited copy was confirmed in its place.
    pub fn replaced(&mut self, token: Uuid, now: Time) -> bool {
        let held = self.not_sent(token, None);
        if held {
            self.resolve(Resolution::Manual, now);
        }
        held
    }

    fn resolve(&mut self, how: Resolution, now: Time) {
        self.status = Status::Resolved;
        self.resolution = Some(how);
        self.resolved_at = Some(now);
        self.next_retry_at = None;
        self.lease = None;
        self.assume_at = None;
        self.manual = false;
    }

    /// A person wants it retried when its turn comes.
    pub fn ask(&mut self, now: Time) -> Result<(), Conflict> {
        match self.status {
            Status::Pending | Status::Failed if !self.manual => {
                self.status = Status::Pending;
                self.manual = true;
                self.next_retry_at = Some(now);
                Ok(())
            }
            status => Err(Conflict(status)),
        }
    }

    /// Whether it may be deleted.
    pub fn check_delete(&self) -> Result<(), Conflict> {
        match self.status {
            Status::Retrying => Err(Conflict(self.status)),
            _ => Ok(()),
        }
    }
}
