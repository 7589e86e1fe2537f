//! Queues that go when nobody uses them. To publish is no use: whether a queue is there is seen by what becomes of a message.

use courtier::broker::admin::Fetch;

use super::*;

/// Soon enough for a test to wait for, and long enough for what must not be too late.
const EXPIRY: Duration = Duration::from_secs(2);

fn expiring(f: &Fixture, name: &str) -> Queue {
    Queue {
        expires: Some(EXPIRY),
        ..f.queue(name)
    }
}

fn auto_delete(f: &Fixture, name: &str) -> Queue {
    Queue {
        auto_delete: true,
        ..f.queue(name)
    }
}

async fn is_there(f: &Fixture, queue: &str) -> bool {
    match f.publish("", queue, text("there?")).await {
        Fate::Confirmed => true,
        Fate::Unroutable => false,
        other => panic!("{other:?}"),
    }
}

async fn goes(f: &Fixture, queue: &str) {
    eventually("the queue goes", async || !is_there(f, queue).await).await;
}

pub async fn a_queue_that_nobody_uses_expires_with_all_that_is_in_it(f: Fixture) {
    let work = Queue {
        dead_letter: Some(DeadLetter {
            exchange: f.name("dlx"),
            routing_key: "buried".to_owned(),
        }),
        ..expiring(&f, "work")
    };
    f.declare(Topology {
        exchanges: vec![f.exchange("dlx", ExchangeKind::Direct)],
        queues: vec![work.clone(), f.queue("dead")],
        bindings: vec![
            f.binding("dlx", "dead", "buried", &[]),
            f.binding("dlx", "work", "work", &[]),
        ],
    })
    .await;
    f.fill("work", &["a", "b"]).await;
    goes(&f, "work").await;
    // Its bindings went with it, and it did not die: nobody refused it.
    let fate = f.publish("dlx", "work", text("c")).await;
    assert_eq!(fate, Fate::Unroutable);
    assert_eq!(f.drain_bodies("dead").await, [""; 0]);
    // What comes after it is another queue.
    f.declare_queues([work]).await;
    assert_eq!(f.drain_bodies("work").await, [""; 0]);
}

pub async fn a_consumer_keeps_a_queue_that_expires(f: Fixture) {
    f.declare_queues([expiring(&f, "kept")]).await;
    let mut consumer = f.subscribe(&["kept"], 10).await;
    // What was declared later goes earlier.
    f.declare_queues([expiring(&f, "other")]).await;
    goes(&f, "other").await;
    f.fill("kept", &["a"]).await;
    assert_eq!(receive_bodies(&mut *consumer, 1).await, ["a"]);
    timely(consumer.close()).await;
    goes(&f, "kept").await;
}

pub async fn declaring_and_fetching_are_uses(f: Fixture) {
    f.declare_queues(["other", "declared", "fetched"].map(|name| expiring(&f, name)))
        .await;
    let fetched = f.broker.admin().fetch(&f.name("fetched")).await;
    let mut fetched: Box<dyn Fetch> = fetched.expect("it is there");
    eventually("the queue that is not used goes", async || {
        f.declare_queues([expiring(&f, "declared")]).await;
        timely(fetched.next()).await.expect("it is there");
        !is_there(&f, "other").await
    })
    .await;
    assert!(is_there(&f, "declared").await && is_there(&f, "fetched").await);
}

pub async fn an_auto_delete_queue_goes_with_its_last_consumer(f: Fixture) {
    f.declare_queues([auto_delete(&f, "work")]).await;
    f.fill("work", &["a", "b", "c"]).await;
    let mut first = f.subscribe(&["work"], 1).await;
    let second = f.subscribe(&["work"], 1).await;
    receive(&mut *first).await;
    timely(second.close()).await;
    assert!(is_there(&f, "work").await, "it has a consumer");
    timely(first.close()).await;
    goes(&f, "work").await;
    f.declare_queues([auto_delete(&f, "work")]).await;
    assert!(is_there(&f, "work").await);
}

pub async fn an_auto_delete_queue_that_is_stopped_goes_at_once(f: Fixture) {
    f.declare_queues([auto_delete(&f, "work")]).await;
    f.fill("work", &["a"]).await;
    let mut consumer = f.subscribe(&["work"], 1).await;
    let held = receive(&mut *consumer).await;
    timely(consumer.stop()).await;
    goes(&f, "work").await;
    // It was deleted with the queue; to say what became of it harms nobody.
    ack(&mut *consumer, &[held.tag]).await;
    timely(consumer.close()).await;
}

pub async fn an_auto_delete_queue_that_never_had_a_consumer_stays(f: Fixture) {
    f.declare_queues(["work", "other"].map(|name| auto_delete(&f, name)))
        .await;
    f.fill("work", &["a"]).await;
    let mut fetched = timely(f.broker.admin().fetch(&f.name("work")))
        .await
        .expect("it is there");
    let fetching = timely(fetched.next()).await.expect("it is there");
    assert_eq!(
        fetching.map(|delivery| body(&delivery)).as_deref(),
        Some("a")
    );
    timely(fetched.close()).await.expect("closed");
    let consumer = f.subscribe(&["other"], 1).await;
    timely(consumer.close()).await;
    goes(&f, "other").await;
    assert!(is_there(&f, "work").await);
}

pub async fn a_queue_is_not_made_temporary_afterwards(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    for (argument, other) in [
        ("auto_delete", auto_delete(&f, "work")),
        ("x-expires", expiring(&f, "work")),
    ] {
        let differences = f.try_declare(Topology {
            queues: vec![other],
            ..Topology::default()
        });
        let differences = differences.await.expect("declared");
        let told: Vec<_> = differences.iter().map(|one| one.detail.as_str()).collect();
        assert!(told.len() == 1 && told[0].contains(argument), "{told:?}");
    }
}
