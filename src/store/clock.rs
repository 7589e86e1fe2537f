//! The clock of a SQLite file: this machine's, whose steps are noticed and made good.
//!
//! The file's times are wall-clock times, and the wall clock may be set: by a person, or by NTP after a wrong start. The uptime never is,
//! so a wall clock that runs away from it was set. Then everything that is planned moves along: a retry that was due in five minutes stays
//! due in five minutes, and so it is with leases and quiet periods. What is past stays as it was noted. Rows that an earlier process wrote
//! stay as they are, because its clock was perhaps right; but a row of the future was written by a wrong clock, and waits from now on.
//!
//! A database server's clock is its own: all replicas go by it, and none can tell whether it was set.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{SubsecRound, TimeDelta, Utc};
use rustix::time::{ClockId, clock_gettime};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, SqliteTransactionMode, Statement,
    TransactionOptions, TransactionTrait, Value,
};

use crate::failed_message::Time;

/// Steps below are followed without a word: NTP makes many, and nothing is planned so exactly.
const SMALLEST_STEP: TimeDelta = TimeDelta::seconds(2);

/// Where the time is from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Reading + Send + Sync>);

/// What a clock shows.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub wall: Time,
    /// Counts on while the machine sleeps, and is never set.
    pub uptime: Duration,
}

impl Clock {
    /// Another clock than the machine's.
    pub fn new(read: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(|| Reading {
            wall: Utc::now().trunc_subsecs(6),
            uptime: uptime(),
        })
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

fn uptime() -> Duration {
    #[cfg(target_os = "linux")]
    let id = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let id = ClockId::Monotonic;
    let now = clock_gettime(id);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

/// A clock that is followed from one look to the next.
#[derive(Debug)]
pub(super) struct Followed {
    clock: Clock,
    seen: Mutex<Seen>,
    correcting: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    last: Reading,
    /// When this process began to write, by the clock as it is now.
    began: Time,
}

/// The clock was set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    by: TimeDelta,
    /// What it would show.
    expected: Time,
    began: Time,
    reading: Reading,
}

impl Followed {
    pub(super) fn new(clock: Clock) -> Self {
        let last = (clock.0)();
        let seen = Seen {
            last,
            began: last.wall,
        };
        Self {
            clock,
            seen: Mutex::new(seen),
            correcting: tokio::sync::Mutex::default(),
        }
    }

    /// The time, unless it was set since the last look: then first the file must be [corrected](Self::correct).
    pub(super) fn now(&self) -> Result<Time, Step> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = (self.clock.0)();
        let passed = reading.uptime.saturating_sub(seen.last.uptime);
        let expected = seen.last.wall + TimeDelta::from_std(passed).unwrap_or_default();
        let by = reading.wall - expected;
        if by.abs() < SMALLEST_STEP {
            seen.last = reading;
            return Ok(reading.wall);
        }
        Err(Step {
            by,
            expected,
            began: seen.began,
            reading,
        })
    }

    /// The time, whether or not it was set.
    pub(super) fn shown(&self) -> Time {
        (self.clock.0)().wall
    }

    /// Moves what is planned along with a clock that was set.
    pub(super) async fn correct(&self, database: &DatabaseConnection) -> Result<(), DbErr> {
        let _correcting = self.correcting.lock().await;
        // Somebody else may have done it meanwhile.
        let Err(step) = self.now() else {
            return Ok(());
        };
        let seconds = (step.by.num_milliseconds() + 500).div_euclid(1_000);
        let written = "written BETWEEN ? AND ? OR written > ?";
        let bounds = [
            step.began - SMALLEST_STEP,
            step.expected + SMALLEST_STEP,
            step.reading.wall,
        ];
        let moved = shift(database, &seconds.to_string(), written, &bounds).await?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Seen {
            last: step.reading,
            began: step.began + TimeDelta::seconds(seconds),
        };
        tracing::warn!(
            seconds,
            moved,
            "the machine's clock was set; retries, leases and quiet periods move along: keep it right by NTP"
        );
        Ok(())
    }

    /// Rows of the future are of a clock that was set back while no gateway ran: they wait from now on.
    pub(super) async fn correct_the_future(
        &self,
        database: &DatabaseConnection,
    ) -> Result<(), DbErr> {
        let now = self.shown();
        let seconds = format!(
            "(strftime('%s', '{}') - strftime('%s', substr(written, 1, 19)))",
            now.format("%Y-%m-%dT%H:%M:%S")
        );
        let moved = shift(database, &seconds, "written > ?", &[now + SMALLEST_STEP]).await?;
        if moved > 0 {
            tracing::warn!(
                moved,
                "rows were written by a clock that was ahead of this one; what they plan waits from now on"
            );
        }
        Ok(())
    }
}

/// The tables that plan something: when a row was written, and what it plans.
const PLANS: [(&str, &str, &[&str]); 3] = [
    (
        "failed_messages",
        "updated_at",
        &["next_retry_at", "lease_until", "assume_at"],
    ),
    ("retry_operations", "updated_at", &["lease_until"]),
    // Watchers look for deletions by their time.
    ("failed_message_deletions", "deleted_at", &[]),
];

/// Moves what rows plan, and when they were written, by so many seconds: a number, or SQL. `which` and `seconds` name the column `written`.
async fn shift(
    database: &DatabaseConnection,
    seconds: &str,
    which: &str,
    bounds: &[Time],
) -> Result<u64, DbErr> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let tx = database.begin_with_options(options).await?;
    let mut moved = 0;
    for (table, written, plans) in PLANS {
        let (seconds, which) = (
            seconds.replace("written", written),
            which.replace("written", written),
        );
        // Times are text, `2026-01-31T12:00:00.123456+00:00`: what follows the seconds stays. NULL stays NULL.
        let column = |name: &&str| {
            format!(
                "{name} = strftime('%Y-%m-%dT%H:%M:%S', substr({name}, 1, 19), {seconds} || ' seconds') || substr({name}, 20)"
            )
        };
        let columns: Vec<_> = plans.iter().chain([&written]).map(column).collect();
        let update = format!("UPDATE {table} SET {} WHERE {which}", columns.join(", "));
        let bounds = bounds.iter().map(|at| Value::from(*at));
        let update = Statement::from_sql_and_values(DbBackend::Sqlite, update, bounds);
        moved += tx.execute_raw(update).await?.rows_affected();
    }
    tx.commit().await?;
    Ok(moved)
}
