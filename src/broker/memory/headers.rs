//! What a binding of a headers exchange asks of a message.
//! <https://www.rabbitmq.com/tutorials/amqp-concepts#exchange-headers>

use crate::{
    broker::Error,
    message::{Table, Value},
};

/// The parsed arguments of a binding. Only a headers exchange looks at them.
#[derive(PartialEq)]
pub(super) struct HeadersMatch {
    any: bool,
    wanted: Table,
}

impl HeadersMatch {
    /// `x-match` is `all` (the default) or `any`; both overlook arguments beginning with `x-`, which
    /// `all-with-x` and `any-with-x` compare too. Another `x-match` is refused, as RabbitMQ does.
    pub(super) fn parse(arguments: &Table) -> Result<Self, Error> {
        let (any, with_x) = match arguments.get("x-match").and_then(Value::as_str) {
            None | Some("all") => (false, false),
            Some("any") => (true, false),
            Some("all-with-x") => (false, true),
            Some("any-with-x") => (true, true),
            Some(other) => {
                return Err(Error::Refused(format!(
                    "invalid x-match field value {other:?}"
                )));
            }
        };
        let compared = |name: &str| name != "x-match" && (with_x || !name.starts_with("x-"));
        let wanted = arguments.iter().filter(|(name, _)| compared(name));
        Ok(Self {
            any,
            wanted: wanted
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        })
    }

    /// The number 5 is not the text `"5"`, and equals any other 5, however wide.
    pub(super) fn matches(&self, headers: &Table) -> bool {
        let mut equal = self
            .wanted
            .iter()
            .map(|(name, wanted)| headers.get(name).is_some_and(|value| equals(value, wanted)));
        if self.any {
            equal.any(|equal| equal)
        } else {
            equal.all(|equal| equal)
        }
    }
}

fn equals(value: &Value, wanted: &Value) -> bool {
    match (value.as_integer(), wanted.as_integer()) {
        (Some(value), Some(wanted)) => value == wanted,
        _ => value == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(arguments: &[(&str, &str)], headers: &[(&str, Value)]) -> bool {
        let arguments = arguments
            .iter()
            .map(|(k, v)| (k.to_string(), Value::text(*v)));
        let headers = headers.iter().map(|(k, v)| (k.to_string(), v.clone()));
        let parsed = HeadersMatch::parse(&arguments.collect()).expect("a known x-match");
        parsed.matches(&headers.collect())
    }

    #[test]
    fn all_wants_every_argument_and_any_wants_one() {
        let half = [("a", Value::text("1")), ("c", Value::text("3"))];
        assert!(!matches(&[("a", "1"), ("b", "2")], &half));
        assert!(!matches(
            &[("x-match", "all"), ("a", "1"), ("b", "2")],
            &half
        ));
        assert!(matches(
            &[("x-match", "any"), ("a", "1"), ("b", "2")],
            &half
        ));
        assert!(!matches(
            &[("x-match", "any"), ("a", "2"), ("b", "2")],
            &half
        ));
    }

    #[test]
    fn no_arguments_match_everything_under_all_and_nothing_under_any() {
        assert!(matches(&[], &[]));
        assert!(!matches(&[("x-match", "any")], &[("a", Value::text("1"))]));
    }

    #[test]
    fn a_number_is_not_its_text() {
        assert!(!matches(&[("a", "5")], &[("a", Value::I32(5))]));
    }

    #[test]
    fn x_arguments_count_only_when_asked_for() {
        assert!(matches(&[("x-a", "1")], &[]));
        assert!(!matches(&[("x-match", "all-with-x"), ("x-a", "1")], &[]));
        assert!(matches(
            &[("x-match", "any-with-x"), ("x-a", "1")],
            &[("x-a", Value::text("1"))]
        ));
    }

    #[test]
    fn an_unknown_x_match_is_refused() {
        let arguments = Table::from([("x-match".to_owned(), Value::text("most"))]);
        assert!(matches!(
            HeadersMatch::parse(&arguments),
            Err(Error::Refused(_))
        ));
    }
}
