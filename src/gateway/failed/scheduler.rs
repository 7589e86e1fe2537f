//! Sends what is due, on each replica; the database sees to it that each row is sent by one.
//!
//! A queue gets only so many automatic retries a second from each replica: a service that comes back is not met by all that
//! failed while it was away.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::sender::Sender;
use crate::{
    failure::schedule::Policy,
    store::{Error, Reaped, Step},
};

/// Retries under way at a time, and their payloads in memory.
const UNDER_WAY: usize = 64;
/// Those that a person asked for, of one queue in one round.
const ASKED: u64 = 32;
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
                    tracing::warn!(%error, "a bulk retry is held up");
                    break;
                }
            }
        }
        let pace = pace(&self.sender.policy, number);
        for queue in store.waiting_queues().await? {
            for (asked, limit) in [(true, ASKED), (false, pace)] {
                if stop.is_cancelled() {
                    return Ok(());
                }
                match self.claim(&queue, asked, limit).await {
                    Ok(()) => {}
                    Err(error) if error.is_of_database() => return Err(error),
                    Err(error) => tracing::warn!(queue, %error, "no retry of this queue is sent"),
                }
            }
        }
        Ok(())
    }

    /// Claims what is due in a queue, and sends it.
    async fn claim(&self, queue: &str, asked: bool, limit: u64) -> Result<(), Error> {
        // Nothing is claimed that cannot be sent at once: its lease would run.
        let free = u64::try_from(self.under_way.available_permits()).unwrap_or_default();
        let limit = limit.min(free);
        if limit == 0 {
            return Ok(());
        }
        let policy = &self.sender.policy;
        let claimed_at = Instant::now();
        let claimed = self
            .sender
            .store
            .claim(queue, asked, limit, policy.lease)
            .await?;
        for claimed in claimed {
            let Ok(permit) = self.under_way.clone().acquire_owned().await else {
                return Ok(());
            };
            let sender = self.sender.clone();
            self.tasks.spawn(async move {
                let (_, written) = sender.send(&claimed, claimed_at).await;
                if let Err(error) = written {
                    let id = claimed.message.id;
                    tracing::warn!(%id, %error, "what became of a retry is not stored; its lease ends by itself");
                }
                drop(permit);
            });
        }
        Ok(())
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
    use crate::failure::schedule::Schedule;

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
