//! A client that settles makes progress: what it was given after what it settled gets more time.
//!
//! The worker that everybody writes first handles one delivery after the other. Were each one's time to run from when it was given,
//! then whatever does not fit into one `ack_deadline` would lapse before its turn, come again, and lapse again. What was overtaken, by
//! the settle of something given later, keeps its time: so a delivery that is stuck is found.

use tokio::time::Instant;

/// Deliveries are numbered in the order in which they are given.
pub(super) type Number = u64;

/// Settles, as far as they mean more time for anything.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Numbers and times both rise: a later settle of an earlier delivery counts for all that an earlier one counts for.
    settles: Vec<(Number, Instant)>,
}

impl Progress {
    /// The client settled delivery `number`.
    pub(super) fn settled(&mut self, number: Number, now: Instant) {
        let before = self.settles.partition_point(|(other, _)| *other < number);
        self.settles.truncate(before);
        self.settles.push((number, now));
    }

    /// When something was settled last that was given before delivery `number`.
    pub(super) fn before(&self, number: Number) -> Option<Instant> {
        Some(self.last_before(number)?.1)
    }

    /// Whether the last settle was of something that was given after delivery `number`.
    pub(super) fn is_after(&self, number: Number) -> bool {
        let last = self.settles.last();
        last.is_some_and(|(other, _)| *other > number)
    }

    /// How many settles it remembers.
    pub(super) fn len(&self) -> usize {
        self.settles.len()
    }

    /// Of what was given so far, only deliveries `out` will be asked about. What is remembered then is not more than they are, and one:
    /// also while a delivery stays out for hours, and thousands that were given after it are settled.
    pub(super) fn forget_all_but(&mut self, mut out: Vec<Number>) {
        out.sort_unstable();
        // What will be given comes after all.
        out.push(Number::MAX);
        let needed = out
            .into_iter()
            .filter_map(|number| self.last_before(number));
        let mut needed: Vec<_> = needed.collect();
        needed.dedup();
        self.settles = needed;
    }

    fn last_before(&self, number: Number) -> Option<(Number, Instant)> {
        let after = self.settles.partition_point(|(other, _)| *other < number);
        self.settles[..after].last().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_last_settle_of_something_earlier_counts(
            settles in prop::collection::vec(0..50_u64, 0..100),
            out in prop::collection::vec(0..50_u64, 0..20),
        ) {
            let begin = Instant::now();
            let mut progress = Progress::default();
            let mut all = Vec::new();
            for (number, second) in settles.into_iter().zip(0..) {
                let at = begin + Duration::from_secs(second);
                progress.settled(number, at);
                all.push((number, at));
            }
            let expected = |number| {
                let earlier = all.iter().rev().find(|(other, _)| *other < number);
                earlier.map(|(_, at)| *at)
            };
            let is_after = |number| all.last().is_some_and(|(last, _)| *last > number);
            for number in 0..=50 {
                prop_assert_eq!(progress.before(number), expected(number));
                prop_assert_eq!(progress.is_after(number), is_after(number));
            }
            progress.forget_all_but(out.clone());
            prop_assert!(progress.len() <= out.len() + 1);
            for number in out.into_iter().chain([50]) {
                prop_assert_eq!(progress.before(number), expected(number));
                prop_assert_eq!(progress.is_after(number), is_after(number));
            }
        }
    }
}
