//! A database of a test's own on a server, and pools to it.

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};

pub const MARIADB: &str = "COURTIER_TEST_MARIADB_URL";
pub const POSTGRES: &str = "COURTIER_TEST_POSTGRES_URL";

/// Gone with [`Own::drop_it`]; a test that fails leaves it to be looked at.
pub struct Own {
    server: String,
    name: String,
    url: String,
}

impl Own {
    /// On the server whose URL this environment variable has.
    pub async fn new(variable: &str) -> Self {
        let server = std::env::var(variable)
            .unwrap_or_else(|_| panic!("{variable} is not set: run make test"));
        let name = format!("courtier_{}", uuid::Uuid::new_v4().simple());
        let (address, query) = server.split_once('?').unwrap_or((&server, ""));
        let (address, _) = address.rsplit_once('/').expect("a URL with a database");
        let url = format!("{address}/{name}?{query}");
        let own = Self { url, name, server };
        own.on_server("CREATE").await;
        own
    }

    /// One more pool, as another replica has.
    pub async fn pool(&self) -> DatabaseConnection {
        let mut options = ConnectOptions::new(self.url.clone());
        options.max_connections(3).sqlx_logging(false);
        Database::connect(options).await.expect("connect")
    }

    pub async fn drop_it(self) {
        self.on_server("DROP").await;
    }

    async fn on_server(&self, verb: &str) {
        let server = Database::connect(self.server.clone())
            .await
            .expect("connect to the server");
        server
            .execute_unprepared(&format!("{verb} DATABASE {}", self.name))
            .await
            .expect("create or drop");
        server.close().await.expect("close");
    }
}
