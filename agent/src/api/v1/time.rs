//! Points in time on the wire: RFC 3339, UTC, milliseconds.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point of wall time, spelt `2026-11-22T13:31:55.042Z`. Never used to measure: durations come
/// from the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

/// The text was not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a time: an RFC 3339 time like 2026-11-22T13:31:55.042Z is expected")]
pub struct InvalidTimestamp {
    /// The text as given.
    pub value: String,
}

impl Timestamp {
    /// The wall clock now, in whole milliseconds.
    pub fn now() -> Self {
        Self(Utc::now().trunc_subsecs(3))
    }

    /// The point `millis` ms after 1970-01-01T00:00:00Z; none when chrono cannot hold it.
    pub fn from_unix_millis(millis: i64) -> Option<Self> {
        DateTime::from_timestamp_millis(millis).map(Self)
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn unix_millis(self) -> i64 {
        self.0.timestamp_millis()
    }
}

/// A duration as documents carry it: milliseconds with three decimals. So few digits pass JSON in
/// both directions unchanged, which a recorded answer has to.
pub fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.trunc_subsecs(3))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(value: &str) -> Result<Self, InvalidTimestamp> {
        match DateTime::parse_from_rfc3339(value) {
            Ok(time) => Ok(time.with_timezone(&Utc).into()),
            Err(_) => Err(InvalidTimestamp {
                value: value.to_owned(),
            }),
        }
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "date-time",
            "description": "A point of wall time, RFC 3339 in UTC with milliseconds.",
        })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_spelt_in_utc_with_milliseconds() {
        let time: Timestamp = "2026-11-22T15:31:55.0426+02:00".parse().unwrap();
        assert_eq!(time.to_string(), "2026-11-22T13:31:55.042Z");
        assert_eq!(Timestamp::from_unix_millis(time.unix_millis()), Some(time));
    }

    #[test]
    fn milliseconds_pass_json_unchanged() {
        for nanos in (0..5_000_000_000).step_by(7_654_321) {
            let ms = millis(Duration::from_nanos(nanos));
            let text = serde_json::to_string(&ms).unwrap();
            assert_eq!(serde_json::from_str::<f64>(&text).unwrap(), ms, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_time_is_named() {
        let refused = "yesterday".parse::<Timestamp>().unwrap_err();
        assert_eq!(refused.value, "yesterday");
    }
}
