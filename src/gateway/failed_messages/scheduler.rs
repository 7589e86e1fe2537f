//! Sends what is due, on each replica; the database sees to it that each row is sent by one.
//!
//! A queue gets only so many automatic retries a second from each replica: a service that comes back is not met by all that
//! failed while it was away.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::sender::Sender;
use crate::{
    failed_message::schedule::Policy,
    store::{Error, Reaped, Step},
};

/// Retries under way at a time, and their payloads in memory.
const UNDER_WAY: usize = 64;
/// Those of one queue that are claimed at a time: some are claimed while others are sent.
const BATCH: u64 = 32;
/// How often leases and quiet periods are looked at.
const REAP: Duration = Duration::from_secs(1);
/// A database that came back: so long its leases are left alone, so that whoever holds them can say what became of them.
const REAP_PATIENCE: Duration = Duration::from_secs(5);
/// How often old traces of deletions are removed.
const FORGET: Duration = Duration::from_secs(600);

/// Starts sending; ends at `stop`, after what is under way.
pub fn start(sender: Sender, stop: CancellationToken, tasks: &TaskTracker) {
    let scheduler = Scheduler {
        sender,
        under_way: Arc::new(Semaphore::new(UNDER_WAY)),
        tasks: tasks.clone(),
    };
    tasks.spawn(scheduler.clone().send_due(stop.clone()));
    tasks.spawn(scheduler.reap(stop));
}

#[derive(Clone)]
struct Scheduler {
    sender: Sender,
    under_way: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Scheduler {
    async fn send_due(self, stop: CancellationToken) {
        let poll = self.sender.policy.poll;
        let mut ticks = interval(poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut presence = self.sender.store.watch();
        let mut number = 0;
        loop {
            let next = async {
                ticks.tick().await;
                presence.up().await
            };
            if stop.run_until_cancelled(next).await != Some(true) {
                return;
            }
            // Without the broker nothing could be sent, and every claim would be given back.
            if !self.sender.broker_is_up() {
                continue;
            }
            // A round that has begun is finished: rows it claimed are sent or given back.
            if let Err(error) = self.round(number, &stop).await {
                tracing::debug!(%error, "this round of retries ends early");
            }
            number += 1;
        }
    }

    /// The rounds are numbered, from 0.
    async fn round(&self, number: u64, stop: &CancellationToken) -> Result<(), Error> {
        let store = &self.sender.store;
        loop {
            match store.step_operation().await {
                Ok(Step::Done) => {}
                Ok(Step::Nothing) => break,
                Err(error) if error.is_of_database() => return Err(error),
                // The retries of others are not to wait for it.
                Err(error) => {
                    tracing::warn!(%error, "a bulk retry cannot go on now; trying again in the next round");
                    break;
                }
            }
        }
        let until = Instant::now() + self.sender.policy.poll;
        let pace = pace(&self.sender.policy, number);
        let queues = store.waiting_queues().await?;
        // Of each queue what a person asked for, and as much of the schedule as its pace allows.
        let both = |queue: String| [(queue.clone(), true, u64::MAX), (queue, false, pace)];
        let mut due: Vec<_> = queues.into_iter().flat_map(both).collect();
        // All have their turn once; those that have more have it again, until the next round is due.
        loop {
            let mut more = Vec::new();
            for (queue, asked, left) in due {
                if stop.is_cancelled() {
                    return Ok(());
                }
                let some = left.min(BATCH);
                match self.claim(&queue, asked, some).await {
                    Ok(claimed) if claimed == some && claimed < left => {
                        more.push((queue, asked, left - claimed));
                    }
                    Ok(_) => {}
                    Err(error) if error.is_of_database() => return Err(error),
                    Err(error) => {
                        tracing::warn!(queue, %error, "cannot send retries of this queue now; trying again in the next round")
                    }
                }
            }
            if more.is_empty() || Instant::now() >= until {
                return Ok(());
            }
            due = more;
        }
    }

    /// Claims what is due in a queue, at most `limit`, and sends it; how much that is.
    async fn claim(&self, queue: &str, asked: bool, limit: u64) -> Result<u64, Error> {
        let Ok(wanted) = u32::try_from(limit) else {
            return Ok(0);
        };
        if wanted == 0 {
            return Ok(0);
        }
        // Nothing is claimed that cannot be sent at once: its lease would run. Nor does a broker that is slow with some hold up all.
        let room = self.under_way.clone().acquire_many_owned(wanted);
        let Ok(Ok(mut room)) = timeout(self.sender.policy.poll, room).await else {
            return Ok(0);
        };
        let policy = &self.sender.policy;
        let claimed_at = Instant::now();
        let claimed = self
            .sender
            .store
            .claim(queue, asked, limit, policy.lease)
            .await?;
        let count = claimed.len();
        if let Some(room) = room.split(count).filter(|_| count > 0) {
            let sending = self.sender.clone().send_many(claimed, claimed_at, room);
            self.tasks.spawn(sending);
        }
        Ok(u64::try_from(count).unwrap_or(u64::MAX))
    }

    async fn reap(self, stop: CancellationToken) {
        let mut presence = self.sender.store.watch();
        let mut ticks = interval(REAP.min(self.sender.policy.lease));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut forgotten = Instant::now();
        loop {
            let was_up = presence.is_up();
            let next = async {
                ticks.tick().await;
                let up = presence.up().await;
                if !was_up {
                    tokio::time::sleep(REAP_PATIENCE.min(self.sender.policy.lease)).await;
                }
                up
            };
            if stop.run_until_cancelled(next).await != Some(true) {
                return;
            }
            match self.sender.store.reap().await {
                Ok(reaped) if reaped != Reaped::default() => {
                    tracing::debug!(?reaped, "ended leases and quiet periods");
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "cannot look at leases now"),
            }
            if forgotten.elapsed() >= FORGET {
                forgotten = Instant::now();
                let _ = self.sender.store.forget_deletions().await;
            }
        }
    }
}

/// How many automatic retries each queue gets in a round: over all rounds just the rate, however short they are.
fn pace(policy: &Policy, number: u64) -> u64 {
    let until = |rounds: u64| {
        let micros = policy.poll.as_micros() * u128::from(rounds);
        // Rounded up, so that the first round sends something.
        (u128::from(policy.rate) * micros).div_ceil(1_000_000)
    };
    u64::try_from(until(number + 1) - until(number)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::failed_message::schedule::Schedule;

    fn policy(rate: u32, poll: Duration) -> Policy {
        Policy {
            default: Schedule::new(vec![], 3),
            queues: HashMap::new(),
            rate,
            quiet_period: Duration::ZERO,
            poll,
            lease: Duration::ZERO,
            longest_pause: Duration::ZERO,
        }
    }

    #[test]
    fn a_rate_below_the_number_of_rounds_is_kept() {
        let one = policy(1, Duration::from_millis(500));
        let paces: Vec<_> = (0..6).map(|number| pace(&one, number)).collect();
        assert_eq!(paces, [1, 0, 1, 0, 1, 0]);
    }

    proptest! {
        #[test]
        fn all_rounds_together_keep_the_rate(rate in 1_u32..2_000, poll in 1_u64..5_000, rounds in 1_u64..500) {
            let policy = policy(rate, Duration::from_millis(poll));
            let sent: u64 = (0..rounds).map(|number| pace(&policy, number)).sum();
            let allowed = (u64::from(rate) * poll * rounds).div_ceil(1_000);
            prop_assert_eq!(sent, allowed);
            prop_assert!(pace(&policy, 0) > 0);
        }
    }
}
