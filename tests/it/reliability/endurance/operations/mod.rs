//! Everything that makes the gateway ask the broker something, with the answer that each must get, however often.

pub mod existing;
mod forbidden;
mod impossible;
mod missing;
mod publishes;

use courtier::grpc::proto::{
    Binding, Message, MoveMessagesRequest, MoveMessagesResponse, PublishRequest, PublishResponse,
    message::Payload,
};
use futures::future::BoxFuture;
use tokio::time::timeout;
use tonic::{Response, Status};

use super::{
    answer::Verdict,
    stage::{Client, DEADLINE, timed},
};

/// One kind of call, made again and again; the number makes names that nobody used before.
pub struct Operation {
    pub name: &'static str,
    pub cost: Cost,
    ask: Box<dyn Fn(Client, usize) -> BoxFuture<'static, Verdict> + Send + Sync>,
}

/// What a refusal costs the broker's side, and so how often the short form asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Nothing ends.
    Cheap,
    /// RabbitMQ ends the channel on which it is asked.
    Channel,
    /// The same. One or two of a kind, so that also the short form asks for more channels of each link than it has.
    Often,
    /// RabbitMQ ends the connection.
    Connection,
}

impl Operation {
    pub async fn ask(&self, client: Client, number: usize) -> Verdict {
        let asked = timeout(2 * DEADLINE, (self.ask)(client, number)).await;
        asked.unwrap_or_else(|_| Err("no answer".to_owned()))
    }
}

fn operation<F>(
    cost: Cost,
    name: &'static str,
    ask: impl Fn(Client, usize) -> F + Send + Sync + 'static,
) -> Operation
where
    F: Future<Output = Verdict> + Send + 'static,
{
    let ask = Box::new(move |client, number| -> BoxFuture<'static, Verdict> {
        Box::pin(ask(client, number))
    });
    Operation { name, cost, ask }
}

/// In an order in which later ones meet what earlier ones left.
pub fn all() -> Vec<Operation> {
    let mut all = publishes::all();
    all.extend(missing::all());
    all.extend(forbidden::all());
    all.extend(impossible::all());
    all.extend(existing::all());
    all
}

pub async fn publish(
    mut client: Client,
    exchange: String,
    routing_key: String,
    size: usize,
) -> Result<Response<PublishResponse>, Status> {
    let request = PublishRequest {
        exchange,
        routing_key,
        message: Some(Message {
            payload: Some(Payload::Data(vec![b'x'; size].into())),
            ..Message::default()
        }),
        ..PublishRequest::default()
    };
    client.publisher.publish(timed(request)).await
}

pub async fn move_messages(
    mut client: Client,
    source: &str,
    destination: &str,
) -> Result<Response<MoveMessagesResponse>, Status> {
    let request = MoveMessagesRequest {
        source: source.to_owned(),
        destination: destination.to_owned(),
        limit: 1,
    };
    client.admin.move_messages(timed(request)).await
}

pub fn binding(exchange: &str, queue: &str, routing_key: &str) -> Option<Binding> {
    Some(Binding {
        exchange: exchange.to_owned(),
        queue: queue.to_owned(),
        routing_key: routing_key.to_owned(),
        ..Binding::default()
    })
}
