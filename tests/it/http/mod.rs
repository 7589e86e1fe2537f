//! Plain HTTP.

mod batch;
mod curl;
mod failed_messages;
mod hostile;
mod openapi;
mod publish;
mod queues;
mod standard;
