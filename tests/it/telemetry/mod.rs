//! Figures, traces and the log.

mod logs;
mod metrics;
mod traces;
