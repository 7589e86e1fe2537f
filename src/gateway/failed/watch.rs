//! Watching failed messages change, whichever replica changes them: the database is asked again and again.

use std::{collections::HashMap, time::Duration};

use chrono::TimeDelta;
use uuid::Uuid;

use crate::{
    failure::Time,
    store::{Change, Error, Filter, Store},
};

/// How often the database is asked.
const POLL: Duration = Duration::from_millis(500);
/// Changes of one answer.
const LIMIT: u64 = 500;
/// How far back each question reaches: a change is dated when its transaction begins, and seen when it ends.
const OVERLAP: TimeDelta = TimeDelta::seconds(12);
/// A clock that goes back by less is only brought into line.
const SET_BACK: TimeDelta = TimeDelta::seconds(1);

/// What changes from a moment on.
pub struct Watch {
    store: Store,
    filter: Filter,
    began: Time,
    since: Time,
    /// When it was asked last, by the database's clock.
    seen: Time,
    /// What was told, by the time of its change: the same again is no news.
    told: HashMap<Uuid, Time>,
}

impl Watch {
    pub(super) async fn begin(store: Store, filter: Filter) -> Result<Self, Error> {
        let began = store.now().await?;
        Ok(Self {
            store,
            filter,
            began,
            since: began,
            seen: began,
            told: HashMap::new(),
        })
    }

    /// The next changes: at least one, each message's latest state.
    pub async fn next(&mut self) -> Result<Vec<Change>, Error> {
        loop {
            let found = self.store.changes(self.since, LIMIT).await?;
            if found.now + SET_BACK < self.seen {
                // The clock was set back: what changes from now on is dated before what was told.
                self.since = found.now - OVERLAP;
                self.began = self.since;
                self.told.clear();
            }
            self.seen = found.now;
            let last = found.changes.last().map(|(at, _)| *at);
            let mut news = Vec::new();
            for (at, change) in found.changes {
                let id = match &change {
                    Change::Changed(row) => row.id,
                    Change::Deleted(id) => *id,
                };
                let known = self.told.get(&id).is_some_and(|told| *told >= at);
                if known || at < self.began {
                    continue;
                }
                self.told.insert(id, at);
                match &change {
                    Change::Changed(row) if !self.filter.matches(row) => {}
                    _ => news.push(change),
                }
            }
            match last.filter(|_| found.more) {
                // The rest of it follows at once. Of more than a page at one moment, the next question begins after it.
                Some(last) if last > self.since => self.since = last,
                Some(last) => self.since = last + TimeDelta::microseconds(1),
                None => {
                    self.since = (found.now - OVERLAP).max(self.began);
                    let since = self.since;
                    self.told.retain(|_, at| *at >= since);
                }
            }
            if !news.is_empty() {
                return Ok(news);
            }
            if !found.more {
                tokio::time::sleep(POLL).await;
            }
        }
    }
}
