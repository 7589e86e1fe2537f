//! The database: failed messages, what was done about them, and the message log. SQLite, MySQL/MariaDB or PostgreSQL over
//! sea-orm, which only this module and `migrations/` know.
//!
//! Each method of [`Store`] is one transaction. The database's clock is the only one: it is read in the transaction. That of a SQLite file is
//! this machine's, and when that is set, what is planned moves along ([`clock`](mod@clock)).
//! A database that is away is [`Error::Down`], at the latest after some seconds; one that answers questions and takes no changes
//! is [`Error::NotWritable`] to whoever would change something. The store comes back by itself.

mod clock;
mod collect;
mod command;
mod connection;
mod entity;
mod error;
mod files;
mod filter;
mod index;
mod link;
mod message_log;
mod operation;
mod probe;
mod properties;
mod query;
mod queues;
mod retry;
mod row;
mod schema;
mod trouble;
mod work;

use std::time::Duration;

use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    clock::{Clock, Reading},
    collect::Collected,
    connection::{BadPlace, OpenError, Options, Place},
    error::Error,
    filter::Filter,
    message_log::{
        Entry, Event, EventKind, Forgotten, Happened, LogFilter, LogStatus, Logged, Settlement,
        What,
    },
    operation::{Operation, OperationState, Step},
    query::{Change, Changes, Cursor, Group, Page, QueueCounts, Stats},
    retry::{Ack, Claimed, Reaped, Sent},
    schema::{SchemaStatus, migrate, schema_status, server_clock},
    trouble::Trouble,
};
use self::{
    connection::{PATIENCE, Pools},
    link::{Link, State},
    work::Work,
};

/// How often a transaction is tried when others are in its way.
const TRIES: u32 = 8;
/// The longest pause between two tries, of the first one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The database.
#[derive(Clone)]
pub struct Store {
    link: Link,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Store {
    /// Opens the database, waiting at most `patience` for a server; after that it goes on trying in the background. What waiting cannot mend is
    /// an error.
    pub async fn open(options: Options, patience: Duration) -> Result<Self, OpenError> {
        Self::open_with_clock(options, Clock::default(), patience).await
    }

    /// The same, where the times in a file are from another clock than the machine's.
    pub async fn open_with_clock(
        options: Options,
        clock: Clock,
        patience: Duration,
    ) -> Result<Self, OpenError> {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        // Boxed, because the migrations in it make it a deep type for whoever awaits it.
        let opening = Link::start(options, clock, patience, stop.clone(), &tasks);
        let link = Box::pin(opening).await?;
        Ok(Self { link, stop, tasks })
    }

    /// Whether the database is there, and takes changes.
    pub fn is_up(&self) -> bool {
        self.watch().is_up()
    }

    /// What is wrong with it, if anything is.
    pub fn trouble(&self) -> Option<Trouble> {
        self.watch().trouble()
    }

    /// How many questions it has answered since it was opened.
    pub fn answers(&self) -> u64 {
        self.link.answers()
    }

    /// Completes with each coming and going; `false` when the store is closed.
    pub fn watch(&self) -> Presence {
        Presence(self.link.watch())
    }

    /// How many connections there are, and how many of them are idle. `None`: the database is away.
    pub fn connections(&self) -> Option<(u64, u64)> {
        let pools = self.link.readable().ok()?;
        Some(pools.connections())
    }

    /// Closes all connections. Transactions under way are finished or rolled back.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Asks one question, outside of a transaction.
    async fn read<T>(
        &self,
        question: impl AsyncFnOnce(&Pools) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let pools = self.link.readable()?;
        let answer = timeout(PATIENCE, Box::pin(question(&pools))).await;
        let answer = answer.unwrap_or(Err(Error::Down));
        self.judge(match answer {
            // A question that the disk fails. Whether it takes changes is found out.
            Err(Error::NotWritable(_)) => Err(Error::Down),
            answer => answer,
        })
    }

    /// The same, of a transaction.
    fn judge_change<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        match &answer {
            Ok(_) => self.link.report_commit(),
            // What was not even tried says nothing new.
            Err(Error::NotWritable(trouble)) if self.is_up() => self.link.report_refusal(*trouble),
            _ => {}
        }
        self.judge(answer)
    }

    /// Reports a database that is away to whoever keeps the connections.
    fn judge<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        match &answer {
            Err(Error::Down) => {
                self.link.report_trouble();
                return answer;
            }
            Err(Error::NotWritable(_)) => return answer,
            Err(error @ (Error::Refused(_) | Error::Damaged { .. })) => {
                let error: &dyn std::error::Error = error;
                tracing::error!(error, "a database query failed");
            }
            _ => {}
        }
        self.link.report_answer();
        answer
    }
}

/// The coming and going of the database.
#[derive(Clone)]
pub struct Presence(watch::Receiver<State>);

impl Presence {
    /// Whether it is there, and takes changes.
    pub fn is_up(&self) -> bool {
        self.0.borrow().is_up()
    }

    /// What is wrong with it, if anything is.
    pub fn trouble(&self) -> Option<Trouble> {
        self.0.borrow().trouble
    }

    /// Waits for a coming or going. `false`: the store is closed.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }

    /// Waits until it takes changes. `false`: the store is closed.
    pub async fn up(&mut self) -> bool {
        self.0.wait_for(State::is_up).await.is_ok()
    }
}

/// Runs a transaction, again when another one was in its way. The block sees it as `&mut Work`; it is committed when the block
/// is done, and rolled back when it fails.
///
/// A macro because a closure that borrows from its surroundings cannot yet return a future that is known to be `Send`.
macro_rules! transaction {
    ($store:expr, |$work:ident| $body:block) => {{
        let store: &$crate::store::Store = $store;
        let mut tries = 0;
        loop {
            // On the heap: the futures of a statement are nested so deeply that the compiler gives up on what holds several.
            let attempt = Box::pin(async {
                let pools = store.link.writable()?;
                let mut work = $crate::store::Work::begin(&pools).await?;
                let done = {
                    let $work = &mut work;
                    $body
                };
                work.commit().await?;
                Ok(done)
            });
            let done = tokio::time::timeout($crate::store::PATIENCE, attempt).await;
            match done.unwrap_or(Err($crate::store::Error::Down)) {
                Err($crate::store::Error::Busy) if tries < $crate::store::TRIES => {
                    tries += 1;
                    $crate::store::pause(tries).await;
                }
                done => break store.judge_change(done),
            }
        }
    }};
}
use transaction;

async fn pause(tries: u32) {
    let longest = FIRST_PAUSE * 2_u32.saturating_pow(tries - 1);
    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
}
