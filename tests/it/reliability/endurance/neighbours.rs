//! What everybody else does meanwhile, one of each: it must work, whatever was asked before.

use courtier::grpc::proto::{
    CreateBindingRequest, Outcome, PeekMessagesRequest, PublishBatchRequest, PublishRequest,
    PublishStreamRequest, subscribe_response::Response,
};
use futures::{StreamExt, future::join_all, stream};
use tokio::time::timeout;

use super::{
    answer::{Verdict, confirmed, described, ok},
    operations::{binding, existing, move_messages, publish},
    stage::{Client, DEADLINE, Stage, timed},
};
use crate::{books::Consumer, process::get};

/// Publish lanes there may be: each is asked.
const LANES: usize = 16;

/// What does not work.
pub async fn harm(stage: &Stage) -> Vec<String> {
    let client = stage.client(0);
    let mut harm = Vec::new();
    let mut note = |what: &str, verdict: Verdict| {
        if let Err(fault) = verdict {
            harm.push(format!("{what}: {fault}"));
        }
    };
    let publishes =
        (0..LANES).map(|number| publish(stage.client(number), "orders".into(), "sink".into(), 8));
    for answer in join_all(publishes).await {
        note("publish", confirmed(answer));
    }
    note("batch", batch(client.clone()).await);
    let streams = (0..LANES).map(|number| publish_stream(stage.client(number)));
    for verdict in join_all(streams).await {
        note("publish stream", verdict);
    }
    note("deliver", deliver(client.clone()).await);
    for queue in ["work", "quorum", "stream"] {
        note("get", existing::get(client.clone(), queue.to_owned()).await);
    }
    note("peek", peek(client.clone()).await);
    note(
        "move",
        ok(move_messages(client.clone(), "empty", "work").await).map(drop),
    );
    note("bind", bind(client.clone()).await);
    note(
        "purge",
        existing::purge(client.clone(), "neighbour".into()).await,
    );
    note(
        "a queue's life",
        existing::live(client, format!("life-{}", uuid::Uuid::now_v7())).await,
    );
    for (path, sign) in [
        ("/livez", "200"),
        ("/readyz", "200"),
        ("/api/queues/work/stats", "200"),
    ] {
        note(path, http(stage, path, sign).await);
    }
    harm
}

fn request() -> PublishRequest {
    PublishRequest {
        exchange: "orders".into(),
        routing_key: "sink".into(),
        message: Some(Default::default()),
        ..PublishRequest::default()
    }
}

async fn batch(mut client: Client) -> Verdict {
    let messages = vec![request(); 20];
    let answer = client
        .publisher
        .publish_batch(timed(PublishBatchRequest { messages }))
        .await;
    let results = ok(answer)?.results;
    match results
        .iter()
        .find(|result| result.outcome() != Outcome::Confirmed)
    {
        Some(other) => Err(format!("{other:?}")),
        None => Ok(()),
    }
}

async fn publish_stream(mut client: Client) -> Verdict {
    let requests = (0..5).map(|sequence| PublishStreamRequest {
        sequence,
        publish: Some(request()),
    });
    let answer = client
        .publisher
        .publish_stream(timed(stream::iter(requests)))
        .await;
    let mut responses = ok(answer)?;
    let mut answered = 0;
    while let Some(response) = responses.next().await {
        for result in response.map_err(|status| described(&status))?.results {
            answered += 1;
            if result.outcome() != Outcome::Confirmed {
                return Err(format!("{result:?}"));
            }
        }
    }
    if answered == 5 {
        Ok(())
    } else {
        Err(format!("{answered} of 5 were answered"))
    }
}

/// What is published arrives, and can be acked.
async fn deliver(client: Client) -> Verdict {
    existing::purge(client.clone(), "neighbour".into()).await?;
    confirmed(publish(client.clone(), "orders".into(), "neighbour".into(), 8).await)?;
    let consumer = Consumer::start(client.channel, "neighbour", 1).await;
    let mut consumer = consumer.map_err(|status| described(&status))?;
    let receiving = async {
        loop {
            match consumer.next().await {
                Ok(Some(said)) => {
                    if let Some(Response::Deliveries(mut deliveries)) = said.response {
                        return Ok(deliveries.deliveries.remove(0).ack_id);
                    }
                }
                Ok(None) => return Err("the subscription ended".to_owned()),
                Err(status) => return Err(described(&status)),
            }
        }
    };
    let received = timeout(DEADLINE, receiving).await;
    let ack_id = received.unwrap_or_else(|_| Err("nothing comes".into()))?;
    consumer.ack(vec![ack_id]);
    consumer.end().await.map_err(|status| described(&status))
}

async fn peek(mut client: Client) -> Verdict {
    let request = PeekMessagesRequest {
        queue: "parked".into(),
        limit: 10,
    };
    let peeked = ok(client.admin.peek_messages(timed(request)).await)?;
    if peeked.messages.is_empty() {
        return Err("what is parked is not there".into());
    }
    Ok(())
}

async fn bind(mut client: Client) -> Verdict {
    let request = CreateBindingRequest {
        binding: binding("orders", "work", "again"),
    };
    ok(client.admin.create_binding(timed(request)).await).map(drop)
}

async fn http(stage: &Stage, path: &str, sign: &str) -> Verdict {
    match get(&stage.gateway.address(), path).await {
        Ok(answer) if answer.starts_with(&format!("HTTP/1.1 {sign}")) => Ok(()),
        Ok(answer) => Err(answer),
        Err(error) => Err(error.to_string()),
    }
}
