//! What stands: an alert is raised when something was wrong for a while, and cleared when it was right for a while.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    Alert, Kind,
    rules::{Finding, State},
};
use crate::failed_message::Time;

pub struct Book {
    hold: Duration,
    entries: BTreeMap<(Kind, String), Entry>,
}

#[derive(Default)]
struct Entry {
    raised: Option<Alert>,
    /// Since when it is otherwise than was said.
    otherwise: Option<Instant>,
}

impl Book {
    pub fn new(hold: Duration) -> Self {
        Self {
            hold,
            entries: BTreeMap::new(),
        }
    }

    /// Takes down what was found, and answers what is raised and cleared by it. What stood and is not among it is right where all of
    /// its kind were looked at ([`Finding::looked`]), because it is gone; else it stays as it was.
    pub fn note(&mut self, found: Vec<Finding>, at: Instant, now: Time) -> Vec<Alert> {
        let mut changed = Vec::new();
        let mut findings: BTreeMap<(Kind, String), Finding> = BTreeMap::new();
        let mut looked_at: Vec<Kind> = Vec::new();
        for finding in found {
            match &finding.subject {
                None => looked_at.push(finding.kind),
                Some(subject) => {
                    findings.insert((finding.kind, subject.clone()), finding);
                }
            }
        }
        for (key, entry) in &mut self.entries {
            if !findings.contains_key(key) && looked_at.contains(&key.0) {
                changed.extend(entry.note(key, State::Right, "", self.hold, at, now));
            }
        }
        for (key, finding) in findings {
            if finding.state != State::Wrong && !self.entries.contains_key(&key) {
                continue;
            }
            let hold = finding.hold.unwrap_or(self.hold);
            let entry = self.entries.entry(key.clone()).or_default();
            changed.extend(entry.note(&key, finding.state, &finding.summary, hold, at, now));
        }
        self.entries
            .retain(|_, entry| entry.raised.is_some() || entry.otherwise.is_some());
        changed
    }

    /// The most severe first, then the oldest.
    pub fn standing(&self) -> Vec<Alert> {
        let raised = self
            .entries
            .values()
            .filter_map(|entry| entry.raised.clone());
        let mut standing: Vec<Alert> = raised.collect();
        standing.sort_by_key(|alert| (alert.kind.severity(), alert.raised_at));
        standing
    }
}

impl Entry {
    fn note(
        &mut self,
        key: &(Kind, String),
        state: State,
        summary: &str,
        hold: Duration,
        at: Instant,
        now: Time,
    ) -> Option<Alert> {
        let otherwise = match (&mut self.raised, state) {
            (None, State::Wrong) | (Some(_), State::Right) => true,
            (Some(alert), State::Wrong) => {
                // Its figures move on.
                summary.clone_into(&mut alert.summary);
                false
            }
            (None, State::Right) => false,
            (None, State::Between) => false,
            (Some(_), State::Between) => return None,
        };
        if !otherwise {
            self.otherwise = None;
            return None;
        }
        let since = *self.otherwise.get_or_insert(at);
        if at - since < hold {
            return None;
        }
        self.otherwise = None;
        if let Some(alert) = self.raised.take() {
            return Some(Alert {
                cleared_at: Some(now),
                ..alert
            });
        }
        let alert = Alert {
            kind: key.0,
            subject: key.1.clone(),
            summary: summary.to_owned(),
            raised_at: now,
            cleared_at: None,
        };
        self.raised = Some(alert.clone());
        Some(alert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(10);

    /// A clock of seconds, and the answers in brief.
    struct Story {
        book: Book,
        start: Instant,
    }

    impl Story {
        fn new() -> Self {
            Self {
                book: Book::new(HOLD),
                start: Instant::now(),
            }
        }

        fn at(&mut self, second: u64, queues: &[(&str, State)]) -> Vec<(String, bool)> {
            let looked = Finding::looked(Kind::QueueDepth);
            let found = queues
                .iter()
                .map(|(queue, state)| Finding::of(Kind::QueueDepth, queue, *state, ""));
            let found = std::iter::once(looked).chain(found).collect();
            self.note(second, found)
        }

        fn note(&mut self, second: u64, found: Vec<Finding>) -> Vec<(String, bool)> {
            let at = self.start + Duration::from_secs(second);
            let changed = self.book.note(found, at, Time::default());
            let brief = |alert: Alert| (alert.subject, alert.cleared_at.is_none());
            changed.into_iter().map(brief).collect()
        }
    }

    #[test]
    fn what_is_wrong_for_a_moment_is_not_raised() {
        let mut story = Story::new();
        assert_eq!(story.at(0, &[("q", State::Wrong)]), []);
        assert_eq!(story.at(9, &[("q", State::Wrong)]), []);
        assert_eq!(story.at(10, &[("q", State::Right)]), []);
        assert_eq!(story.at(11, &[("q", State::Wrong)]), []);
        assert_eq!(story.at(20, &[("q", State::Wrong)]), []);
        assert_eq!(
            story.at(21, &[("q", State::Wrong)]),
            [("q".to_owned(), true)]
        );
        assert_eq!(story.at(40, &[("q", State::Wrong)]), [], "it is said once");
    }

    #[test]
    fn what_is_right_for_a_moment_is_not_cleared_and_what_is_between_stays() {
        let mut story = Story::new();
        story.at(0, &[("q", State::Wrong)]);
        story.at(10, &[("q", State::Wrong)]);
        assert_eq!(story.book.standing().len(), 1);
        assert_eq!(story.at(11, &[("q", State::Right)]), []);
        assert_eq!(story.at(20, &[("q", State::Between)]), []);
        assert_eq!(story.at(25, &[("q", State::Wrong)]), []);
        assert_eq!(story.at(30, &[("q", State::Right)]), []);
        assert_eq!(
            story.at(40, &[("q", State::Right)]),
            [("q".to_owned(), false)]
        );
        assert_eq!(story.book.standing(), []);
    }

    #[test]
    fn what_is_gone_is_right_and_what_cannot_be_seen_stays() {
        let mut story = Story::new();
        story.at(0, &[("q", State::Wrong)]);
        story.at(10, &[("q", State::Wrong)]);
        assert_eq!(story.note(30, vec![]), []);
        assert_eq!(story.note(60, vec![]), [], "nobody could look");
        assert_eq!(story.at(61, &[]), []);
        assert_eq!(story.at(71, &[]), [("q".to_owned(), false)]);
    }
}
