//! When a failed message is retried.

use std::{collections::HashMap, time::Duration};

/// The retry schedule of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The delay before each retry; the last one repeats. Not empty.
    delays: Vec<Duration>,
    /// How many automatic retries there are.
    pub max_retries: u32,
}

/// No step of a schedule made from one delay is longer.
const LONGEST_STEP: Duration = Duration::from_secs(30 * 60);
/// How much longer each step of such a schedule is.
const STEP_FACTOR: u32 = 5;
/// Steps of such a schedule: 1 ms times 5^8 is beyond six minutes, 5^9 beyond half an hour.
const STEPS: u32 = 10;
/// Delays vary by a fifth to either side, so that what died together does not come back together.
const JITTER: f64 = 0.2;

impl Schedule {
    /// `delays` as they are; without any, retries are due at once.
    pub fn new(delays: Vec<Duration>, max_retries: u32) -> Self {
        let delays = if delays.is_empty() {
            vec![Duration::ZERO]
        } else {
            delays
        };
        Self {
            delays,
            max_retries,
        }
    }

    /// Each step five times the one before, at most half an hour (a `first` beyond that repeats).
    pub fn growing(first: Duration, max_retries: u32) -> Self {
        let longest = LONGEST_STEP.max(first);
        let step = |n| {
            first
                .saturating_mul(STEP_FACTOR.saturating_pow(n))
                .min(longest)
        };
        Self::new((0..STEPS).map(step).collect(), max_retries)
    }

    /// The same with another number of retries, or other delays.
    pub fn but(&self, max_retries: Option<u32>, delays: Option<Vec<Duration>>) -> Self {
        Self::new(
            delays.unwrap_or_else(|| self.delays.clone()),
            max_retries.unwrap_or(self.max_retries),
        )
    }

    /// The delay before the retry after `retry_count` retries. `random` is from 0 to 1.
    pub fn delay(&self, retry_count: u32, random: f64) -> Duration {
        let last = self.delays.len() - 1;
        let index = usize::try_from(retry_count).unwrap_or(last).min(last);
        self.delays[index].mul_f64(1.0 + JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0))
    }
}

/// How failed messages are retried.
#[derive(Clone, Debug)]
pub struct Policy {
    pub default: Schedule,
    /// Queues with a schedule of their own.
    pub queues: HashMap<String, Schedule>,
    /// Automatic retries that one replica sends to one queue, a second.
    pub rate: u32,
    /// A retry that did not die within it counts as done.
    pub quiet_period: Duration,
    /// How often due rows are looked for.
    pub poll: Duration,
    /// How long a replica may take to publish what it claimed.
    pub lease: Duration,
    /// The longest pause after a retry could not be sent.
    pub longest_pause: Duration,
}

impl Policy {
    /// The schedule of `queue`.
    pub fn of(&self, queue: &str) -> &Schedule {
        self.queues.get(queue).unwrap_or(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_single_delay_grows_fivefold_to_half_an_hour() {
        let schedule = Schedule::growing(MINUTE, 4);
        let delays: Vec<_> = (0..4).map(|n| schedule.delay(n, 0.5)).collect();
        assert_eq!(delays, [MINUTE, 5 * MINUTE, 25 * MINUTE, 30 * MINUTE]);
        let long = Schedule::growing(60 * MINUTE, 4);
        assert_eq!(long.delay(3, 0.5), 60 * MINUTE);
    }

    #[test]
    fn the_last_delay_repeats() {
        let schedule = Schedule::new(vec![MINUTE, 3 * MINUTE], 9);
        assert_eq!(schedule.delay(7, 0.5), 3 * MINUTE);
    }

    proptest! {
        #[test]
        fn jitter_stays_within_a_fifth(n in 0_u32..40, random in 0.0..=1.0_f64, ms in 0_u64..10_000_000) {
            let delay = Duration::from_millis(ms);
            let varied = Schedule::new(vec![delay], 1).delay(n, random);
            prop_assert!(varied >= delay.mul_f64(0.799_999) && varied <= delay.mul_f64(1.200_001));
        }
    }
}
