//! Texts for people: on one line, and never longer than they can read, whoever wrote them.

use std::fmt::{self, Write};

use crate::names::MAX_BYTES;

/// A text of a request, as logs, errors and alerts show it: one line, no longer than a name may be and what says that it is cut.
pub fn shown(text: &str) -> String {
    cut(text, MAX_BYTES)
}

/// A text as it is shown, with at most so many bytes of it.
pub fn cut(text: &str, limit: usize) -> String {
    let mut cut = Cut::new(limit);
    let _ = cut.write_str(text);
    cut.to_string()
}

/// The beginning of a text, control characters escaped: what is written beyond its limit is dropped. Writing fails from then on, so that
/// nobody goes on formatting what is large.
#[derive(Debug)]
pub struct Cut {
    text: String,
    limit: usize,
    is_cut: bool,
}

impl Cut {
    pub fn new(limit: usize) -> Self {
        Self {
            text: String::new(),
            limit,
            is_cut: false,
        }
    }

    /// Whether something is missing.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }
}

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let before = self.text.len();
            if c.is_control() {
                self.text.extend(c.escape_default());
            } else {
                self.text.push(c);
            }
            if self.text.len() > self.limit {
                self.text.truncate(before);
                self.is_cut = true;
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.is_cut {
            f.write_str("…(cut)")
        } else {
            Ok(())
        }
    }
}

/// An error with all its causes, in one line. A cause that says what was said already is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shown_on_one_line_and_cut() {
        assert_eq!(shown("orders_queue"), "orders_queue");
        assert_eq!(shown("a\r\n\u{1b}[2Jb"), "a\\r\\n\\u{1b}[2Jb");
        let long = shown(&"é".repeat(4 * 1024 * 1024));
        assert!(long.starts_with("éé") && long.ends_with("…(cut)"), "{long}");
        assert!(long.len() < MAX_BYTES + 20);
        assert_eq!(shown(&"q".repeat(255)).len(), 255);
    }
}
