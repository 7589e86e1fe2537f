//! What a trial of failed messages keeps account of: each message from its publish on, and in the end the rows that it left.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use courtier::{
    failed_message::{Attempt, FailedMessage, Resolution, Status},
    grpc::proto::Outcome,
    store::{Filter, Store},
};
use uuid::Uuid;

/// What is in a message follows from its id, so that every copy of it can be checked byte for byte.
pub fn payload(id: Uuid) -> Vec<u8> {
    let (high, low) = id.as_u64_pair();
    let mut random = fastrand::Rng::with_seed(high ^ low);
    let size = match random.u32(..250) {
        0 => random.usize(1 << 20..=(4 << 20) - 3),
        _ => random.usize(..2_000),
    };
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    // NUL, and what is UTF-8 nowhere.
    bytes.extend([0, 0xff, 0xfe]);
    bytes
}

/// What is known of one message.
#[derive(Debug, Default)]
pub struct Entry {
    queue: String,
    /// Published past the gateway: without an id of its publish.
    native: bool,
    outcome: Option<Outcome>,
    publish_id: String,
    /// Attempts that a consumer acked, whether or not the ack arrived.
    acked: BTreeSet<u32>,
    /// The gateway said that it stored the failure.
    refused: bool,
    deliveries: u32,
    /// By the row and the number of the attempt.
    retries: BTreeMap<(Uuid, u32), u32>,
}

/// Every message of a trial by its id.
#[derive(Debug, Default)]
pub struct FailedBooks {
    entries: HashMap<Uuid, Entry>,
    pub confirmed: u64,
    pub deliveries: u64,
    pub retries: u64,
    /// Refusals that the gateway stored.
    pub refusals: u64,
    /// Copies that say they are of an attempt that was seen before, and are not marked as redelivered.
    pub duplicates: u64,
}

impl FailedBooks {
    /// Before its publish.
    pub fn sending(&mut self, id: Uuid, queue: &str, native: bool) {
        let entry = Entry {
            queue: queue.to_owned(),
            native,
            ..Entry::default()
        };
        self.entries.insert(id, entry);
    }

    fn entry(&mut self, id: Uuid) -> &mut Entry {
        self.entries.get_mut(&id).expect("somebody published it")
    }

    /// How its publish ended; `None`: there was no answer.
    pub fn published(&mut self, id: Uuid, outcome: Option<Outcome>, publish_id: &str) {
        let entry = self.entry(id);
        entry.outcome = outcome;
        publish_id.clone_into(&mut entry.publish_id);
        self.confirmed += u64::from(outcome == Some(Outcome::Confirmed));
    }

    /// A copy of it reached a consumer of `queue`; `retry`: the row and the attempt that it names.
    pub fn delivered(
        &mut self,
        id: Uuid,
        queue: &str,
        retry: Option<(Uuid, u32)>,
        redelivered: bool,
    ) {
        let entry = self.entry(id);
        assert_eq!(entry.queue, queue, "{id} went astray");
        entry.deliveries += 1;
        if let Some(retry) = retry {
            let seen = entry.retries.entry(retry).or_default();
            *seen += 1;
            let again = *seen > 1 && !redelivered;
            self.duplicates += u64::from(again);
            self.retries += 1;
        }
        self.deliveries += 1;
    }

    pub fn acked(&mut self, id: Uuid, attempt: u32) {
        self.entry(id).acked.insert(attempt);
    }

    /// The gateway has answered a consumer's refusal: it is stored.
    pub fn refused(&mut self, id: Uuid) {
        self.entry(id).refused = true;
        self.refusals += 1;
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many publishes had this outcome.
    pub fn count(&self, outcome: Option<Outcome>) -> usize {
        let entries = self.entries.values();
        entries.filter(|entry| entry.outcome == outcome).count()
    }

    /// Attempts that consumers saw more than once, redelivered or not.
    pub fn attempts_seen_again(&self) -> usize {
        let retries = self.entries.values().flat_map(|entry| &entry.retries);
        retries.filter(|(_, seen)| **seen > 1).count()
    }
}

/// The rows that are left, as the store reads them.
pub struct Rows {
    pub rows: Vec<FailedMessage>,
    attempts: HashMap<Uuid, Vec<Attempt>>,
    groups: BTreeMap<String, [u64; 4]>,
}

impl Rows {
    /// All of a database where nothing happens any more.
    pub async fn read(store: &Store) -> Self {
        let (mut rows, mut attempts, mut groups) = (Vec::new(), HashMap::new(), BTreeMap::new());
        let (filter, mut cursor) = (Filter::default(), None);
        loop {
            let page = store.failed_messages(&filter, cursor.as_ref(), 500).await;
            let page = page.expect("listed");
            for row in page.rows {
                let history = store.attempts(row.id).await.expect("listed");
                attempts.insert(row.id, history);
                rows.push(store.failed_message(row.id).await.expect("it is there"));
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        loop {
            let page = store.groups(None, cursor.as_ref(), 500).await;
            let page = page.expect("listed");
            for group in page.rows {
                let counts = group.counts;
                let counts = [
                    counts.pending,
                    counts.retrying,
                    counts.failed,
                    counts.resolved,
                ];
                groups.insert(group.fingerprint, counts);
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        Self {
            rows,
            attempts,
            groups,
        }
    }

    /// Forgets what failed in this queue.
    pub fn leave_out(&mut self, queue: &str) {
        let of_it = self.rows.extract_if(.., |row| row.queue == queue);
        for row in of_it {
            self.groups.remove(&row.fingerprint);
        }
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let of = |status, resolution| {
            let rows = self.rows.iter();
            rows.filter(|row| row.state.status == status && row.state.resolution == resolution)
                .count()
        };
        format!(
            "{} rows: {} FAILED, {} RESOLVED/ACKED, {} RESOLVED/ASSUMED; {} attempts",
            self.rows.len(),
            of(Status::Failed, None),
            of(Status::Resolved, Some(Resolution::Acked)),
            of(Status::Resolved, Some(Resolution::Assumed)),
            self.attempts.values().map(Vec::len).sum::<usize>(),
        )
    }
}

impl FailedBooks {
    /// That every message is accounted for once nothing moves any more and all queues are empty. Answers how many rows were made
    /// twice: only of messages without an id of their publish, by which they would be recognised.
    pub fn balance(&self, left: &Rows, max_retries: u32) -> usize {
        let mut of: HashMap<Uuid, Vec<&FailedMessage>> = HashMap::new();
        for row in &left.rows {
            let id = row.message.message_id.as_deref().map(Uuid::parse_str);
            let id = id.expect("each has one").expect("one of ours");
            let entry = self.entries.get(&id).expect("somebody published it");
            assert_eq!(row.queue, entry.queue, "{row:?}");
            assert!(row.message.payload == payload(id), "{id}: other bytes");
            self.check_row(row, entry, &left.attempts[&row.id], max_retries);
            of.entry(id).or_default().push(row);
        }
        let mut twice = 0;
        let (mut lost, mut unstored) = (Vec::new(), Vec::new());
        for (id, entry) in &self.entries {
            let rows = of.get(id).map_or(&[][..], Vec::as_slice);
            if !entry.native {
                assert!(rows.len() < 2, "{id} has several rows: {rows:?}");
            }
            twice += rows.len().saturating_sub(1);
            let denied = [Outcome::NotSent, Outcome::Invalid, Outcome::Unroutable];
            if entry.outcome.is_some_and(|it| denied.contains(&it)) {
                let seen = (entry.deliveries, rows.len());
                assert_eq!(seen, (0, 0), "{id} was denied and is there: {entry:?}");
            }
            if entry.outcome == Some(Outcome::Confirmed)
                && entry.acked.is_empty()
                && rows.is_empty()
            {
                lost.push((id, entry));
            }
            if entry.refused && rows.is_empty() {
                unstored.push((id, entry));
            }
        }
        assert!(lost.is_empty(), "lost: {} {:?}", lost.len(), lost.first());
        assert!(
            unstored.is_empty(),
            "refused and not stored: {} {:?}",
            unstored.len(),
            unstored.first()
        );
        let mut counted: BTreeMap<String, [u64; 4]> = BTreeMap::new();
        for row in &left.rows {
            let counts = counted.entry(row.fingerprint.clone()).or_default();
            counts[row.state.status as usize] += 1;
        }
        assert_eq!(left.groups, counted, "groups count what is there");
        twice
    }

    fn check_row(&self, row: &FailedMessage, entry: &Entry, history: &[Attempt], max_retries: u32) {
        let state = &row.state;
        let about = || format!("{row:?} {entry:?} {history:?}");
        match &row.publish_id {
            None => assert!(entry.native, "{}", about()),
            Some(id) if entry.outcome == Some(Outcome::Confirmed) => {
                assert_eq!(*id, entry.publish_id, "{}", about());
            }
            Some(_) => assert!(!entry.native, "{}", about()),
        }
        assert!(state.lease.is_none() && !state.manual, "{}", about());
        assert!(
            matches!(state.status, Status::Failed | Status::Resolved),
            "it is at rest: {}",
            about()
        );
        if state.status == Status::Resolved {
            let acked = entry.acked.contains(&state.attempt);
            assert!(acked, "nobody acked it: {}", about());
        }
        // Never more automatic retries than there may be, whoever counts them.
        assert!(state.retry_count <= max_retries, "{}", about());
        assert!(state.attempt <= 1 + max_retries, "{}", about());
        let numbers: BTreeSet<_> = history.iter().map(|attempt| attempt.number).collect();
        assert_eq!(numbers.len(), history.len(), "{}", about());
        let retries = history.iter().filter(|attempt| attempt.number > 1);
        assert!(retries.count() <= max_retries as usize, "{}", about());
        let seen: BTreeSet<_> = entry
            .retries
            .keys()
            .filter(|(id, _)| *id == row.id)
            .collect();
        assert!(seen.len() <= max_retries as usize, "{}", about());
    }
}
