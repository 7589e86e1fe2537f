//! The example's services as consumers: they ack nearly everything, give something back now and then, and refuse a little for good.

use std::sync::{Arc, atomic::Ordering};

use courtier::grpc::proto::{
    Delivery, GetFailedMessageStatsRequest, Nack, Settle, Start,
    failed_messages_client::FailedMessagesClient, nack::Action, settle_result::Result as Settled,
    subscribe_response::Response,
};
use tokio_util::sync::CancellationToken;

use super::{
    answer::{described, ok},
    mixed::Traffic,
    stage::{Client, Stage, timed},
};
use crate::{books::Consumer, harness::eventually};

pub const NAMES: [&str; 11] = [
    "orders",
    "auth",
    "products",
    "baskets",
    "addresses",
    "deliveries",
    "newsletters",
    "sav",
    "contacts",
    "questions",
    "websites",
];

pub(super) async fn consume(
    traffic: Arc<Traffic>,
    client: Client,
    service: &str,
    stop: CancellationToken,
) {
    let start = Start {
        queues: vec![format!("{service}_queue")],
        client_id: service.to_owned(),
        ..Start::default()
    };
    let mut consumer = match Consumer::open(client.channel, start).await {
        Ok(consumer) => consumer,
        Err(status) => return traffic.fault("subscribe", described(&status)),
    };
    while let Some(said) = stop.run_until_cancelled(consumer.next()).await {
        match said {
            Ok(Some(said)) => take(&traffic, &consumer, said.response),
            Ok(None) => return traffic.fault("subscription", "it ended"),
            Err(status) => return traffic.fault("subscription", described(&status)),
        }
    }
    if let Err(status) = consumer.end().await {
        traffic.fault("the end of a subscription", described(&status));
    }
}

fn take(traffic: &Traffic, consumer: &Consumer, said: Option<Response>) {
    match said {
        Some(Response::Deliveries(deliveries)) => {
            for delivery in deliveries.deliveries {
                consumer.settle(settle(traffic, delivery));
            }
        }
        Some(Response::Results(results)) => {
            for result in results.results {
                if result.result() != Settled::Ok {
                    traffic.fault("settle", format!("{result:?}"));
                }
            }
        }
        Some(Response::Started(_)) => {}
        other => traffic.fault("subscription", format!("{other:?}")),
    }
}

fn settle(traffic: &Traffic, delivery: Delivery) -> Settle {
    let nack = |ack_id, action: Action| Settle {
        ack_ids: vec![],
        nacks: vec![Nack {
            ack_id,
            action: action.into(),
            ..Nack::default()
        }],
    };
    let id = delivery.message.unwrap_or_default().message_id;
    match fastrand::u32(..100) {
        0 => nack(delivery.ack_id, Action::Requeue),
        1 => {
            traffic.refused.fetch_add(1, Ordering::Relaxed);
            traffic.done(&id);
            nack(delivery.ack_id, Action::DeadLetter)
        }
        _ => {
            traffic.done(&id);
            Settle {
                ack_ids: vec![delivery.ack_id],
                nacks: vec![],
            }
        }
    }
}

/// All that was refused, and nothing else, is among the failed messages.
pub(super) async fn failed(stage: &Stage, traffic: &Traffic, refused: u64) {
    let client = FailedMessagesClient::new(stage.client(0).channel);
    let count = || {
        let mut client = client.clone();
        async move {
            let request = timed(GetFailedMessageStatsRequest::default());
            let stats = ok(client.get_failed_message_stats(request).await)?;
            Ok::<_, String>(stats.queues.iter().map(|queue| queue.failed).sum::<u64>())
        }
    };
    eventually(
        "what was refused is among the failed messages, or they cannot be counted",
        || async { count().await.map_or(true, |count| count >= refused) },
    )
    .await;
    match count().await {
        Ok(count) if count == refused => {}
        Ok(count) => traffic.fault("failed messages", format!("{count}, not {refused}")),
        Err(fault) => traffic.fault("failed messages", fault),
    }
}
