//! What RabbitMQ's permissions do not allow.

use courtier::grpc::proto::{
    CreateBindingRequest, CreateExchangeRequest, CreateQueueRequest, DeleteQueueRequest,
    PeekMessagesRequest, PurgeQueueRequest, create_queue_request::Profile,
};
use tonic::Code;

use super::{
    Cost::{Channel, Often},
    Operation, binding, move_messages, operation,
};
use crate::{
    books::Consumer,
    reliability::endurance::{answer::refused, stage::timed},
};

const QUEUE: &str = "forbidden-queue";

pub fn all() -> Vec<Operation> {
    let name = |i: usize| format!("forbidden-new-{i}");
    vec![
        operation(
            Channel,
            "create forbidden exchanges",
            move |mut client, i| async move {
                let request = CreateExchangeRequest {
                    name: name(i),
                    r#type: "topic".into(),
                    ..Default::default()
                };
                let answer = client.admin.create_exchange(timed(request)).await;
                refused(answer, Code::PermissionDenied, "FORBIDDEN")
            },
        ),
        operation(
            Channel,
            "create forbidden queues",
            move |mut client, i| async move {
                let request = CreateQueueRequest {
                    name: name(i),
                    profile: Profile::DeadLetter.into(),
                    ..CreateQueueRequest::default()
                };
                let answer = client.admin.create_queue(timed(request)).await;
                refused(answer, Code::PermissionDenied, "FORBIDDEN")
            },
        ),
        operation(
            Channel,
            "bind forbidden queues",
            |mut client, i| async move {
                let request = CreateBindingRequest {
                    binding: binding("orders", QUEUE, &i.to_string()),
                };
                let answer = client.admin.create_binding(timed(request)).await;
                refused(answer, Code::PermissionDenied, "FORBIDDEN")
            },
        ),
        operation(
            Often,
            "subscribe to forbidden queues",
            |client, _| async move {
                let opened = Consumer::start(client.channel, QUEUE, 1).await;
                refused(opened.map(drop), Code::PermissionDenied, "FORBIDDEN")
            },
        ),
        operation(
            Channel,
            "peek into forbidden queues",
            |mut client, _| async move {
                let request = PeekMessagesRequest {
                    queue: QUEUE.into(),
                    limit: 1,
                };
                let answer = client.admin.peek_messages(timed(request)).await;
                refused(answer, Code::PermissionDenied, "FORBIDDEN")
            },
        ),
        operation(
            Channel,
            "move from forbidden queues",
            |client, _| async move {
                let answer = move_messages(client, QUEUE, "empty").await;
                refused(answer, Code::PermissionDenied, "FORBIDDEN")
            },
        ),
        operation(
            Channel,
            "purge forbidden queues",
            |mut client, _| async move {
                let request = PurgeQueueRequest {
                    name: QUEUE.into(),
                    confirm_name: QUEUE.into(),
                };
                let answer = client.admin.purge_queue(timed(request)).await;
                refused(answer, Code::PermissionDenied, "FORBIDDEN")
            },
        ),
        operation(
            Channel,
            "delete forbidden queues",
            |mut client, _| async move {
                let request = DeleteQueueRequest {
                    name: QUEUE.into(),
                    ..DeleteQueueRequest::default()
                };
                let answer = client.admin.delete_queue(timed(request)).await;
                refused(answer, Code::PermissionDenied, "FORBIDDEN")
            },
        ),
    ]
}
