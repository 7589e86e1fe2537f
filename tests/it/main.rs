//! The integration tests: a real server on a free port, real clients, and where a test needs it a real RabbitMQ.
//!
//! `cargo test` runs what needs no server. `make test` runs everything; it names its RabbitMQ in `COURTIER_TEST_AMQP_URL`.
//!
//! A folder a service, as in `src/gateway/`; what a suite shares with others is in `support/`.

mod alerts;
mod broker;
mod cli;
mod contract;
mod failed_messages;
mod http;
mod limits;
mod message_log;
mod publisher;
mod queue_admin;
mod reliability;
mod store;
mod subscriber;
mod support;
mod telemetry;

use contract::{Fixture, Traits, contract_suite};
use courtier::broker::memory::MemoryBroker;
use support::{
    books, cli_desk, command, desk, failed_books, failed_load, failed_native, fates, front,
    harness, instance, load, native, office, patient, process, raw, rest, scripted, vitals,
};

contract_suite!(memory, Fixture::new(MemoryBroker::new(), Traits::MEMORY));
contract_suite!(
    rabbitmq,
    Fixture::new(harness::connect().await, Traits::rabbitmq()),
    #[ignore = "needs RabbitMQ: run make test"]
);
