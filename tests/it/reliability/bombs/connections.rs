//! Connections that say nothing.

use super::{Target, attacker::socket};
use crate::{harness::eventually, vitals::descriptors};

async fn silent(target: &Target, count: usize) -> Vec<tokio::net::TcpStream> {
    let mut open = Vec::new();
    for _ in 0..count {
        // Refused ones are closed at once, or not even taken.
        open.extend(socket(&target.gateway.address()).await.ok());
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn fifteen_hundred_silent_ones() {
    let target = Target::start("1,500 silent connections").await;
    let before = descriptors(target.gateway.id());
    let open = silent(&target, 1_500).await;
    assert!(!open.is_empty());
    // The clients keep them: it is the gateway that closes them.
    eventually("silent connections are closed", || async {
        descriptors(target.gateway.id()) <= before + 24
    })
    .await;
    drop(open);
    target.survived().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn more_silent_ones_than_there_are_descriptors() {
    let target = Target::scarce("256 files, 354 silent", Some(256)).await;
    let before = descriptors(target.gateway.id());
    let open = silent(&target, 354).await;
    assert!(!open.is_empty());
    eventually("silent connections are closed", || async {
        descriptors(target.gateway.id()) <= before + 24
    })
    .await;
    drop(open);
    target.survived().await;
}
