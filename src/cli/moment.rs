//! Moments: as they are written on the command line, and as they are shown.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use prost_types::Timestamp;

/// RFC 3339, or how long ago: `2h`.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(timestamp(time.to_utc()));
    }
    let ago = text.strip_suffix("ago").unwrap_or(text).trim_end();
    humantime::parse_duration(ago)
        .ok()
        .and_then(|ago| chrono::TimeDelta::from_std(ago).ok())
        .and_then(|ago| Utc::now().checked_sub_signed(ago))
        .map(timestamp)
        .ok_or_else(|| {
            "not a time such as 2026-11-22T08:00:00Z, or how long ago, such as 2h".to_owned()
        })
}

fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default(),
    }
}

/// Whole seconds, for people; what is pasted into a flag is understood.
pub(super) fn text(time: &Timestamp) -> String {
    let nanos = u32::try_from(time.nanos).unwrap_or_default();
    DateTime::<Utc>::from_timestamp(time.seconds, nanos).map_or_else(
        || time.to_string(),
        |time| time.to_rfc3339_opts(SecondsFormat::Secs, true),
    )
}

/// How long ago, in a word: `5m`.
pub(super) fn age(time: Option<&Timestamp>) -> String {
    time.map_or_else(String::new, |time| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let then = u64::try_from(time.seconds).unwrap_or_default();
        // The gateway's clock may be ahead of this one.
        short(
            now.unwrap_or_default()
                .saturating_sub(Duration::from_secs(then)),
        )
    })
}

fn short(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_times_and_as_ages() {
        let seconds = |text| moment(text).map(|time| time.seconds);
        assert_eq!(seconds("1970-01-02T01:00:00+01:00"), Ok(86_400));
        let now = timestamp(Utc::now()).seconds;
        for text in ["2h", "2h ago"] {
            let then = seconds(text).expect("an age");
            assert!((7_200..7_300).contains(&(now - then)), "{text}");
        }
        for text in ["soon", "", "5", "ago"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_understood() {
        let time = Timestamp {
            seconds: 1_000_000_000,
            nanos: 5,
        };
        assert_eq!(text(&time), "2001-09-09T01:46:40Z");
        assert_eq!(
            moment(&text(&time)).map(|time| time.seconds),
            Ok(1_000_000_000)
        );
    }

    #[test]
    fn ages_are_short() {
        let shown = |seconds| short(Duration::from_secs(seconds));
        assert_eq!(
            [0, 119, 120, 7_199, 7_200, 172_800].map(shown),
            ["0s", "119s", "2m", "119m", "2h", "2d"]
        );
    }
}
