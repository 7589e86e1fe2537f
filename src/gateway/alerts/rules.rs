//! What is wrong with what was seen. Pure: what is raised, and when, is the book's.

use std::time::Duration;

use super::{Kind, Observation, Options};
use crate::{
    broker::{
        LinkState,
        admin::{Node, QueueInfo},
        topology::dead_letter_queue,
    },
    gateway::queue_admin::{is_stream, time_to_drain},
};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Wrong,
    Right,
    /// Neither clearly wrong nor clearly right, or not known: what was said stands.
    Between,
}

/// How one thing is.
#[derive(Debug)]
pub struct Finding {
    pub kind: Kind,
    /// `None`: says that everything of this kind was looked at.
    pub subject: Option<String>,
    pub state: State,
    /// With figures, for people.
    pub summary: String,
    /// In place of the usual one.
    pub hold: Option<Duration>,
}

impl Finding {
    pub fn of(kind: Kind, subject: &str, state: State, summary: impl Into<String>) -> Self {
        Self {
            kind,
            subject: Some(subject.to_owned()),
            state,
            summary: summary.into(),
            hold: None,
        }
    }

    /// Nothing else of this kind is there.
    pub fn looked(kind: Kind) -> Self {
        Self {
            subject: None,
            ..Self::of(kind, "", State::Between, "")
        }
    }
}

/// Kinds of alerts that are about a queue.
const OF_QUEUES: [Kind; 3] = [Kind::QueueDepth, Kind::NoConsumer, Kind::ConsumerLag];

/// Wrong above `raise`, right below `clear`.
fn level(value: f64, raise: f64, clear: f64) -> State {
    if value > raise {
        State::Wrong
    } else if value < clear {
        State::Right
    } else {
        State::Between
    }
}

fn yes(wrong: bool) -> State {
    if wrong { State::Wrong } else { State::Right }
}

/// Everything that was looked at.
pub fn findings(seen: &Observation, options: &Options) -> Vec<Finding> {
    let mut found = Vec::new();
    links(seen, &mut found);
    if let Some(queues) = &seen.queues {
        if seen.queues_are_all {
            found.extend(OF_QUEUES.map(Finding::looked));
        }
        // A stream keeps what was consumed: its length says nothing.
        let queues = queues.iter().filter(|queue| !is_stream(queue));
        for queue in queues.filter(|queue| !ignored(&queue.name, options)) {
            // What is not known stays as it was said.
            let unknown = OF_QUEUES.map(|kind| Finding::of(kind, &queue.name, State::Between, ""));
            found.extend(unknown);
            depth(queue, options, &mut found);
            // Without the database nobody collects dead letters: that is said once, not for each queue.
            if seen.database.is_none() || !queue.name.ends_with(&dead_letter_queue("")) {
                consumers(queue, options, &mut found);
            }
        }
    }
    database(seen, options, &mut found);
    connections(seen, &mut found);
    found
}

fn connections(seen: &Observation, found: &mut Vec<Finding>) {
    let refused = seen.connections_refused;
    let summary = format!("{refused} connections of clients were refused: there are too many");
    let state = yes(refused > 0);
    let mut finding = Finding::of(Kind::ConnectionsRefused, "", state, summary);
    // Whoever was refused just now needs to know why, also when it was only one.
    finding.hold = (refused > 0).then_some(Duration::ZERO);
    found.push(finding);
}

fn links(seen: &Observation, found: &mut Vec<Finding>) {
    let links = [
        ("publish", seen.links.publish),
        ("consume", seen.links.consume),
    ];
    for (name, state) in links {
        let down = yes(!state.is_sound());
        let summary = if state == LinkState::Failing {
            format!(
                "the {name} link to the broker stands, but does not do its work; the log says what fails"
            )
        } else {
            format!("the {name} link to the broker is down; the gateway keeps trying to connect")
        };
        found.push(Finding::of(Kind::LinkDown, name, down, summary));
    }
    let blocked = seen.links.publish == LinkState::Blocked;
    let summary = "the broker takes no messages from this gateway (memory or disk alarm)";
    found.push(Finding::of(
        Kind::BrokerAlarm,
        "publish",
        yes(blocked),
        summary,
    ));
    if seen.nodes.is_some() {
        found.push(Finding::looked(Kind::BrokerAlarm));
    }
    for node in seen.nodes.iter().flatten() {
        let name = &node.name;
        let alarms = alarms(node);
        let summary = format!("{name} takes no messages: {}", alarms.join(", "));
        found.push(Finding::of(
            Kind::BrokerAlarm,
            name,
            yes(!alarms.is_empty()),
            summary,
        ));
    }
}

fn alarms(node: &Node) -> Vec<&'static str> {
    let alarms = [
        (node.memory_alarm, "memory alarm"),
        (node.disk_alarm, "disk alarm"),
    ];
    let raised = alarms.into_iter().filter(|(raised, _)| *raised);
    raised.map(|(_, name)| name).collect()
}

fn depth(queue: &QueueInfo, options: &Options, found: &mut Vec<Finding>) {
    let (Some(ratio), Some(ready)) = (queue.capacity_ratio, queue.ready) else {
        // Known not to have a limit (any more).
        if queue.arguments.is_some() && queue.ready.is_some() {
            found.push(Finding::of(Kind::QueueDepth, &queue.name, State::Right, ""));
        }
        return;
    };
    // Down to an eighth below the threshold, so that a queue at the threshold does not flap.
    let state = level(ratio, options.queue_depth, options.queue_depth * 0.875);
    let summary = format!(
        "{:.0} % of its capacity is used ({ready} messages); a full queue refuses publishes",
        ratio * 100.0
    );
    found.push(Finding::of(Kind::QueueDepth, &queue.name, state, summary));
}

fn consumers(queue: &QueueInfo, options: &Options, found: &mut Vec<Finding>) {
    let (Some(ready), Some(consumers)) = (queue.ready, queue.consumers) else {
        return;
    };
    let abandoned = ready > 0 && consumers == 0;
    let summary = format!("{ready} messages wait and nobody consumes");
    found.push(Finding::of(
        Kind::NoConsumer,
        &queue.name,
        yes(abandoned),
        summary,
    ));

    let mut lag = match time_to_drain(queue) {
        Some(lag) => {
            let longest = options.consumer_lag.as_secs_f64();
            let state = level(lag.as_secs_f64(), longest, longest / 2.0);
            let lag = humantime::format_duration(Duration::from_secs(lag.as_secs()));
            let summary = format!("a message that arrives now waits {lag} ({ready} before it)");
            Finding::of(Kind::ConsumerLag, &queue.name, state, summary)
        }
        // Nobody acks anything: that is a lag of as long as it lasts.
        None if queue.ack.per_second.is_some() => {
            let stuck = yes(ready > 0 && consumers > 0);
            let summary =
                format!("{ready} messages wait, and its {consumers} consumers ack nothing");
            let mut finding = Finding::of(Kind::ConsumerLag, &queue.name, stuck, summary);
            finding.hold = (stuck == State::Wrong).then_some(options.consumer_lag);
            finding
        }
        None => Finding::of(Kind::ConsumerLag, &queue.name, State::Between, ""),
    };
    if abandoned || ready == 0 {
        // Said already; or nothing waits.
        lag.state = State::Right;
    }
    found.push(lag);
}

fn database(seen: &Observation, options: &Options, found: &mut Vec<Finding>) {
    let summary = seen.database.map(|trouble| {
        let advice = trouble.advice();
        format!("{trouble}; dead letters wait in their queues, and no retry is sent: {advice}")
    });
    let down = yes(summary.is_some());
    let summary = summary.unwrap_or_default();
    found.push(Finding::of(Kind::DatabaseDown, "", down, summary));
    let Some(standing) = &seen.failed else {
        return;
    };
    if options.failed_spike > 0 {
        let failed = standing.last_minute;
        let state = if failed >= options.failed_spike {
            State::Wrong
        } else if failed > options.failed_spike / 2 {
            State::Between
        } else {
            State::Right
        };
        let summary = format!("{failed} messages failed within the last minute");
        found.push(Finding::of(Kind::FailedSpike, "", state, summary));
    }
    let age = standing.oldest_age;
    let old = age.is_some_and(|age| age > options.oldest_failed);
    let age = Duration::from_secs(age.unwrap_or_default().as_secs());
    let age = humantime::format_duration(age);
    let summary = format!("the oldest failed message that is not resolved failed {age} ago");
    found.push(Finding::of(Kind::OldestFailed, "", yes(old), summary));
}

fn ignored(queue: &str, options: &Options) -> bool {
    options.ignored_queues.iter().any(|pattern| {
        match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
            (Some(middle), Some(_)) => queue.contains(middle.strip_suffix('*').unwrap_or("")),
            (Some(end), None) => queue.ends_with(end),
            (None, Some(start)) => queue.starts_with(start),
            (None, None) => queue == pattern,
        }
    })
}
