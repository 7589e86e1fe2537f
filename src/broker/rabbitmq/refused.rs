//! What became of the publishes that were in flight on a channel when the broker ended it because it refuses one of them for good.
//!
//! The broker handles a channel's publishes in order, stores nothing of the one that it refuses, and looks at none after it. It does
//! not say which one it was. So it is asked about each again ([`Checks::look_again`]):
//! - what comes after the last one that it refuses is certainly not stored, and is published again;
//! - when it refuses exactly one, that is the one;
//! - all others may be stored: in doubt. What was learnt holds from then on, so that this happens once.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};

use super::{
    checks::Checks,
    flight::{Entry, Refused},
};
use crate::broker::{Fate, InDoubt, Publish, Refusal, Target};

/// What a publish was checked for.
pub(super) struct OwnedTarget {
    exchange: String,
    routing_key: String,
    size: usize,
}

impl OwnedTarget {
    pub(super) fn of(publish: &Publish) -> Self {
        let Target {
            exchange,
            routing_key,
            size,
        } = publish.target();
        Self {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            size,
        }
    }

    pub(super) fn borrowed(&self) -> Target<'_> {
        Target {
            exchange: &self.exchange,
            routing_key: &self.routing_key,
            size: self.size,
        }
    }
}

/// What ended with a channel, while the broker is asked which of it it refuses.
pub(super) struct Looking {
    why: Refusal,
    /// In the order of their publishing.
    lost: Vec<Lost>,
    answers: BoxFuture<'static, Vec<bool>>,
}

struct Lost {
    entry: Entry,
    publish: Publish,
    written: bool,
}

impl Looking {
    pub(super) fn begin(refused: Refused, checks: Arc<Checks>) -> Self {
        let Refused {
            why, mut failed, ..
        } = refused;
        failed.sort_by_key(|(entry, _)| entry.number);
        let targets: Vec<_> = failed
            .iter()
            .map(|(_, failed)| OwnedTarget::of(&failed.publish))
            .collect();
        let answers = async move {
            let targets: Vec<_> = targets.iter().map(OwnedTarget::borrowed).collect();
            checks.look_again(why, &targets).await
        };
        let lost = failed.into_iter().map(|(entry, failed)| Lost {
            entry,
            publish: failed.publish,
            written: failed.written,
        });
        Self {
            why,
            lost: lost.collect(),
            answers: answers.boxed(),
        }
    }

    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.lost.iter_mut().map(|lost| &mut lost.entry)
    }

    /// What became of each; `None`: it is certainly not stored, and nothing speaks against publishing it again.
    pub(super) fn fates(
        self,
        refuses: &[bool],
    ) -> impl Iterator<Item = (Entry, Publish, Option<Fate>)> {
        let why = self.why;
        let written: Vec<bool> = self.lost.iter().map(|lost| lost.written).collect();
        let fates = fates(why, &written, refuses);
        let lost = self.lost.into_iter().zip(fates);
        lost.map(|(lost, fate)| (lost.entry, lost.publish, fate))
    }
}

/// Waits for the answers; for ever when none are asked for.
pub(super) async fn found(looking: &mut Option<Looking>) -> Vec<bool> {
    match looking {
        Some(looking) => (&mut looking.answers).await,
        None => std::future::pending().await,
    }
}

fn fates(why: Refusal, written: &[bool], refuses: &[bool]) -> Vec<Option<Fate>> {
    let last = refuses.iter().rposition(|refused| *refused);
    let only = refuses.iter().filter(|refused| **refused).count() == 1;
    let fate = |(index, written): (usize, &bool)| match last {
        Some(last) if index > last => None,
        Some(last) if index == last && only => Some(Fate::Refused(why)),
        _ if *written => Some(Fate::InDoubt(InDoubt::ConfirmLost)),
        _ => None,
    };
    written.iter().enumerate().map(fate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOUBT: Option<Fate> = Some(Fate::InDoubt(InDoubt::ConfirmLost));
    const REFUSED: Option<Fate> = Some(Fate::Refused(Refusal::Forbidden));

    fn of(written: &[bool], refuses: &[bool]) -> Vec<Option<Fate>> {
        fates(Refusal::Forbidden, written, refuses)
    }

    #[test]
    fn the_only_one_that_is_refused_is_the_culprit_and_what_follows_it_is_not_stored() {
        let fates = of(&[true, true, true, false], &[false, true, false, false]);
        assert_eq!(fates, [DOUBT, REFUSED, None, None]);
    }

    #[test]
    fn of_several_that_are_refused_nobody_knows_which_was_the_first() {
        let fates = of(&[true; 5], &[false, true, false, true, false]);
        assert_eq!(fates, [DOUBT, DOUBT, DOUBT, DOUBT, None]);
    }

    #[test]
    fn without_a_culprit_all_that_was_written_is_in_doubt() {
        assert_eq!(of(&[true, false], &[false, false]), [DOUBT, None]);
    }
}
