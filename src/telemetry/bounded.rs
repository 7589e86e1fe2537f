//! Fields of log lines, cut and escaped: what a client sends may be long, and may hold line breaks or a terminal's commands.
//!
//! This is the last line of defence, for every field of every line, whoever writes it. Texts that are known to come from a request
//! are cut where they are noted as well ([`text::shown`]).

use std::{
    error::Error,
    fmt::{self, Debug, Write},
};

use serde_json::{Map, Value, json};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::{RecordFields, VisitOutput},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{DefaultVisitor, Writer},
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use crate::text::{self, Cut};

/// Bytes of one field.
const MAX_FIELD: usize = 4 * 1024;

/// Fields as text, as they are written by default.
pub(super) struct BoundedFields;

impl<'writer> FormatFields<'writer> for BoundedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = TextFields(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct TextFields<'a>(DefaultVisitor<'a>);

impl Visit for TextFields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &format_args!("{value:?}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{}", text::chain(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0
            .record_debug(field, &format_args!("{}", bounded(value)));
    }
}

/// A value as text, cut.
fn bounded(value: &dyn Debug) -> Cut {
    let mut cut = Cut::new(MAX_FIELD);
    // It fails when it is full.
    let _ = write!(cut, "{value:?}");
    cut
}

/// Lines of JSON, as they are written by default, unless a field is too long.
pub(super) struct BoundedJson<F>(pub F);

impl<S, N, F> FormatEvent<S, N> for BoundedJson<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = JsonFields::default();
        event.record(&mut fields);
        if !fields.is_cut {
            return self.0.format_event(context, writer, event);
        }
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let line = json!({
            "timestamp": timestamp,
            "level": event.metadata().level().as_str(),
            "fields": fields.fields,
            "target": event.metadata().target(),
        });
        writeln!(writer, "{line}")
    }
}

#[derive(Default)]
struct JsonFields {
    fields: Map<String, Value>,
    is_cut: bool,
}

impl JsonFields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.fields.insert(field.name().to_owned(), value.into());
    }

    fn put_cut(&mut self, field: &Field, cut: &Cut) {
        self.is_cut |= cut.is_cut();
        self.put(field, cut.to_string());
    }
}

impl Visit for JsonFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let mut cut = Cut::new(MAX_FIELD);
        let _ = cut.write_str(value);
        self.put_cut(field, &cut);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put_cut(field, &bounded(value));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::fmt::{MakeWriter, format::format};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("whole").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("whole").clone()).expect("text")
        }
    }

    fn hostile() {
        let long = "n".repeat(1024 * 1024);
        let (target, broken) = ("t", "one\ntwo\u{1b}[31m");
        tracing::info!(target, long, error = %long, all = ?[&long], count = 7, broken, shown = %broken, "{long}{broken}");
        tracing::info!(short = "as it is", "plain");
    }

    #[test]
    fn a_line_of_text_is_cut_and_stays_one_line() {
        let lines = Lines::default();
        let logging = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(lines.clone())
            .fmt_fields(BoundedFields)
            .finish();
        tracing::subscriber::with_default(logging, hostile);
        let text = lines.text();
        assert_eq!(text.lines().count(), 2, "{} bytes", text.len());
        assert!(text.len() < 20 * 1024, "{} bytes", text.len());
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("count=7") && text.ends_with("plain short=\"as it is\"\n"));
    }

    #[test]
    fn a_line_of_json_is_cut_and_stays_json() {
        let lines = Lines::default();
        let logging = tracing_subscriber::fmt()
            .json()
            .with_writer(lines.clone())
            .event_format(BoundedJson(format().json()))
            .finish();
        tracing::subscriber::with_default(logging, hostile);
        let text = lines.text();
        assert!(text.len() < 20 * 1024, "{} bytes", text.len());
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["fields"]["count"], 7);
        assert_eq!(lines[0]["level"], "INFO");
        assert!(lines[0]["fields"]["long"].as_str().expect("text").len() < 5 * 1024);
        assert_eq!(lines[1]["fields"]["short"], "as it is");
    }
}
