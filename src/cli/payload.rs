//! Payloads for people: JSON with line breaks, text as it is, anything else as hexadecimal digits.

use std::fmt::Write as _;

use serde::de::IgnoredAny;

use super::show::visible;

/// Bytes that are shown of what is not text.
const SHOWN: usize = 256;

/// Ends in a line break. For a terminal, what would steer it is written out instead.
pub(super) fn text(payload: &[u8], terminal: bool) -> String {
    let Ok(text) = std::str::from_utf8(payload) else {
        return hexadecimal(payload);
    };
    let text = indented(text).unwrap_or_else(|| text.to_owned());
    let mut text = if terminal { lines(&text) } else { text };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Control characters as escapes, but for line breaks and tabs.
pub(super) fn lines(text: &str) -> String {
    visible(text, |c| matches!(c, '\n' | '\t'))
}

/// JSON with line breaks, digit for digit: a JSON value would not keep large numbers. `None`: it is not JSON.
pub(super) fn indented(text: &str) -> Option<String> {
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0_usize;
    let mut chars = text.chars().filter({
        let mut quoted = Quoted::default();
        move |c| quoted.passes(*c) || !c.is_ascii_whitespace()
    });
    let mut quoted = Quoted::default();
    let mut opened = false;
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    chars.by_ref().for_each(|c| {
        if quoted.passes(c) {
            if std::mem::take(&mut opened) {
                line(&mut out, depth);
            }
            out.push(c);
            return;
        }
        let closes = matches!(c, '}' | ']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        if std::mem::take(&mut opened) != closes {
            line(&mut out, depth);
        }
        out.push(c);
        match c {
            '{' | '[' => {
                depth += 1;
                opened = true;
            }
            ',' => line(&mut out, depth),
            ':' => out.push(' '),
            _ => {}
        }
    });
    Some(out)
}

/// Whether a character belongs to a string.
#[derive(Default)]
struct Quoted {
    inside: bool,
    escaped: bool,
}

impl Quoted {
    fn passes(&mut self, c: char) -> bool {
        if !self.inside {
            self.inside = c == '"';
            return self.inside;
        }
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' => self.escaped = true,
            '"' => self.inside = false,
            _ => {}
        }
        true
    }
}

fn hexadecimal(payload: &[u8]) -> String {
    let mut text = String::new();
    let shown = &payload[..payload.len().min(SHOWN)];
    for (i, bytes) in shown.chunks(16).enumerate() {
        let digits: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
        let signs: String = bytes
            .iter()
            .map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '.',
            })
            .collect();
        let _ = writeln!(text, "{:08x} {digits:<48}  {signs}", i * 16);
    }
    let rest = payload.len() - shown.len();
    if rest > 0 {
        let _ = writeln!(text, "… and {rest} bytes more; --output json has them all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_gets_line_breaks_and_keeps_every_digit() {
        let json =
            r#"{"id":123456789012345678901234567890, "a" : [1,"x\", {y:  z",[],{ }],"e":1.50e3}"#;
        let expected = r#"{
  "id": 123456789012345678901234567890,
  "a": [
    1,
    "x\", {y:  z",
    [],
    {}
  ],
  "e": 1.50e3
}"#;
        assert_eq!(indented(json).as_deref(), Some(expected));
        assert_eq!(indented(expected).as_deref(), Some(expected));
        assert_eq!(indented("{"), None);
        for json in ["1", "[]", "null", "\"a b\"", "{}"] {
            assert_eq!(indented(json).as_deref(), Some(json));
        }
    }

    #[test]
    fn text_is_left_alone_but_for_what_steers_a_terminal() {
        assert_eq!(text(b"a\x1b[2J\nb", true), "a\\u{1b}[2J\nb\n");
        assert_eq!(text(b"a\x1b[2J\nb\n", false), "a\x1b[2J\nb\n");
    }

    #[test]
    fn what_is_not_text_is_shown_in_part() {
        let bytes: Vec<u8> = (0..=255).chain(0..4).collect();
        let text = text(&bytes, true);
        assert!(text.contains("00000040  40 41 42 43"), "{text}");
        assert!(text.contains("  @ABCDEFGHIJKLMNO\n"), "{text}");
        assert!(
            text.ends_with("… and 4 bytes more; --output json has them all\n"),
            "{text}"
        );
    }
}
