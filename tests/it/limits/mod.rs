//! What clients may not do, and what it costs the others when they try.

mod connections;
mod hostile;
mod memory;
mod requests;
mod wire;
