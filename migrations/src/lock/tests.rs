//! The lock on real servers: SQLite needs none.

use super::*;

#[path = "../../tests/common/database.rs"]
mod database;

use database::{MARIADB, Own, POSTGRES};

#[tokio::test]
#[ignore = "needs the database servers: run make test"]
async fn is_held_by_one_at_a_time() {
    for server in [MARIADB, POSTGRES] {
        let own = Own::new(server).await;
        let (one, two) = (own.pool().await, own.pool().await);
        let lock = Lock::take(&one, Duration::ZERO).await.expect("free");
        lock.check().await.expect("held");
        let second = Lock::take(&two, Duration::ZERO).await;
        assert!(matches!(second, Err(Error::Locked(_))), "{server}");
        lock.release().await;
        // At once: it was freed before the session ended.
        Lock::take(&two, Duration::ZERO)
            .await
            .expect("free again")
            .release()
            .await;
        one.close().await.expect("close");
        two.close().await.expect("close");
        own.drop_it().await;
    }
}

#[tokio::test]
#[ignore = "needs the database servers: run make test"]
async fn belongs_to_one_database() {
    for server in [MARIADB, POSTGRES] {
        let (here, there) = (Own::new(server).await, Own::new(server).await);
        let (one, two) = (here.pool().await, there.pool().await);
        let first = Lock::take(&one, Duration::ZERO).await.expect("free");
        let second = Lock::take(&two, Duration::ZERO)
            .await
            .expect("not the same");
        first.release().await;
        second.release().await;
        one.close().await.expect("close");
        two.close().await.expect("close");
        here.drop_it().await;
        there.drop_it().await;
    }
}

#[tokio::test]
#[ignore = "needs the database servers: run make test"]
async fn is_free_when_its_holder_was_dropped() {
    for server in [MARIADB, POSTGRES] {
        let own = Own::new(server).await;
        let db = own.pool().await;
        drop(Lock::take(&db, Duration::ZERO).await.expect("free"));
        Lock::take(&db, Duration::from_secs(30))
            .await
            .expect("free again")
            .release()
            .await;
        db.close().await.expect("close");
        own.drop_it().await;
    }
}

#[tokio::test]
#[ignore = "needs the database servers: run make test"]
async fn is_noticed_when_lost_with_its_connection() {
    for (server, who, kill) in [
        (
            MARIADB,
            "SELECT CAST(CONNECTION_ID() AS CHAR) AS answer",
            "KILL CONNECTION",
        ),
        (
            POSTGRES,
            "SELECT pg_backend_pid()::text AS answer",
            "SELECT pg_terminate_backend",
        ),
    ] {
        let own = Own::new(server).await;
        let db = own.pool().await;
        let backend = db.get_database_backend();
        let lock = Lock::take(&db, Duration::ZERO).await.expect("free");
        let row = lock
            .connection()
            .query_one_raw(Statement::from_string(backend, who))
            .await
            .expect("ask");
        let id: String = row.expect("row").try_get("", "answer").expect("id");
        db.execute_unprepared(&format!("{kill} ({id})"))
            .await
            .expect("kill");
        // The first to notice may be the query itself; then the pool has a new connection, without the lock.
        assert!(
            matches!(lock.check().await, Err(Error::Lock(_) | Error::LockLost)),
            "{server}"
        );
        assert!(
            matches!(lock.check().await, Err(Error::LockLost)),
            "{server}"
        );
        lock.close().await;
        db.close().await.expect("close");
        own.drop_it().await;
    }
}
