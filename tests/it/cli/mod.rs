//! The command line: the real program.

mod bulk;
mod doctor;
mod edit;
mod failed_messages;
mod main_commands;
mod message_log;
mod migrate;
mod queue_admin;
