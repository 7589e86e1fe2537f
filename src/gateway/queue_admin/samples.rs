//! How queues do, for those who watch: however many they are, each queue is asked about once for all of them, and not at all
//! when nobody watches.

use std::{sync::Arc, time::Duration};

use moka::future::Cache;
use tokio::time::Instant;

use super::{Answer, Error, QueueAdmin, QueueStats};

/// How old a sample may be that another watcher is given: shorter than the shortest interval, longer than watchers need who wake
/// at the same moment.
const FRESH: Duration = Duration::from_millis(500);
/// Samples at a time.
const MOST: u64 = 10_000;

/// What was seen last.
#[derive(Clone)]
pub(super) struct Samples {
    began: Instant,
    queues: Cache<String, Arc<Answer<QueueStats>>>,
    all: Cache<(), Arc<Answer<Vec<QueueStats>>>>,
}

impl Default for Samples {
    fn default() -> Self {
        let queues = Cache::builder().time_to_live(FRESH).max_capacity(MOST);
        let all = Cache::builder().time_to_live(FRESH).max_capacity(1);
        Self {
            began: Instant::now(),
            queues: queues.build(),
            all: all.build(),
        }
    }
}

impl Samples {
    /// The next moment at which everybody with this interval looks.
    fn next(&self, interval: Duration) -> Instant {
        let elapsed = self.began.elapsed().as_nanos();
        let rest = interval.as_nanos() - elapsed % interval.as_nanos().max(1);
        Instant::now() + Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX))
    }
}

impl QueueAdmin {
    /// Waits until it is time for the next sample: at the same moment for all who watch at this interval.
    pub async fn next_sample(&self, interval: Duration) {
        tokio::time::sleep_until(self.samples.next(interval)).await;
    }

    /// How a queue does, or did a moment ago.
    pub async fn sample(&self, name: &str) -> Result<Arc<Answer<QueueStats>>, Error> {
        let asking = async { self.stats(name).await.map(Arc::new) };
        let sample = self.samples.queues.try_get_with_by_ref(name, asking).await;
        sample.map_err(Arc::unwrap_or_clone)
    }

    /// How all queues do, by name, or did a moment ago.
    pub async fn sample_all(&self) -> Result<Arc<Answer<Vec<QueueStats>>>, Error> {
        let asking = async { self.all_stats().await.map(Arc::new) };
        let sample = self.samples.all.try_get_with((), asking).await;
        sample.map_err(Arc::unwrap_or_clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_begins_when_looks_at_the_same_moment() {
        let samples = Samples::default();
        let interval = Duration::from_secs(5);
        let first = samples.next(interval);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(samples.next(interval), first);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(samples.next(interval), first + interval);
    }
}
