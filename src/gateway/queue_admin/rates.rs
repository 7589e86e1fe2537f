//! Rates out of counts: where the broker counts messages and does not tell how many a second.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::broker::admin::{Flow, QueueInfo};

/// A rate is over so long at least, and at most as long as samples are kept.
const SHORTEST: Duration = Duration::from_secs(1);
const KEPT: Duration = Duration::from_secs(30);

/// What was counted of each queue lately.
#[derive(Clone, Default)]
pub struct Rates(Arc<Mutex<HashMap<String, VecDeque<Sample>>>>);

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    totals: [Option<u64>; 3],
}

impl Rates {
    /// Fills in the rates that the broker does not tell, as far as there are counts, and remembers these.
    pub fn complete(&self, queue: &mut QueueInfo) {
        let now = Sample {
            at: Instant::now(),
            totals: [queue.publish, queue.deliver, queue.ack].map(|flow| flow.total),
        };
        if now.totals.iter().all(Option::is_none) {
            return;
        }
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = queues.entry(queue.name.clone()).or_default();
        while samples
            .front()
            .is_some_and(|first| now.at - first.at > KEPT)
        {
            samples.pop_front();
        }
        if let Some(first) = samples
            .front()
            .filter(|first| now.at - first.at >= SHORTEST)
        {
            let flows = [&mut queue.publish, &mut queue.deliver, &mut queue.ack];
            for (index, flow) in flows.into_iter().enumerate() {
                fill(flow, *first, now, index);
            }
        }
        if samples
            .back()
            .is_none_or(|last| now.at - last.at >= SHORTEST)
        {
            samples.push_back(now);
        }
    }

    /// Forgets queues that are not among these any more.
    pub fn keep(&self, names: impl Fn(&str) -> bool) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|name, _| names(name));
    }
}

fn fill(flow: &mut Flow, from: Sample, to: Sample, index: usize) {
    if let (None, Some(before), Some(after)) =
        (flow.per_second, from.totals[index], to.totals[index])
    {
        // A queue that was deleted and declared anew counts from 0 again: nothing is known of it yet.
        flow.per_second = after.checked_sub(before).map(|more| {
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let more = more as f64;
            more / (to.at - from.at).as_secs_f64()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(total: u64) -> QueueInfo {
        QueueInfo {
            name: "q".to_owned(),
            publish: Flow {
                total: Some(total),
                per_second: None,
            },
            ..QueueInfo::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_known_from_the_second_sample_on() {
        let rates = Rates::default();
        let rate = |total| {
            let mut queue = queue(total);
            rates.complete(&mut queue);
            queue.publish.per_second
        };
        assert_eq!(rate(100), None);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(rate(110), None);
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(rate(140), Some(20.0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(rate(5), None, "it counts from 0 again");
    }

    #[tokio::test(start_paused = true)]
    async fn old_samples_do_not_count() {
        let rates = Rates::default();
        rates.complete(&mut queue(0));
        tokio::time::advance(KEPT * 2).await;
        let mut late = queue(1_000);
        rates.complete(&mut late);
        assert_eq!(late.publish.per_second, None);
    }
}
