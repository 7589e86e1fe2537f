//! How much longer the store takes with a million failed messages than with ten thousand, on each engine.
//!
//! `scripts/bench store` runs it. A figure is the median of repeated calls; what counts is the ratio within one run.

use std::time::{Duration, Instant};

use clap::Parser;
use courtier::{
    failed_message::{Death, ErrorDetail, Next, Reason, Status, schedule::Schedule},
    message::Message,
    store::{Filter, Options, Place, Sent, Store},
};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement};
use uuid::Uuid;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Measures the store with few and with many failed messages
#[derive(Parser)]
struct Arguments {
    /// Failed messages at first
    #[arg(long, default_value_t = 10_000)]
    few: u64,
    /// How many times as many there are then
    #[arg(long, default_value_t = 100)]
    times: u64,
    /// Calls of which the median is taken
    #[arg(long, default_value_t = 31)]
    calls: usize,
    #[arg(long, env = "COURTIER_TEST_MARIADB_URL")]
    mariadb: Option<String>,
    #[arg(long, env = "COURTIER_TEST_POSTGRES_URL")]
    postgres: Option<String>,
    /// Said by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

const QUEUES: u64 = 20;
const KINDS: u64 = 100;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = tempfile::TempDir::new()?;
    let file = folder.path().join("courtier.db");
    println!(
        "{:<9} {:<22} {:>10} {:>10} {:>6}",
        "engine",
        "call",
        arguments.few,
        arguments.few * arguments.times,
        "ratio"
    );
    let url = format!("sqlite:{}", file.display());
    measure("sqlite", Place::File(file), &url, &arguments).await?;
    for (name, url) in [
        ("mariadb", &arguments.mariadb),
        ("postgres", &arguments.postgres),
    ] {
        if let Some(url) = url {
            let place = Place::parse(url)?;
            measure(name, place, url, &arguments).await?;
        }
    }
    Ok(())
}

async fn measure(engine: &str, place: Place, url: &str, arguments: &Arguments) -> Result<()> {
    let options = Options {
        place,
        max_connections: 4,
        migrate: true,
    };
    let store = Store::open(options, Duration::from_secs(20)).await?;
    fill(&store, arguments.few).await?;
    let raw = Database::connect(url).await?;
    quieten(&raw, "quiet").await?;
    settle(&raw).await?;
    let few = times(&store, arguments.calls, "quiet").await?;
    multiply(&raw, arguments.times).await?;
    quieten(&raw, "quieter").await?;
    settle(&raw).await?;
    let many = times(&store, arguments.calls, "quieter").await?;
    for ((call, few), (_, many)) in few.into_iter().zip(many) {
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        println!(
            "{engine:<9} {call:<22} {:>7.2} ms {:>7.2} ms {ratio:>6.2}",
            ms(few),
            ms(many)
        );
    }
    store.close().await;
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// Failed messages of some queues and kinds; a quarter of them parked, the others due at once.
async fn fill(store: &Store, count: u64) -> Result<()> {
    let schedule = Schedule::new(vec![Duration::ZERO], 3);
    for from in (0..count).step_by(500) {
        let deaths: Vec<Death> = (from..(from + 500).min(count)).map(death).collect();
        store.collect(&deaths, |_| schedule.clone()).await?;
    }
    Ok(())
}

fn death(n: u64) -> Death {
    Death {
        id: Uuid::now_v7(),
        failed_id: None,
        attempt: 1,
        redelivered: false,
        queue: format!("queue_{}", n % QUEUES),
        exchange: "shop".to_owned(),
        routing_key: "order.created".to_owned(),
        publish_id: Some(Uuid::now_v7().to_string()),
        message: Message {
            message_id: Some(format!("m-{n}")),
            payload: vec![b'x'; 200].into(),
            ..Message::default()
        },
        reason: Reason::Rejected,
        error: ErrorDetail {
            kind: "Timeout".to_owned(),
            message: format!("service {} gave no answer", word(n % KINDS)),
            stack: String::new(),
        },
        next: if n.is_multiple_of(4) {
            Next::Park
        } else {
            Next::Retry(None)
        },
    }
}

/// Digits would be left out of the kind.
fn word(n: u64) -> String {
    n.to_string()
        .chars()
        .map(|digit| char::from(digit as u8 + 49))
        .collect()
}

/// Copies what there is, each time a second earlier and under other ids.
async fn multiply(raw: &DatabaseConnection, times: u64) -> Result<()> {
    use sea_orm::DbBackend;
    let columns = "queue, exchange, routing_key, message_id, publish_id, properties, payload, error_type, error_message, \
         error_stack, reason, fingerprint, attempt, retry_count, max_retries, status, manual, failed_at, last_failed_at, \
         next_retry_at, created_at, updated_at";
    raw.execute_unprepared("CREATE TABLE original AS SELECT * FROM failed_messages")
        .await?;
    for n in 1..times {
        let values = columns.replace(
            " failed_at",
            &match raw.get_database_backend() {
                DbBackend::Sqlite => {
                    format!(" strftime('%Y-%m-%dT%H:%M:%f', failed_at, '-{n} seconds') || '+00:00'")
                }
                DbBackend::MySql => format!(" failed_at - INTERVAL {n} SECOND"),
                _ => format!(" failed_at - INTERVAL '{n} second'"),
            },
        );
        let id = match raw.get_database_backend() {
            DbBackend::MySql => format!("CONCAT('{n:08x}', SUBSTR(id, 9))"),
            _ => format!("'{n:08x}' || SUBSTR(id, 9)"),
        };
        let copy = format!(
            "INSERT INTO failed_messages (id, {columns}) SELECT {id}, {values} FROM original"
        );
        raw.execute_unprepared(&copy).await?;
    }
    raw.execute_unprepared("DROP TABLE original").await?;
    let counts =
        "UPDATE failed_message_groups SET pending = pending * TIMES, failed = failed * TIMES";
    raw.execute_unprepared(&counts.replace("TIMES", &times.to_string()))
        .await?;
    Ok(())
}

/// Makes a queue of the oldest rows: all others failed later.
async fn quieten(raw: &DatabaseConnection, queue: &str) -> Result<()> {
    let oldest = "SELECT id FROM failed_messages ORDER BY failed_at, id LIMIT 60";
    // MySQL wants a table of its own for it.
    raw.execute_unprepared(&format!(
        "UPDATE failed_messages SET queue = '{queue}' WHERE id IN (SELECT id FROM ({oldest}) AS oldest)"
    ))
    .await?;
    Ok(())
}

/// Statistics as they are after some time.
async fn settle(raw: &DatabaseConnection) -> Result<()> {
    use sea_orm::DbBackend;
    let backend = raw.get_database_backend();
    let tables = ["failed_messages", "failed_message_groups"];
    for table in tables {
        let analyze = match backend {
            DbBackend::MySql => format!("ANALYZE TABLE {table}"),
            DbBackend::Postgres => format!("VACUUM ANALYZE {table}"),
            _ => format!("ANALYZE {table}"),
        };
        raw.query_all_raw(Statement::from_string(backend, analyze))
            .await?;
    }
    Ok(())
}

/// The median of each call. `quiet`: a queue in which nothing failed lately.
async fn times(store: &Store, calls: usize, quiet: &str) -> Result<Vec<(&'static str, Duration)>> {
    let of_queue = Filter {
        queue: Some("queue_7".to_owned()),
        ..Filter::default()
    };
    let quiet = Filter {
        queue: Some(quiet.to_owned()),
        ..Filter::default()
    };
    let both = Filter {
        statuses: vec![Status::Failed],
        queue: Some("queue_8".to_owned()),
        ..Filter::default()
    };
    let open = Filter {
        statuses: vec![Status::Pending, Status::Failed],
        ..Filter::default()
    };
    let text = Filter {
        error_text: Some("service b gave".to_owned()),
        ..Filter::default()
    };
    let nowhere = Filter {
        error_text: Some("nowhere".to_owned()),
        ..Filter::default()
    };
    let mut figures = Vec::new();
    for (name, filter) in [
        ("page, no filter", Filter::default()),
        ("page, queue", of_queue),
        ("page, quiet queue", quiet),
        ("page, queue and status", both),
        ("page, two statuses", open),
        ("page, error text", text),
        ("search, nothing found", nowhere),
    ] {
        let mut taken = Vec::new();
        for _ in 0..calls {
            let begun = Instant::now();
            store.failed_messages(&filter, None, 50).await?;
            taken.push(begun.elapsed());
        }
        figures.push((name, median(taken)));
    }
    let mut taken = Vec::new();
    for _ in 0..calls {
        let begun = Instant::now();
        store.groups(None, None, 50).await?;
        taken.push(begun.elapsed());
    }
    figures.push(("groups", median(taken)));
    let mut taken = Vec::new();
    for _ in 0..calls {
        let begun = Instant::now();
        store.stats(None).await?;
        taken.push(begun.elapsed());
    }
    figures.push(("stats", median(taken)));
    let mut taken = Vec::new();
    for _ in 0..calls {
        let begun = Instant::now();
        let claimed = store
            .claim("queue_5", false, 10, Duration::from_secs(600))
            .await?;
        taken.push(begun.elapsed());
        assert_eq!(claimed.len(), 10, "rows are due");
        for claimed in claimed {
            let again = Sent::NotSent {
                again_after: Some(Duration::ZERO),
            };
            store.sent(claimed.message.id, claimed.token, again).await?;
        }
    }
    figures.push(("claim of 10", median(taken)));
    let mut taken = Vec::new();
    for _ in 0..calls {
        let begun = Instant::now();
        store.reap().await?;
        taken.push(begun.elapsed());
    }
    figures.push(("reap", median(taken)));
    Ok(figures)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
