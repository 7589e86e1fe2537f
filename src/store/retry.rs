//! Retries: claiming what is due, saying what became of it, and returning what its owner left behind.

use std::{collections::HashMap, time::Duration};

use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select,
};
use uuid::Uuid;

use super::{
    Error, Store,
    collect::micros,
    entity::{deletion, failed_message, group},
    query::basic,
    row, transaction,
    work::Work,
};
use crate::failed_message::{FailedMessage, Outcome, Reason, State, Status, machine::By};

/// A row that this replica may publish.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub token: Uuid,
    /// As it is now: RETRYING, with the number of the attempt.
    pub message: FailedMessage,
}

/// A consumer is done with a retry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ack {
    pub id: Uuid,
    pub attempt: u32,
    /// It dropped the message.
    pub dropped: bool,
    /// Where it got it.
    pub queue: String,
}

/// What became of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The broker has it. It counts as done when it does not die within this time.
    Confirmed { quiet_period: Duration },
    /// It was not sent, or nobody knows; due again after this time, or when it was due before.
    NotSent { again_after: Option<Duration> },
    /// No queue takes it.
    Returned,
    /// Nobody knows of an edited copy: the schedule is not to send the original besides it.
    EditedInDoubt,
}

/// What [`Store::reap`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Retries whose replica did not say what became of them.
    pub lapsed: usize,
    /// Retries that did not die within the quiet period.
    pub assumed: usize,
}

/// Rows that one transaction of the reaper takes.
const REAP: u64 = 100;
/// How long watchers on all replicas have to learn of a deletion.
const DELETIONS_KEPT: Duration = Duration::from_secs(60 * 60);

impl Store {
    /// Queues that have rows waiting for a retry, due or not.
    pub async fn waiting_queues(&self) -> Result<Vec<String>, Error> {
        self.read(async |pools| {
            let queues = group::Entity::find()
                .select_only()
                .column(group::Column::Queue)
                .distinct()
                .filter(group::Column::Pending.gt(0));
            Ok(queues.into_tuple().all(&pools.read).await?)
        })
        .await
    }

    /// Takes up to `limit` due rows of a queue, those first that are due the longest. No two replicas get the same row.
    /// `asked`: those that a person asked for, else those of the schedule.
    pub async fn claim(
        &self,
        queue: &str,
        asked: bool,
        limit: u64,
        lease: Duration,
    ) -> Result<Vec<Claimed>, Error> {
        transaction!(self, |work| {
            use failed_message::Column;
            let due = failed_message::Entity::find()
                .filter(Column::Status.eq(row::text(Status::Pending)))
                .filter(Column::Queue.eq(row::storable(queue)))
                .filter(Column::Manual.eq(asked))
                .filter(Column::NextRetryAt.lte(work.now))
                .order_by_asc(Column::NextRetryAt)
                .limit(limit);
            let rows = work.skipping(due).all(&work.tx).await?;
            let by = if asked { By::Asked } else { By::Schedule };
            let mut claimed = Vec::with_capacity(rows.len());
            for row in rows {
                match take(work, row, by, lease).await {
                    // Due by its columns and yet not to be retried: its state says why.
                    Err(Error::Conflict(_)) => {}
                    // The others are not to wait for it.
                    Err(damaged @ Error::Damaged { .. }) => {
                        tracing::error!(error = %damaged, queue, "a failed message cannot be read and is never retried");
                    }
                    taken => claimed.push(taken?),
                }
            }
            claimed
        })
    }

    /// Takes one row for a person's retry. [`Error::Conflict`] when its state forbids it; of many at once one wins.
    pub async fn claim_one(&self, id: Uuid, lease: Duration) -> Result<Claimed, Error> {
        self.claim_by(id, By::Person, lease).await
    }

    /// The same, to publish an edited copy: should nobody say what became of that, the original is FAILED.
    pub async fn claim_to_edit(&self, id: Uuid, lease: Duration) -> Result<Claimed, Error> {
        self.claim_by(id, By::Edit, lease).await
    }

    async fn claim_by(&self, id: Uuid, by: By, lease: Duration) -> Result<Claimed, Error> {
        transaction!(self, |work| {
            let row = work.row(id).await?;
            take(work, row, by, lease).await?
        })
    }

    /// Says what became of a claimed row's copy, and answers the row as it is now. Nothing changes when the lease is no longer
    /// held: the retry has ended meanwhile, or another replica has it.
    pub async fn sent(&self, id: Uuid, token: Uuid, sent: Sent) -> Result<FailedMessage, Error> {
        transaction!(self, |work| {
            let row = work.row(id).await?;
            note_sent(work, &row, token, sent).await?;
            work.row(id).await?.read()?
        })
    }

    /// The same of many, in one transaction. What was deleted meanwhile is left out.
    pub async fn sent_many(&self, sent: &[(Uuid, Uuid, Sent)]) -> Result<(), Error> {
        transaction!(self, |work| {
            use failed_message::Column;
            let of: HashMap<String, _> = sent
                .iter()
                .map(|(id, token, sent)| (id.to_string(), (*token, *sent)))
                .collect();
            // In the order of ids, so that two transactions wait for each other only one way.
            let rows = basic(failed_message::Entity::find())
                .filter(Column::Id.is_in(of.keys()))
                .order_by_asc(Column::Id);
            for row in work.locking(rows).all(&work.tx).await? {
                let Some((token, sent)) = of.get(&row.id).copied() else {
                    continue;
                };
                match note_sent(work, &row, token, sent).await {
                    // The others are not to wait for it.
                    Err(damaged @ Error::Damaged { .. }) => {
                        tracing::error!(error = %damaged, "what became of a retry cannot be stored");
                    }
                    noted => noted?,
                }
            }
        })
    }

    /// An edited copy of a claimed row is confirmed: the row is done.
    pub async fn replaced(
        &self,
        id: Uuid,
        token: Uuid,
        comment: &str,
    ) -> Result<FailedMessage, Error> {
        transaction!(self, |work| {
            let row = work.row(id).await?;
            let mut state = row.state()?;
            let number = state.attempt;
            if state.replaced(token, work.now) {
                work.save(&row, &state, |columns| {
                    columns.comment = Set(Some(row::storable(comment)));
                })
                .await?;
                work.attempt_undone(&row.id, number).await?;
            }
            work.row(id).await?.read()?
        })
    }

    /// Consumers are done with these retries.
    pub async fn acked(&self, acks: &[Ack]) -> Result<(), Error> {
        transaction!(self, |work| {
            // In the order of ids, so that two transactions wait for each other only one way.
            let mut acks: Vec<&Ack> = acks.iter().collect();
            acks.sort_unstable();
            for ack in acks {
                let row = match work.row(ack.id).await {
                    Err(Error::NotFound) => continue,
                    row => row?,
                };
                // A consumer that published it to another queue made another message of it.
                if row.queue != row::storable(&ack.queue) {
                    continue;
                }
                let Some(mut state) = known(row.state())? else {
                    continue;
                };
                if !state.acked(ack.attempt, work.now) {
                    continue;
                }
                work.save(&row, &state, |columns| {
                    if ack.dropped {
                        columns.comment = Set(Some("discarded by the consumer".to_owned()));
                    }
                })
                .await?;
                let outcome = if ack.dropped {
                    Outcome::Discarded
                } else {
                    Outcome::Acked
                };
                work.attempt_ends(&row.id, ack.attempt, outcome, None)
                    .await?;
            }
        })
    }

    /// Returns rows whose lease is over, and resolves those whose quiet period is.
    pub async fn reap(&self) -> Result<Reaped, Error> {
        use failed_message::Column;
        let lapsed = transaction!(self, |work| {
            let lapsed = retrying()
                .filter(Column::LeaseUntil.lte(work.now))
                .order_by_asc(Column::LeaseUntil);
            let rows = work.skipping(lapsed).all(&work.tx).await?;
            for row in &rows {
                let Some(mut state) = known(row.state())? else {
                    continue;
                };
                let number = state.attempt;
                if state.lapse(work.now) {
                    work.save(row, &state, |_| {}).await?;
                    work.attempt_undone(&row.id, number).await?;
                    let (id, queue) = (&row.id, &row.queue);
                    match state.status {
                        Status::Pending => tracing::warn!(
                            id,
                            queue,
                            "a retry's lease is over, and nobody knows whether it was sent; it will be sent again"
                        ),
                        _ => tracing::warn!(
                            id,
                            queue,
                            "a retry's or an edit's lease is over, and nobody knows whether it was sent; the failed message is FAILED: look at it"
                        ),
                    }
                }
            }
            rows.len()
        })?;
        let assumed = transaction!(self, |work| {
            let quiet = retrying()
                .filter(Column::AssumeAt.lte(work.now))
                .order_by_asc(Column::AssumeAt);
            let rows = work.skipping(quiet).all(&work.tx).await?;
            for row in &rows {
                let Some(mut state) = known(row.state())? else {
                    continue;
                };
                if state.assume(work.now) {
                    work.save(row, &state, |_| {}).await?;
                    work.attempt_ends(&row.id, state.attempt, Outcome::Assumed, None)
                        .await?;
                }
            }
            rows.len()
        })?;
        Ok(Reaped { lapsed, assumed })
    }

    /// Forgets deletions that all watchers have seen.
    pub async fn forget_deletions(&self) -> Result<(), Error> {
        transaction!(self, |work| {
            deletion::Entity::delete_many()
                .filter(deletion::Column::DeletedAt.lt(work.now - micros(DELETIONS_KEPT)))
                .exec(&work.tx)
                .await?;
        })
    }
}

/// Writes what became of a locked row's copy, while its lease is held.
async fn note_sent(
    work: &mut Work,
    row: &failed_message::Model,
    token: Uuid,
    sent: Sent,
) -> Result<(), Error> {
    let mut state = row.state()?;
    let number = state.attempt;
    let held = match sent {
        Sent::Confirmed { quiet_period } => state.sent(token, work.now + micros(quiet_period)),
        Sent::NotSent { again_after } => {
            let again = again_after.map(|after| work.now + micros(after));
            state.not_sent(token, again)
        }
        Sent::Returned | Sent::EditedInDoubt => state.set_aside(token),
    };
    if !held {
        return Ok(());
    }
    work.save(row, &state, |columns| {
        if sent == Sent::Returned {
            columns.reason = Set(Reason::Returned.to_string());
        }
    })
    .await?;
    if !matches!(sent, Sent::Confirmed { .. }) {
        work.attempt_undone(&row.id, number).await?;
    }
    Ok(())
}

/// `None`: it cannot be read, and others of the same transaction are not to wait for it.
fn known(state: Result<State, Error>) -> Result<Option<State>, Error> {
    match state {
        Err(Error::Damaged { .. }) => Ok(None),
        state => state.map(Some),
    }
}

fn retrying() -> Select<failed_message::Entity> {
    basic(failed_message::Entity::find())
        .filter(failed_message::Column::Status.eq(row::text(Status::Retrying)))
        .limit(REAP)
}

/// Takes a row that is locked.
async fn take(
    work: &mut Work,
    mut row: failed_message::Model,
    by: By,
    lease: Duration,
) -> Result<Claimed, Error> {
    let mut state = row.state()?;
    // What cannot be read is not claimed.
    let payload = std::mem::take(&mut row.payload);
    let mut message = row.clone().read()?;
    message.message.payload = payload.into();
    let token = Uuid::new_v4();
    state.claim(by, token, work.now, work.now + micros(lease))?;
    // A person's own retry is none of the bulk retry that had the row before.
    let of_its_own = by.is_for_one() && !row.manual;
    work.save(&row, &state, |columns| {
        if of_its_own {
            columns.operation_id = Set(None);
        }
    })
    .await?;
    work.attempt_begins(&row.id, &state).await?;
    message.state = state;
    if of_its_own {
        message.operation_id = None;
    }
    Ok(Claimed { token, message })
}
