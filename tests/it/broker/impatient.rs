//! Whoever gives up waiting for RabbitMQ harms nobody else on the same connection.
//!
//! The broker ends a channel on which something missing was asked for. When whoever asked gives up while the broker's word is on
//! its way, both sides end the channel at once, and the client library may take the broker's answer for an error of the whole
//! connection. So that this happens often, the broker is some milliseconds away.

use std::{sync::Arc, time::Duration};

use courtier::broker::{Broker, Subscribe, Target, rabbitmq::RabbitMq};
use futures::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep, timeout},
};

use crate::harness::{PATIENCE, connect_to};

const TRIES: u32 = 400;
const AT_A_TIME: usize = 8;
/// How long each way to the broker is.
const WAY: Duration = Duration::from_millis(4);

/// RabbitMQ, some milliseconds away.
async fn far_away() -> Arc<RabbitMq> {
    let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
    let (front, port) = url.rsplit_once(':').expect("a port");
    let (port, rest) = port.split_once('/').unwrap_or((port, ""));
    let broker = format!("127.0.0.1:{port}");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let here = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&broker).await.expect("RabbitMQ");
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(carry(from_client, to_server));
            tokio::spawn(carry(from_server, to_client));
        }
    });
    let broker = connect_to(&format!("{front}:{here}/{rest}"));
    assert!(broker.connected(PATIENCE).await);
    broker
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        sleep(WAY).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// Does something again and again, with deadlines around the time that an answer takes, and says whether a link broke meanwhile.
async fn breaks_a_link(broker: &RabbitMq, ask: impl AsyncFn(u32, Instant)) -> bool {
    let mut links = broker.links();
    links.mark_unchanged();
    let tries = stream::iter(0..TRIES).map(async |number| {
        let patience = WAY * 6 * (number % 40) / 40;
        ask(number, Instant::now() + patience).await;
    });
    tries.buffer_unordered(AT_A_TIME).collect::<()>().await;
    // What was given up last is answered by now.
    ask(TRIES, Instant::now() + PATIENCE).await;
    // The links stood, and any change is one for the worse. It may be noticed a moment later.
    let breaks = timeout(Duration::from_millis(500), links.changed());
    breaks.await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_publisher_that_asks_for_a_missing_exchange() {
    let broker = far_away().await;
    let ask = async |number, deadline| {
        let exchange = format!("impatient-{number}");
        let target = Target {
            exchange: &exchange,
            routing_key: "any",
            size: 1,
        };
        let asked = broker.check(target, deadline).await;
        assert!(asked.is_err(), "{exchange} is missing");
    };
    assert!(!breaks_a_link(&broker, ask).await);
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_subscriber_to_a_missing_queue() {
    let broker = far_away().await;
    let ask = async |number, deadline| {
        let subscribe = Subscribe::new(
            vec![format!("impatient-{number}")],
            1,
            "impatient",
            deadline,
        );
        let subscribed = broker.subscribe(subscribe).await;
        assert!(subscribed.is_err(), "the queue is missing");
    };
    assert!(!breaks_a_link(&broker, ask).await);
    broker.close().await;
}
