//! Time as every part of heartbeat means it: integer microseconds, UTC.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::WireError;

/// An instant in UTC, in whole microseconds since 1970.
///
/// Finer fractions are cut off where an instant is made or parsed, because one database rounds
/// them and the other truncates: two ledgers could then disagree about the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 2000-01-01T00:00:00Z: nothing that we handle is older, so an older date is a sender's mistake.
const EARLIEST_MICROS: i64 = 946_684_800_000_000;
/// 2200-01-01T00:00:00Z, exclusive.
const LATEST_MICROS: i64 = 7_258_118_400_000_000;

/// What Python, Java and JavaScript print, besides RFC 3339.
const FORMATS_WITH_OFFSET: [&str; 3] =
    ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z"];
const FORMATS_WITHOUT_OFFSET: [&str; 3] =
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"];

impl Timestamp {
    /// The instant this many microseconds after 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The instant this many milliseconds after 1970-01-01T00:00:00Z, or the last there is.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(i64::try_from(millis).unwrap_or(i64::MAX).saturating_mul(1_000))
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whether so many microseconds since 1970 lie in the years 2000 to 2199, as [`Self::parse`]
    /// asks of every time.
    #[must_use]
    pub const fn is_usable(micros: i64) -> bool {
        EARLIEST_MICROS <= micros && micros < LATEST_MICROS
    }

    /// Reads ISO 8601 with `Z`, an offset or none (which means UTC), with or without fractions.
    ///
    /// # Errors
    /// Text that is no such date, or a date outside the years 2000 to 2199.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        let instant = DateTime::parse_from_rfc3339(text)
            .map(|instant| instant.to_utc())
            .ok()
            .or_else(|| parse_other(text))
            .ok_or_else(|| {
                WireError::invalid("must be an ISO 8601 time such as 2026-11-21T10:00:00Z")
            })?;
        let micros = instant.timestamp_micros();
        if Self::is_usable(micros) {
            Ok(Self(micros))
        } else {
            Err(WireError::invalid("must be a time in the years 2000 to 2199"))
        }
    }

    /// This instant moved by a number of microseconds.
    #[must_use]
    pub const fn plus_micros(self, micros: i64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// This instant moved later by a duration.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        self.plus_micros(micros_of(duration))
    }

    /// This instant moved earlier by a duration.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        self.plus_micros(-micros_of(duration))
    }

    /// How long it is from this instant to a later one; zero if that one is not later.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_micros(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn parse_other(text: &str) -> Option<DateTime<Utc>> {
    let with_offset = FORMATS_WITH_OFFSET
        .iter()
        .find_map(|format| DateTime::parse_from_str(text, format).ok())
        .map(|instant| instant.to_utc());
    with_offset.or_else(|| {
        FORMATS_WITHOUT_OFFSET
            .iter()
            .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
            .map(|naive| naive.and_utc())
    })
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(instant: DateTime<Utc>) -> Self {
        Self(instant.timestamp_micros())
    }
}

impl From<Timestamp> for DateTime<Utc> {
    fn from(timestamp: Timestamp) -> Self {
        DateTime::from_timestamp_micros(timestamp.0).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format =
            if self.0 % 1_000_000 == 0 { SecondsFormat::Secs } else { SecondsFormat::Micros };
        f.write_str(&DateTime::<Utc>::from(*self).to_rfc3339_opts(format, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_shape_that_senders_write() {
        let table = [
            ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z"),
            ("2026-11-21T10:00:00", "2026-11-21T10:00:00Z"),
            ("2026-11-21 10:00:00", "2026-11-21T10:00:00Z"),
            ("2026-11-21T10:00:00.5", "2026-11-21T10:00:00.500000Z"),
            ("2026-11-21T10:00:00.123456789Z", "2026-11-21T10:00:00.123456Z"),
            ("2026-11-21T05:00:00-05:00", "2026-11-21T10:00:00Z"),
            ("2026-11-21T15:30:00.25+05:30", "2026-11-21T10:00:00.250000Z"),
            ("2026-11-21T10:00:00+0000", "2026-11-21T10:00:00Z"),
            ("2026-11-21T12:00:00+02", "2026-11-21T10:00:00Z"),
            ("2026-11-21 10:00:00+00:00", "2026-11-21T10:00:00Z"),
            ("2026-11-21T10:01Z", "2026-11-21T10:01:00Z"),
            ("2026-11-21T12:01+02:00", "2026-11-21T10:01:00Z"),
            ("2026-11-21T10:01", "2026-11-21T10:01:00Z"),
        ];
        for (text, expected) in table {
            let parsed = Timestamp::parse(text).map(|timestamp| timestamp.to_string());
            assert_eq!(parsed.as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_usable_time() {
        let table = [
            "",
            "now",
            "10:00",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "1732183200",
            "0001-01-01T00:00:00Z",
            "1999-12-31T23:59:59Z",
            "2200-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "+262142-12-31T23:59:59Z",
        ];
        for text in table {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }
}
