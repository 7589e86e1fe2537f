//! Light traffic of all kinds over the example's topology, as a small platform makes it: eleven services that publish and consume,
//! with a failure now and then, and people who look around. Nothing may go wrong: no error, nothing lost, nothing that grows.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{neighbours, publishers, services, stage::Stage};
use crate::{
    harness::eventually,
    vitals::{HEADER, Vitals},
};

/// Rounds of a publisher in the short form.
pub(super) const ROUNDS: usize = 60;
/// Between two messages of a service: five a second, and in the short form more.
pub(super) const PACE: Duration = Duration::from_millis(200);
pub(super) const SHORT_PACE: Duration = Duration::from_millis(100);
/// Samples of what the process takes; the first tenth is compared with the last.
const SAMPLES: u32 = 100;
/// Between two lines that say how far a long run is.
const NEWS: Duration = Duration::from_secs(30);

/// What is known of the traffic.
#[derive(Default)]
pub(super) struct Traffic {
    /// Published and not acked yet.
    open: Mutex<HashSet<String>>,
    /// Refused by its consumer: to be found among the failed messages.
    pub refused: AtomicU64,
    pub published: AtomicU64,
    pub delivered: AtomicU64,
    pub looks: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Traffic {
    pub fn fault(&self, what: &str, fault: impl std::fmt::Display) {
        // At once: a test that waits in vain afterwards would not tell it.
        println!("wrong: {what}: {fault}");
        lock(&self.faults).push(format!("{what}: {fault}"));
    }

    pub fn begun(&self, id: &str) {
        lock(&self.open).insert(id.to_owned());
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub fn done(&self, id: &str) {
        lock(&self.open).remove(id);
        self.delivered.fetch_add(1, Ordering::Relaxed);
    }

    fn open(&self) -> usize {
        lock(&self.open).len()
    }

    fn faults(&self) -> usize {
        lock(&self.faults).len()
    }
}

/// How long the long form goes on.
pub(super) fn seconds() -> Option<Duration> {
    let seconds = std::env::var("COURTIER_ENDURANCE_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("a number")))
}

/// Runs it; what is wrong.
pub async fn run(stage: &Stage) -> Vec<String> {
    let traffic = Arc::new(Traffic::default());
    let [publishing, consuming] = [CancellationToken::new(), CancellationToken::new()];
    let [mut publishing_now, mut consumers] = [JoinSet::new(), JoinSet::new()];
    for (number, service) in services::NAMES.iter().enumerate() {
        let client = stage.client(number);
        publishing_now.spawn(publishers::publish(
            traffic.clone(),
            client.clone(),
            service,
            publishing.clone(),
        ));
        consumers.spawn(services::consume(
            traffic.clone(),
            client,
            service,
            consuming.clone(),
        ));
    }
    let samples = watch(stage, &traffic, publishing_now, &publishing).await;

    eventually(
        "everything is acked, or the subscriptions are over",
        || async { traffic.open() == 0 || consumers.is_empty() },
    )
    .await;
    consuming.cancel();
    while let Some(ended) = consumers.join_next().await {
        ended.expect("consumers do not panic");
    }
    let refused = traffic.refused.load(Ordering::Relaxed);
    services::failed(stage, &traffic, refused).await;
    report(&traffic, &samples)
}

/// Looks around as people do, until the publishers are done, and notes what the process takes.
async fn watch(
    stage: &Stage,
    traffic: &Traffic,
    mut publishers: JoinSet<()>,
    stop: &CancellationToken,
) -> Vec<Vitals> {
    let short = SHORT_PACE * u32::try_from(ROUNDS).expect("few");
    let every = seconds().unwrap_or(short) / SAMPLES;
    let (begin, mut samples) = (Instant::now(), vec![Vitals::of(&stage.gateway).await]);
    let mut news = NEWS;
    println!(
        "\nmixed traffic{:>39}{HEADER}",
        "published  delivered  wrong"
    );
    loop {
        tokio::select! {
            Some(ended) = publishers.join_next() => ended.expect("publishers do not panic"),
            () = tokio::time::sleep(every), if !publishers.is_empty() => {}
            else => break,
        }
        samples.push(Vitals::of(&stage.gateway).await);
        for harm in neighbours::harm(stage).await {
            traffic.fault("looking around", harm);
        }
        traffic.looks.fetch_add(1, Ordering::Relaxed);
        if begin.elapsed() >= news {
            news += NEWS;
            line(traffic, begin.elapsed(), samples.last());
        }
        if seconds().is_some_and(|seconds| begin.elapsed() >= seconds) || traffic.faults() > 100 {
            stop.cancel();
        }
    }
    line(traffic, begin.elapsed(), samples.last());
    samples
}

fn line(traffic: &Traffic, after: Duration, vitals: Option<&Vitals>) {
    println!(
        "after {:>7.0?} {:>28} {:>10} {:>6}{}",
        after,
        traffic.published.load(Ordering::Relaxed),
        traffic.delivered.load(Ordering::Relaxed),
        traffic.faults(),
        vitals.copied().unwrap_or_default(),
    );
}

fn report(traffic: &Traffic, samples: &[Vitals]) -> Vec<String> {
    let tenth = samples.len().div_ceil(10);
    let first = Vitals::median(&samples[..tenth]);
    let last = Vitals::median(&samples[samples.len() - tenth..]);
    println!(
        "{:<52}{HEADER}",
        format!("{} looks", traffic.looks.load(Ordering::Relaxed))
    );
    println!("{:<52}{first}\n{:<52}{last}", "first tenth", "last tenth");
    let mut wrong = lock(&traffic.faults).clone();
    let count = wrong.len();
    wrong.truncate(20);
    if count > wrong.len() {
        wrong.push(format!("and {} more", count - wrong.len()));
    }
    if traffic.open() > 0 {
        wrong.push(format!("{} were published and never came", traffic.open()));
    }
    wrong.extend(last.grown_since(&first));
    wrong
}

/// Waits until what was given up is over, and says what the process takes then.
pub async fn calm(stage: &Stage, before: &Vitals) -> Vitals {
    let end = Instant::now() + crate::harness::PATIENCE;
    loop {
        let now = Vitals::of(&stage.gateway).await;
        if now.grown_since(before).is_empty() || Instant::now() > end {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
