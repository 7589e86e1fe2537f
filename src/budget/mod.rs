//! The one budget of memory: what is held of requests being read, of publishes under way, and of deliveries, counts against
//! `MAX_MEMORY_BYTES`, so that whatever clients do it is they who are told to wait, and not the kernel that ends the process.
//!
//! Each use has a share of its own, so that none starves another: subscribers that settle nothing keep nobody from publishing. The shares
//! make up half of the budget. The other half is for what is not counted one by one: the copies on their way through the
//! transports (a message is in memory about twice while it is encoded or sent), buffers of connections, the message log's
//! events, caches, and the program itself.
//!
//! | share | of the budget | counts | when it is full |
//! |---|---|---|---|
//! | [`intake`] | 1/8 | what has come of messages and bodies that are not complete | RESOURCE_EXHAUSTED, reason OVERLOADED, at once |
//! | publishes | 1/8, at most `MAX_IN_FLIGHT` | messages that wait for their outcome | NOT_SENT, OVERLOADED, at once |
//! | [`deliveries`] | 1/4 | deliveries that wait for their client or are not settled | the subscription takes no more |

pub mod deliveries;
pub mod intake;
mod machine;

use std::sync::Arc;

use self::{deliveries::Deliveries, intake::Intake};

pub use self::machine::default_budget;

/// What the smallest budget is, so that each share has room for a few messages.
pub const SMALLEST: usize = 64 * 1024 * 1024;

/// The shares. See the [module](self).
#[derive(Clone, Debug)]
pub struct Memory {
    pub intake: Arc<Intake>,
    pub publishes: usize,
    pub deliveries: Arc<Deliveries>,
}

impl Memory {
    /// Shares of this many bytes. A message of `largest` bytes can always be published when nothing else is.
    pub fn new(budget: usize, largest: usize) -> Self {
        Self {
            intake: Arc::new(Intake::new(budget / 8)),
            publishes: (budget / 8).max(largest),
            deliveries: Arc::new(Deliveries::new(budget / 4)),
        }
    }
}
