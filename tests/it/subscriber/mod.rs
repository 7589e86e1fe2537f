//! `courtier.v1.Subscriber`.

mod end;
mod odd_messages;
mod open;
mod poison;
mod settle;
mod streams;
mod workers;
