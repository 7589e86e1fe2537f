//! Failed messages as those see them who look after them: what tests of them share.

use std::time::Duration;

use courtier::{
    failed_message::schedule::Schedule,
    grpc::proto::{
        self, DeleteFailedMessageRequest, EditAndRetryFailedMessageRequest, FailedMessage,
        FailedMessageFilter, GetFailedMessageRequest, ListFailedMessagesRequest, Message,
        ResolveFailedMessageRequest, RetryFailedMessageRequest, failed_message::Status,
        failed_messages_client::FailedMessagesClient, nack::Action,
    },
};
use tonic::{Code, Status as GrpcStatus, transport::Channel};

use crate::{
    front::{Front, On, Stream, fault, from, nack_as, timely, to_queue},
    harness::{Setup, eventually},
};

/// Retries as fast as they can be, unless a test says otherwise.
pub fn hasty(setup: &mut Setup) {
    let retries = &mut setup.config.retries;
    retries.default = Schedule::new(vec![Duration::ZERO], 3);
    retries.poll = Duration::from_millis(20);
    retries.longest_pause = Duration::from_millis(50);
}

/// No retry comes by itself.
pub fn slow(setup: &mut Setup) {
    hasty(setup);
    setup.config.retries.default = Schedule::new(vec![Duration::from_secs(3_600)], 3);
}

/// The failed messages of a queue, newest first.
pub async fn failed_in(failed: &FailedMessagesClient<Channel>, queue: &str) -> Vec<FailedMessage> {
    let request = ListFailedMessagesRequest {
        filter: Some(FailedMessageFilter {
            queue: queue.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let listed = timely(failed.clone().list_failed_messages(request)).await;
    listed.expect("listed").into_inner().failed_messages
}

/// A gateway, a work queue, and a person who looks after failed messages.
pub struct Desk {
    pub front: Front,
    pub queue: String,
    pub failed: FailedMessagesClient<Channel>,
}

impl Desk {
    pub async fn open(on: On, change: impl FnOnce(&mut Setup)) -> Self {
        let front = on.gateway_set_up(change).await;
        let queue = front.queue("work").await;
        let failed = FailedMessagesClient::new(front.channel().await);
        Self {
            front,
            queue,
            failed,
        }
    }

    /// A message that a consumer refused in this way.
    pub async fn refused(&self, message: Message, action: Action) -> FailedMessage {
        let answer = self.front.publish(to_queue(&self.queue, message)).await;
        answer.expect("published");
        let mut stream = self.front.subscribe(from(&[&self.queue])).await;
        let delivery = stream.delivery().await;
        refuse(&mut stream, &delivery.ack_id, action).await;
        stream.half_close();
        stream.end().await.expect("it ends well");
        self.only().await
    }

    /// The failed messages of its queue, newest first.
    pub async fn all(&self) -> Vec<FailedMessage> {
        failed_in(&self.failed, &self.queue).await
    }

    /// The one failed message, once it is there.
    pub async fn only(&self) -> FailedMessage {
        eventually("there is a failed message", || async {
            !self.all().await.is_empty()
        })
        .await;
        let all = self.all().await;
        assert_eq!(all.len(), 1, "{all:?}");
        all.into_iter().next().expect("one")
    }

    pub async fn get(&self, id: &str) -> Result<FailedMessage, GrpcStatus> {
        let request = GetFailedMessageRequest { id: id.to_owned() };
        let got = timely(self.failed.clone().get_failed_message(request)).await?;
        Ok(got.into_inner().failed_message.expect("always set"))
    }

    /// Waits until it is in this state.
    pub async fn becomes(&self, id: &str, status: Status) -> FailedMessage {
        eventually(&format!("it becomes {status:?}"), || async {
            self.get(id).await.expect("it is there").status() == status
        })
        .await;
        self.get(id).await.expect("it is there")
    }

    pub async fn retry(&self, id: &str) -> Result<FailedMessage, GrpcStatus> {
        let request = RetryFailedMessageRequest { id: id.to_owned() };
        let retried = timely(self.failed.clone().retry_failed_message(request)).await?;
        Ok(retried.into_inner().failed_message.expect("always set"))
    }

    pub async fn resolve(&self, id: &str, comment: &str) -> Result<FailedMessage, GrpcStatus> {
        let request = ResolveFailedMessageRequest {
            id: id.to_owned(),
            comment: comment.to_owned(),
        };
        let resolved = timely(self.failed.clone().resolve_failed_message(request)).await?;
        Ok(resolved.into_inner().failed_message.expect("always set"))
    }

    pub async fn delete(&self, id: &str) -> Result<(), GrpcStatus> {
        let request = DeleteFailedMessageRequest { id: id.to_owned() };
        timely(self.failed.clone().delete_failed_message(request)).await?;
        Ok(())
    }

    pub async fn edit(&self, id: &str, message: Message) -> Result<FailedMessage, GrpcStatus> {
        let request = EditAndRetryFailedMessageRequest {
            id: id.to_owned(),
            message: Some(message),
        };
        let edited = timely(self.failed.clone().edit_and_retry_failed_message(request)).await?;
        Ok(edited.into_inner().failed_message.expect("always set"))
    }
}

pub async fn refuse(stream: &mut Stream, ack_id: &str, action: Action) {
    stream.send(nack_as(proto::Nack {
        ack_id: ack_id.to_owned(),
        action: action.into(),
        error: Some(proto::ErrorDetail {
            r#type: "Declined".to_owned(),
            message: "card 4711 was declined".to_owned(),
            stack: "at pay()".to_owned(),
        }),
        ..Default::default()
    }));
    stream.results(1).await;
}

pub fn told(status: &GrpcStatus) -> (Code, String) {
    let fault = fault(status);
    (fault.code, fault.reason)
}

pub fn conflict(refused: Result<FailedMessage, GrpcStatus>) {
    let status = refused.expect_err("the state forbids it");
    assert_eq!(
        told(&status),
        (Code::FailedPrecondition, "STATE_CONFLICT".to_owned())
    );
}
