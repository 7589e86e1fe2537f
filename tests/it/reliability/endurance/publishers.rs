//! The example's services as publishers, over every rpc.

use std::sync::Arc;

use courtier::grpc::proto::{
    Message, Outcome, PublishBatchRequest, PublishRequest, PublishResult, PublishStreamRequest,
    message::Payload,
};
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    answer::{described, ok},
    mixed::{PACE, ROUNDS, SHORT_PACE, Traffic, seconds},
    stage::{Client, timed},
};

pub(super) async fn publish(
    traffic: Arc<Traffic>,
    client: Client,
    service: &str,
    stop: CancellationToken,
) {
    let pace = if seconds().is_some() {
        PACE
    } else {
        SHORT_PACE
    };
    for round in 0.. {
        let paced = stop.run_until_cancelled(tokio::time::sleep(pace)).await;
        if paced.is_none() || (seconds().is_none() && round == ROUNDS) {
            return;
        }
        // Batches and streams now and then: as many messages, sent together.
        let published = match round % 15 {
            0 => batch(&traffic, client.clone(), service).await,
            5 => in_stream(&traffic, client.clone(), service).await,
            1..5 | 6..10 => Ok(()),
            _ => single(&traffic, client.clone(), service).await,
        };
        if let Err(fault) = published {
            traffic.fault(&format!("publish of {service}"), fault);
        }
    }
}

fn request(traffic: &Traffic, service: &str) -> PublishRequest {
    let id = Uuid::now_v7().to_string();
    traffic.begun(&id);
    PublishRequest {
        exchange: format!("{service}_exchange"),
        routing_key: format!("{service}.happened"),
        message: Some(Message {
            message_id: id,
            payload: Some(Payload::Text(
                r#"{"event":"happened","data":{"id":1}}"#.repeat(fastrand::usize(1..40)),
            )),
            ..Message::default()
        }),
        ..PublishRequest::default()
    }
}

async fn single(traffic: &Traffic, mut client: Client, service: &str) -> Result<(), String> {
    let answer = client
        .publisher
        .publish(timed(request(traffic, service)))
        .await;
    ok(answer).map(drop)
}

async fn batch(traffic: &Traffic, mut client: Client, service: &str) -> Result<(), String> {
    let messages = (0..5).map(|_| request(traffic, service)).collect();
    let answer = client
        .publisher
        .publish_batch(timed(PublishBatchRequest { messages }))
        .await;
    confirmed(&ok(answer)?.results)
}

async fn in_stream(traffic: &Traffic, mut client: Client, service: &str) -> Result<(), String> {
    let requests: Vec<_> = (0..5)
        .map(|sequence| PublishStreamRequest {
            sequence,
            publish: Some(request(traffic, service)),
        })
        .collect();
    let answer = client
        .publisher
        .publish_stream(timed(stream::iter(requests)))
        .await;
    let mut responses = ok(answer)?;
    while let Some(response) = responses.next().await {
        confirmed(&response.map_err(|status| described(&status))?.results)?;
    }
    Ok(())
}

fn confirmed(results: &[PublishResult]) -> Result<(), String> {
    let other = results
        .iter()
        .find(|result| result.outcome() != Outcome::Confirmed);
    other.map_or(Ok(()), |other| Err(format!("{other:?}")))
}
