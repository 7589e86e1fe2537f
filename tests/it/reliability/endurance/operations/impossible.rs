//! What cannot be done with queues and exchanges that are there.

use courtier::grpc::proto::{
    CreateExchangeRequest, CreateQueueRequest, DeleteExchangeRequest, DeleteQueueRequest,
    GetQueueRequest, PeekMessagesRequest, PurgeQueueRequest, create_queue_request::Profile,
};
use tonic::Code;

use super::{
    Cost::{Channel, Connection},
    Operation, move_messages, operation,
};
use crate::{
    books::Consumer,
    reliability::endurance::{answer::refused, stage::timed},
};

pub fn all() -> Vec<Operation> {
    vec![
        operation(
            Channel,
            "create queues that differ",
            |mut client, _| async move {
                let request = CreateQueueRequest {
                    name: "work".into(),
                    profile: Profile::DeadLetter.into(),
                    ..CreateQueueRequest::default()
                };
                let answer = client.admin.create_queue(timed(request)).await;
                refused(answer, Code::FailedPrecondition, "DIFFERS")
            },
        ),
        operation(
            Channel,
            "create exchanges that differ",
            |mut client, _| async move {
                let request = CreateExchangeRequest {
                    name: "orders".into(),
                    r#type: "fanout".into(),
                    ..Default::default()
                };
                let answer = client.admin.create_exchange(timed(request)).await;
                refused(answer, Code::FailedPrecondition, "DIFFERS")
            },
        ),
        operation(
            Channel,
            "delete queues in use",
            |mut client, _| async move {
                let request = DeleteQueueRequest {
                    name: "held".into(),
                    if_unused: true,
                    if_empty: false,
                    ..DeleteQueueRequest::default()
                };
                let answer = client.admin.delete_queue(timed(request)).await;
                refused(answer, Code::FailedPrecondition, "QUEUE_IN_USE")
            },
        ),
        operation(
            Channel,
            "delete queues that are not empty",
            |mut client, _| async move {
                let request = DeleteQueueRequest {
                    name: "parked".into(),
                    if_unused: false,
                    if_empty: true,
                    ..DeleteQueueRequest::default()
                };
                let answer = client.admin.delete_queue(timed(request)).await;
                refused(answer, Code::FailedPrecondition, "QUEUE_NOT_EMPTY")
            },
        ),
        operation(
            Channel,
            "delete exchanges in use",
            |mut client, _| async move {
                let request = DeleteExchangeRequest {
                    name: "orders".into(),
                    if_unused: true,
                };
                let answer = client.admin.delete_exchange(timed(request)).await;
                refused(answer, Code::FailedPrecondition, "EXCHANGE_IN_USE")
            },
        ),
        operation(Channel, "get locked queues", |mut client, _| async move {
            let request = GetQueueRequest {
                name: "locked".into(),
            };
            let answer = client.admin.get_queue(timed(request)).await;
            refused(answer, Code::FailedPrecondition, "QUEUE_LOCKED")
        }),
        operation(
            Channel,
            "subscribe to locked queues",
            |client, _| async move {
                let opened = Consumer::start(client.channel, "locked", 1).await;
                refused(opened.map(drop), Code::FailedPrecondition, "QUEUE_LOCKED")
            },
        ),
        operation(
            Channel,
            "peek into locked queues",
            |mut client, _| async move {
                let request = PeekMessagesRequest {
                    queue: "locked".into(),
                    limit: 1,
                };
                let answer = client.admin.peek_messages(timed(request)).await;
                refused(answer, Code::FailedPrecondition, "QUEUE_LOCKED")
            },
        ),
        operation(Connection, "purge streams", |mut client, _| async move {
            let request = PurgeQueueRequest {
                name: "stream".into(),
                confirm_name: "stream".into(),
            };
            let answer = client.admin.purge_queue(timed(request)).await;
            refused(answer, Code::FailedPrecondition, "BROKER_REFUSED")
        }),
        operation(
            Connection,
            "peek into streams",
            |mut client, _| async move {
                let request = PeekMessagesRequest {
                    queue: "stream".into(),
                    limit: 1,
                };
                let answer = client.admin.peek_messages(timed(request)).await;
                refused(answer, Code::FailedPrecondition, "BROKER_REFUSED")
            },
        ),
        operation(Connection, "move from streams", |client, _| async move {
            let answer = move_messages(client, "stream", "empty").await;
            refused(answer, Code::FailedPrecondition, "BROKER_REFUSED")
        }),
    ]
}
