//! Reads a dead letter: a copy that the gateway made of a refused delivery, what a broker moved there on its own, or what another
//! platform set aside.

use uuid::Uuid;

use super::foreign;
use crate::{
    broker::Delivery,
    failed_message::{Death, ErrorDetail, Next, Reason},
    gateway::failed_messages::dead_letter,
    message::{Message, Table, Value, header},
    names,
};

/// The broker's account of earlier deaths, the latest first
/// (<https://www.rabbitmq.com/docs/dlx#effects>).
const X_DEATH: &str = "x-death";

/// The death that a delivery from the dead-letter queue of `queue` tells of.
pub fn read(delivery: &Delivery, queue: &str) -> Death {
    let headers = &delivery.message.headers;
    // The gateway's copies come through the default exchange; what a broker moves comes through an exchange of its queue.
    let copied = is_copy(delivery);
    let told = if copied { told(headers) } else { seen(headers) };
    death(delivery, told, copied, queue)
}

/// The death that a delivery from `letters` tells of, a queue in which another platform sets messages aside. `queue`: where they
/// failed, when nothing says it.
pub fn read_foreign(delivery: &Delivery, letters: &str, queue: Option<&str>) -> Death {
    let headers = &delivery.message.headers;
    if is_copy(delivery) {
        return read(delivery, queue.unwrap_or(letters));
    }
    let mut told = seen(headers);
    told.queue = told.queue.filter(|name| names::queue(name).is_ok());
    told.exchange = told.exchange.filter(|name| names::short_text(name).is_ok());
    told.routing_key = told
        .routing_key
        .filter(|key| names::routing_key(key).is_ok());
    // A platform that moves a message says more of it than the broker, which it may have used to delay it.
    if let Some(account) = foreign::read(headers) {
        told.reason = Reason::Rejected;
        told.error = account.error.unwrap_or(told.error);
        told.queue = account.queue.or(told.queue);
    }
    if told.queue.is_none() && queue.is_none() {
        // It would come back at once, again and again.
        told.next = Next::Park;
    }
    let queue = queue.unwrap_or(letters);
    if told.exchange.is_none() {
        // Where it was published first is not known. Its queue is reached like this.
        told.routing_key = Some(told.queue.clone().unwrap_or_else(|| queue.to_owned()));
    }
    death(delivery, told, false, queue)
}

fn is_copy(delivery: &Delivery) -> bool {
    let headers = &delivery.message.headers;
    delivery.exchange.is_empty() && headers.contains_key(header::ACTION)
}

/// `queue`: where it failed, when nothing says it.
fn death(delivery: &Delivery, told: Account, copied: bool, queue: &str) -> Death {
    let headers = &delivery.message.headers;
    let failed_id = dead_letter::failed_id(&delivery.message);
    let failed_id = failed_id.and_then(|id| Uuid::parse_str(id).ok());
    let queue = told.queue.unwrap_or_else(|| queue.to_owned());
    // The broker's account of a retry that died is about the retry, which came through the default exchange.
    let origin = dead_letter::noted_origin(&delivery.message, &queue).filter(|_| !copied);
    let (exchange, routing_key) = match origin {
        Some(origin) => (origin.exchange.to_owned(), origin.routing_key.to_owned()),
        None => (
            told.exchange.unwrap_or_default(),
            told.routing_key.unwrap_or_default(),
        ),
    };
    Death {
        id: Uuid::now_v7(),
        attempt: dead_letter::attempt(&delivery.message),
        redelivered: delivery.redelivered,
        queue,
        exchange,
        routing_key,
        publish_id: publish_id(headers, copied || failed_id.is_some()),
        failed_id,
        reason: told.reason,
        error: told.error,
        next: told.next,
        message: clean(&delivery.message),
    }
}

/// What is known of a death.
struct Account {
    queue: Option<String>,
    exchange: Option<String>,
    routing_key: Option<String>,
    reason: Reason,
    error: ErrorDetail,
    next: Next,
}

/// As the gateway noted it on its copy.
fn told(headers: &Table) -> Account {
    let noted = |name: &str| headers.get(name).and_then(Value::as_str).map(str::to_owned);
    let delay = headers.get(header::DELAY_MS).and_then(Value::as_integer);
    let delay = delay.and_then(|ms| u64::try_from(ms).ok());
    let reason = noted(header::REASON).and_then(|reason| reason.parse().ok());
    Account {
        queue: noted(header::QUEUE),
        exchange: noted(header::EXCHANGE),
        routing_key: noted(header::ROUTING_KEY),
        reason: reason.unwrap_or(Reason::Rejected),
        error: ErrorDetail {
            kind: noted(header::ERROR_TYPE).unwrap_or_default(),
            message: noted(header::ERROR_MESSAGE).unwrap_or_default(),
            stack: noted(header::ERROR_STACK).unwrap_or_default(),
        },
        next: match headers.get(header::ACTION).and_then(Value::as_str) {
            Some(dead_letter::PARK) => Next::Park,
            _ => Next::Retry(delay.map(std::time::Duration::from_millis)),
        },
    }
}

/// As the broker noted it.
fn seen(headers: &Table) -> Account {
    let latest = match headers.get(X_DEATH) {
        Some(Value::Array(deaths)) => deaths.first(),
        _ => None,
    };
    let latest = match latest {
        Some(Value::Table(death)) => Some(death),
        _ => None,
    };
    let noted = |name: &str| latest?.get(name)?.as_str().map(str::to_owned);
    let routing_key = match latest.and_then(|death| death.get("routing-keys")) {
        Some(Value::Array(keys)) => keys.first().and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    let (reason, message) = match noted("reason").as_deref() {
        Some("expired") => (Reason::Expired, "its time to live passed in the queue"),
        Some("maxlen") => (Reason::MaxLength, "the queue was full and dropped it"),
        Some("delivery_limit") => (
            Reason::DeliveryLimit,
            "it was delivered too often without being settled",
        ),
        Some("rejected") => (
            Reason::Rejected,
            "a consumer rejected it without saying why",
        ),
        _ => (
            Reason::Rejected,
            "it came to the dead-letter queue without a reason",
        ),
    };
    Account {
        queue: noted("queue"),
        exchange: noted("exchange"),
        routing_key,
        reason,
        error: ErrorDetail {
            kind: String::new(),
            message: message.to_owned(),
            stack: String::new(),
        },
        next: Next::Retry(None),
    }
}

/// The id of the first publish. `again`: the message was published again since, so that the plain header is that publish's.
fn publish_id(headers: &Table, again: bool) -> Option<String> {
    let noted = |name: &str| headers.get(name).and_then(Value::as_str).map(str::to_owned);
    let original = noted(header::ORIGINAL_PUBLISH_ID);
    if again {
        return original;
    }
    original.or_else(|| noted(header::PUBLISH_ID))
}

/// The message as its publisher made it: without what brokers and the gateway added, and without a time to live, which was for
/// the queue that it died in.
fn clean(message: &Message) -> Message {
    let mut message = message.clone();
    message.ttl_ms = None;
    message.headers.retain(|name, _| !is_added(name));
    message
}

/// Headers that say how a message died, or that would send its copies astray.
fn is_added(name: &str) -> bool {
    name == X_DEATH
        || header::COPIES.contains(&name)
        || header::COUNTERS.contains(&name)
        || ["x-first-death-", "x-last-death-", header::PREFIX]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// What a delivery may bring along of an earlier death, or of a native client that copies headers.
    fn brought() -> impl Strategy<Value = Table> {
        let names = prop::sample::select(vec![
            header::ACTION,
            header::ATTEMPT,
            header::DELAY_MS,
            header::ERROR_TYPE,
            header::EXCHANGE,
            header::FAILED_ID,
            header::ORIGINAL_PUBLISH_ID,
            header::PUBLISH_ID,
            header::QUEUE,
            header::REASON,
            header::ROUTING_KEY,
            X_DEATH,
            "mine",
        ]);
        let value = prop_oneof![
            "[a-z_]{0,12}".prop_map(Value::text),
            Just(Value::text("q")),
            Just(Value::text(dead_letter::PARK)),
            any::<i64>().prop_map(Value::I64),
        ];
        prop::collection::btree_map(names.prop_map(str::to_owned), value, 0..8)
            .prop_map(|table| table.into_iter().collect())
    }

    proptest! {
        /// What is written on a copy is what is read from it, whatever the message brought along.
        #[test]
        fn what_a_copy_says_is_understood(
            exchange in prop::sample::select(vec!["", "shop"]),
            headers in brought(),
            texts in prop::array::uniform3("[ -~é]{0,40}"),
            park in any::<bool>(),
            delay in prop::option::of(0..90_000_000_u64),
        ) {
            let refused = delivery(exchange, headers);
            let next = if park { Next::Park } else { Next::Retry(delay.map(Duration::from_millis)) };
            let [kind, message, stack] = texts;
            let error = ErrorDetail { kind, message, stack };
            let copy = Delivery {
                exchange: String::new(),
                routing_key: "q.dlq".to_owned(),
                message: dead_letter::copy(&refused, "q", next, &error),
                ..delivery("", Table::default())
            };
            let death = read(&copy, "q");
            prop_assert_eq!(death.next, next);
            prop_assert_eq!(death.reason, Reason::Rejected);
            prop_assert_eq!(death.error, error);
            prop_assert_eq!(death.queue, "q");
            let origin = dead_letter::origin(&refused);
            prop_assert_eq!(death.exchange, origin.exchange);
            prop_assert_eq!(death.routing_key, origin.routing_key);
            prop_assert_eq!(death.attempt, dead_letter::attempt(&refused.message));
            prop_assert_eq!(death.message.headers, clean(&refused.message).headers);
        }
    }

    fn delivery(exchange: &str, headers: Table) -> Delivery {
        Delivery {
            tag: 1,
            queue: 0,
            exchange: exchange.to_owned(),
            routing_key: "q".to_owned(),
            redelivered: false,
            message: Message {
                headers,
                ttl_ms: Some(5),
                ..Message::default()
            },
        }
    }

    fn x_death(reason: &str) -> Value {
        let death = Table::from([
            ("reason".into(), Value::text(reason)),
            ("queue".into(), Value::text("orders")),
            ("exchange".into(), Value::text("shop")),
            (
                "routing-keys".into(),
                Value::Array(vec![Value::text("order.created")]),
            ),
        ]);
        Value::Array(vec![Value::Table(death)])
    }

    #[test]
    fn a_native_death_says_where_and_why() {
        let headers = Table::from([
            (X_DEATH.into(), x_death("expired")),
            ("x-first-death-reason".into(), Value::text("expired")),
            ("x-delivery-count".into(), Value::I64(1)),
            ("x-acquired-count".into(), Value::I64(2)),
            (header::PUBLISH_ID.into(), Value::text("p1")),
            ("mine".into(), Value::I8(1)),
        ]);
        let death = read(&delivery("courtier.dlx", headers), "q");
        assert_eq!(death.reason, Reason::Expired);
        assert_eq!(
            (death.queue.as_str(), death.exchange.as_str()),
            ("orders", "shop")
        );
        assert_eq!(death.routing_key, "order.created");
        assert_eq!(death.publish_id.as_deref(), Some("p1"));
        assert_eq!(death.next, Next::Retry(None));
        assert_eq!(
            death.message.headers,
            Table::from([("mine".into(), Value::I8(1))])
        );
        assert_eq!(death.message.ttl_ms, None);
    }

    #[test]
    fn a_retry_that_dies_by_itself_came_from_where_the_message_was_first_published() {
        let retried_in = |queue: &str| {
            Table::from([
                (X_DEATH.into(), x_death("expired")),
                (header::QUEUE.into(), Value::text(queue)),
                (header::EXCHANGE.into(), Value::text("first")),
                (header::ROUTING_KEY.into(), Value::text("key")),
            ])
        };
        let origin = |headers| {
            let death = read(&delivery("courtier.dlx", headers), "q");
            (death.exchange, death.routing_key)
        };
        let text = |exchange: &str, key: &str| (exchange.to_owned(), key.to_owned());
        assert_eq!(origin(retried_in("orders")), text("first", "key"));
        // A consumer that published a retry on, headers and all.
        let shop = text("shop", "order.created");
        assert_eq!(origin(retried_in("elsewhere")), shop);
    }

    #[test]
    fn a_stale_account_of_the_gateway_does_not_hide_a_native_death() {
        let headers = Table::from([
            (header::ACTION.into(), Value::text("dead_letter")),
            (X_DEATH.into(), x_death("maxlen")),
        ]);
        let death = read(&delivery("courtier.dlx", headers), "q");
        assert_eq!(death.reason, Reason::MaxLength);
        assert_eq!(death.next, Next::Retry(None));
    }

    #[test]
    fn what_another_platform_set_aside_tells_where_and_why_as_far_as_it_does() {
        let failed_q = ("NServiceBus.FailedQ".to_owned(), Value::text("sales"));
        let both = Table::from([(X_DEATH.into(), x_death("expired")), failed_q.clone()]);
        let death = read_foreign(&delivery("nsb", both), "error", Some("named"));
        // It was only delayed by the broker before.
        let told = (death.queue.as_str(), death.reason, death.next);
        assert_eq!(told, ("sales", Reason::Rejected, Next::Retry(None)));
        assert_eq!(death.message.headers, Table::from([failed_q]));

        let native = Table::from([(X_DEATH.into(), x_death("maxlen"))]);
        let death = read_foreign(&delivery("dlx", native), "error", None);
        let told = (death.queue.as_str(), death.exchange.as_str(), death.reason);
        assert_eq!(told, ("orders", "shop", Reason::MaxLength));

        for (named, queue, next) in [
            (Some("named"), "named", Next::Retry(None)),
            (None, "error", Next::Park),
        ] {
            let death = read_foreign(&delivery("", Table::new()), "error", named);
            let told = (death.queue.as_str(), death.routing_key.as_str(), death.next);
            assert_eq!(told, (queue, queue, next));
        }
    }

    #[test]
    fn malformed_accounts_are_not_believed() {
        let odd = |name: &str| {
            let death = Table::from([
                ("queue".into(), Value::text(name)),
                ("exchange".into(), Value::text("e\n")),
                ("routing-keys".into(), Value::I64(1)),
                ("reason".into(), Value::Array(Vec::new())),
            ]);
            Value::Array(vec![Value::Table(death)])
        };
        for account in [
            odd("amq.rabbitmq.reply-to.x"),
            odd("q\0"),
            odd(""),
            Value::Array(vec![Value::Void]),
            Value::text("x"),
        ] {
            let headers = Table::from([(X_DEATH.into(), account)]);
            let death = read_foreign(&delivery("dlx", headers), "error", Some("named"));
            let told = (death.queue.as_str(), death.exchange.as_str(), death.reason);
            assert_eq!(told, ("named", "", Reason::Rejected));
        }
    }

    #[test]
    fn a_dead_letter_that_says_nothing_is_still_collected() {
        let death = read(&delivery("", Table::new()), "q");
        assert_eq!((death.queue.as_str(), death.attempt), ("q", 1));
        assert_eq!(death.publish_id, None);
    }
}
