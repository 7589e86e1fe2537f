//! `amqps://`: the broker is trusted by its certificate, and by nothing else.

use std::{net::TcpListener, sync::Arc, time::Duration};

use courtier::broker::{
    Broker, LinkState,
    rabbitmq::{self, ManagementAt},
};
use secrecy::SecretString;

use crate::{
    front::{Front, text, to_queue},
    harness::PATIENCE,
    instance::Instance,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_broker_with_a_trusted_certificate_is_used_and_another_one_is_not() {
    let authority = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = parameters.self_signed(&authority).expect("a certificate");
    let issuer = rcgen::Issuer::from_params(&parameters, &authority);
    let key = rcgen::KeyPair::generate().expect("a key");
    let server = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a valid name");
    let server = server.signed_by(&key, &issuer).expect("a certificate");

    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let instance = Instance::start_with(|dir| {
        let file = |name: &str, content: String| {
            let path = dir.join(name);
            std::fs::write(&path, content).expect("the folder is writable");
            path.display().to_string()
        };
        format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n",
            file("ca.pem", ca.pem()),
            file("cert.pem", server.pem()),
            file("key.pem", key.serialize_pem()),
        )
    })
    .await;

    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let trusting = broker(&url, Some(ca.pem()));
    assert!(trusting.connected(PATIENCE).await);
    let front = Front::of(trusting, None, |_| {}).await;
    let queue = front.queue("q").await;
    let published = front.publish(to_queue(&queue, text("over TLS"))).await;
    published.expect("confirmed");
    assert_eq!(front.drain_bodies(&queue).await, ["over TLS"]);

    let doubting = broker(&url, None);
    // Long enough for the first to have connected many times over.
    assert!(!doubting.connected(Duration::from_secs(2)).await);
    assert_eq!(doubting.links().borrow().publish, LinkState::Down);
    drop(instance);
}

fn broker(url: &str, ca_pem: Option<String>) -> Arc<rabbitmq::RabbitMq> {
    let options = rabbitmq::Options {
        url: SecretString::from(url.to_owned()),
        ca_pem,
        management: ManagementAt::Off,
    };
    rabbitmq::RabbitMq::start(&options, &Default::default()).expect("a valid URL")
}
