//! Where a message stands, from what happened to it.

use super::{Event, EventKind, LogStatus, Settlement, What};
use crate::failed_message::Time;

/// An event that says where the message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Milestone {
    /// A consumer is done with it. Where it failed in another queue, that remains.
    Acked,
    /// A consumer is done with a retry: what had failed is mended.
    Mended,
    Failed,
}

impl Milestone {
    pub(super) fn of(event: &Event) -> Option<Self> {
        match event.what {
            What::Settled(settlement) => Self::of_settlement(settlement, event.attempt),
            What::Failed { .. } => Some(Self::Failed),
            _ => None,
        }
    }

    /// The same, of an event as it is stored.
    pub(super) fn of_stored(kind: EventKind, attempt: u32, detail: &str) -> Option<Self> {
        match kind {
            EventKind::Settled => Self::of_settlement(detail.parse().ok()?, attempt),
            EventKind::Failed => Some(Self::Failed),
            _ => None,
        }
    }

    fn of_settlement(settlement: Settlement, attempt: u32) -> Option<Self> {
        match settlement {
            Settlement::Ack | Settlement::AutoAck | Settlement::Discard if attempt > 1 => {
                Some(Self::Mended)
            }
            Settlement::Ack | Settlement::AutoAck | Settlement::Discard => Some(Self::Acked),
            _ => None,
        }
    }
}

/// What several milestones of one message come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The one that counts.
    pub milestone: Milestone,
    pub delivered_at: Option<Time>,
    pub failed_at: Option<Time>,
}

impl Standing {
    /// Of milestones in the order in which they happened. `None`: there are none.
    pub(super) fn after(milestones: impl IntoIterator<Item = (Time, Milestone)>) -> Option<Self> {
        let mut standing: Option<Self> = None;
        for (at, milestone) in milestones {
            let standing = standing.get_or_insert(Self {
                milestone,
                delivered_at: None,
                failed_at: None,
            });
            let first = match milestone {
                Milestone::Failed => &mut standing.failed_at,
                Milestone::Acked | Milestone::Mended => &mut standing.delivered_at,
            };
            first.get_or_insert(at);
            if milestone != Milestone::Acked {
                standing.milestone = milestone;
            }
        }
        standing
    }

    /// What is said of a message of which nothing else is known.
    pub(super) fn status(&self) -> LogStatus {
        match self.milestone {
            Milestone::Acked | Milestone::Mended => LogStatus::Delivered,
            Milestone::Failed => LogStatus::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(milestones: &[Milestone]) -> Option<LogStatus> {
        let timed = milestones
            .iter()
            .map(|milestone| (Time::default(), *milestone));
        Standing::after(timed).map(|standing| standing.status())
    }

    #[test]
    fn a_failure_in_one_queue_is_not_mended_by_an_ack_in_another() {
        use Milestone::{Acked, Failed, Mended};
        assert_eq!(status(&[]), None);
        assert_eq!(status(&[Acked]), Some(LogStatus::Delivered));
        assert_eq!(status(&[Acked, Failed]), Some(LogStatus::Failed));
        assert_eq!(status(&[Failed, Acked]), Some(LogStatus::Failed));
        assert_eq!(status(&[Failed, Mended]), Some(LogStatus::Delivered));
        assert_eq!(status(&[Failed, Mended, Failed]), Some(LogStatus::Failed));
    }

    #[test]
    fn the_first_of_each_is_kept() {
        let at = |second| Time::from_timestamp(second, 0).expect("a time");
        let milestones = [
            (at(1), Milestone::Failed),
            (at(2), Milestone::Mended),
            (at(3), Milestone::Failed),
            (at(4), Milestone::Mended),
        ];
        let standing = Standing::after(milestones).expect("some");
        assert_eq!(standing.failed_at, Some(at(1)));
        assert_eq!(standing.delivered_at, Some(at(2)));
    }
}
