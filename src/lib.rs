//! Courtier: a gRPC gateway in front of RabbitMQ that tells the truth about every message.
//!
//! The map, from the socket inwards; imports run only downwards.
pub mod cli; // the command line
pub mod server; // one port, start to end
pub mod shutdown;

pub mod grpc; // one file a .proto
pub mod http; // the same port, for probes, scripts and people

pub mod gateway; // what the service does, one file a feature

pub mod broker; // RabbitMQ, and the embedded broker
pub mod store; // the database

pub mod failure; // failed messages and their state machine

pub mod budget; // of memory: one for all that is held for clients
mod coalesce; // one question for all who ask at once
pub mod config;
pub mod deadline; // the caller's
pub mod error; // what callers are told
mod finish;
pub mod message;
pub mod metrics; // figures for those who watch
pub mod names;
pub mod origins;
pub mod telemetry;
pub mod text;
pub mod timer;
pub mod traces; // the journey of each message
pub mod url;
