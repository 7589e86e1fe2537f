//! The database as it comes and goes: it is reached again when it was away, and watched with a write, so that one that answers
//! and takes no changes is not called up.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::DbErr;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Error, Options, Place,
    clock::{Clock, Followed},
    connection::{OpenError, PATIENCE, Pools, away, connect, lock},
    files::Files,
    probe::{self, Probed, Room},
    trouble::Trouble,
};

/// How often an idle database is looked at.
const HEARTBEAT: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// The longest pause between two looks at a database that takes changes for a moment only, again and again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that refuses a change so soon after it was called up again was called so too early.
const RELAPSE: Duration = Duration::from_secs(60);

/// How the database is.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Answers questions.
    pools: Option<Arc<Pools>>,
    /// `None`: it takes changes, too.
    pub trouble: Option<Trouble>,
}

impl State {
    fn away() -> Self {
        Self {
            pools: None,
            trouble: Some(Trouble::Away),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.trouble.is_none()
    }
}

/// The database, as it comes and goes.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
    wake: Arc<Notify>,
    /// Of a change that was refused since the last look.
    refused: Arc<Mutex<Option<Trouble>>>,
    /// How many questions it has answered, and how many changes it has taken.
    answered: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
}

impl Link {
    /// For questions.
    pub(super) fn readable(&self) -> Result<Arc<Pools>, Error> {
        self.state.borrow().pools.clone().ok_or(Error::Down)
    }

    /// For changes.
    pub(super) fn writable(&self) -> Result<Arc<Pools>, Error> {
        let state = self.state.borrow();
        match (state.trouble, &state.pools) {
            (None, Some(pools)) => Ok(pools.clone()),
            (None | Some(Trouble::Away), _) => Err(Error::Down),
            (Some(trouble), _) => Err(Error::NotWritable(trouble)),
        }
    }

    /// Each change of how it is.
    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// How many questions it has answered.
    pub(super) fn answers(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Somebody found it away: it is looked at, at once.
    pub(super) fn report_trouble(&self) {
        self.wake.notify_one();
    }

    /// A change was refused.
    pub(super) fn report_refusal(&self, trouble: Trouble) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
        self.wake.notify_one();
    }

    /// Somebody was answered: it is there, however busy.
    pub(super) fn report_answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// A change was committed.
    pub(super) fn report_commit(&self) {
        self.written.fetch_add(1, Ordering::Relaxed);
    }

    fn take_refusal(&self) -> Option<Trouble> {
        let refused = self.refused.lock();
        refused.unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Connects, waiting at most `patience`, and goes on for ever: an absent server is no error. A database that can never
    /// be used is.
    pub(super) async fn start(
        options: Options,
        clock: Clock,
        patience: Duration,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, OpenError> {
        let lock = lock(&options.place)?;
        let (sender, state) = watch::channel(State::away());
        let link = Self {
            state,
            wake: Arc::default(),
            refused: Arc::default(),
            answered: Arc::default(),
            written: Arc::default(),
        };
        let mut supervisor = Supervisor {
            options,
            clock: Arc::new(Followed::new(clock)),
            state: sender,
            link: link.clone(),
            files: None,
            room: Room::default(),
            pause: HEARTBEAT,
            healed: None,
        };
        match timeout(patience, Box::pin(supervisor.connect())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.is_final(&supervisor.options.place) => return Err(error),
            Ok(Err(error)) => away(&error),
            Err(_) => tracing::warn!("the database does not answer; retrying"),
        }
        tasks.spawn(async move {
            let _ = stop.run_until_cancelled(supervisor.run()).await;
            if let Some(pools) = supervisor.state.send_replace(State::away()).pools {
                pools.close().await;
            }
            // Only now may another process open the file.
            drop(lock);
        });
        Ok(link)
    }
}

/// Keeps the link.
struct Supervisor {
    options: Options,
    /// One for as long as the process runs: a clock that is set while the database is away is noticed as well.
    clock: Arc<Followed>,
    state: watch::Sender<State>,
    link: Link,
    /// The file that was opened first: another one is not taken for it.
    files: Option<Files>,
    /// What there must be room for, and how long is waited, before it counts as up again.
    room: Room,
    pause: Duration,
    /// When it last began to take changes again.
    healed: Option<Instant>,
}

/// What a look has found.
enum Found {
    Good,
    Gone,
    Refuses(Trouble, Option<DbErr>),
}

impl Supervisor {
    async fn run(&mut self) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let State { pools, trouble } = self.state.borrow().clone();
            let Some(pools) = pools else {
                match timeout(PATIENCE, Box::pin(self.connect())).await {
                    Ok(Ok(())) => backoff = FIRST_BACKOFF,
                    Ok(Err(error)) => away(&error),
                    Err(_) => {}
                }
                if self.state.borrow().pools.is_none() {
                    sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
                continue;
            };
            match trouble {
                None => {
                    let _ = timeout(HEARTBEAT, self.link.wake.notified()).await;
                    self.look(pools).await;
                }
                Some(trouble) => {
                    sleep(self.pause).await;
                    self.look_again(pools, trouble).await;
                }
            }
        }
    }

    /// A new pool after each trouble, so that nothing of a dead one is left.
    async fn connect(&mut self) -> Result<(), OpenError> {
        if self.files.as_ref().is_some_and(Files::is_replaced) {
            // Opening it would make an empty one, as if nothing had ever been stored.
            let lost = State {
                pools: None,
                trouble: Some(Trouble::Lost),
            };
            self.turn(lost, None);
            return Ok(());
        }
        let mut pools = connect(&self.options, &self.clock).await?;
        let probed = probe::small(&pools).await;
        if let Some(files) = &mut pools.files {
            // Its log is made by the first change.
            *files = files.again();
            self.files.get_or_insert_with(|| files.clone());
        }
        let (trouble, cause) = match probed {
            Probed::Refused(trouble, cause) => (Some(trouble), Some(cause)),
            Probed::Written | Probed::Busy | Probed::Slow => (None, None),
        };
        let pools = Some(Arc::new(pools));
        self.turn(State { pools, trouble }, cause.as_ref());
        Ok(())
    }

    /// Looks at a database that is up.
    async fn look(&mut self, pools: Arc<Pools>) {
        match self.find(&pools).await {
            Found::Good => {}
            Found::Gone => {
                self.turn(State::away(), None);
                tokio::spawn(pools.close());
            }
            Found::Refuses(trouble, cause) => {
                let relapsed = self.healed.is_some_and(|at| at.elapsed() < RELAPSE);
                (self.room, self.pause) = if relapsed {
                    (self.room.more(), (self.pause * 2).min(LONGEST_PAUSE))
                } else {
                    (Room::default(), HEARTBEAT)
                };
                let state = State {
                    pools: Some(pools),
                    trouble: Some(trouble),
                };
                self.turn(state, cause.as_ref());
            }
        }
    }

    async fn find(&self, pools: &Arc<Pools>) -> Found {
        if self.is_lost(pools).await {
            return Found::Refuses(Trouble::Lost, None);
        }
        if let Some(trouble) = self.link.take_refusal() {
            return Found::Refuses(trouble, None);
        }
        let link = &self.link;
        let counts = || [&link.answered, &link.written].map(|count| count.load(Ordering::Relaxed));
        let [answered, written] = counts();
        // The ping may get no connection because everybody is busy with theirs.
        if !pools.answers().await && counts()[0] == answered {
            return Found::Gone;
        }
        if counts()[1] != written {
            return Found::Good;
        }
        match probe::small(pools).await {
            Probed::Refused(trouble, cause) => Found::Refuses(trouble, Some(cause)),
            Probed::Slow if counts()[1] == written => Found::Refuses(Trouble::Slow, None),
            Probed::Written | Probed::Busy | Probed::Slow => Found::Good,
        }
    }

    /// Looks at one that takes no changes.
    async fn look_again(&mut self, pools: Arc<Pools>, trouble: Trouble) {
        if !pools.answers().await {
            self.turn(State::away(), None);
            tokio::spawn(pools.close());
            return;
        }
        let lost = self.is_lost(&pools).await;
        let server = matches!(self.options.place, Place::Server(_));
        let now = match trouble {
            _ if lost => Some(Trouble::Lost),
            // After a failover another server has the name.
            Trouble::ReadOnly if server => {
                let (old, state) = (pools.clone(), &self.state);
                let connecting =
                    timeout(PATIENCE, Box::pin(connect(&self.options, &self.clock))).await;
                if let Ok(Ok(fresh)) = connecting {
                    let fresh = Arc::new(fresh);
                    state.send_modify(|state| state.pools = Some(fresh.clone()));
                    tokio::spawn(old.close());
                    self.still_refuses(&fresh, trouble).await
                } else {
                    Some(trouble)
                }
            }
            _ => self.still_refuses(&pools, trouble).await,
        };
        if now != Some(trouble) {
            let pools = self.state.borrow().pools.clone();
            self.turn(
                State {
                    pools,
                    trouble: now,
                },
                None,
            );
        }
        if now.is_none() {
            self.healed = Some(Instant::now());
            // Of the time before.
            self.link.take_refusal();
        }
    }

    async fn still_refuses(&self, pools: &Arc<Pools>, trouble: Trouble) -> Option<Trouble> {
        match probe::large(pools, self.room).await {
            Probed::Written => None,
            Probed::Refused(trouble, _) => Some(trouble),
            Probed::Slow => Some(Trouble::Slow),
            Probed::Busy => Some(trouble),
        }
    }

    /// Off the runtime's threads: a disk that fails may let its callers wait.
    async fn is_lost(&self, pools: &Arc<Pools>) -> bool {
        if pools.files.is_none() {
            return false;
        }
        let pools = pools.clone();
        let looking = move || {
            pools
                .files
                .as_ref()
                .is_some_and(|files| files.missing().is_some())
        };
        let looking = tokio::task::spawn_blocking(looking);
        matches!(timeout(PATIENCE, looking).await, Ok(Ok(true)))
    }

    /// Says once what has changed.
    fn turn(&self, to: State, cause: Option<&DbErr>) {
        let changed = self.state.borrow().trouble != to.trouble;
        let file = match &self.options.place {
            Place::File(path) => Some(path.display()),
            Place::Server(_) => None,
        };
        let (file, cause) = (
            file.map(tracing::field::display),
            cause.map(tracing::field::display),
        );
        match to.trouble {
            _ if !changed => {}
            None => tracing::info!(file, "the database is up"),
            Some(Trouble::Away) => tracing::warn!(file, "the database is away"),
            Some(trouble) => tracing::error!(
                file,
                cause,
                advice = trouble.advice(),
                "{trouble}: it takes no changes; failed messages wait in their dead-letter queues, no retry is sent, the message log misses events"
            ),
        }
        self.state.send_replace(to);
    }
}
