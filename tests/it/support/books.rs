//! What tests keep account of: publishes and their outcomes, deliveries, and a consumer to count them with.

use std::collections::HashMap;

use courtier::grpc::{
    proto::{
        Nack, Outcome, PublishResponse, Settle, Start, SubscribeRequest, SubscribeResponse,
        nack::Action, subscribe_request::Request, subscriber_client::SubscriberClient,
    },
    status::PUBLISH_OUTCOME,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Response, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

/// The outcome of a unary publish. `None`: the answer never came, or says nothing of an outcome.
pub fn outcome_of(answer: &Result<Response<PublishResponse>, Status>) -> Option<Outcome> {
    match answer {
        Ok(response) => Some(response.get_ref().outcome()),
        Err(status) => outcome_named(status),
    }
}

/// The outcome that an error names.
pub fn outcome_named(status: &Status) -> Option<Outcome> {
    let info = status.get_details_error_info()?;
    let name = info.metadata.get(PUBLISH_OUTCOME)?;
    Some(Outcome::from_str_name(&format!("OUTCOME_{name}")).expect("one of the outcomes"))
}

/// `google.rpc.ErrorInfo.reason`, or nothing.
pub fn reason_of(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// A subscription to one queue, in the test's hands.
pub struct Consumer {
    requests: mpsc::UnboundedSender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
}

impl Consumer {
    pub async fn start(
        channel: Channel,
        queue: &str,
        max_outstanding: u32,
    ) -> Result<Self, Status> {
        Self::open(
            channel,
            Start {
                queues: vec![queue.to_owned()],
                max_outstanding,
                ..Start::default()
            },
        )
        .await
    }

    pub async fn open(channel: Channel, start: Start) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let consumer = |responses| Self {
            requests: requests.clone(),
            responses,
        };
        let start = SubscribeRequest {
            request: Some(Request::Start(start)),
        };
        requests.send(start).expect("the receiver is here");
        let opening = SubscriberClient::new(channel)
            // The largest payload fills tonic's own limit by itself.
            .max_decoding_message_size(2 * 4 * 1024 * 1024)
            .subscribe(UnboundedReceiverStream::new(receiver))
            .await;
        opening.map(|response| consumer(response.into_inner()))
    }

    /// What the gateway says next; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<SubscribeResponse>, Status> {
        self.responses.message().await
    }

    pub fn ack(&self, ack_ids: Vec<String>) {
        self.settle(Settle {
            ack_ids,
            nacks: vec![],
        });
    }

    pub fn requeue(&self, ack_ids: Vec<String>) {
        let nack = |ack_id| Nack {
            ack_id,
            action: Action::Requeue.into(),
            ..Nack::default()
        };
        self.settle(Settle {
            ack_ids: vec![],
            nacks: ack_ids.into_iter().map(nack).collect(),
        });
    }

    /// Sends a settle as it is.
    pub fn settle(&self, settle: Settle) {
        // A stream that is over says so by itself.
        let _ = self.requests.send(SubscribeRequest {
            request: Some(Request::Settle(settle)),
        });
    }

    /// Half-closes: what was settled is carried out, the rest goes back.
    pub async fn finish(self) {
        self.end().await.expect("the stream ends well");
    }

    /// The same, for those who want to know how it ended.
    pub async fn end(self) -> Result<(), Status> {
        let Self {
            requests,
            mut responses,
        } = self;
        drop(requests);
        while responses.message().await?.is_some() {}
        Ok(())
    }
}

/// What is known of one message.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    outcome: Option<Outcome>,
    /// The call ended without an answer, so the message may be anywhere.
    cut_off: bool,
    deliveries: u32,
}

/// Every message of a trial by its id.
#[derive(Debug, Default)]
pub struct Books {
    entries: HashMap<String, Entry>,
    confirmed: u64,
    deliveries: u64,
}

impl Books {
    pub fn published(&mut self, id: &str, outcome: Option<Outcome>) {
        let entry = self.entries.entry(id.to_owned()).or_default();
        assert_eq!(entry.outcome, None, "{id} was answered twice");
        entry.outcome = outcome;
        entry.cut_off = outcome.is_none();
        self.confirmed += u64::from(outcome == Some(Outcome::Confirmed));
    }

    pub fn delivered(&mut self, id: &str) {
        self.entries.entry(id.to_owned()).or_default().deliveries += 1;
        self.deliveries += 1;
    }

    pub fn count(&self, outcome: Outcome) -> usize {
        let entries = self.entries.values();
        entries
            .filter(|entry| entry.outcome == Some(outcome))
            .count()
    }

    /// How many calls ended without an answer.
    pub fn cut_off(&self) -> usize {
        self.entries.values().filter(|entry| entry.cut_off).count()
    }

    /// How many messages were confirmed, and how many deliveries came.
    pub fn progress(&self) -> (u64, u64) {
        (self.confirmed, self.deliveries)
    }

    /// Messages that the broker confirmed and that never came.
    pub fn missing(&self) -> Vec<&str> {
        self.ids(|entry| entry.outcome == Some(Outcome::Confirmed) && entry.deliveries == 0)
    }

    /// Messages that came although the answer was that they are not with the broker.
    pub fn ghosts(&self) -> Vec<&str> {
        let denied = [Outcome::Unroutable, Outcome::NotSent, Outcome::Invalid];
        self.ids(|entry| {
            entry.deliveries > 0
                && entry
                    .outcome
                    .is_some_and(|outcome| denied.contains(&outcome))
        })
    }

    fn ids(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<&str> {
        let entries = self.entries.iter().filter(|(_, entry)| wanted(entry));
        entries.map(|(id, _)| id.as_str()).collect()
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let of = |outcome| self.count(outcome);
        format!(
            "{} messages: {} CONFIRMED, {} IN_DOUBT, {} NOT_SENT, {} UNROUTABLE, {} without an answer; {} deliveries",
            self.entries.len(),
            of(Outcome::Confirmed),
            of(Outcome::InDoubt),
            of(Outcome::NotSent),
            of(Outcome::Unroutable),
            self.cut_off(),
            self.deliveries,
        )
    }
}
