//! What the suites share: a gateway to talk to, servers to break, clients of other makes, accounts of what happened.

pub mod books;
pub mod cli_desk;
pub mod command;
pub mod desk;
pub mod failed_books;
pub mod failed_load;
pub mod failed_native;
pub mod fates;
pub mod front;
pub mod harness;
pub mod instance;
pub mod load;
pub mod native;
pub mod office;
pub mod patient;
pub mod process;
pub mod raw;
pub mod rest;
pub mod scripted;
pub mod vitals;
