//! The integration tests: a real server on a free port, real clients, and where a test needs it a real RabbitMQ.
//!
//! `cargo test` runs what needs no server. `make test` runs everything; it names its RabbitMQ in `COURTIER_TEST_AMQP_URL`.

mod alerts;
mod attribution;
mod bombs;
mod books;
mod cli;
mod cli_admin;
mod cli_bulk;
mod cli_desk;
mod cli_doctor;
mod cli_edit;
mod cli_failed;
mod cli_log;
mod cli_migrate;
mod command;
mod connections;
mod contract;
mod conversions;
mod crash;
mod database_outage;
mod desk;
mod direct_reply;
mod disk;
mod endurance;
mod exchange_types;
mod failed_books;
mod failed_bulk;
mod failed_crash;
mod failed_load;
mod failed_messages;
mod failed_native;
mod foreign_letters;
mod front;
mod harness;
mod hostile;
mod impatient;
mod instance;
mod load;
mod logs;
mod management;
mod memory_budget;
mod message_log;
mod metrics;
mod native;
mod odd_messages;
mod outage;
mod patient;
mod poison;
mod process;
mod publish;
mod publish_many;
mod queue_admin;
mod queue_busy;
mod queue_messages;
mod raw;
mod refusals;
mod replicas;
mod request_limits;
mod rest;
mod rest_batch;
mod rest_curl;
mod rest_failed;
mod rest_hostile;
mod rest_openapi;
mod rest_publish;
mod rest_queues;
mod scripted;
mod settle;
mod standard;
mod stop;
mod store;
mod streams;
mod subscribe;
mod subscribe_end;
mod temporary;
mod tls;
mod topology;
mod traces;
mod vitals;
mod watchers;
mod wear;
mod wire;
mod workers;

use contract::{Fixture, Traits, contract_suite};
use courtier::broker::memory::MemoryBroker;
use harness::connect;

contract_suite!(memory, Fixture::new(MemoryBroker::new(), Traits::MEMORY));
contract_suite!(
    rabbitmq,
    Fixture::new(connect().await, Traits::rabbitmq()),
    #[ignore = "needs RabbitMQ: run make test"]
);
