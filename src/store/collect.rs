//! Dead letters become rows. Only when this is committed may the dead letter be acked.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sea_orm::{
    ActiveValue::{self, Set},
    ColumnTrait, Condition, DbErr, EntityTrait, QueryFilter,
};

use super::{
    Error, Store,
    entity::{attempt, failed_message},
    properties, row, transaction,
    work::{CHUNK, Work},
};
use crate::failed_message::{
    Death, Next, Outcome, State, fingerprint, machine::Again, schedule::Schedule,
};

/// Bytes that go into one statement, unless one row has more.
const CHUNK_BYTES: usize = 1024 * 1024;
/// More than all columns of a row together that are not counted.
const ROW_BYTES: usize = 4096;

/// What became of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// A row of its own.
    New,
    /// The row that it was a retry of.
    Again,
    /// The same death was collected before.
    Duplicate,
}

impl Store {
    /// Stores deaths, in this order; the answer has an entry for each. `schedule` says when a queue's messages are retried.
    pub async fn collect(
        &self,
        deaths: &[Death],
        schedule: impl Fn(&str) -> Schedule,
    ) -> Result<Vec<Collected>, Error> {
        transaction!(self, |work| {
            let mut batch = Batch::load(work, deaths).await?;
            let mut collected = Vec::with_capacity(deaths.len());
            for death in deaths {
                collected.push(batch.take(work, death, &schedule(&death.queue)).await?);
            }
            batch.insert(work).await?;
            collected
        })
    }
}

/// The deaths of one transaction and the rows that they concern.
struct Batch {
    /// By id.
    rows: HashMap<String, failed_message::Model>,
    /// From death key to id.
    keys: HashMap<String, String>,
    /// From id to the place in `new`, of the rows that this transaction makes.
    fresh: HashMap<String, usize>,
    new: Vec<failed_message::ActiveModel>,
    attempts: Vec<attempt::ActiveModel>,
}

impl Batch {
    async fn load(work: &Work, deaths: &[Death]) -> Result<Self, Error> {
        let mut batch = Self {
            rows: HashMap::new(),
            keys: HashMap::new(),
            fresh: HashMap::new(),
            new: Vec::new(),
            attempts: Vec::new(),
        };
        let ids = deaths.iter().filter_map(|death| death.failed_id);
        let ids: Vec<_> = ids.map(|id| id.to_string()).collect();
        let keys: Vec<_> = deaths.iter().filter_map(key).collect();
        // Two questions, because an OR over two indexes is answered slowly.
        for condition in [
            (!ids.is_empty()).then(|| failed_message::Column::Id.is_in(ids)),
            (!keys.is_empty()).then(|| failed_message::Column::DeathKey.is_in(keys)),
        ]
        .into_iter()
        .flatten()
        {
            let select = failed_message::Entity::find().filter(Condition::all().add(condition));
            for row in work.locking(select).all(&work.tx).await? {
                batch.know(row);
            }
        }
        Ok(batch)
    }

    fn know(&mut self, row: failed_message::Model) {
        if let Some(key) = &row.death_key {
            self.keys.insert(key.clone(), row.id.clone());
        }
        self.rows.insert(row.id.clone(), row);
    }

    /// The row that a death concerns.
    fn find(&self, death: &Death) -> Option<&failed_message::Model> {
        let retried = death
            .failed_id
            .and_then(|id| self.rows.get(&id.to_string()));
        // A consumer that published it to another queue made another message of it.
        let retried = retried.filter(|row| row.queue == row::storable(&death.queue));
        let keyed = key(death).and_then(|key| self.rows.get(self.keys.get(&key)?));
        let rows = [retried, keyed].into_iter().flatten();
        let mut same = rows.filter(|row| is_of(death, row.message_id.as_deref(), &row.payload));
        same.next()
    }

    /// Whether this transaction makes a row of this very death already.
    fn is_fresh(&self, death: &Death) -> bool {
        let retried = death.failed_id.map(|id| id.to_string());
        let keyed = key(death).and_then(|key| self.keys.get(&key).cloned());
        let ids = [retried, keyed].into_iter().flatten();
        let mut rows = ids.filter_map(|id| self.new.get(*self.fresh.get(&id)?));
        rows.any(|row| {
            let message_id = row.message_id.try_as_ref().and_then(Option::as_deref);
            let payload = row.payload.try_as_ref();
            is_of(death, message_id, payload.map_or(&[], Vec::as_slice))
        })
    }

    async fn take(
        &mut self,
        work: &mut Work,
        death: &Death,
        schedule: &Schedule,
    ) -> Result<Collected, Error> {
        let Some(known) = self.find(death).cloned() else {
            // Of two equal deaths in one batch, the first makes the row.
            if self.is_fresh(death) {
                return Ok(Collected::Duplicate);
            }
            self.begin(work, death, schedule);
            return Ok(Collected::New);
        };
        let mut state = known.state()?;
        let recorded = work.has_died(&known.id, death.attempt).await?;
        if !state.is_news(death.attempt, recorded, death.redelivered) {
            tracing::debug!(
                id = known.id,
                queue = death.queue,
                attempt = death.attempt,
                "the same death again"
            );
            return Ok(Collected::Duplicate);
        }
        let now = work.now;
        state.died(
            death.attempt,
            again(death, schedule, state.retry_count, now),
        );
        let kind = fingerprint::of(&death.queue, &death.error.kind, &death.error.message);
        work.save(&known, &state, |columns| {
            columns.error_type = Set(row::storable(&death.error.kind));
            columns.error_message = Set(row::storable(&death.error.message));
            columns.error_stack = Set(row::storable(&death.error.stack));
            columns.reason = Set(death.reason.to_string());
            columns.fingerprint = Set(kind.fingerprint.clone());
            columns.last_failed_at = Set(now);
        })
        .await?;
        work.seen(&kind, &death.queue, &death.error.kind);
        work.attempt_ends(&known.id, death.attempt, Outcome::Died, Some(&death.error))
            .await?;
        // A second death of it in this batch finds it as it is now.
        let id = known.id.clone();
        let changed = failed_message::Entity::find_by_id(id).one(&work.tx).await?;
        if let Some(changed) = changed {
            self.know(changed);
        }
        Ok(Collected::Again)
    }

    fn begin(&mut self, work: &mut Work, death: &Death, schedule: &Schedule) {
        let kind = fingerprint::of(&death.queue, &death.error.kind, &death.error.message);
        let retries = death.attempt.saturating_sub(1);
        let again = again(death, schedule, retries, work.now);
        let state = State::dead(death.attempt, schedule.max_retries, again);
        // The row that it names may have been deleted, or be of another queue.
        let id = death.failed_id.map(|id| id.to_string());
        let id = id.filter(|id| !self.rows.contains_key(id) && !self.fresh.contains_key(id));
        let id = id.unwrap_or_else(|| death.id.to_string());
        // Another message that has this one's publish-id keeps the key.
        let key = key(death).filter(|key| !self.keys.contains_key(key));
        if let Some(key) = &key {
            self.keys.insert(key.clone(), id.clone());
        }
        self.fresh.insert(id.clone(), self.new.len());
        let now = work.now;
        self.new.push(failed_message::ActiveModel {
            id: Set(id.clone()),
            death_key: Set(key),
            queue: Set(row::storable(&death.queue)),
            exchange: Set(row::short(&death.exchange, 255)),
            routing_key: Set(row::short(&death.routing_key, 255)),
            message_id: Set(death
                .message
                .message_id
                .as_deref()
                .map(|id| row::short(id, 255))),
            publish_id: Set(death.publish_id.as_deref().map(|id| row::short(id, 64))),
            properties: Set(properties::encode(&death.message)),
            payload: Set(death.message.payload.to_vec()),
            error_type: Set(row::storable(&death.error.kind)),
            error_message: Set(row::storable(&death.error.message)),
            error_stack: Set(row::storable(&death.error.stack)),
            reason: Set(death.reason.to_string()),
            fingerprint: Set(kind.fingerprint.clone()),
            comment: Set(None),
            failed_at: Set(now),
            last_failed_at: Set(now),
            operation_id: Set(None),
            created_at: Set(now),
            updated_at: Set(now),
            ..row::columns(&id, &state)
        });
        self.attempts.push(attempt::ActiveModel {
            failed_message_id: Set(id),
            attempt: Set(row::signed(death.attempt)),
            manual: Set(false),
            started_at: Set(None),
            ended_at: Set(Some(now)),
            outcome: Set(Some(Outcome::Died.to_string())),
            error_type: Set(Some(row::storable(&death.error.kind))),
            error_message: Set(Some(row::storable(&death.error.message))),
        });
        work.seen(&kind, &row::storable(&death.queue), &death.error.kind);
        work.count_new(&kind.fingerprint, state.status);
    }

    async fn insert(self, work: &Work) -> Result<(), Error> {
        for rows in in_bytes(self.new, work.statement_bytes)? {
            failed_message::Entity::insert_many(rows)
                .exec_without_returning(&work.tx)
                .await?;
        }
        for entries in chunks(self.attempts) {
            attempt::Entity::insert_many(entries)
                .exec_without_returning(&work.tx)
                .await?;
        }
        Ok(())
    }
}

/// Parts of so many rows and bytes that each goes into one statement.
fn in_bytes(
    rows: Vec<failed_message::ActiveModel>,
    limit: Option<u64>,
) -> Result<Vec<Vec<failed_message::ActiveModel>>, Error> {
    let limit = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let size = size(&row);
        if size > limit {
            let refusal =
                format!("a failed message of {size} bytes; max_allowed_packet is {limit}");
            return Err(Error::Refused(Arc::new(DbErr::Custom(refusal))));
        }
        if part.len() == CHUNK || bytes + size > CHUNK_BYTES.min(limit) {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.push(row);
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    Ok(parts)
}

/// How many bytes a row has in a statement, or a little more than that.
fn size(row: &failed_message::ActiveModel) -> usize {
    let bytes = |value: &ActiveValue<Vec<u8>>| value.try_as_ref().map_or(0, Vec::len);
    let text = |value: &ActiveValue<String>| value.try_as_ref().map_or(0, String::len);
    let names = [&row.queue, &row.exchange, &row.routing_key];
    let texts = [&row.error_type, &row.error_message, &row.error_stack];
    let texts: usize = names.into_iter().chain(texts).map(text).sum();
    ROW_BYTES + texts + bytes(&row.properties) + bytes(&row.payload)
}

fn chunks<T>(rows: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut rows = rows.into_iter().peekable();
    std::iter::from_fn(move || {
        rows.peek()?;
        Some(rows.by_ref().take(CHUNK).collect())
    })
}

fn key(death: &Death) -> Option<String> {
    let publish_id = death.publish_id.as_deref()?;
    Some(row::death_key(publish_id, &death.queue))
}

/// Whether the message of a row is the one that died. A consumer that copies headers into messages of its own copies the publish-id
/// too: rather two rows of one message than none of another.
fn is_of(death: &Death, message_id: Option<&str>, payload: &[u8]) -> bool {
    let of_death = death.message.message_id.as_deref();
    of_death.map(|id| row::short(id, 255)).as_deref() == message_id
        && death.message.payload == payload
}

/// When a message that died is tried again.
fn again(
    death: &Death,
    schedule: &Schedule,
    retry_count: u32,
    now: crate::failed_message::Time,
) -> Again {
    let delay = match death.next {
        Next::Park => None,
        Next::Retry(Some(delay)) => Some(delay),
        Next::Retry(None) => Some(schedule.delay(retry_count, fastrand::f64())),
    };
    Again {
        at: delay.map(|delay| now + micros(delay)),
    }
}

/// Whole microseconds, which all engines keep, and at most a year: nobody waits longer, and MariaDB's times end in 2038.
pub(super) fn micros(duration: Duration) -> chrono::TimeDelta {
    let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2);
    chrono::TimeDelta::microseconds(micros.min(365 * 86_400 * 1_000_000))
}
