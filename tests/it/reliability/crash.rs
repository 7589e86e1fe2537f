//! What was acknowledged survives: the broker, or the gateway, is killed again and again under load.
//!
//! Every message that was CONFIRMED comes out of its queue in the end, and none that was UNROUTABLE or NOT_SENT does.
//! `COURTIER_CRASHES` is how often each of them dies (20).

use std::time::Instant;

use courtier::grpc::proto::Outcome;

use crate::{
    instance::{Instance, crashes},
    load::Load,
    process::Process,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn nothing_acknowledged_is_lost_when_the_broker_is_killed() {
    let begin = Instant::now();
    let instance = Instance::start().await;
    let gateway = Process::with_load(&instance, &[]).await;
    let load = Load::start(&gateway);
    for _ in 0..crashes() {
        load.progress(fastrand::u64(50..800)).await;
        instance.kill().await;
        instance.restart().await;
    }
    load.progress(100).await;
    let books = load.check(&instance).await;
    println!(
        "{} crashes of the broker in {:.0?}",
        crashes(),
        begin.elapsed()
    );
    assert!(
        books.count(Outcome::NotSent) > 0,
        "nothing was refused meanwhile"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn nothing_acknowledged_is_lost_when_the_gateway_is_killed() {
    let begin = Instant::now();
    let instance = Instance::start().await;
    let mut gateway = Process::with_load(&instance, &[]).await;
    let load = Load::start(&gateway);
    for _ in 0..crashes() {
        load.progress(fastrand::u64(50..800)).await;
        gateway.kill();
        gateway.restart().await;
    }
    load.progress(100).await;
    let books = load.check(&instance).await;
    println!(
        "{} crashes of the gateway in {:.0?}",
        crashes(),
        begin.elapsed()
    );
    assert!(books.cut_off() > 0, "no call was cut off");
}
