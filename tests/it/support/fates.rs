//! What became of publishes, and what is said of them.

use courtier::grpc::proto::{
    Outcome, PublishBatchRequest, PublishRequest, PublishResult, PublishStreamRequest,
};
use prost::Message as _;
use tonic::{Code, Status};

use crate::front::{Fault, Front, fault, timely};

/// What a result of a batch or a stream says.
pub fn fate_of(result: &PublishResult) -> (Outcome, Option<Fault>) {
    let error = result.error.as_ref().map(|error| {
        let details = error.encode_to_vec().into();
        fault(&Status::with_details(
            error.code.into(),
            error.message.clone(),
            details,
        ))
    });
    (result.outcome(), error)
}

pub async fn batch(front: &Front, messages: Vec<PublishRequest>) -> Vec<PublishResult> {
    let request = PublishBatchRequest { messages };
    let answer = timely(front.publisher.clone().publish_batch(request)).await;
    answer
        .expect("the batch itself is good")
        .into_inner()
        .results
}

/// Sends all, half-closes, and reads to the end. Sequences count from 0.
pub async fn stream(front: &Front, requests: Vec<PublishRequest>) -> Vec<PublishResult> {
    let requests = requests
        .into_iter()
        .zip(0..)
        .map(|(publish, sequence)| PublishStreamRequest {
            sequence,
            publish: Some(publish),
        });
    let requests = tokio_stream::iter(requests.collect::<Vec<_>>());
    let mut publisher = front.publisher.clone();
    let opened = timely(publisher.publish_stream(requests)).await;
    let mut responses = opened.expect("it opens").into_inner();
    let mut results = Vec::new();
    while let Some(response) = timely(responses.message()).await.expect("it ends OK") {
        results.extend(response.results);
    }
    results
}

pub fn of(code: Code, reason: &str, outcome: &str, field: &str, retry: bool) -> Option<Fault> {
    Some(Fault {
        code,
        reason: reason.to_owned(),
        outcome: outcome.to_owned(),
        field: field.to_owned(),
        retry,
    })
}
