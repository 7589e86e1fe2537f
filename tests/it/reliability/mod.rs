//! What holds when something breaks, stops, or runs for long.

mod bombs;
mod crash;
mod database_outage;
mod disk;
mod endurance;
mod outage;
mod replicas;
mod stop;
mod wear;
