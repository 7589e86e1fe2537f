//! What clients make the gateway write down.

use futures::future::join_all;

use super::{
    Target,
    attacker::{Attacker, field, zipped},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn names_of_megabytes_in_the_log() {
    /// For fifteen refusals: each is a line or two.
    const MOST: usize = 256 * 1024;
    let target = Target::start("names of 4 MB").await;
    let name = vec![b'n'; 4_000_000];
    let other = vec![b'o'; 100_000];
    let body = zipped(&[field(1, &name), field(2, &other)].concat());
    let before = target.gateway.log().len();
    let attacker = Attacker::connect(&target.gateway.address()).await;
    let calls =
        (0..15).map(|_| attacker.call("/courtier.v1.QueueAdmin/PurgeQueue", "gzip", body.clone()));
    for status in join_all(calls).await {
        assert_ne!(status, Some(0), "the two names differ");
    }
    let written = target.gateway.log().len() - before;
    println!(
        "{} bytes of requests wrote {written} bytes of log",
        15 * body.len()
    );
    assert!(written < MOST, "{written} bytes of log");
    target.survived().await;
}
