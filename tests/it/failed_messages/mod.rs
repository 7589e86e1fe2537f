//! `courtier.v1.FailedMessages`, and what happens by itself.

mod bulk;
mod crash;
mod foreign_letters;
mod life;
mod lost_ack;
