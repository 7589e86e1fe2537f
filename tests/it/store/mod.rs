//! What the store promises, on each engine. A case is a function over a database of its own; [`database::on_each!`] makes the
//! tests of it, of which those on SQLite need no server.

mod changes;
mod claims;
mod clock;
mod collect;
mod counts;
pub mod database;
pub mod deaths;
mod life;
mod lists;
mod message_log;
mod operations;
mod outage;
mod place;
