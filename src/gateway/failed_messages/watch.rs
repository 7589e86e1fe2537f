//! Watching failed messages change, whichever replica changes them. One task asks the database again and again, for all who watch,
//! while somebody does; what each of them is to see is picked out of its answers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, timeout_at},
};
use uuid::Uuid;

use crate::{
    failed_message::Time,
    store::{Change, Error, Filter, Store},
};

/// How often the database is asked.
const POLL: Duration = Duration::from_millis(500);
/// How long others may join whoever begins to watch: they begin with the same question.
const JOIN: Duration = Duration::from_millis(20);
/// Changes of one answer.
const LIMIT: u64 = 500;
/// How far back each question reaches: a change is dated when its transaction begins, and seen when it ends, which is what makes it
/// news.
const OVERLAP: TimeDelta = TimeDelta::seconds(12);
/// A clock that goes back by less is only brought into line.
const SET_BACK: TimeDelta = TimeDelta::seconds(1);
/// Answers that wait for a watcher, and how long all others wait until there is room for one more. Then it misses changes.
const WAITING: usize = 16;
const SLOW: Duration = Duration::from_millis(500);

/// Changes that were seen together.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Each message's latest state.
    pub changes: Vec<Arc<Change>>,
    /// The watcher was too slow: there were changes before these that it is not told of.
    pub missed: bool,
}

/// What changes from a moment on.
pub struct Watch(mpsc::Receiver<Result<News, Error>>);

impl Watch {
    /// The next changes.
    pub async fn next(&mut self) -> Result<News, Error> {
        // Who asks the database says why he ends.
        self.0.recv().await.unwrap_or(Err(Error::Down))
    }
}

/// All who watch.
#[derive(Clone)]
pub(super) struct Watchers {
    store: Store,
    joining: Arc<Mutex<Joining>>,
    joined: Arc<Notify>,
}

#[derive(Default)]
struct Joining {
    watchers: Vec<Joiner>,
    /// Somebody asks the database.
    asked: bool,
}

/// Who wants to begin.
struct Joiner {
    filter: Filter,
    news: mpsc::Sender<Result<News, Error>>,
    begun: oneshot::Sender<Result<(), Error>>,
}

/// Who watches.
struct Watcher {
    filter: Filter,
    news: mpsc::Sender<Result<News, Error>>,
    missed: bool,
}

impl Watchers {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            joining: Arc::default(),
            joined: Arc::default(),
        }
    }

    /// Begins with the next question to the database, and returns when that is answered.
    pub(super) async fn begin(&self, filter: Filter) -> Result<Watch, Error> {
        let (news, receiver) = mpsc::channel(WAITING);
        let (begun, beginning) = oneshot::channel();
        let joiner = Joiner {
            filter,
            news,
            begun,
        };
        let first = {
            let mut joining = self.lock();
            joining.watchers.push(joiner);
            !std::mem::replace(&mut joining.asked, true)
        };
        if first {
            tokio::spawn(self.clone().ask());
        }
        self.joined.notify_one();
        beginning.await.unwrap_or(Err(Error::Down))?;
        Ok(Watch(receiver))
    }

    fn lock(&self) -> MutexGuard<'_, Joining> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the database as long as somebody watches.
    async fn ask(self) {
        let mut watchers = Vec::new();
        let mut joiners = Vec::new();
        let mut reader = Reader::default();
        loop {
            {
                let mut joining = self.lock();
                watchers.retain(|watcher: &Watcher| !watcher.news.is_closed());
                joiners.append(&mut joining.watchers);
                if watchers.is_empty() && joiners.is_empty() {
                    joining.asked = false;
                    return;
                }
            }
            match reader.read(&self.store).await {
                Ok(page) => {
                    tell(&mut watchers, &page.news).await;
                    if page.more {
                        continue;
                    }
                    // All that can be seen was seen: what is news from here on is news to them.
                    watchers.extend(joiners.drain(..).filter_map(Joiner::begin));
                }
                Err(error) => {
                    for joiner in joiners.drain(..) {
                        let _ = joiner.begun.send(Err(error.clone()));
                    }
                    for watcher in watchers.drain(..) {
                        let error = error.clone();
                        // When it has read what waits for it.
                        tokio::spawn(async move { watcher.news.send(Err(error)).await });
                    }
                    reader = Reader::default();
                    continue;
                }
            }
            tokio::select! {
                () = sleep(POLL) => {}
                () = self.joined.notified() => sleep(JOIN).await,
            }
        }
    }
}

impl Joiner {
    /// `None`: it has gone already.
    fn begin(self) -> Option<Watcher> {
        self.begun.send(Ok(())).ok()?;
        Some(Watcher {
            filter: self.filter,
            news: self.news,
            missed: false,
        })
    }
}

/// Tells each watcher what it is to see. A slow one is waited for a moment, once: then it misses changes, and is told so.
async fn tell(watchers: &mut [Watcher], news: &[Arc<Change>]) {
    let patience = Instant::now() + SLOW;
    for watcher in watchers {
        let changes: Vec<_> = watcher.picks(news).collect();
        if changes.is_empty() && !watcher.missed {
            continue;
        }
        let room = if watcher.missed {
            watcher.news.try_reserve().ok()
        } else {
            let room = timeout_at(patience, watcher.news.reserve()).await;
            room.ok().and_then(Result::ok)
        };
        let missed = watcher.missed;
        watcher.missed = room.is_none();
        if let Some(room) = room {
            room.send(Ok(News { changes, missed }));
        }
    }
}

impl Watcher {
    fn picks(&self, news: &[Arc<Change>]) -> impl Iterator<Item = Arc<Change>> {
        let picked = news.iter().filter(|change| match &***change {
            Change::Changed(row) => self.filter.matches(row),
            Change::Deleted(_) => true,
        });
        picked.cloned()
    }
}

/// What was read so far.
#[derive(Default)]
struct Reader {
    /// Changes before are no news.
    began: Option<Time>,
    since: Time,
    /// When it was asked last, by the database's clock.
    last: Time,
    /// What was seen, changed or deleted, and the time of that: the same again is no news.
    seen: HashMap<(Uuid, bool), Time>,
}

struct Page {
    news: Vec<Arc<Change>>,
    /// The rest follows at once.
    more: bool,
}

impl Reader {
    async fn read(&mut self, store: &Store) -> Result<Page, Error> {
        let mut began = match self.began {
            Some(began) => began,
            None => {
                self.since = store.now().await? - OVERLAP;
                *self.began.insert(self.since)
            }
        };
        let found = store.changes(self.since, LIMIT).await?;
        if found.now + SET_BACK < self.last {
            // The clock was set back: what changes from now on is dated before what was seen.
            self.since = found.now - OVERLAP;
            began = *self.began.insert(self.since);
            self.seen.clear();
        }
        self.last = found.now;
        let last = found.changes.last().map(|(at, _)| *at);
        let mut news = Vec::new();
        for (at, change) in found.changes {
            let (id, deleted) = match &change {
                Change::Changed(row) => (row.id, false),
                Change::Deleted(id) => (*id, true),
            };
            // Not the later one: what waited for a row may change it last, and be dated before.
            let known = self.seen.get(&(id, deleted)) == Some(&at);
            if !known && at >= began {
                self.seen.insert((id, deleted), at);
                news.push(Arc::new(change));
            }
        }
        match last.filter(|_| found.more) {
            // Of more than a page at one moment, the next question begins after it.
            Some(last) if last > self.since => self.since = last,
            Some(last) => self.since = last + TimeDelta::microseconds(1),
            None => {
                self.since = (found.now - OVERLAP).max(began);
                let since = self.since;
                self.seen.retain(|_, at| *at >= since);
            }
        }
        Ok(Page {
            news,
            more: found.more,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher(capacity: usize) -> (Watcher, Watch) {
        let (news, receiver) = mpsc::channel(capacity);
        let watcher = Watcher {
            filter: Filter::default(),
            news,
            missed: false,
        };
        (watcher, Watch(receiver))
    }

    fn page(id: u128) -> Vec<Arc<Change>> {
        vec![Arc::new(Change::Deleted(Uuid::from_u128(id)))]
    }

    fn ids(news: &News) -> Vec<u128> {
        let id = |change: &Arc<Change>| match **change {
            Change::Deleted(id) => id.as_u128(),
            Change::Changed(_) => panic!("only deletions"),
        };
        news.changes.iter().map(id).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_is_told_that_it_missed_changes_and_holds_nobody_up() {
        let (slow, mut late) = watcher(1);
        let (quick, mut prompt) = watcher(8);
        let mut watchers = vec![slow, quick];
        let begin = Instant::now();
        for id in 1..=5 {
            tell(&mut watchers, &page(id)).await;
        }
        let waited = begin.elapsed();
        assert!(waited >= SLOW && waited < 2 * SLOW, "it is waited for once");
        for id in 1..=5 {
            let news = prompt.next().await.expect("told");
            assert_eq!((ids(&news), news.missed), (vec![id], false));
        }
        let news = late.next().await.expect("told");
        assert_eq!((ids(&news), news.missed), (vec![1], false));
        // Also when nothing else changes.
        tell(&mut watchers, &[]).await;
        let news = late.next().await.expect("told");
        assert_eq!((ids(&news), news.missed), (vec![], true));
        tell(&mut watchers, &page(6)).await;
        let news = late.next().await.expect("told");
        assert_eq!((ids(&news), news.missed), (vec![6], false));
    }
}
