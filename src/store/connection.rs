//! Connections to the database: which engine, and how it is set up.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::Utc;
use courtier_migrations as migrations;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, RuntimeErr,
    Statement,
    sqlx::{
        self, ConnectOptions as _, Connection, Executor, MySqlConnection, PgConnection,
        mysql::MySqlConnectOptions,
        postgres::PgConnectOptions,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

use super::{clock::Followed, files::Files, trouble::Trouble};
use crate::{
    failed_message::Time,
    url::{self, BadUrl},
};

/// Where the database is.
#[derive(Clone, Debug)]
pub enum Place {
    /// SQLite in this file.
    File(PathBuf),
    /// `mysql://…` or `postgres://…`, with credentials.
    Server(SecretString),
}

impl Place {
    /// Reads `sqlite:FILE`, `mysql://…`, `mariadb://…`, `postgres://…`, `postgresql://…` or `pgsql://…`, as it is used later: what is
    /// accepted here can be connected to.
    pub fn parse(text: &str) -> Result<Self, BadPlace> {
        let (scheme, rest) = text.split_once(':').unwrap_or_default();
        let scheme = match scheme {
            "sqlite" => {
                let file = rest.strip_prefix("//").unwrap_or(rest);
                return match file {
                    "" | ":memory:" => Err(BadPlace::InMemory),
                    file => Ok(Self::File(PathBuf::from(file))),
                };
            }
            "mysql" | "mariadb" => "mysql",
            "postgres" | "postgresql" | "pgsql" => "postgres",
            _ => return Err(BadPlace::Scheme),
        };
        let text = format!("{scheme}:{rest}");
        url::of_server(&text, "mysql:// or postgres://")?;
        ServerOptions::parse(&text).map_err(|_| BadPlace::Options)?;
        Ok(Self::Server(SecretString::from(text)))
    }
}

/// For people, without password.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Server(url) => match ServerOptions::parse(url.expose_secret()) {
                Ok(options) => write!(f, "{options}"),
                Err(_) => f.write_str("an unusable address"),
            },
        }
    }
}

/// Why a place cannot be a database. Nothing of it is told: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPlace {
    #[error("must begin with sqlite:, mysql:// or postgres://")]
    Scheme,
    #[error("must name a file: what is in memory would be lost")]
    InMemory,
    #[error(transparent)]
    Url(#[from] BadUrl),
    #[error(
        "has an option after its ? with a value that the database's driver does not know, or text that is not UTF-8"
    )]
    Options,
}

/// How the database is used.
#[derive(Clone, Debug)]
pub struct Options {
    pub place: Place,
    /// Connections at a time, of a server.
    pub max_connections: u32,
    /// Bring the schema up to date before using it.
    pub migrate: bool,
}

/// Why the database cannot be used, now and later.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot make the folder {0}")]
    Folder(PathBuf, #[source] std::io::Error),
    #[error(
        "another process uses {0}; each gateway needs a DATA_DIR of its own, or all one database server"
    )]
    InUse(PathBuf),
    #[error("cannot open {0}")]
    File(PathBuf, #[source] std::io::Error),
    #[error(
        "the schema of the database is newer than this version of courtier (it has {0}); run the version that made it, or a later one"
    )]
    Newer(String),
    #[error(
        "the schema of the database is not up to date; `courtier migrate up` changes it, or DB_MIGRATE=auto"
    )]
    Behind,
    #[error("the database at {0} cannot be used")]
    Database(Place, #[source] DbErr),
    #[error("the schema of the database cannot be brought up to date")]
    Migration(#[source] migrations::Error),
}

/// How long one question to the database may take, waiting for a connection included.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a free connection to a server, or for a new one.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a transaction may do nothing before the server ends it. Shorter than others wait for what it holds.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);
/// Connections to a SQLite file that read it.
const READERS: u32 = 4;
/// How long SQLite waits for its own lock.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A database that is there.
#[derive(Debug)]
pub(super) struct Pools {
    pub read: DatabaseConnection,
    /// SQLite allows one writer at a time: there it is a pool of one.
    pub write: DatabaseConnection,
    pub backend: DbBackend,
    /// How many bytes a statement may have, where the server limits it.
    pub statement_bytes: Option<u64>,
    /// Of a file; a server has its own.
    pub clock: Option<Arc<Followed>>,
    /// Of SQLite: the files that are open.
    pub files: Option<Files>,
}

impl OpenError {
    /// Whether waiting cannot help.
    pub(super) fn is_final(&self, place: &Place) -> bool {
        match self {
            Self::Newer(_) | Self::Behind | Self::Folder(..) | Self::InUse(_) | Self::File(..) => {
                true
            }
            // A disk may get room again: publishing and subscribing do not wait for that.
            Self::Database(..) | Self::Migration(_) => {
                matches!(place, Place::File(_)) && self.trouble().is_none()
            }
        }
    }
}

impl OpenError {
    /// What is wrong with the database as a whole, where its own words say it.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let error: &dyn std::error::Error = self;
        let causes = std::iter::successors(Some(error), |cause| cause.source());
        causes
            .filter_map(|cause| cause.downcast_ref::<DbErr>())
            .find_map(Trouble::of)
    }
}

pub(super) fn away(error: &OpenError) {
    if let Some(trouble) = error.trouble() {
        let advice = trouble.advice();
        tracing::warn!(%trouble, advice, "the database cannot be used; retrying");
    }
    let error: &dyn std::error::Error = error;
    let cause = std::iter::successors(error.source(), |cause| cause.source()).last();
    tracing::warn!(%error, cause = cause.map(tracing::field::display), "the database cannot be reached; retrying in the background");
}

impl Pools {
    pub(super) async fn answers(&self) -> bool {
        let ping = async { self.write.ping().await.is_ok() && self.read.ping().await.is_ok() };
        timeout(PING_TIMEOUT, ping).await.unwrap_or(false)
    }

    /// How many connections there are, and how many of them are idle.
    pub(super) fn connections(&self) -> (u64, u64) {
        fn of<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> (u64, u64) {
            let idle = u64::try_from(pool.num_idle()).unwrap_or(u64::MAX);
            (pool.size().into(), idle)
        }
        match self.backend {
            DbBackend::MySql => of(self.write.get_mysql_connection_pool()),
            DbBackend::Postgres => of(self.write.get_postgres_connection_pool()),
            // The reader's pool and the writer's.
            _ => {
                let [read, write] =
                    [&self.read, &self.write].map(|pool| of(pool.get_sqlite_connection_pool()));
                (read.0 + write.0, read.1 + write.1)
            }
        }
    }

    pub(super) async fn close(self: Arc<Self>) {
        let _ = timeout(PATIENCE, self.read.close_by_ref()).await;
        let _ = timeout(PATIENCE, self.write.close_by_ref()).await;
    }
}

/// A second process on the same file would be a second writer, which nothing here reckons with.
pub(super) fn lock(place: &Place) -> Result<Option<File>, OpenError> {
    let Place::File(path) = place else {
        return Ok(None);
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| OpenError::Folder(folder.to_owned(), error))?;
    let lock_path = path.with_extension("lock");
    let lock =
        File::create(&lock_path).map_err(|error| OpenError::File(lock_path.clone(), error))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.clone())),
        Err(TryLockError::Error(error)) => Err(OpenError::File(lock_path, error)),
    }
}

pub(super) async fn connect(options: &Options, clock: &Arc<Followed>) -> Result<Pools, OpenError> {
    let mut pools = open(options).await?;
    let status = migrations::status(&pools.write).await;
    let status = status.map_err(OpenError::Migration)?;
    if !status.unknown.is_empty() {
        return Err(OpenError::Newer(status.unknown.join(", ")));
    }
    if !status.pending().is_empty() {
        if !options.migrate {
            return Err(OpenError::Behind);
        }
        let applied = migrations::up(&pools.write).await;
        let applied = applied.map_err(OpenError::Migration)?;
        tracing::info!(?applied, "brought the database's schema up to date");
    }
    if let Place::File(_) = &options.place {
        pools.clock = Some(clock.clone());
        let corrected = clock.correct_the_future(&pools.write).await;
        corrected.map_err(|error| OpenError::Database(options.place.clone(), error))?;
    }
    Ok(pools)
}

/// Opens the database as it is, whatever its schema, for a process that does nothing else.
pub(super) async fn open_alone(options: &Options) -> Result<(Pools, Option<File>), OpenError> {
    let lock = lock(&options.place)?;
    let pools = open(options).await?;
    Ok((pools, lock))
}

async fn open(options: &Options) -> Result<Pools, OpenError> {
    let opened = match &options.place {
        Place::File(path) => open_file(path).await,
        Place::Server(url) => open_server(url.expose_secret(), options.max_connections).await,
    };
    opened.map_err(|error| OpenError::Database(options.place.clone(), error))
}

async fn open_file(path: &Path) -> Result<Pools, DbErr> {
    let url = format!("sqlite:{}", path.display());
    let mut options = ConnectOptions::new(url);
    common(&mut options);
    // All for as long as the process runs: the last connection that closes takes the file's log away with it, and one that opens
    // later opens what stands in the file's place by then.
    options.max_lifetime(None).idle_timeout(None);
    let file = path.to_owned();
    let mut writer = options.clone();
    let made = file.clone();
    writer.map_sqlx_sqlite_opts(move |options| sqlite(options, &made).create_if_missing(true));
    writer.max_connections(1);
    // All writers of this process wait for this one; that takes as long as it takes.
    writer.acquire_timeout(PATIENCE);
    // The writer first: it makes the file.
    let write = Database::connect(writer).await?;
    options
        .min_connections(READERS)
        .max_connections(READERS)
        // It is there. Should it be gone, an empty one is not to take its place.
        .map_sqlx_sqlite_opts(move |options| sqlite(options, &file).create_if_missing(false));
    let read = Database::connect(options).await?;
    Ok(Pools {
        read,
        write,
        backend: DbBackend::Sqlite,
        statement_bytes: None,
        clock: None,
        files: Some(Files::of(path)),
    })
}

fn sqlite(options: SqliteConnectOptions, file: &Path) -> SqliteConnectOptions {
    options
        // Not from the URL: there a `?` or `%` in the path would mean something.
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        // A commit survives a loss of power too: a dead letter is acked after it.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(SQLITE_BUSY_TIMEOUT)
}

async fn open_server(url: &str, max_connections: u32) -> Result<Pools, DbErr> {
    // Once without a pool: that says only that it waited in vain.
    let server = ServerOptions::parse(url)?;
    let first = timeout(CONNECT_TIMEOUT, server.try_out()).await;
    first.unwrap_or_else(|_| {
        let silent = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
        Err(driver_error(silent.into()))
    })?;
    let mut options = ConnectOptions::new(url);
    common(&mut options);
    options
        .max_connections(max_connections)
        .idle_timeout(Duration::from_secs(60))
        .map_sqlx_postgres_pool_opts(|pool| {
            pool.after_connect(|connection, _| Box::pin(bound_postgres(connection)))
        })
        .map_sqlx_mysql_pool_opts(|pool| {
            pool.after_connect(|connection, _| Box::pin(bound_mysql(connection)))
        });
    let pool = Database::connect(options).await?;
    let backend = pool.get_database_backend();
    let statement_bytes = match backend {
        DbBackend::MySql => Some(max_allowed_packet(&pool).await?),
        _ => None,
    };
    Ok(Pools {
        backend,
        statement_bytes,
        clock: None,
        files: None,
        read: pool.clone(),
        write: pool,
    })
}

/// What the driver makes of a URL.
enum ServerOptions {
    MySql(Box<MySqlConnectOptions>),
    Postgres(Box<PgConnectOptions>),
}

impl ServerOptions {
    fn parse(url: &str) -> Result<Self, DbErr> {
        let options = match url.starts_with("mysql:") {
            true => url.parse().map(|options| Self::MySql(Box::new(options))),
            false => url.parse().map(|options| Self::Postgres(Box::new(options))),
        };
        // The driver's own words may hold the URL.
        options.map_err(|_: sqlx::Error| DbErr::Custom(BadPlace::Options.to_string()))
    }

    /// Connects once, and leaves.
    async fn try_out(&self) -> Result<(), DbErr> {
        let tried = match self {
            Self::MySql(options) => match options.connect().await {
                Ok(connection) => connection.close().await,
                Err(error) => Err(error),
            },
            Self::Postgres(options) => match options.connect().await {
                Ok(connection) => connection.close().await,
                Err(error) => Err(error),
            },
        };
        tried.map_err(driver_error)
    }
}

impl fmt::Display for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (socket, host, port) = match self {
            Self::MySql(options) => (options.get_socket(), options.get_host(), options.get_port()),
            Self::Postgres(options) => {
                (options.get_socket(), options.get_host(), options.get_port())
            }
        };
        match socket {
            Some(socket) => write!(f, "{}", socket.display()),
            None => write!(f, "{host}:{port}"),
        }
    }
}

fn driver_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)))
}

/// Lets the server end a transaction in which nothing happens: its process hangs, or its machine is gone, and others wait for
/// its rows.
async fn bound_postgres(connection: &mut PgConnection) -> sqlx::Result<()> {
    let bound = format!(
        "SET idle_in_transaction_session_timeout = {}",
        IDLE_IN_TRANSACTION.as_millis()
    );
    connection.execute(sqlx::AssertSqlSafe(bound)).await?;
    Ok(())
}

/// The same for MariaDB. MySQL has nothing like it, and says so.
async fn bound_mysql(connection: &mut MySqlConnection) -> sqlx::Result<()> {
    let bound = format!(
        "SET SESSION idle_transaction_timeout = {}",
        IDLE_IN_TRANSACTION.as_secs()
    );
    match connection.execute(sqlx::AssertSqlSafe(bound)).await {
        Ok(_) | Err(sqlx::Error::Database(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn common(options: &mut ConnectOptions) {
    options
        .min_connections(1)
        .connect_timeout(CONNECT_TIMEOUT)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // Statements hold what clients sent.
        .sqlx_logging(false);
}

/// A larger statement would end the connection, which is no answer.
async fn max_allowed_packet(pool: &DatabaseConnection) -> Result<u64, DbErr> {
    let question = "SELECT CAST(@@max_allowed_packet AS UNSIGNED) AS bytes";
    let row = pool
        .query_one_raw(Statement::from_string(DbBackend::MySql, question))
        .await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("max_allowed_packet".to_owned()))?;
    row.try_get("", "bytes")
}

impl Pools {
    /// The database's clock, on the connection that is used.
    pub(super) async fn now(&self, db: &impl ConnectionTrait) -> Result<Time, DbErr> {
        let question = match self.backend {
            DbBackend::Postgres => "SELECT clock_timestamp() AS now",
            DbBackend::MySql => "SELECT UTC_TIMESTAMP(6) AS now",
            // The file is on this machine, and no other process uses it: its clock is ours.
            _ => {
                let clock = self.clock.as_ref();
                return Ok(clock.map_or_else(Utc::now, |clock| clock.shown()));
            }
        };
        let row = db
            .query_one_raw(Statement::from_string(self.backend, question))
            .await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("now".to_owned()))?;
        row.try_get("", "now")
    }
}
