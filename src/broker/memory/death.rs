//! Dead-lettering: the headers that tell of it, and the loops it must not enter.
//! <https://www.rabbitmq.com/docs/dlx#effects>
//!
//! The deaths that this broker knows are expiry and, in quorum queues, too many deliveries: a full queue refuses publishes
//! instead of dropping its head, and a consumer cannot reject.

use std::time::{SystemTime, UNIX_EPOCH};

use super::queue::{Entry, Envelope, Queue};
use crate::{
    broker::topology::DeadLetter,
    message::{Message, Table, Value},
};

const DEATHS: &str = "x-death";
pub(super) const EXPIRED: &str = "expired";
const DELIVERY_LIMIT: &str = "delivery_limit";
const REJECTED: &str = "rejected";

/// Takes a message back into its queue `name`; its dead letter, if it came back too often.
pub(super) fn returned(queue: &mut Queue, name: &str, entry: Entry) -> Option<Envelope> {
    let died = queue.take_back(entry)?;
    let to = queue.declared.dead_letter.as_ref()?;
    Some(letter(&died.envelope, name, DELIVERY_LIMIT, to))
}

/// The dead letter of a message that died in `queue`. It lives on without its expiration.
pub(super) fn letter(envelope: &Envelope, queue: &str, reason: &str, to: &DeadLetter) -> Envelope {
    let mut headers = envelope.message.headers.clone();
    let mut deaths = deaths(&headers).to_vec();
    record(&mut deaths, envelope, queue, reason);
    headers.insert(DEATHS.to_owned(), Value::Array(deaths));
    for (name, text) in [
        ("x-first-death-exchange", envelope.exchange.as_str()),
        ("x-first-death-queue", queue),
        ("x-first-death-reason", reason),
    ] {
        headers
            .entry(name.to_owned())
            .or_insert_with(|| Value::text(text));
    }
    Envelope {
        exchange: to.exchange.clone(),
        routing_key: to.routing_key.clone(),
        message: Message {
            headers,
            ttl_ms: None,
            ..envelope.message.clone()
        },
    }
}

/// Whether a message with these headers would come into `queue` again without a rejection. It is dropped then: nobody would
/// ever see it, and it would go round for ever. A rejection since its first death in `queue` shows that somebody did.
pub(super) fn is_loop(headers: &Table, queue: &str) -> bool {
    let deaths = deaths(headers);
    let Some(latest) = deaths.iter().position(|death| has(death, "queue", queue)) else {
        return false;
    };
    // What is no table was written by a client: somebody saw the message.
    let by_itself = |death: &Value| match death {
        Value::Table(_) => !has(death, "reason", REJECTED),
        _ => false,
    };
    deaths[..=latest].iter().all(by_itself)
}

/// Counts a further death in the same queue for the same reason, and puts the latest one first.
fn record(deaths: &mut Vec<Value>, envelope: &Envelope, queue: &str, reason: &str) {
    let same = |death: &Value| has(death, "queue", queue) && has(death, "reason", reason);
    let death = match deaths.iter().position(same).map(|at| deaths.remove(at)) {
        Some(Value::Table(mut known)) => {
            let count = known.get("count").and_then(Value::as_integer).unwrap_or(0);
            known.insert("count".to_owned(), Value::I64(count.saturating_add(1)));
            known
        }
        _ => first_death(envelope, queue, reason),
    };
    deaths.insert(0, Value::Table(death));
}

fn first_death(envelope: &Envelope, queue: &str, reason: &str) -> Table {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since_1970.map_or(0, |since| since.as_secs());
    let routing_keys = vec![Value::text(&envelope.routing_key)];
    let mut death = Table::from([
        ("count".to_owned(), Value::I64(1)),
        ("reason".to_owned(), Value::text(reason)),
        ("queue".to_owned(), Value::text(queue)),
        ("exchange".to_owned(), Value::text(&envelope.exchange)),
        ("routing-keys".to_owned(), Value::Array(routing_keys)),
        ("time".to_owned(), Value::Timestamp(seconds)),
    ]);
    if let Some(ttl_ms) = envelope.message.ttl_ms {
        let ttl = Value::text(ttl_ms.to_string());
        death.insert("original-expiration".to_owned(), ttl);
    }
    death
}

fn deaths(headers: &Table) -> &[Value] {
    match headers.get(DEATHS) {
        Some(Value::Array(deaths)) => deaths,
        _ => &[],
    }
}

fn has(death: &Value, field: &str, text: &str) -> bool {
    match death {
        Value::Table(death) => death.get(field).and_then(Value::as_str) == Some(text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to() -> DeadLetter {
        DeadLetter {
            exchange: "dlx".to_owned(),
            routing_key: "dead".to_owned(),
        }
    }

    fn published() -> Envelope {
        Envelope {
            exchange: "orders".to_owned(),
            routing_key: "created".to_owned(),
            message: Message {
                ttl_ms: Some(250),
                ..Message::default()
            },
        }
    }

    fn death(queue: &str, reason: &str) -> Value {
        Value::Table(Table::from([
            ("queue".to_owned(), Value::text(queue)),
            ("reason".to_owned(), Value::text(reason)),
        ]))
    }

    fn headers(deaths: Vec<Value>) -> Table {
        Table::from([(DEATHS.to_owned(), Value::Array(deaths))])
    }

    #[test]
    fn the_first_death_stays_on_record_and_the_latest_is_first() {
        let once = letter(&published(), "work", EXPIRED, &to());
        let twice = letter(&once, "delay", EXPIRED, &to());
        let headers = &twice.message.headers;
        assert_eq!(headers["x-first-death-queue"], Value::text("work"));
        assert_eq!(headers["x-first-death-exchange"], Value::text("orders"));
        let [latest, first] = deaths(headers) else {
            panic!("two deaths expected: {headers:?}");
        };
        assert!(has(latest, "queue", "delay") && has(latest, "exchange", "dlx"));
        assert!(has(first, "queue", "work") && has(first, "original-expiration", "250"));
        assert_eq!(twice.message.ttl_ms, None);
    }

    #[test]
    fn a_further_death_in_the_same_queue_is_counted() {
        let once = letter(&published(), "work", EXPIRED, &to());
        let other = letter(&once, "delay", EXPIRED, &to());
        let again = letter(&other, "work", EXPIRED, &to());
        let [Value::Table(latest), _] = deaths(&again.message.headers) else {
            panic!("two deaths expected: {:?}", again.message.headers);
        };
        assert_eq!(latest["count"], Value::I64(2));
        assert_eq!(latest["queue"], Value::text("work"));
    }

    #[test]
    fn a_loop_of_expiries_is_one_and_a_rejection_breaks_it() {
        let expired = || death("work", EXPIRED);
        assert!(!is_loop(&Table::new(), "work"));
        assert!(!is_loop(&headers(vec![expired()]), "other"));
        assert!(is_loop(&headers(vec![expired()]), "work"));
        let rejected_since = vec![death("work.dlq", REJECTED), expired()];
        assert!(!is_loop(&headers(rejected_since), "work"));
        let rejected_before = vec![expired(), death("work.dlq", REJECTED)];
        assert!(is_loop(&headers(rejected_before), "work"));
    }
}
