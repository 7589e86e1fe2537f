//! Whether the gateway wears out: every operation that asks the broker something, thousands of times, and after each kind all that
//! others do; then light mixed traffic, in which nothing at all may go wrong. What the process takes must stay what it was.
//!
//! `COURTIER_ENDURANCE` is how often operations are asked: 2,500, which is more than a connection has channel ids (2,047), and only
//! some of them as often as that; above 10,000 all of them. `COURTIER_ENDURANCE_SECONDS` is how long the mixed traffic goes on (unset:
//! some seconds). `make endurance` sets 20,000 and an hour. `COURTIER_ENDURANCE_ONLY`: operations whose name contains this.

mod answer;
mod mixed;
mod neighbours;
mod operations;
mod publishers;
mod services;
mod stage;

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};

use self::{
    operations::{Cost, Operation},
    stage::Stage,
};
use crate::vitals::{HEADER, Vitals};

/// Calls at a time; the gateway looks into 16 queues at a time.
const AT_A_TIME: usize = 12;
/// Enough to see what is wrong; what waits for timeouts is not waited for again and again.
const FAULTS: usize = 10;

/// How often each operation is asked.
fn count() -> usize {
    std::env::var("COURTIER_ENDURANCE").map_or(2_500, |count| count.parse().expect("a number"))
}

impl Cost {
    /// Everything as often in the long form, but for what ends a connection: that is back only after a moment.
    fn count(self) -> usize {
        let count = count();
        match self {
            Self::Often => count,
            Self::Channel | Self::Cheap if count > 10_000 => count,
            Self::Channel | Self::Cheap => count / 25,
            Self::Connection => count / 250,
        }
    }
}

/// How a kind of calls went.
struct Row {
    name: &'static str,
    asked: usize,
    took: Duration,
    faults: Vec<String>,
    /// What did not work afterwards.
    harm: Vec<String>,
    vitals: Vitals,
}

async fn repeat(stage: &Stage, operation: &Operation) -> Row {
    let begin = Instant::now();
    let count = operation.cost.count();
    let mut answers = stream::iter(0..count)
        .map(|number| operation.ask(stage.client(number), number))
        .buffer_unordered(AT_A_TIME);
    let (mut asked, mut faults) = (0, Vec::new());
    while let Some(verdict) = answers.next().await {
        asked += 1;
        faults.extend(verdict.err());
        if faults.len() >= FAULTS {
            break;
        }
    }
    drop(answers);
    let took = begin.elapsed();
    let harm = neighbours::harm(stage).await;
    Row {
        name: operation.name,
        asked,
        took,
        faults,
        harm,
        vitals: Vitals::of(&stage.gateway).await,
    }
}

/// What is wrong, for the verdict.
fn wrong(rows: &[Row]) -> String {
    let mut wrong = String::new();
    for row in rows {
        for fault in row.faults.iter().take(3) {
            let _ = writeln!(wrong, "{}: {fault}", row.name);
        }
        for harm in row.harm.iter().take(3) {
            let _ = writeln!(wrong, "after {} × {}: {harm}", row.asked, row.name);
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn nothing_that_is_asked_however_often_wears_the_gateway_out() {
    let stage = Stage::set().await;
    let client = stage.client(0);
    let parked = operations::publish(client, String::new(), "parked".into(), 8).await;
    parked.expect("it is confirmed");
    assert_eq!(
        neighbours::harm(&stage).await,
        [""; 0],
        "before anything was asked"
    );

    println!("{:<40}  asked     took  wrong  harm{HEADER}", "operation");
    let before = Vitals::of(&stage.gateway).await;
    println!("{:<40} {:>6} {:>8} {:>6} {:>5}{before}", "", "", "", "", "");
    let mut rows = Vec::new();
    let only = std::env::var("COURTIER_ENDURANCE_ONLY").unwrap_or_default();
    for operation in operations::all() {
        if !operation.name.contains(&only) {
            continue;
        }
        let row = repeat(&stage, &operation).await;
        println!(
            "{:<40} {:>6} {:>7.1}s {:>6} {:>5}{}",
            row.name,
            row.asked,
            row.took.as_secs_f64(),
            row.faults.len(),
            row.harm.len(),
            row.vitals
        );
        rows.push(row);
    }
    let mut wrong = wrong(&rows);
    // Calls that were given up may still be under way; what is left over is not.
    let after = mixed::calm(&stage, &before).await;
    for grown in after.grown_since(&before) {
        let _ = writeln!(wrong, "after all of them: {grown}");
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn nothing_goes_wrong_in_light_mixed_traffic_and_nothing_grows() {
    let stage = Stage::set().await;
    let mixed = mixed::run(&stage).await;
    assert!(mixed.is_empty(), "\n{}", mixed.join("\n"));
}
