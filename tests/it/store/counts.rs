//! The counts by kind are what counting would find, whatever was done and by how many at once.

use std::{collections::BTreeMap, time::Duration};

use courtier::{
    failed_message::{Death, ErrorDetail, Next, Status},
    store::{Error, Filter, Sent, Store},
};
use uuid::Uuid;

use super::{
    database::{Own, on_each, on_servers},
    deaths::{ack, at_once, death, death_of, error},
};

on_each! {
    counts_are_true_after_anything
}

mod replicas {
    use super::*;

    on_servers! {
        counts_are_true_after_anything_that_two_replicas_did
    }

    async fn counts_are_true_after_anything_that_two_replicas_did(own: &Own) {
        let (one, other) = (own.store().await, own.store().await);
        anything(own, &[one.clone(), other.clone()]).await;
        one.close().await;
        other.close().await;
    }
}

const TASKS: u64 = 6;
const STEPS: usize = 60;
const QUEUES: [&str; 2] = ["work", "Work"];

async fn counts_are_true_after_anything(own: &Own) {
    let store = own.store().await;
    anything(own, std::slice::from_ref(&store)).await;
    store.close().await;
}

async fn anything(own: &Own, replicas: &[Store]) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let walking: Vec<_> = (0..TASKS)
        .zip(replicas.iter().cycle())
        .map(|(n, store)| {
            let mut walk = Walk {
                store: store.clone(),
                random: fastrand::Rng::with_seed(seed.wrapping_add(n)),
                claimed: Vec::new(),
                copies: Vec::new(),
            };
            tokio::spawn(async move {
                for _ in 0..STEPS {
                    walk.step().await;
                }
            })
        })
        .collect();
    for walk in walking {
        walk.await.expect("no panic");
    }
    let store = &replicas[0];
    check(own, store).await;
    let all = Filter::default();
    let rows = store.count(&all).await.expect("count");
    let leased = Filter {
        statuses: vec![Status::Retrying],
        ..Filter::default()
    };
    let leased = store.count(&leased).await.expect("count");
    let mut deleted = 0;
    loop {
        match store.delete_some(&all).await.expect("delete") {
            0 => break,
            some => deleted += some,
        }
    }
    assert_eq!(deleted, rows - leased);
    check(own, store).await;
}

/// One of those who work on the same rows.
struct Walk {
    store: Store,
    random: fastrand::Rng,
    claimed: Vec<courtier::store::Claimed>,
    /// What the broker had, and may hand out at any time.
    copies: Vec<courtier::failed_message::FailedMessage>,
}

impl Walk {
    async fn step(&mut self) {
        let done = match self.random.u32(..12) {
            0 | 1 => self.collect().await,
            2 | 3 => self.claim().await,
            4 | 5 => self.tell().await,
            6 => self.die_again().await,
            7 => self.ack().await,
            8 => self.store.reap().await.map(|_| ()),
            9 => self.one_row().await,
            10 => self.store.step_operation().await.map(|_| ()),
            _ => self.begin_operation().await,
        };
        match done {
            // Somebody else was faster.
            Ok(()) | Err(Error::NotFound | Error::Conflict(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    fn queue(&mut self) -> &'static str {
        QUEUES[self.random.usize(..QUEUES.len())]
    }

    fn error(&mut self) -> ErrorDetail {
        let kinds = ["Timeout", "timeout", "Refused"];
        let kind = kinds[self.random.usize(..kinds.len())];
        error(kind, "no answer")
    }

    async fn collect(&mut self) -> Result<(), Error> {
        let mut deaths = Vec::new();
        for _ in 0..self.random.usize(1..6) {
            deaths.push(Death {
                // Few, so that some come twice.
                publish_id: Some(self.random.u8(..).to_string()),
                error: self.error(),
                next: if self.random.u8(..4) == 0 {
                    Next::Park
                } else {
                    Next::Retry(None)
                },
                ..death(self.queue())
            });
        }
        self.store.collect(&deaths, at_once).await.map(|_| ())
    }

    async fn claim(&mut self) -> Result<(), Error> {
        let lease = Duration::from_millis(self.random.u64(..3) * 1000);
        let (queue, asked) = (self.queue(), self.random.bool());
        let claimed = self.store.claim(queue, asked, 5, lease).await?;
        self.claimed.extend(claimed);
        Ok(())
    }

    async fn tell(&mut self) -> Result<(), Error> {
        let Some(claimed) = self.claimed.pop() else {
            return Ok(());
        };
        let id = claimed.message.id;
        let what = match self.random.u32(..4) {
            0 => Sent::NotSent { again_after: None },
            1 => Sent::Returned,
            _ => Sent::Confirmed {
                quiet_period: Duration::from_millis(self.random.u64(..200)),
            },
        };
        self.copies.push(claimed.message);
        self.store.sent(id, claimed.token, what).await.map(|_| ())
    }

    async fn die_again(&mut self) -> Result<(), Error> {
        let Some(copy) = self.copies.pop() else {
            return Ok(());
        };
        let death = Death {
            error: self.error(),
            ..death_of(&copy)
        };
        if self.random.bool() {
            self.copies.push(copy);
        }
        self.store.collect(&[death], at_once).await.map(|_| ())
    }

    async fn ack(&mut self) -> Result<(), Error> {
        let acks: Vec<_> = (self.copies.iter())
            .map(|copy| ack(copy, copy.state.attempt))
            .collect();
        self.copies.clear();
        self.store.acked(&acks).await
    }

    async fn one_row(&mut self) -> Result<(), Error> {
        let filter = Filter {
            queue: Some(self.queue().to_owned()),
            ..Filter::default()
        };
        let rows = self.store.failed_messages(&filter, None, 20).await?.rows;
        let Some(id) = self.random.choice(&rows).map(|row| row.id) else {
            return Ok(());
        };
        match self.random.u32(..3) {
            0 => self.store.resolve(id, "done").await.map(|_| ()),
            1 => self.store.delete(id).await,
            _ => {
                let lease = Duration::from_millis(self.random.u64(..2000));
                let claimed = self.store.claim_one(id, lease).await?;
                self.claimed.push(claimed);
                Ok(())
            }
        }
    }

    async fn begin_operation(&mut self) -> Result<(), Error> {
        let filter = Filter {
            queue: Some(self.queue().to_owned()),
            ..Filter::default()
        };
        let begun = self.store.begin_operation(&filter, 3, Some(7)).await?;
        assert_ne!(begun.id, Uuid::nil());
        Ok(())
    }
}

type Counts = BTreeMap<(String, String), u64>;

/// Compares what the store says with what there is.
async fn check(own: &Own, store: &Store) {
    let raw = own.raw().await;
    let rows = raw
        .rows("SELECT fingerprint, status, COUNT(*) FROM failed_messages GROUP BY fingerprint, status")
        .await;
    let truth: Counts = rows
        .iter()
        .map(|row| {
            let text = |n| row.try_get_by_index::<String>(n).expect("a text");
            let count: i64 = row.try_get_by_index(2).expect("a number");
            ((text(0), text(1)), u64::try_from(count).expect("a count"))
        })
        .collect();
    let groups = store.groups(None, None, 1000).await.expect("groups").rows;
    let mut told = Counts::new();
    let mut by_queue = BTreeMap::<String, u64>::new();
    for group in &groups {
        let counts = group.counts;
        let all = [
            ("pending", counts.pending),
            ("retrying", counts.retrying),
            ("failed", counts.failed),
            ("resolved", counts.resolved),
        ];
        assert!(all.iter().any(|(_, count)| *count > 0), "{group:?}");
        for (status, count) in all.into_iter().filter(|(_, count)| *count > 0) {
            told.insert((group.fingerprint.clone(), status.to_owned()), count);
            *by_queue.entry(group.queue.clone()).or_default() += count;
        }
    }
    assert_eq!(told, truth);
    let stats = store.stats(None).await.expect("stats");
    let sums = stats.queues.iter().map(|queue| {
        let counts = queue.counts;
        let sum = counts.pending + counts.retrying + counts.failed + counts.resolved;
        (queue.queue.clone(), sum)
    });
    assert_eq!(sums.collect::<BTreeMap<_, _>>(), by_queue);
    // Each attempt belongs to a row.
    let stray = "SELECT COUNT(*) FROM failed_message_attempts \
                 WHERE failed_message_id NOT IN (SELECT id FROM failed_messages)";
    assert_eq!(raw.number(stray).await, 0);
    // No bulk retry has more ends than beginnings.
    let beyond = "SELECT COUNT(*) FROM retry_operations \
                  WHERE succeeded + failed_again + skipped > started";
    assert_eq!(raw.number(beyond).await, 0);
}
