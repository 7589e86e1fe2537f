//! Publishes: to what is missing, what exists, what is gone, what is forbidden, and what is too large.

use courtier::grpc::proto::DeleteExchangeRequest;
use tonic::Code;

use super::{
    Cost::{Channel, Cheap, Often},
    Operation, operation, publish,
};
use crate::reliability::endurance::{
    answer::{confirmed, invalid, ok, refused},
    stage::{FORBIDDEN, MAX_MESSAGE_SIZE, timed},
};

pub fn all() -> Vec<Operation> {
    let existing = |i: usize| format!("existing-{i}");
    vec![
        operation(
            Often,
            "publish to missing exchanges",
            |client, i| async move {
                let answer = publish(client, format!("missing-{i}"), "key".into(), 8).await;
                invalid(answer, Code::NotFound, "EXCHANGE_NOT_FOUND")
            },
        ),
        operation(
            Often,
            "publish to existing exchanges",
            move |client, i| async move {
                for _ in 0..2 {
                    let answer = publish(client.clone(), existing(i), "key".into(), 8).await;
                    refused(answer, Code::FailedPrecondition, "UNROUTABLE")?;
                }
                Ok(())
            },
        ),
        operation(Often, "delete exchanges", move |mut client, i| async move {
            let request = DeleteExchangeRequest {
                name: existing(i),
                if_unused: true,
            };
            ok(client.admin.delete_exchange(timed(request)).await).map(drop)
        }),
        operation(
            Channel,
            "publish to exchanges that are gone",
            move |client, i| async move {
                let answer = publish(client, existing(i), "key".into(), 8).await;
                invalid(answer, Code::NotFound, "EXCHANGE_NOT_FOUND")
            },
        ),
        operation(
            Channel,
            "publish to forbidden exchanges",
            |client, i| async move {
                let exchange = format!("forbidden-{}", i % FORBIDDEN);
                let answer = publish(client, exchange, "key".into(), 8).await;
                invalid(answer, Code::PermissionDenied, "FORBIDDEN")
            },
        ),
        operation(Often, "publish forbidden keys", |client, i| async move {
            let answer = publish(client, "events".into(), format!("secret.{i}"), 8).await;
            invalid(answer, Code::PermissionDenied, "FORBIDDEN")
        }),
        operation(
            Channel,
            "publish allowed keys, some forbidden",
            |client, i| async move {
                if i.is_multiple_of(20) {
                    let answer =
                        publish(client, "events".into(), format!("secret.{i}.again"), 8).await;
                    return invalid(answer, Code::PermissionDenied, "FORBIDDEN");
                }
                confirmed(publish(client, "events".into(), format!("order.{i}"), 8).await)
            },
        ),
        operation(
            Channel,
            "publish where the empty key is forbidden",
            |client, i| async move {
                confirmed(publish(client, "strict".into(), format!("order.{i}"), 8).await)
            },
        ),
        operation(
            Channel,
            "publish too large for the broker",
            |client, i| async move {
                let size = MAX_MESSAGE_SIZE + 1 + i % 1_000;
                let answer = publish(client, "orders".into(), "sink".into(), size).await;
                invalid(answer, Code::InvalidArgument, "PAYLOAD_TOO_LARGE")
            },
        ),
        operation(Cheap, "publish to missing queues", |client, i| async move {
            let answer = publish(client, String::new(), format!("missing-{i}"), 8).await;
            refused(answer, Code::FailedPrecondition, "UNROUTABLE")
        }),
        operation(Cheap, "publish", |client, i| async move {
            confirmed(publish(client, "orders".into(), "sink".into(), i % MAX_MESSAGE_SIZE).await)
        }),
    ]
}
