//! The clock of a file may be set, ahead and back: what is planned is not lost in the times between.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{TimeDelta, Utc};
use courtier::{
    failed_message::{Status, schedule::Schedule},
    store::{Clock, Reading, Sent, Store},
};

use super::{
    database::Own,
    deaths::{LEASE, claim, claim_up_to, collect, death},
};
use crate::harness::PATIENCE;

/// A clock that a test sets.
#[derive(Clone)]
struct Hands(Arc<Mutex<Reading>>);

impl Hands {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Reading {
            wall: Utc::now(),
            uptime: Duration::from_secs(1_000),
        })))
    }

    fn clock(&self) -> Clock {
        let hands = self.clone();
        Clock::new(move || *hands.0.lock().expect("whole"))
    }

    async fn open(&self, own: &Own) -> Store {
        let store = Store::open_with_clock(own.options(), self.clock(), PATIENCE).await;
        store.expect("it opens")
    }

    /// Time passes.
    fn wait(&self, time: Duration) {
        let mut now = self.0.lock().expect("whole");
        now.uptime += time;
        now.wall += time;
    }

    /// Somebody sets the clock.
    fn set(&self, by: TimeDelta) {
        self.0.lock().expect("whole").wall += by;
    }

    fn wall(&self) -> courtier::failed_message::Time {
        self.0.lock().expect("whole").wall
    }
}

const HOURS: TimeDelta = TimeDelta::hours(2);
const MINUTE: Duration = Duration::from_secs(60);

fn in_a_minute(_: &str) -> Schedule {
    // Give or take a fifth.
    Schedule::new(vec![MINUTE], 3)
}

/// A row that is due in a minute.
async fn planned(store: &Store, queue: &str) {
    let collected = store.collect(&[death(queue)], in_a_minute).await;
    assert_eq!(collected.expect("collected").len(), 1);
}

async fn is_due(store: &Store, queue: &str) -> bool {
    !claim_up_to(store, queue, 1)
        .await
        .expect("claim")
        .is_empty()
}

#[tokio::test]
async fn a_retry_stays_as_far_away_as_it_was() {
    let (own, hands) = (Own::file(), Hands::new());
    let store = hands.open(&own).await;
    for queue in ["before", "early"] {
        planned(&store, queue).await;
    }
    hands.set(HOURS);
    planned(&store, "ahead").await;
    hands.wait(MINUTE / 2);
    assert!(!is_due(&store, "before").await, "early by two hours");
    hands.set(-HOURS);
    assert!(!is_due(&store, "ahead").await);
    planned(&store, "after").await;
    hands.wait(MINUTE);
    for queue in ["before", "early", "ahead"] {
        assert!(is_due(&store, queue).await, "{queue} is late");
    }
    hands.wait(MINUTE);
    assert!(is_due(&store, "after").await);
    store.close().await;
}

#[tokio::test]
async fn leases_and_quiet_periods_move_along() {
    let (own, hands) = (Own::file(), Hands::new());
    let store = hands.open(&own).await;
    for queue in ["lost", "sent"] {
        collect(&store, &death(queue)).await;
    }
    hands.set(HOURS);
    let lost = claim(&store, "lost").await.message.id;
    let sent = claim(&store, "sent").await;
    let confirmed = Sent::Confirmed {
        quiet_period: MINUTE,
    };
    let marked = store.sent(sent.message.id, sent.token, confirmed).await;
    marked.expect("stored");
    hands.set(-HOURS);
    let reaped = store.reap().await.expect("reaped");
    assert_eq!((reaped.lapsed, reaped.assumed), (0, 0));
    hands.wait(LEASE + MINUTE);
    let reaped = store.reap().await.expect("reaped");
    assert_eq!((reaped.lapsed, reaped.assumed), (1, 1));
    let row = store.failed_message(lost).await.expect("the row");
    assert_eq!(row.state.status, Status::Pending);
    store.close().await;
}

#[tokio::test]
async fn rows_of_another_process_stay_unless_they_are_of_the_future() {
    let (own, hands) = (Own::file(), Hands::new());
    let store = hands.open(&own).await;
    planned(&store, "true").await;
    store.close().await;
    // A wrong start that NTP corrects: the row was right all the time.
    hands.set(-HOURS);
    let store = hands.open(&own).await;
    assert!(!is_due(&store, "true").await);
    hands.set(HOURS);
    assert!(!is_due(&store, "true").await, "early by two hours");
    hands.wait(2 * MINUTE);
    assert!(is_due(&store, "true").await, "it waits for two hours");
    store.close().await;

    let (own, hands) = (Own::file(), Hands::new());
    hands.set(-HOURS);
    let store = hands.open(&own).await;
    planned(&store, "behind").await;
    hands.set(HOURS);
    hands.wait(2 * MINUTE);
    assert!(is_due(&store, "behind").await);
    store.close().await;

    let (own, hands) = (Own::file(), Hands::new());
    hands.set(HOURS);
    let store = hands.open(&own).await;
    planned(&store, "future").await;
    store.close().await;
    hands.set(-HOURS);
    let store = hands.open(&own).await;
    assert!(!is_due(&store, "future").await);
    hands.wait(2 * MINUTE);
    assert!(is_due(&store, "future").await, "it waits for two hours");
    store.close().await;
}

#[tokio::test]
async fn what_is_planned_moves_by_the_second_and_keeps_its_microseconds() {
    let (own, hands) = (Own::file(), Hands::new());
    let store = hands.open(&own).await;
    let death = death("work");
    let collected = store
        .collect(std::slice::from_ref(&death), in_a_minute)
        .await;
    collected.expect("collected");
    let before = store.failed_message(death.id).await.expect("the row");
    hands.set(TimeDelta::milliseconds(7_200_400));
    assert!(!is_due(&store, "work").await);
    let after = store.failed_message(death.id).await.expect("the row");
    let due =
        |row: &courtier::failed_message::FailedMessage| row.state.next_retry_at.expect("planned");
    assert_eq!(due(&after) - due(&before), HOURS);
    assert!(due(&after) > hands.wall());
    assert_eq!(after.failed_at, before.failed_at);
    store.close().await;
}
