//! What other people's platforms write on a message that they set aside: NServiceBus and MassTransit. What is missing, or is no text,
//! or no name, is not known; nothing is lost for that.

use percent_encoding::percent_decode_str;

use crate::{
    failed_message::ErrorDetail,
    gateway::failed_messages::dead_letter::cut,
    message::{Table, Value},
    names,
};

/// A platform's account of a failure.
#[derive(Debug, Default, PartialEq)]
pub struct Account {
    /// The queue that it failed in.
    pub queue: Option<String>,
    /// Why. `None`: it says nothing of that.
    pub error: Option<ErrorDetail>,
}

/// What the headers tell. `None`: they are of neither platform.
pub fn read(headers: &Table) -> Option<Account> {
    let told = [nservicebus(headers), mass_transit(headers)];
    told.into_iter().find(|told| *told != Account::default())
}

/// <https://docs.particular.net/nservicebus/messaging/headers#error-forwarding-headers>
fn nservicebus(headers: &Table) -> Account {
    Account {
        queue: text(headers, "NServiceBus.FailedQ").and_then(queue),
        error: error(
            headers,
            [
                "NServiceBus.ExceptionInfo.ExceptionType",
                "NServiceBus.ExceptionInfo.Message",
                "NServiceBus.ExceptionInfo.StackTrace",
            ],
        ),
    }
}

/// <https://masstransit.io/documentation/concepts/exceptions#error-headers>
fn mass_transit(headers: &Table) -> Account {
    let address = text(headers, "MT-Fault-InputAddress");
    Account {
        queue: address.and_then(|address| queue(&addressed(address)?)),
        error: error(
            headers,
            [
                "MT-Fault-ExceptionType",
                "MT-Fault-Message",
                "MT-Fault-StackTrace",
            ],
        ),
    }
}

/// The queue of an address such as `rabbitmq://host/virtual-host/queue?durable=true`, or `queue:name`.
fn addressed(address: &str) -> Option<String> {
    let path = address.split(['?', '#']).next()?;
    let name = path.rsplit(['/', ':']).next()?;
    let name = percent_decode_str(name).decode_utf8().ok()?;
    Some(name.into_owned())
}

/// A name that a queue may have. A message is sent there again: it must be no address that means something else.
fn queue(name: &str) -> Option<String> {
    names::queue(name).is_ok().then(|| name.to_owned())
}

fn error(headers: &Table, [kind, message, stack]: [&str; 3]) -> Option<ErrorDetail> {
    let part = |name| text(headers, name).map(cut).unwrap_or_default();
    let detail = ErrorDetail {
        kind: part(kind),
        message: part(message),
        stack: part(stack),
    };
    (detail != ErrorDetail::default()).then_some(detail)
}

fn text<'a>(headers: &'a Table, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failed_message::MAX_ERROR_TEXT;

    fn headers<const N: usize>(entries: [(&str, Value); N]) -> Table {
        entries.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn detail(kind: &str, message: &str, stack: &str) -> ErrorDetail {
        ErrorDetail {
            kind: kind.to_owned(),
            message: message.to_owned(),
            stack: stack.to_owned(),
        }
    }

    #[test]
    fn nservicebus_says_where_and_why() {
        let told = read(&headers([
            ("NServiceBus.FailedQ", Value::text("Sales")),
            (
                "NServiceBus.ExceptionInfo.ExceptionType",
                Value::text("System.Exception"),
            ),
            ("NServiceBus.ExceptionInfo.Message", Value::text("no stock")),
            (
                "NServiceBus.ExceptionInfo.StackTrace",
                Value::text("at Sales"),
            ),
        ]));
        let expected = Account {
            queue: Some("Sales".to_owned()),
            error: Some(detail("System.Exception", "no stock", "at Sales")),
        };
        assert_eq!(told, Some(expected));
    }

    #[test]
    fn mass_transit_names_the_queue_at_the_end_of_an_address() {
        for (address, queue) in [
            ("rabbitmq://localhost/orders", Some("orders")),
            (
                "rabbitmq://host:5672/vhost/orders%2Fnew?durable=true",
                Some("orders/new"),
            ),
            ("queue:orders", Some("orders")),
            ("rabbitmq://localhost/", None),
            ("rabbitmq://localhost/amq.rabbitmq.reply-to.x", None),
            ("", None),
        ] {
            let told = read(&headers([
                ("MT-Fault-InputAddress", Value::text(address)),
                ("MT-Fault-Message", Value::text("no stock")),
            ]));
            let told = told.expect("it says why");
            assert_eq!(told.queue.as_deref(), queue, "{address}");
            assert_eq!(told.error, Some(detail("", "no stock", "")));
        }
    }

    #[test]
    fn what_is_no_text_and_what_is_no_name_is_not_known() {
        for (name, value) in [
            ("NServiceBus.FailedQ", Value::I64(7)),
            ("NServiceBus.FailedQ", Value::Text(vec![0xff].into())),
            ("NServiceBus.FailedQ", Value::text("")),
            ("NServiceBus.FailedQ", Value::text("q".repeat(256))),
            ("NServiceBus.FailedQ", Value::text("q\0")),
            (
                "NServiceBus.ExceptionInfo.Message",
                Value::Array(Vec::new()),
            ),
            ("MT-Fault-InputAddress", Value::text("%ff")),
            ("mine", Value::text("x")),
        ] {
            assert_eq!(read(&headers([(name, value)])), None, "{name}");
        }
        let long = Value::text("é".repeat(MAX_ERROR_TEXT));
        let told = read(&headers([("MT-Fault-StackTrace", long)])).and_then(|told| told.error);
        assert_eq!(told.map(|error| error.stack.len()), Some(MAX_ERROR_TEXT));
    }
}
