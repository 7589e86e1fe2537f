//! Very many who watch.

use courtier::grpc::proto::{
    WatchFailedMessagesRequest, WatchQueueStatsRequest,
    failed_messages_client::FailedMessagesClient, queue_admin_client::QueueAdminClient,
};
use tonic::{Streaming, transport::Channel};

use super::Target;
use crate::vitals::descriptors;

const WATCHERS: usize = 1_000;
/// Streams of one connection, below the gateway's limit.
const SHARE: usize = 250;

async fn channels(target: &Target) -> Vec<Channel> {
    let url = format!("http://{}", target.gateway.address());
    let mut channels = Vec::new();
    for _ in 0..WATCHERS.div_ceil(SHARE) {
        let endpoint = Channel::from_shared(url.clone()).expect("a valid URL");
        channels.push(endpoint.connect().await.expect("it listens"));
    }
    channels
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_thousand_who_watch_queues() {
    let target = Target::start("1,000 watch a queue").await;
    let before = descriptors(target.gateway.id());
    let channels = channels(&target).await;
    let opening = (0..WATCHERS).map(|number| {
        let mut client = QueueAdminClient::new(channels[number / SHARE].clone());
        let names = vec![target.queue().to_owned()];
        async move {
            let second = prost_types::Duration {
                seconds: 1,
                nanos: 0,
            };
            let request = WatchQueueStatsRequest {
                names,
                interval: Some(second),
            };
            client
                .watch_queue_stats(request)
                .await
                .map(tonic::Response::into_inner)
        }
    });
    let mut watching: Vec<Streaming<_>> = Vec::new();
    for opened in futures::future::join_all(opening).await {
        watching.push(opened.expect("it begins"));
    }
    // Each hears of it twice: the first time, and once more.
    let hearing = watching.iter_mut().map(|stream| async {
        for _ in 0..2 {
            let said = stream.message().await.expect("it goes on");
            assert_eq!(said.expect("it goes on").stats.len(), 1);
        }
    });
    futures::future::join_all(hearing).await;
    let most = target.files();
    drop(watching);
    assert!(
        most <= before + 64,
        "{before} files and sockets before, {most} meanwhile"
    );
    target.survived().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_thousand_who_watch_failed_messages() {
    let target = Target::start("1,000 watch failed messages").await;
    let channels = channels(&target).await;
    let opening = (0..WATCHERS).map(|number| {
        let mut client = FailedMessagesClient::new(channels[number / SHARE].clone());
        async move {
            client
                .watch_failed_messages(WatchFailedMessagesRequest::default())
                .await
        }
    });
    let mut watching = Vec::new();
    for opened in futures::future::join_all(opening).await {
        watching.push(opened.expect("it begins"));
    }
    // Idle: the neighbour's next calls are made beside them.
    target.beside().await;
    drop(watching);
    target.survived().await;
}
