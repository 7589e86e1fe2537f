//! `courtier.v1.Publisher`.

mod attribution;
mod direct_reply;
mod many;
mod one;
mod refusals;
