//! What is asked about queues and exchanges that are not there.

use courtier::grpc::proto::{
    CreateBindingRequest, DeleteBindingRequest, DeleteExchangeRequest, DeleteQueueRequest,
    GetQueueRequest, GetQueueStatsRequest, PeekMessagesRequest, PurgeQueueRequest,
    WatchQueueStatsRequest,
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

pub fn all() -> Vec<Operation> {
    let name = |i: usize| format!("missing-{i}");
    vec![
        operation(
            Often,
            "get missing queues",
            move |mut client, i| async move {
                let answer = client
                    .admin
                    .get_queue(timed(GetQueueRequest { name: name(i) }))
                    .await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "stats of missing queues",
            move |mut client, i| async move {
                let request = GetQueueStatsRequest { name: name(i) };
                let answer = client.admin.get_queue_stats(timed(request)).await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "watch missing queues",
            move |mut client, i| async move {
                let request = WatchQueueStatsRequest {
                    names: vec![name(i)],
                    interval: None,
                };
                let answer = match client.admin.watch_queue_stats(timed(request)).await {
                    Ok(stream) => stream.into_inner().message().await,
                    Err(status) => Err(status),
                };
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Often,
            "subscribe to missing queues",
            move |client, i| async move {
                let opened = Consumer::start(client.channel, &name(i), 1).await;
                refused(opened.map(drop), Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Often,
            "peek into missing queues",
            move |mut client, i| async move {
                let request = PeekMessagesRequest {
                    queue: name(i),
                    limit: 1,
                };
                let answer = client.admin.peek_messages(timed(request)).await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "move from missing queues",
            move |client, i| async move {
                let answer = move_messages(client, &name(i), "empty").await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Often,
            "move to missing queues",
            move |client, i| async move {
                let answer = move_messages(client, "parked", &name(i)).await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "bind missing queues",
            move |mut client, i| async move {
                let request = CreateBindingRequest {
                    binding: binding("orders", &name(i), "key"),
                };
                let answer = client.admin.create_binding(timed(request)).await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "bind to missing exchanges",
            move |mut client, i| async move {
                let request = CreateBindingRequest {
                    binding: binding(&name(i), "work", "key"),
                };
                let answer = client.admin.create_binding(timed(request)).await;
                refused(answer, Code::NotFound, "EXCHANGE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "unbind missing queues",
            move |mut client, i| async move {
                let request = DeleteBindingRequest {
                    binding: binding("orders", &name(i), "key"),
                };
                let answer = client.admin.delete_binding(timed(request)).await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "purge missing queues",
            move |mut client, i| async move {
                let request = PurgeQueueRequest {
                    name: name(i),
                    confirm_name: name(i),
                };
                let answer = client.admin.purge_queue(timed(request)).await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "delete missing queues",
            move |mut client, i| async move {
                let request = DeleteQueueRequest {
                    name: name(i),
                    ..DeleteQueueRequest::default()
                };
                let answer = client.admin.delete_queue(timed(request)).await;
                refused(answer, Code::NotFound, "QUEUE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "delete missing exchanges",
            move |mut client, i| async move {
                let request = DeleteExchangeRequest {
                    name: name(i),
                    if_unused: false,
                };
                let answer = client.admin.delete_exchange(timed(request)).await;
                refused(answer, Code::NotFound, "EXCHANGE_NOT_FOUND")
            },
        ),
    ]
}
