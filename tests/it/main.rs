//! The integration tests: a real server on a free port, real clients, and where a test needs it a real RabbitMQ.
//!
//! `cargo test` runs what needs no server. `make test` runs everything; it names its RabbitMQ in `COURTIER_TEST_AMQP_URL`.

mod contract;

use std::time::Duration;

use contract::{Fixture, Traits, contract_suite};
use courtier::broker::{memory::MemoryBroker, rabbitmq};
use secrecy::SecretString;

contract_suite!(memory, Fixture::new(MemoryBroker::new(), Traits::MEMORY));
contract_suite!(
    rabbitmq_contract,
    Fixture::new(connect().await, Traits::RABBITMQ),
    #[ignore = "needs RabbitMQ: run make test"]
);

/// A backend of one's own on the RabbitMQ of this test run.
async fn connect() -> std::sync::Arc<rabbitmq::RabbitMq> {
    let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
    let options = rabbitmq::Options {
        url: SecretString::from(url),
        ca_pem: None,
    };
    let broker = rabbitmq::RabbitMq::start(&options).expect("a valid URL");
    assert!(broker.connected(Duration::from_secs(10)).await);
    broker
}
