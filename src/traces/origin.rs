//! Where a message comes from: the W3C trace context (<https://www.w3.org/TR/trace-context/>), as callers give it and as messages
//! carry it.

use http::HeaderMap;
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};

use crate::message::{Table, Value};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// What is longer is no context. Those of today's version have 55 bytes; later ones may have more.
const MAX_TRACEPARENT: usize = 256;
/// As much as everybody must be able to pass on.
const MAX_TRACESTATE: usize = 512;

/// The step that a message follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    traceparent: String,
    tracestate: String,
    span: SpanContext,
}

impl Origin {
    /// What a call's metadata or an HTTP request's headers say.
    pub fn of_call(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let (Some(parent), None) = (parents.next(), parents.next()) else {
            return None;
        };
        let states: Option<Vec<_>> = headers
            .get_all(TRACESTATE)
            .iter()
            .map(|state| state.to_str().ok())
            .collect();
        Self::read(parent.to_str().ok()?, &states.unwrap_or_default().join(","))
    }

    /// What a message carries.
    pub fn of_message(headers: &Table) -> Option<Self> {
        let text = |name| headers.get(name).and_then(Value::as_str);
        Self::read(text(TRACEPARENT)?, text(TRACESTATE).unwrap_or_default())
    }

    fn read(traceparent: &str, tracestate: &str) -> Option<Self> {
        if traceparent.len() > MAX_TRACEPARENT {
            return None;
        }
        let (tracestate, state) = state(tracestate).unwrap_or_default();
        let span = span(traceparent, state)?;
        span.is_valid().then(|| Self {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate.to_owned(),
            span,
        })
    }

    /// The step that this span is.
    pub(super) fn of_span(span: &SpanContext) -> Option<Self> {
        span.is_valid().then(|| Self {
            traceparent: format!(
                "00-{}-{}-{:02x}",
                span.trace_id(),
                span.span_id(),
                span.trace_flags()
            ),
            tracestate: span.trace_state().header(),
            span: span.clone(),
        })
    }

    pub(super) fn context(&self) -> Context {
        Context::new().with_remote_span_context(self.span.clone())
    }

    /// Puts it on a message, in the place of any other.
    pub fn put(&self, headers: &mut Table) {
        let traceparent = Value::text(self.traceparent.clone());
        headers.insert(TRACEPARENT.to_owned(), traceparent);
        if self.tracestate.is_empty() {
            headers.remove(TRACESTATE);
        } else {
            let tracestate = Value::text(self.tracestate.clone());
            headers.insert(TRACESTATE.to_owned(), tracestate);
        }
    }

    /// For log lines.
    pub fn trace_id(&self) -> String {
        self.span.trace_id().to_string()
    }
}

/// Reads a `traceparent`. The fields of a later version begin as those of today's. OpenTelemetry's own reader takes shorter numbers,
/// which others refuse.
fn span(traceparent: &str, state: TraceState) -> Option<SpanContext> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, span, flags, more @ ..] = parts.as_slice() else {
        return None;
    };
    let numbers = [version, trace, span, flags];
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_well_formed = numbers.map(|number| number.len()) == [2, 32, 16, 2]
        && numbers.iter().all(|number| number.bytes().all(is_digit));
    if !is_well_formed || *version == "ff" || (*version == "00" && !more.is_empty()) {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    Some(SpanContext::new(trace, span, flags, true, state))
}

/// Reads a `tracestate`; one that cannot be read is left out.
fn state(text: &str) -> Option<(&str, TraceState)> {
    if text.is_empty() || text.len() > MAX_TRACESTATE {
        return None;
    }
    Some((text, text.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn call(headers: &[(&'static str, &str)]) -> Option<Origin> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a header value"));
        }
        Origin::of_call(&map)
    }

    #[test]
    fn a_context_goes_on_as_it_came() {
        let states = [
            (TRACEPARENT, PARENT),
            (TRACESTATE, "a=1"),
            (TRACESTATE, "b=2"),
        ];
        let origin = call(&states).expect("a valid context");
        assert_eq!(origin.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let mut headers = Table::new();
        origin.put(&mut headers);
        assert_eq!(headers[TRACEPARENT], Value::text(PARENT));
        assert_eq!(headers[TRACESTATE], Value::text("a=1,b=2"));
        assert_eq!(Origin::of_message(&headers), Some(origin));
    }

    #[test]
    fn what_is_no_context_is_none() {
        let long = format!("{PARENT}-{}", "0".repeat(100 * 1024));
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for malformed in [
            "",
            "x",
            "00-1-2-3",
            zero,
            &long,
            &PARENT.to_uppercase(),
            &PARENT.replace("00-", "ff-"),
            &format!("{PARENT}-00"),
        ] {
            assert_eq!(call(&[(TRACEPARENT, malformed)]), None, "{malformed:.60}");
        }
        assert_eq!(call(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]), None);
        assert_eq!(call(&[(TRACESTATE, "a=1")]), None);
        let later = format!("{}-more", PARENT.replacen("00", "01", 1));
        assert!(call(&[(TRACEPARENT, &later)]).is_some());
        let wide = format!("a={}", "x".repeat(MAX_TRACESTATE));
        for state in [&*wide, "no state"] {
            let without = call(&[(TRACEPARENT, PARENT), (TRACESTATE, state)]);
            assert_eq!(without, call(&[(TRACEPARENT, PARENT)]), "{state:.20}");
        }
    }
}
