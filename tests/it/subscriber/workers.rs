//! Workers as people write them, with what each must achieve: alone, and beside a colleague that took what it could and was killed.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use courtier::grpc::proto::{
    Delivery, ExtendDeadline, Start, settle_result::Result as Settled, subscribe_request::Request,
    subscribe_response::Response,
};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::{interval, sleep};

use crate::front::{Front, On, Stream, ack, body, from, on_both, seconds};

on_both! {
    one_delivery_after_the_other
    one_delivery_after_the_other_beside_a_killed_colleague
    a_pool
    a_pool_beside_a_killed_colleague
    a_batcher
    a_batcher_beside_a_killed_colleague
    whoever_asks_for_more_time
    whoever_settles_the_latest_first
    whoever_settles_later_ones_first_loses_the_stuck_one
    one_that_never_settles_keeps_nothing_from_the_others
    one_that_is_killed_again_and_again
}

/// As many as two subscriptions hold, by default.
const COUNT: usize = 200;
/// Much longer than a busy machine may keep a worker waiting, and shorter than all the work takes.
const DEADLINE: i64 = 3;

fn with_deadline(queue: &str) -> Start {
    Start {
        ack_deadline: seconds(DEADLINE),
        ..from(&[queue])
    }
}

async fn fill(front: &Front, queue: &str, count: usize) -> Vec<String> {
    let texts: Vec<_> = (0..count).map(|number| format!("{number:03}")).collect();
    let texts_of: Vec<_> = texts.iter().map(String::as_str).collect();
    front.fill(queue, &texts_of).await;
    texts
}

/// How somebody works.
#[derive(Clone, Copy)]
struct Worker {
    threads: usize,
    /// For one delivery.
    takes: Duration,
    /// Deliveries that are acked together; no fewer, ever.
    batch: usize,
    latest_first: bool,
    /// Asks for more time, again and again, for all that it holds.
    extends: bool,
}

impl Worker {
    /// Works off so many deliveries, each of which must stay its own until it is settled. Which, in the order in which they were done.
    async fn work_off(self, stream: &mut Stream, count: usize) -> Vec<String> {
        let (mut held, mut busy) = (VecDeque::<Delivery>::new(), FuturesUnordered::new());
        let (mut mine, mut unacked, mut acked) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        let (mut done, mut settled) = (Vec::new(), 0);
        let mut time_to_extend = interval(Duration::from_millis(200));
        while settled < count {
            while busy.len() < self.threads
                && done.len() + busy.len() < count
                && let Some(next) = if self.latest_first {
                    held.pop_back()
                } else {
                    held.pop_front()
                }
            {
                busy.push(sleep(self.takes).map(|()| next));
            }
            tokio::select! {
                Some(delivery) = busy.next() => {
                    done.push(body(&delivery));
                    mine.remove(&delivery.ack_id);
                    unacked.push(delivery.ack_id);
                    if unacked.len() == self.batch {
                        let ids: Vec<_> = unacked.iter().map(String::as_str).collect();
                        stream.send(ack(&ids));
                        acked.extend(std::mem::take(&mut unacked));
                    }
                }
                _ = time_to_extend.tick(), if self.extends => {
                    stream.send(Request::Extend(ExtendDeadline {
                        ack_ids: mine.iter().cloned().collect(),
                        ack_deadline: None,
                    }));
                }
                event = stream.event() => match event {
                    Ok(Some(Response::Deliveries(more))) => {
                        mine.extend(more.deliveries.iter().map(|new| new.ack_id.clone()));
                        held.extend(more.deliveries);
                    }
                    Ok(Some(Response::Results(results))) => for result in results.results {
                        assert_eq!(result.result(), Settled::Ok);
                        settled += usize::from(acked.remove(&result.ack_id));
                    },
                    other => panic!("only that may happen, not {other:?}"),
                },
            }
        }
        done
    }

    /// Works off all that is there, each once.
    async fn works(self, on: On) {
        self.works_beside(on, false).await;
    }

    /// The same, when a colleague took what it could, and was killed.
    async fn works_beside_a_killed_colleague(self, on: On) {
        self.works_beside(on, true).await;
    }

    async fn works_beside(self, on: On, colleague: bool) {
        let front = on.gateway().await;
        let queue = front.queue("work").await;
        let dead_letters = front.queue("work.dlq").await;
        let texts = fill(&front, &queue, COUNT).await;
        let mut killed = None;
        if colleague {
            let mut stream = front.subscribe(from(&[&queue])).await;
            assert_eq!(stream.deliveries(100).await.len(), 100);
            killed = Some(stream);
        }
        let mut stream = front.subscribe(with_deadline(&queue)).await;
        if let Some(killed) = killed {
            killed.die();
        }
        let mut done = self.work_off(&mut stream, COUNT).await;
        done.sort();
        assert_eq!(done, texts);
        stream.half_close();
        while stream.event().await.expect("it ends well").is_some() {}
        assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
        assert_eq!(front.drain_bodies(&dead_letters).await, [""; 0]);
    }
}

/// The first worker that anybody writes: a loop over the stream, one thread, everything by default. All that it holds takes longer than
/// an ack deadline.
const ONE_AFTER_THE_OTHER: Worker = Worker {
    threads: 1,
    takes: Duration::from_millis(40),
    batch: 1,
    latest_first: false,
    extends: false,
};

const POOL: Worker = Worker {
    threads: 16,
    ..ONE_AFTER_THE_OTHER
};

/// It waits for a full batch, however long that takes. All would lapse if it did not get one.
const BATCHER: Worker = Worker {
    takes: Duration::from_millis(1),
    batch: 100,
    ..ONE_AFTER_THE_OTHER
};

async fn one_delivery_after_the_other(on: On) {
    ONE_AFTER_THE_OTHER.works(on).await;
}

async fn one_delivery_after_the_other_beside_a_killed_colleague(on: On) {
    ONE_AFTER_THE_OTHER
        .works_beside_a_killed_colleague(on)
        .await;
}

async fn a_pool(on: On) {
    POOL.works(on).await;
}

async fn a_pool_beside_a_killed_colleague(on: On) {
    POOL.works_beside_a_killed_colleague(on).await;
}

async fn a_batcher(on: On) {
    BATCHER.works(on).await;
}

async fn a_batcher_beside_a_killed_colleague(on: On) {
    BATCHER.works_beside_a_killed_colleague(on).await;
}

/// Each takes longer than a deadline.
async fn whoever_asks_for_more_time(on: On) {
    let worker = Worker {
        threads: COUNT,
        takes: Duration::from_secs(DEADLINE as u64 + 1),
        extends: true,
        ..ONE_AFTER_THE_OTHER
    };
    worker.works(on).await;
}

async fn whoever_settles_the_latest_first(on: On) {
    let worker = Worker {
        latest_first: true,
        takes: Duration::from_millis(5),
        ..POOL
    };
    worker.works(on).await;
}

/// It loses all that it takes, again and again; the others get it.
async fn one_that_never_settles_keeps_nothing_from_the_others(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let dead_letters = front.queue("work.dlq").await;
    let texts = fill(&front, &queue, COUNT).await;
    let mut never = front
        .subscribe(Start {
            ack_deadline: seconds(1),
            max_outstanding: 20,
            ..from(&[&queue])
        })
        .await;
    never.deliveries(20).await;
    let never = tokio::spawn(async move { while let Ok(Some(_)) = never.event().await {} });
    let mut stream = front.subscribe(with_deadline(&queue)).await;
    // The last one may be taken for poison: it was alone with the one that never settles, five times in a row.
    let mut done = POOL.work_off(&mut stream, COUNT - 1).await;
    never.abort();
    let _ = never.await;
    stream.half_close();
    while stream.event().await.expect("it ends well").is_some() {}
    done.extend(front.drain_bodies(&queue).await);
    done.extend(front.drain_bodies(&dead_letters).await);
    done.sort();
    assert_eq!(done, texts);
}

/// It works off some, and has a hundred more in its hands when it is killed. That is not their fault.
async fn one_that_is_killed_again_and_again(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let dead_letters = front.queue("work.dlq").await;
    let texts = fill(&front, &queue, COUNT).await;
    let quick = Worker {
        takes: Duration::from_millis(1),
        ..ONE_AFTER_THE_OTHER
    };
    let mut done = Vec::new();
    while done.len() < COUNT {
        let mut stream = front.subscribe(with_deadline(&queue)).await;
        done.extend(quick.work_off(&mut stream, 20).await);
        stream.die();
    }
    done.sort();
    assert_eq!(done, texts);
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
    assert_eq!(front.drain_bodies(&dead_letters).await, [""; 0]);
}

/// A delivery that is overtaken by later ones has its own clock.
async fn whoever_settles_later_ones_first_loses_the_stuck_one(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    fill(&front, &queue, 100).await;
    let mut stream = front.subscribe(with_deadline(&queue)).await;
    let stuck = stream.delivery().await;
    let mut others = stream.deliveries(99).await.into_iter();
    let revoked = loop {
        // The work: all of it would take longer than the deadline.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let next = others.next().expect("it lapses before all others are done");
        stream.send(ack(&[&next.ack_id]));
        match stream.event().await {
            Ok(Some(Response::Revoked(revoked))) => break revoked,
            Ok(Some(Response::Results(_))) => {}
            other => panic!("only that may happen, not {other:?}"),
        }
    };
    assert_eq!(revoked.ack_ids, [stuck.ack_id]);
}
