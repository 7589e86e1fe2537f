//! Workers as people write them, with what each must achieve.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use courtier::grpc::proto::{
    Delivery, SettleResult, Start, settle_result, subscribe_response::Response,
};

use crate::front::{Front, On, ack, body, from, on_both, seconds};

on_both! {
    one_delivery_after_the_other
    whoever_settles_later_ones_first_loses_the_stuck_one
}

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

/// The first worker that anybody writes: a loop over the stream, one thread, everything by default. All that it holds takes much longer
/// than an ack deadline.
async fn one_delivery_after_the_other(on: On) {
    const COUNT: usize = 100;
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let texts = fill(&front, &queue, COUNT).await;
    let mut stream = front.subscribe(with_deadline(&queue)).await;
    let mut held = VecDeque::<Delivery>::new();
    let (mut done, mut settled) = (BTreeMap::<String, usize>::new(), 0);
    while settled < COUNT {
        if let Some(delivery) = held.pop_front() {
            // The work.
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.send(ack(&[&delivery.ack_id]));
            *done.entry(body(&delivery)).or_default() += 1;
        }
        match stream.event().await {
            Ok(Some(Response::Deliveries(more))) => held.extend(more.deliveries),
            Ok(Some(Response::Results(results))) => {
                let ok = |result: &SettleResult| result.result() == settle_result::Result::Ok;
                assert!(results.results.iter().all(ok), "{results:?}");
                settled += results.results.len();
            }
            other => panic!("only that may happen, not {other:?}"),
        }
    }
    let once = texts.into_iter().map(|text| (text, 1)).collect();
    assert_eq!(done, once);
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
