//! Durations as people write them: `90s`, `500ms`, `1m30s`; a bare number is seconds.

use std::time::Duration;

const RULE: &str = "a duration like 90s, 500ms, 2m or 1m30s is expected";

/// Reads a duration for clap.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let refuse = || RULE.to_owned();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| refuse());
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .ok_or_else(refuse)?;
        let number: f64 = rest[..digits].parse().map_err(|_| refuse())?;
        let after = &rest[digits..];
        let unit = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        total += number
            * match &after[..unit] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(refuse()),
            };
        rest = &after[unit..];
    }
    if text.is_empty() {
        return Err(refuse());
    }
    Duration::try_from_secs_f64(total).map_err(|_| refuse())
}

/// `12 s`, `1.5 s`, `250 ms`.
pub(super) fn spoken(duration: Duration) -> String {
    if duration < Duration::from_secs(1) && !duration.is_zero() {
        return format!("{} ms", duration.as_millis());
    }
    format!("{} s", (duration.as_secs_f64() * 10.0).round() / 10.0)
}

/// Milliseconds of a document: two decimals, which is 10 us.
pub(super) fn millis(ms: f64) -> String {
    format!("{ms:.2}")
}

/// `12.40 ms`, from a second on `2.60 s`.
pub(super) fn took(ms: f64) -> String {
    if ms < 1000.0 {
        format!("{} ms", millis(ms))
    } else {
        format!("{:.2} s", ms / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let cases = [
            ("90s", 90_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("1.5s", 1500),
            ("3", 3000),
            ("0", 0),
        ];
        for (text, ms) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn a_second_is_said_in_seconds() {
        assert_eq!(
            (took(12.404), took(2600.0)),
            ("12.40 ms".to_owned(), "2.60 s".to_owned())
        );
    }

    #[test]
    fn what_is_no_duration_is_answered_with_examples() {
        for bad in [
            "", "s", "-1", "-1s", "1x", "1m30", "NaN", "inf", "1..2s", "é", "1s é",
        ] {
            assert_eq!(parse(bad), Err(RULE.to_owned()), "{bad}");
        }
    }
}
