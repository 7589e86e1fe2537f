//! The migrations on MariaDB and PostgreSQL.

mod common;

use std::time::Duration;

use common::database::{MARIADB, Own, POSTGRES};
use common::{TABLES, check_newer_is_refused, check_schema, check_values, names, texts};
use courtier_migrations::{status, up};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};

/// Writes each test once and runs it on both.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs the database servers: run make test"]
            async fn $test() {
                super::$test(super::Own::new(super::MARIADB).await).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs the database servers: run make test"]
            async fn $test() {
                super::$test(super::Own::new(super::POSTGRES).await).await;
            })+
        }
    };
}

on_both!(
    replicas_that_start_together_apply_each_once,
    a_half_done_migration_is_finished,
    one_that_is_given_up_is_taken_over,
    a_newer_database_is_refused,
    values_come_back_as_they_were,
);

async fn replicas_that_start_together_apply_each_once(own: Own) {
    let mut pools = Vec::new();
    for _ in 0..4 {
        pools.push(own.pool().await);
    }
    let runs: Vec<_> = pools
        .iter()
        .cloned()
        .map(|db| tokio::spawn(async move { up(&db).await.expect("up") }))
        .collect();
    let mut applied = Vec::new();
    for run in runs {
        applied.extend(run.await.expect("no panic"));
    }
    applied.sort();
    assert_eq!(applied, names());
    check_schema(&pools[0]).await;
    assert!(
        status(&pools[3])
            .await
            .expect("status")
            .pending()
            .is_empty()
    );
    for db in pools {
        assert_eq!(up(&db).await.expect("again"), Vec::<String>::new());
        db.close().await.expect("close");
    }
    own.drop_it().await;
}

/// What a process leaves that dies within a migration on MySQL, at each place: some tables, of the last one only
/// some indexes, and no record.
async fn a_half_done_migration_is_finished(own: Own) {
    let db = own.pool().await;
    up(&db).await.expect("up");
    let indexes: Vec<_> = TABLES
        .iter()
        .flat_map(|table| table.indexes.iter().map(|index| (table.name, *index)))
        .collect();
    for (table, index) in indexes {
        drop_index(&db, table, index).await;
        forget_all(&db).await;
        assert_eq!(
            up(&db).await.expect("up"),
            names(),
            "without {index} of {table}"
        );
        check_schema(&db).await;
    }
    for table in TABLES {
        db.execute_unprepared(&format!("DROP TABLE {}", table.name))
            .await
            .expect("drop");
        forget_all(&db).await;
        assert_eq!(
            up(&db).await.expect("up"),
            names(),
            "without {}",
            table.name
        );
        check_schema(&db).await;
    }
    db.close().await.expect("close");
    own.drop_it().await;
}

async fn drop_index(db: &DatabaseConnection, table: &str, index: &str) {
    let (kind, columns) = index
        .strip_prefix("! ")
        .map_or(("idx", index), |columns| ("uq", columns));
    let name = format!("{kind}_{table}_{}", columns.replace(' ', "_"));
    let sql = match db.get_database_backend() {
        sea_orm::DbBackend::Postgres => format!("DROP INDEX {name}"),
        _ => format!("DROP INDEX {name} ON {table}"),
    };
    db.execute_unprepared(&sql).await.expect("drop");
}

async fn forget_all(db: &DatabaseConnection) {
    db.execute_unprepared("DELETE FROM courtier_migrations")
        .await
        .expect("delete");
}

/// Dropped at ever later places; the next one gets the lock and goes on from there.
async fn one_that_is_given_up_is_taken_over(own: Own) {
    let db = own.pool().await;
    let mut given_up_half_way = false;
    for steps in 1.. {
        let mut run = Box::pin(up(&db));
        let mut applied = None;
        for _ in 0..steps {
            if let Ok(result) = tokio::time::timeout(Duration::from_millis(1), &mut run).await {
                applied = Some(result.expect("up"));
                break;
            }
        }
        drop(run);
        if applied.is_some() {
            break;
        }
        given_up_half_way |= !common::tables(&db).await.is_empty();
    }
    assert!(
        given_up_half_way,
        "at least one was dropped after it had begun"
    );
    check_schema(&db).await;
    assert_eq!(up(&db).await.expect("up"), Vec::<String>::new());
    db.close().await.expect("close");
    own.drop_it().await;
}

async fn a_newer_database_is_refused(own: Own) {
    let db = own.pool().await;
    check_newer_is_refused(&db).await;
    db.close().await.expect("close");
    own.drop_it().await;
}

async fn values_come_back_as_they_were(own: Own) {
    let db = own.pool().await;
    check_values(&db).await;
    db.close().await.expect("close");
    own.drop_it().await;
}

/// Parameters have the type `text` there, which an index over char(n) does not serve.
#[tokio::test]
#[ignore = "needs the database servers: run make test"]
async fn postgres_finds_ids_by_index() {
    let own = Own::new(POSTGRES).await;
    let db = own.pool().await;
    up(&db).await.expect("up");
    for (table, column) in [
        ("failed_messages", "id"),
        ("failed_messages", "fingerprint"),
        ("failed_messages", "operation_id"),
        ("failed_message_groups", "fingerprint"),
        ("failed_message_attempts", "failed_message_id"),
        ("failed_message_deletions", "id"),
        ("retry_operations", "id"),
    ] {
        let explain = format!("EXPLAIN SELECT 1 FROM {table} WHERE {column} = $1");
        let transaction = sea_orm::TransactionTrait::begin(&db).await.expect("begin");
        // With no rows it reads the table rather than the index, where it may.
        transaction
            .execute_unprepared("SET LOCAL enable_seqscan = off")
            .await
            .expect("set");
        let statement =
            Statement::from_sql_and_values(db.get_database_backend(), explain, ["x".into()]);
        let rows = transaction.query_all_raw(statement).await.expect("explain");
        let plan: Vec<String> = rows
            .iter()
            .map(|row| row.try_get_by_index(0).expect("text"))
            .collect();
        assert!(
            plan.iter().any(|line| line.contains("Index Cond")),
            "{table}.{column}: {plan:#?}"
        );
    }
    db.close().await.expect("close");
    own.drop_it().await;
}

/// Sorted by bytes, whatever language the database sorts by: pages are cut by comparing names.
#[tokio::test]
#[ignore = "needs the database servers: run make test"]
async fn postgres_sorts_names_by_bytes() {
    let own = Own::new(POSTGRES).await;
    let db = own.pool().await;
    up(&db).await.expect("up");
    let other = texts(
        &db,
        "SELECT table_name || '.' || column_name AS answer FROM information_schema.columns \
         WHERE table_schema = current_schema() AND table_name <> 'courtier_migrations' \
         AND data_type IN ('text', 'character', 'character varying') AND collation_name IS DISTINCT FROM 'C'"
            .to_owned(),
    )
    .await;
    assert_eq!(other, Vec::<String>::new());
    db.close().await.expect("close");
    own.drop_it().await;
}
