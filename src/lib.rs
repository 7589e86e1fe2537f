//! Courtier: a gRPC gateway in front of RabbitMQ that tells the truth about every message.
//!
//! The map, floor by floor, from the outside inwards. A module imports only what is on its own floor or below, and nothing imports
//! each other in a circle (`scripts/layers.py`, a check of `make lint`).

pub mod cli; // the command line
pub mod server; // one port, start to end
pub mod shutdown; // when the process is told to stop

pub mod config; // every setting; makes the options of all that is below
pub mod telemetry; // the log

pub mod grpc; // one file or folder a .proto
pub mod http; // the same port, for probes, scripts and people

pub mod deadline; // the caller's
pub mod error; // the one table of codes and reasons
pub mod origins; // web pages that may call

pub mod gateway; // what the service does, one room a feature

pub mod broker; // RabbitMQ, and the embedded broker
pub mod budget; // of memory: one for all that is held for clients
pub mod metrics; // figures for those who watch
pub mod store; // the database
pub mod traces; // the journey of each message

pub mod failed_message; // the state machine of one that failed; pure
pub mod message; // a message, its headers, and the gateway's own ones

mod coalesce; // one question for all who ask at once
mod finish; // work that goes on when its caller goes away
pub mod names;
pub mod text;
pub mod timer;
pub mod url;
