//! `courtier.v1.QueueAdmin`.

mod busy;
mod changes;
mod exchange_types;
mod management;
mod messages;
mod temporary;
mod topology;
mod watchers;
