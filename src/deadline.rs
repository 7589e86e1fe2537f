//! The caller's deadline, from the `grpc-timeout` header: gRPC's own, and understood over plain HTTP too, as other gateways do.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// No deadline is later than this; the standard allows 99,999,999 hours.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// When a call must be answered.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// When the client gives up.
    pub end: Instant,
    /// When handlers answer: a little earlier, so that the reason arrives instead of the client's own timeout.
    pub answer_by: Instant,
    /// When the gateway answers for a handler that did not.
    pub cut_at: Instant,
}

impl Deadline {
    /// The deadline of a request that arrived just now; `None`: it has none.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        timeout(headers).map(Self::after)
    }

    fn after(timeout: Duration) -> Self {
        let timeout = timeout.min(LONGEST);
        let margin = margin(timeout);
        let end = Instant::now() + timeout;
        let before = |early: Duration| end - early.min(timeout);
        Self {
            end,
            answer_by: before(margin),
            cut_at: before(margin / 4),
        }
    }

    /// Whether there is no time left for anything.
    pub fn is_over(&self) -> bool {
        self.answer_by <= Instant::now()
    }
}

/// 5 % of it, at least 20 ms, at most 500 ms.
fn margin(timeout: Duration) -> Duration {
    (timeout / 20).clamp(Duration::from_millis(20), Duration::from_millis(500))
}

/// Reads `grpc-timeout` (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>). Malformed is as good as absent.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().expect("a header value"));
        timeout(&headers)
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_says() {
        assert_eq!(read("0n"), Some(Duration::ZERO));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        for malformed in ["abc", "", "1", "S", "-1S", "123456789S", "1.5S", "1s"] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn the_answer_comes_a_little_early() {
        let early = |ms: u64| {
            let deadline = Deadline::after(Duration::from_millis(ms));
            (deadline.end - deadline.answer_by).as_millis()
        };
        assert_eq!(early(10), 10);
        assert_eq!(early(100), 20);
        assert_eq!(early(2_000), 100);
        assert_eq!(early(60_000), 500);
    }
}
