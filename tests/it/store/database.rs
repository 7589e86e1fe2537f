//! A database of a test's own on each engine, stores on it, and a look past them at what they wrote.

use std::{path::PathBuf, time::Duration};

use courtier::store::{OpenError, Options, Place, Store};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, QueryResult,
    Statement,
};
use tempfile::TempDir;

/// Makes a test of each case for each engine.
macro_rules! on_each {
    ($($case:ident)+) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let own = $crate::store::database::Own::file();
                Box::pin(super::$case(&own)).await;
                own.drop_it().await;
            })+
        }
        $crate::store::database::on_servers! { $($case)+ }
    };
}
pub(crate) use on_each;

/// Makes a test of each case for the engines that several replicas may use.
macro_rules! on_servers {
    ($($case:ident)+) => {
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs the database servers: run make test"]
            async fn $case() {
                let own = $crate::store::database::Own::on("COURTIER_TEST_MARIADB_URL").await;
                Box::pin(super::$case(&own)).await;
                own.drop_it().await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs the database servers: run make test"]
            async fn $case() {
                let own = $crate::store::database::Own::on("COURTIER_TEST_POSTGRES_URL").await;
                Box::pin(super::$case(&own)).await;
                own.drop_it().await;
            })+
        }
    };
}
pub(crate) use on_servers;

/// A database of a test's own. On a server it is gone with [`Own::drop_it`]; a test that fails leaves it to be looked at.
pub enum Own {
    File {
        folder: TempDir,
    },
    Server {
        /// Where databases are made and dropped.
        server: String,
        name: String,
        url: String,
    },
}

impl Own {
    /// A SQLite file.
    pub fn file() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::File { folder }
    }

    /// On the server whose URL this environment variable has.
    pub async fn on(variable: &str) -> Self {
        let server = std::env::var(variable);
        Self::at(server.unwrap_or_else(|_| panic!("{variable} is not set: run make test"))).await
    }

    /// On the server with this URL.
    pub async fn at(server: String) -> Self {
        let name = format!("courtier_{}", uuid::Uuid::new_v4().simple());
        let (address, query) = server.split_once('?').unwrap_or((&server, ""));
        let (address, _) = address.rsplit_once('/').expect("a URL with a database");
        let url = format!("{address}/{name}?{query}");
        on_server(&server, &format!("CREATE DATABASE {name}")).await;
        Self::Server { server, name, url }
    }

    pub fn path(&self) -> PathBuf {
        match self {
            Self::File { folder } => folder.path().join("courtier.sqlite"),
            Self::Server { .. } => panic!("not a file"),
        }
    }

    /// Of one on a server.
    pub fn url(&self) -> &str {
        match self {
            Self::File { .. } => panic!("not on a server"),
            Self::Server { url, .. } => url,
        }
    }

    pub fn options(&self) -> Options {
        let place = match self {
            Self::File { .. } => Place::File(self.path()),
            Self::Server { url, .. } => Place::Server(url.clone().into()),
        };
        Options {
            place,
            max_connections: 10,
            migrate: true,
        }
    }

    /// A store on it, as each replica has one.
    pub async fn store(&self) -> Store {
        self.open().await.expect("open the store")
    }

    pub async fn open(&self) -> Result<Store, OpenError> {
        Store::open(self.options(), Duration::from_secs(30)).await
    }

    /// Past the store.
    pub async fn raw(&self) -> Raw {
        let url = match self {
            Self::File { .. } => format!("sqlite:{}", self.path().display()),
            Self::Server { url, .. } => url.clone(),
        };
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false);
        Raw(Database::connect(options).await.expect("connect"))
    }

    pub async fn drop_it(self) {
        if let Self::Server { server, name, url } = self {
            // What a closed store's connections do there may not have ended.
            let force = if url.starts_with("postgres") {
                " WITH (FORCE)"
            } else {
                ""
            };
            on_server(&server, &format!("DROP DATABASE {name}{force}")).await;
        }
    }
}

async fn on_server(url: &str, statement: &str) {
    let server = Database::connect(url).await.expect("connect to the server");
    server
        .execute_unprepared(statement)
        .await
        .expect("create or drop");
    server.close().await.expect("close");
}

/// A connection of the test's own.
pub struct Raw(DatabaseConnection);

impl Raw {
    pub fn backend(&self) -> DbBackend {
        self.0.get_database_backend()
    }

    pub async fn run(&self, sql: &str) {
        self.0.execute_unprepared(sql).await.expect("a statement");
    }

    pub async fn rows(&self, sql: &str) -> Vec<QueryResult> {
        let question = Statement::from_string(self.backend(), sql);
        self.0.query_all_raw(question).await.expect("a question")
    }

    /// The one number that a question is answered with.
    pub async fn number(&self, sql: &str) -> i64 {
        let rows = self.rows(sql).await;
        rows[0].try_get_by_index(0).expect("a number")
    }
}

/// A statement that copies those rows under new ids, each a microsecond after its original.
pub fn doubling(backend: DbBackend, which: &str) -> String {
    let columns = "queue, exchange, routing_key, message_id, properties, payload, error_type, error_message, \
                   error_stack, reason, fingerprint, status, last_failed_at, next_retry_at, created_at, updated_at";
    let (id, failed_at) = match backend {
        DbBackend::Sqlite => (
            "lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-' || hex(randomblob(2)) \
             || '-' || hex(randomblob(2)) || '-' || hex(randomblob(6)))",
            "failed_at",
        ),
        DbBackend::MySql => ("UUID()", "failed_at + INTERVAL 1 MICROSECOND"),
        _ => (
            "gen_random_uuid()::text",
            "failed_at + INTERVAL '1 microsecond'",
        ),
    };
    format!(
        "INSERT INTO failed_messages (id, failed_at, {columns}) \
         SELECT {id}, {failed_at}, {columns} FROM failed_messages WHERE {which}"
    )
}
