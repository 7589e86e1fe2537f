//! What must hold after the migrations, on any engine.
//!
//! The tables are written down here a second time, so that a migration that is changed after it was released fails.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod database;

use courtier_migrations::{Error, status, up};
use sea_orm::prelude::DateTimeUtc;
use sea_orm::sea_query::{Alias, Expr, ExprTrait, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement, Value};

pub fn names() -> Vec<String> {
    [
        "m20261122_000001_failed_messages",
        "m20261122_000002_retry_operations",
        "m20261122_000003_dead_letter_queues",
        "m20261122_000004_message_logs",
        "m20261125_000005_write_probe",
        "m20261126_000006_message_log_correlation_id",
        "m20261126_000007_message_log_by_correlation_id",
    ]
    .map(str::to_owned)
    .to_vec()
}

pub struct Table {
    pub name: &'static str,
    /// A `?` behind the name: may be NULL.
    pub columns: &'static str,
    /// With their columns; the unique ones begin with `!`.
    pub indexes: &'static [&'static str],
}

pub const TABLES: &[Table] = &[
    Table {
        name: "dead_letter_queues",
        columns: "queue created_at",
        indexes: &[],
    },
    Table {
        name: "failed_message_attempts",
        columns: "failed_message_id attempt manual started_at? ended_at? outcome? error_type? error_message?",
        indexes: &[],
    },
    Table {
        name: "failed_message_deletions",
        columns: "id deleted_at",
        indexes: &["deleted_at"],
    },
    Table {
        name: "failed_message_groups",
        columns: "fingerprint queue error_type error_message pending retrying failed resolved first_seen last_seen",
        indexes: &["last_seen fingerprint", "queue last_seen fingerprint"],
    },
    Table {
        name: "failed_messages",
        columns: "id death_key? queue exchange routing_key message_id? publish_id? properties payload error_type \
                  error_message error_stack reason fingerprint attempt retry_count max_retries status manual \
                  resolution? comment? failed_at last_failed_at last_retry_at? next_retry_at? resolved_at? \
                  lease_token? lease_until? lease_status? assume_at? operation_id? created_at updated_at",
        indexes: &[
            "! death_key",
            "failed_at id",
            "queue failed_at id",
            "status failed_at id",
            "queue status failed_at id",
            "fingerprint failed_at id",
            "message_id",
            "status queue manual next_retry_at",
            "status lease_until",
            "status assume_at",
            "operation_id status",
            "updated_at id",
        ],
    },
    Table {
        name: "message_log_events",
        columns: "id message_id event at queue? attempt? detail?",
        indexes: &["message_id id", "at"],
    },
    Table {
        name: "message_logs",
        columns: "id message_id publish_id? exchange routing_key payload? payload_size metadata status published_at \
                  delivered_at? failed_at? created_at updated_at correlation_id?",
        indexes: &[
            "! message_id",
            "correlation_id published_at id",
            "published_at id",
            "exchange published_at id",
            "status published_at id",
        ],
    },
    Table {
        name: "retry_operations",
        columns: "id filter state stop_reason? rate row_limit? matched started succeeded failed_again skipped cursor_failed_at? cursor_id? \
                  lease_until? created_at updated_at ended_at?",
        indexes: &[],
    },
    Table {
        name: "write_probe",
        columns: "id written_at filler",
        indexes: &[],
    },
];

/// Rows of one text column named `answer`.
pub async fn texts(db: &DatabaseConnection, sql: String) -> Vec<String> {
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let rows = db.query_all_raw(statement).await.expect("query");
    rows.iter()
        .map(|row| row.try_get("", "answer").expect("text"))
        .collect()
}

/// The names of all tables, in order.
pub async fn tables(db: &DatabaseConnection) -> Vec<String> {
    let sql = match db.get_database_backend() {
        DbBackend::Sqlite => {
            "SELECT name AS answer FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        }
        DbBackend::Postgres => {
            "SELECT tablename::text AS answer FROM pg_tables WHERE schemaname = current_schema()"
        }
        _ => {
            "SELECT CAST(table_name AS CHAR) AS answer FROM information_schema.tables WHERE table_schema = DATABASE()"
        }
    };
    let mut tables = texts(db, sql.to_owned()).await;
    tables.sort();
    tables
}

/// Every table with every column, whether it may be NULL, and every index with its columns in their order.
pub async fn check_schema(db: &DatabaseConnection) {
    let mut expected: Vec<_> = TABLES.iter().map(|table| table.name).collect();
    expected.push("courtier_migrations");
    expected.sort_unstable();
    assert_eq!(tables(db).await, expected);
    for table in TABLES {
        let name = table.name;
        let columns: Vec<_> = table.columns.split_whitespace().collect();
        assert_eq!(columns_of(db, name).await, columns, "columns of {name}");
        let mut indexes: Vec<_> = table
            .indexes
            .iter()
            .map(|index| (*index).to_owned())
            .collect();
        indexes.sort();
        assert_eq!(indexes_of(db, name).await, indexes, "indexes of {name}");
    }
}

async fn columns_of(db: &DatabaseConnection, table: &str) -> Vec<String> {
    let sql = match db.get_database_backend() {
        DbBackend::Sqlite => {
            format!(
                "SELECT name || CASE WHEN \"notnull\" THEN '' ELSE '?' END AS answer FROM pragma_table_info('{table}') ORDER BY cid"
            )
        }
        DbBackend::Postgres => format!(
            "SELECT column_name || CASE is_nullable WHEN 'NO' THEN '' ELSE '?' END AS answer \
             FROM information_schema.columns \
             WHERE table_schema = current_schema() AND table_name = '{table}' ORDER BY ordinal_position"
        ),
        _ => format!(
            "SELECT CAST(CONCAT(column_name, IF(is_nullable = 'NO', '', '?')) AS CHAR) AS answer \
             FROM information_schema.columns \
             WHERE table_schema = DATABASE() AND table_name = '{table}' ORDER BY ordinal_position"
        ),
    };
    texts(db, sql).await
}

/// Without the primary key's.
async fn indexes_of(db: &DatabaseConnection, table: &str) -> Vec<String> {
    let sql = match db.get_database_backend() {
        DbBackend::Sqlite => format!(
            "SELECT CASE WHEN l.\"unique\" THEN '! ' ELSE '' END || \
               (SELECT group_concat(name, ' ') FROM (SELECT name FROM pragma_index_info(l.name) ORDER BY seqno)) \
               AS answer \
             FROM pragma_index_list('{table}') l WHERE l.origin = 'c'"
        ),
        DbBackend::Postgres => format!(
            "SELECT CASE WHEN i.indisunique THEN '! ' ELSE '' END || \
               (SELECT string_agg(a.attname, ' ' ORDER BY k.n) FROM unnest(i.indkey::int[]) WITH ORDINALITY k(col, n) \
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.col) AS answer \
             FROM pg_index i WHERE i.indrelid = '{table}'::regclass AND NOT i.indisprimary AND i.indisvalid"
        ),
        _ => format!(
            "SELECT CAST(CONCAT(IF(non_unique, '', '! '), \
               GROUP_CONCAT(column_name ORDER BY seq_in_index SEPARATOR ' ')) AS CHAR) AS answer \
             FROM information_schema.statistics \
             WHERE table_schema = DATABASE() AND table_name = '{table}' AND index_name <> 'PRIMARY' \
             GROUP BY index_name, non_unique"
        ),
    };
    let mut indexes = texts(db, sql).await;
    indexes.sort();
    indexes
}

/// A database that a later version migrated: nothing is done to it.
pub async fn check_newer_is_refused(db: &DatabaseConnection) {
    up(db).await.expect("up");
    let newer = "m20990101_000001_later";
    let insert =
        format!("INSERT INTO courtier_migrations (version, applied_at) VALUES ('{newer}', 1)");
    db.execute_unprepared(&insert).await.expect("insert");
    // Also where something of this version is missing.
    let forget = "DELETE FROM courtier_migrations WHERE version = 'm20261122_000004_message_logs'";
    db.execute_unprepared(forget).await.expect("delete");
    db.execute_unprepared("DROP TABLE message_logs")
        .await
        .expect("drop");

    let status = status(db).await.expect("status");
    assert_eq!(status.unknown, [newer]);
    assert!(matches!(status.refuse_newer(), Err(Error::Newer(unknown)) if unknown == [newer]));
    assert!(matches!(up(db).await, Err(Error::Newer(unknown)) if unknown == [newer]));
    assert!(
        !tables(db).await.contains(&"message_logs".to_owned()),
        "nothing was applied"
    );
}

/// The types hold what the application writes: bytes of any size, microseconds, names that differ in case or in a
/// space at the end, ids that the database counts up.
pub async fn check_values(db: &DatabaseConnection) {
    up(db).await.expect("up");
    // After 2038, and with a fraction that three digits cannot hold.
    let at: DateTimeUtc = "2040-02-29T23:59:59.123456Z".parse().expect("time");
    let bound = moment(db, at);
    let payload = [0_u8, 255, 10, 39].repeat(50_000);
    let names = ["order", "Order", "order ", "ordér"];
    for name in names {
        let insert = Query::insert()
            .into_table("message_logs")
            .columns([
                "message_id",
                "exchange",
                "routing_key",
                "payload",
                "payload_size",
                "metadata",
                "status",
                "published_at",
                "created_at",
                "updated_at",
            ])
            .values_panic([
                name.into(),
                "".into(),
                name.into(),
                payload.clone().into(),
                i64::MAX.into(),
                vec![0_u8].into(),
                "published".into(),
                bound.clone().into(),
                bound.clone().into(),
                bound.clone().into(),
            ])
            .to_owned();
        db.execute(&insert).await.expect("insert");
    }
    for (number, name) in names.iter().enumerate() {
        let found = Query::select()
            .columns([
                "id",
                "message_id",
                "payload",
                "payload_size",
                "published_at",
                "delivered_at",
            ])
            .from(Alias::new("message_logs"))
            .and_where(Expr::col("message_id").eq(*name))
            .and_where(Expr::col("published_at").eq(bound.clone()))
            .to_owned();
        let rows = db.query_all(&found).await.expect("select");
        assert_eq!(rows.len(), 1, "{name:?}");
        let row = &rows[0];
        assert_eq!(
            row.try_get::<i64>("", "id").expect("id"),
            i64::try_from(number).expect("small") + 1
        );
        assert_eq!(
            row.try_get::<String>("", "message_id").expect("name"),
            *name
        );
        assert_eq!(
            row.try_get::<Option<Vec<u8>>>("", "payload")
                .expect("bytes"),
            Some(payload.clone())
        );
        assert_eq!(
            row.try_get::<i64>("", "payload_size").expect("size"),
            i64::MAX
        );
        assert_eq!(
            row.try_get::<DateTimeUtc>("", "published_at")
                .expect("time"),
            at
        );
        assert_eq!(
            row.try_get::<Option<DateTimeUtc>>("", "delivered_at")
                .expect("no time"),
            None
        );
    }
    check_defaults(db, "2026-11-22T12:34:56.000001Z".parse().expect("time")).await;
}

/// A parameter for any moment. MariaDB reads what sqlx sends for a `DateTime<Utc>` as a TIMESTAMP: outside 1970 to
/// 2038 it becomes NULL, though the column could hold it.
fn moment(db: &DatabaseConnection, at: DateTimeUtc) -> Value {
    if db.get_database_backend() == DbBackend::MySql {
        at.naive_utc().into()
    } else {
        at.into()
    }
}

/// What a row gets that names only what it must.
async fn check_defaults(db: &DatabaseConnection, at: DateTimeUtc) {
    let (id, text) = ("0192a200-aca0-7d5a-8776-fa8cac2fdf2c", "x".repeat(70_000));
    let insert = Query::insert()
        .into_table("failed_messages")
        .columns([
            "id",
            "queue",
            "exchange",
            "routing_key",
            "properties",
            "payload",
            "error_type",
            "error_message",
            "error_stack",
            "reason",
            "fingerprint",
            "status",
            "failed_at",
            "last_failed_at",
            "created_at",
            "updated_at",
        ])
        .values_panic([
            id.into(),
            "q".into(),
            "".into(),
            "q".into(),
            vec![0_u8].into(),
            Vec::<u8>::new().into(),
            "E".into(),
            text.clone().into(),
            text.clone().into(),
            "rejected".into(),
            "f".repeat(32).into(),
            "pending".into(),
            at.into(),
            at.into(),
            at.into(),
            at.into(),
        ])
        .to_owned();
    db.execute(&insert).await.expect("insert");
    let found = Query::select()
        .columns([
            "id",
            "attempt",
            "retry_count",
            "max_retries",
            "manual",
            "lease_token",
            "error_stack",
            "fingerprint",
            "failed_at",
        ])
        .from("failed_messages")
        .and_where(Expr::col("id").eq(id))
        .to_owned();
    let row = db.query_one(&found).await.expect("select").expect("row");
    assert_eq!(row.try_get::<String>("", "id").expect("id"), id);
    assert_eq!(
        row.try_get::<DateTimeUtc>("", "failed_at").expect("time"),
        at
    );
    assert_eq!(row.try_get::<i32>("", "attempt").expect("attempt"), 1);
    assert_eq!(row.try_get::<i32>("", "retry_count").expect("retries"), 0);
    assert_eq!(row.try_get::<i32>("", "max_retries").expect("limit"), 3);
    assert!(!row.try_get::<bool>("", "manual").expect("manual"));
    assert_eq!(
        row.try_get::<Option<String>>("", "lease_token")
            .expect("token"),
        None
    );
    assert_eq!(
        row.try_get::<String>("", "error_stack").expect("stack"),
        text
    );
    assert_eq!(
        row.try_get::<String>("", "fingerprint")
            .expect("fingerprint"),
        "f".repeat(32)
    );
}
