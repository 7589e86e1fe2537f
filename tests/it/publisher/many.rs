//! Publishing in batches and on streams: which result belongs to which message, in which order they are stored, and how many
//! may be unanswered.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use courtier::{
    gateway::Limits,
    grpc::proto::{Outcome, PublishBatchRequest, PublishRequest, PublishResult},
};
use tonic::Code;

use crate::{
    fates::{batch, of, stream},
    front::{Front, On, fault, on_both, text, timely, to_queue},
    scripted::Scripted,
};

on_both! {
    a_batch_holds_one_to_a_thousand_messages
    each_result_of_a_batch_belongs_to_its_message
    a_stream_answers_every_sequence_and_goes_on_after_a_bad_message
    ten_thousand_messages_pass_a_window_of_sixteen_in_order
}

fn outcomes(results: &[PublishResult]) -> Vec<Outcome> {
    results.iter().map(PublishResult::outcome).collect()
}

async fn a_batch_holds_one_to_a_thousand_messages(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let messages = |count: usize| {
        (0..count)
            .map(|i| to_queue(&queue, text(&i.to_string())))
            .collect::<Vec<_>>()
    };
    let results = batch(&front, messages(1_000)).await;
    assert_eq!(outcomes(&results), [Outcome::Confirmed; 1_000]);
    for count in [0, 1_001] {
        let request = PublishBatchRequest {
            messages: messages(count),
        };
        let refused = timely(front.publisher.clone().publish_batch(request)).await;
        let expected = of(
            Code::InvalidArgument,
            "INVALID_REQUEST",
            "INVALID",
            "messages",
            false,
        );
        assert_eq!(
            Some(fault(&refused.expect_err("refused"))),
            expected,
            "{count}"
        );
    }
    let sent: Vec<_> = (0..1_000).map(|i| i.to_string()).collect();
    assert_eq!(front.drain_bodies(&queue).await, sent);
}

async fn each_result_of_a_batch_belongs_to_its_message(on: On) {
    let front = on.gateway().await;
    let work = front.queue("work").await;
    let full = front.full_queue("full").await;
    let missing = front.name("missing");
    let with_id = |id: &str, mut request: PublishRequest| {
        let message = request.message.get_or_insert_default();
        message.message_id = id.to_owned();
        request
    };
    let kinds = [
        (to_queue(&work, text("a")), Outcome::Confirmed),
        (to_queue(&missing, text("a")), Outcome::Unroutable),
        (to_queue(&full, text("a")), Outcome::Rejected),
        (to_queue("a\0", text("a")), Outcome::Invalid),
        (
            PublishRequest {
                exchange: missing.clone(),
                ..to_queue("k", text("a"))
            },
            Outcome::Invalid,
        ),
        (
            PublishRequest {
                allow_unroutable: true,
                ..to_queue(&missing, text("a"))
            },
            Outcome::Confirmed,
        ),
    ];
    let all = || kinds.iter().cycle().take(600).enumerate();
    let messages = all().map(|(i, (request, _))| with_id(&i.to_string(), request.clone()));
    let results = batch(&front, messages.collect()).await;
    for (i, (_, outcome)) in all() {
        let result = &results[i];
        let told = (result.sequence, result.message_id.clone(), result.outcome());
        assert_eq!(told, (i as u64, i.to_string(), *outcome));
        assert_eq!(
            result.error.is_some(),
            *outcome != Outcome::Confirmed,
            "{i}"
        );
    }
}

async fn a_stream_answers_every_sequence_and_goes_on_after_a_bad_message(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let request = |i: u64| match i % 10 {
        3 => to_queue("a\0", text("bad")),
        7 => PublishRequest {
            message: None,
            ..to_queue(&queue, text("a"))
        },
        _ => to_queue(&queue, text(&i.to_string())),
    };
    let results = stream(&front, (0..500).map(request).collect()).await;
    assert_eq!(results.len(), 500);
    let sequences: BTreeSet<u64> = results.iter().map(|result| result.sequence).collect();
    assert_eq!(sequences, (0..500).collect());
    for result in results {
        let bad = matches!(result.sequence % 10, 3 | 7);
        let expected = if bad {
            Outcome::Invalid
        } else {
            Outcome::Confirmed
        };
        assert_eq!(result.outcome(), expected, "{}", result.sequence);
    }
    let good = (0..500).filter(|i| !matches!(i % 10, 3 | 7));
    let sent: Vec<_> = good.map(|i: u64| i.to_string()).collect();
    assert_eq!(front.drain_bodies(&queue).await, sent);
}

async fn ten_thousand_messages_pass_a_window_of_sixteen_in_order(on: On) {
    let front = on.gateway_with(|limits| limits.publish_window = 16).await;
    let queue = front.queue("work").await;
    let sent: Vec<_> = (0..10_000).map(|i| i.to_string()).collect();
    let results = stream(
        &front,
        sent.iter()
            .map(|body| to_queue(&queue, text(body)))
            .collect(),
    )
    .await;
    assert_eq!(outcomes(&results), [Outcome::Confirmed; 10_000]);
    assert_eq!(front.drain_bodies(&queue).await, sent);
}

#[tokio::test]
async fn a_stream_leaves_no_more_unanswered_than_its_window() {
    let silent = Scripted::new(None);
    let most = silent.most.clone();
    let limit = |limits: &mut Limits| {
        limits.publish_window = 16;
        limits.publish_timeout = Duration::from_millis(100);
    };
    let front = Front::of(Arc::new(silent), None, |setup| {
        limit(&mut setup.config.limits)
    })
    .await;
    let results = stream(&front, vec![to_queue("q", text("a")); 100]).await;
    assert_eq!(outcomes(&results), [Outcome::InDoubt; 100]);
    assert_eq!(most.load(SeqCst), 16);
}
