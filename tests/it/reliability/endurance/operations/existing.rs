//! What works, and must work as often as anybody likes.

use courtier::grpc::proto::{
    CreateBindingRequest, CreateExchangeRequest, CreateQueueRequest, DeleteBindingRequest,
    DeleteExchangeRequest, DeleteQueueRequest, GetBrokerStatusRequest, GetQueueRequest,
    GetQueueStatsRequest, ListBindingsRequest, ListQueuesRequest, PeekMessagesRequest,
    PurgeQueueRequest, create_queue_request::Profile,
};
use prost_types::{Struct, Value, value::Kind};

use super::{
    Cost::{Channel, Cheap, Often},
    Operation, binding, move_messages, operation,
};
use crate::{
    books::Consumer,
    reliability::endurance::{
        answer::{Verdict, described, ok},
        stage::{Client, timed},
    },
};

pub fn all() -> Vec<Operation> {
    vec![
        operation(Cheap, "get", |client, _| get(client, "work".into())),
        operation(Cheap, "stats", |mut client, _| async move {
            let request = GetQueueStatsRequest {
                name: "work".into(),
            };
            ok(client.admin.get_queue_stats(timed(request)).await).map(drop)
        }),
        // A subscription is a channel, and each that ends gives its id back.
        operation(Often, "subscribe", |client, _| async move {
            subscribe(client, "parked").await
        }),
        operation(Channel, "peek", |mut client, _| async move {
            let request = PeekMessagesRequest {
                queue: "parked".into(),
                limit: 1,
            };
            ok(client.admin.peek_messages(timed(request)).await).map(drop)
        }),
        operation(Channel, "move", |client, _| async move {
            ok(move_messages(client, "empty", "work").await).map(drop)
        }),
        operation(Cheap, "bind", |mut client, i| async move {
            let key = (i % 100).to_string();
            let request = CreateBindingRequest {
                binding: binding("orders", "work", &key),
            };
            ok(client.admin.create_binding(timed(request)).await).map(drop)
        }),
        operation(Cheap, "unbind", |mut client, i| async move {
            let key = (i % 100).to_string();
            let request = DeleteBindingRequest {
                binding: binding("orders", "work", &key),
            };
            ok(client.admin.delete_binding(timed(request)).await).map(drop)
        }),
        operation(Cheap, "purge", |client, _| purge(client, "work".into())),
        operation(
            Cheap,
            "create an exchange again",
            |mut client, _| async move {
                let request = CreateExchangeRequest {
                    name: "orders".into(),
                    r#type: "direct".into(),
                    ..Default::default()
                };
                ok(client.admin.create_exchange(timed(request)).await).map(drop)
            },
        ),
        operation(
            Cheap,
            "create a queue, use it, delete it",
            |client, i| async move { live(client, format!("brief-{i}")).await },
        ),
        operation(
            Cheap,
            "create an exchange, delete it",
            |mut client, i| async move {
                let request = CreateExchangeRequest {
                    name: format!("brief-{i}"),
                    r#type: "topic".into(),
                    ..Default::default()
                };
                if !ok(client.admin.create_exchange(timed(request)).await)?.created {
                    return Err("it was there".into());
                }
                let request = DeleteExchangeRequest {
                    name: format!("brief-{i}"),
                    if_unused: true,
                };
                ok(client.admin.delete_exchange(timed(request)).await).map(drop)
            },
        ),
        operation(Cheap, "list queues", |mut client, _| async move {
            let request = ListQueuesRequest {
                name_contains: "work".into(),
                ..Default::default()
            };
            ok(client.admin.list_queues(timed(request)).await).map(drop)
        }),
        operation(Cheap, "list bindings", |mut client, _| async move {
            let request = ListBindingsRequest {
                queue: "work".into(),
                ..Default::default()
            };
            ok(client.admin.list_bindings(timed(request)).await).map(drop)
        }),
        operation(Cheap, "status of the broker", |mut client, _| async move {
            ok(client
                .admin
                .get_broker_status(timed(GetBrokerStatusRequest {}))
                .await)
            .map(drop)
        }),
    ]
}

pub async fn get(mut client: Client, name: String) -> Verdict {
    ok(client
        .admin
        .get_queue(timed(GetQueueRequest { name }))
        .await)
    .map(drop)
}

pub async fn purge(mut client: Client, name: String) -> Verdict {
    let request = PurgeQueueRequest {
        name: name.clone(),
        confirm_name: name,
    };
    ok(client.admin.purge_queue(timed(request)).await).map(drop)
}

/// Opens a subscription and ends it; what it was given goes back.
pub async fn subscribe(client: Client, queue: &str) -> Verdict {
    let consumer = Consumer::start(client.channel, queue, 1).await;
    let consumer = consumer.map_err(|status| described(&status))?;
    consumer.end().await.map_err(|status| described(&status))
}

/// All that a queue goes through.
pub async fn live(mut client: Client, name: String) -> Verdict {
    let value = |kind| Value { kind: Some(kind) };
    let arguments = [
        (
            "x-queue-type".to_owned(),
            value(Kind::StringValue("classic".into())),
        ),
        // The profile's: for quorum queues only.
        ("x-delivery-limit".to_owned(), value(Kind::NullValue(0))),
    ];
    let request = CreateQueueRequest {
        name: name.clone(),
        profile: Profile::DeadLetter.into(),
        arguments: Some(Struct {
            fields: arguments.into(),
        }),
        validate_only: false,
        ..CreateQueueRequest::default()
    };
    if !ok(client.admin.create_queue(timed(request)).await)?.created {
        return Err(format!("{name} was there"));
    }
    let published = super::publish(client.clone(), String::new(), name.clone(), 8).await;
    ok(published)?;
    get(client.clone(), name.clone()).await?;
    subscribe(client.clone(), &name).await?;
    purge(client.clone(), name.clone()).await?;
    let request = DeleteQueueRequest {
        name,
        if_unused: true,
        if_empty: true,
        ..DeleteQueueRequest::default()
    };
    ok(client.admin.delete_queue(timed(request)).await).map(drop)
}
