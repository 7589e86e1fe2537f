//! The tables, as sea-orm sees them. `migrations/` makes them and says what each column means.

pub mod attempt;
pub mod dead_letter_queue;
pub mod deletion;
pub mod failed_message;
pub mod group;
pub mod message_log;
pub mod message_log_event;
pub mod retry_operation;
pub mod write_probe;
