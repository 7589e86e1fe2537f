//! What an edited message changes, for people.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::{Map, Value};

use crate::{
    cli::{payload, show},
    grpc::proto::Message,
};

/// Changed lines that are shown on each side.
const SHOWN: usize = 30;

/// A line for each property, and the lines of the payload that differ. Empty: nothing changes.
pub(super) fn between(old: &Message, new: &Message) -> String {
    let mut out = String::new();
    let (before, after) = (fields(old), fields(new));
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        if old != new {
            let shown = |value: Option<&Value>| value.map_or("(none)".to_owned(), Value::to_string);
            let line = format!("{name}: {} -> {}", shown(old), shown(new));
            let _ = writeln!(out, "{}", show::visible(&line, |_| false));
        }
    }
    let (old, new) = (show::payload(old), show::payload(new));
    if old != new {
        let _ = writeln!(out, "payload: {} -> {} bytes", old.len(), new.len());
        let texts = (std::str::from_utf8(old), std::str::from_utf8(new));
        if let (Ok(old), Ok(new)) = texts {
            out.push_str(&lines(old, new));
        }
    }
    out
}

/// Properties and headers by name, without the payload.
fn fields(message: &Message) -> Map<String, Value> {
    let mut fields = show::message(Some(message));
    fields.remove("text");
    fields.remove("data");
    if let Some(Value::Object(headers)) = fields.remove("headers") {
        let headers = headers.into_iter();
        fields.extend(headers.map(|(name, value)| (format!("header {name}"), value)));
    }
    fields
}

/// What is between the first and the last difference. JSON is compared with line breaks.
fn lines(old: &str, new: &str) -> String {
    let (old, new) = match (payload::indented(old), payload::indented(new)) {
        (Some(old), Some(new)) => (old, new),
        _ => (old.to_owned(), new.to_owned()),
    };
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| {
        pairs.take_while(|(old, new)| old == new).count()
    };
    let start = same(&mut old.iter().zip(&new));
    let (old, new) = (&old[start..], &new[start..]);
    let end = same(&mut old.iter().rev().zip(new.iter().rev()));
    let mut out = String::new();
    for (sign, side) in [
        ('-', &old[..old.len() - end]),
        ('+', &new[..new.len() - end]),
    ] {
        for line in side.iter().take(SHOWN) {
            let _ = writeln!(out, "{sign} {}", payload::lines(line));
        }
        if let Some(more) = side.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            let _ = writeln!(out, "{sign} … and {more} lines more");
        }
    }
    if out.is_empty() {
        out.push_str("only white space differs\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::message::Payload;

    fn message(payload: &'static str) -> Message {
        Message {
            payload: Some(Payload::Text(payload.to_owned())),
            ..Message::default()
        }
    }

    #[test]
    fn json_is_compared_line_by_line() {
        let (old, new) = (
            r#"{"id":1,"total":"12,50","n":2}"#,
            r#"{"id":1,"total":12.50,"n":2}"#,
        );
        let expected =
            "payload: 30 -> 28 bytes\n-   \"total\": \"12,50\",\n+   \"total\": 12.50,\n";
        assert_eq!(between(&message(old), &message(new)), expected);
    }

    #[test]
    fn properties_are_named_and_what_stays_is_not() {
        let old = Message {
            app_id: "shop".to_owned(),
            priority: 1,
            ..message("x")
        };
        let new = Message {
            priority: 0,
            r#type: "order".to_owned(),
            ..old.clone()
        };
        assert_eq!(
            between(&old, &new),
            "priority: 1 -> (none)\ntype: (none) -> \"order\"\n"
        );
        assert_eq!(between(&old, &old), "");
    }

    #[test]
    fn lines_that_come_go_or_repeat_are_shown_once() {
        assert_eq!(lines("a\na\nb", "a\nb"), "- a\n");
        assert_eq!(lines("a", "a\na"), "+ a\n");
        assert_eq!(lines("[1]", "[ 1 ]"), "only white space differs\n");
        let many = "x\n".repeat(SHOWN + 2);
        assert!(lines("", &many).ends_with("+ … and 2 lines more\n"));
    }
}
