//! The id of a stream entry, which says when Redis took it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Timestamp, WireError};

/// The id of a stream entry: the server's milliseconds since 1970, and a number within them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Redis' clock when the entry was written, in milliseconds since 1970.
    pub millis: u64,
    /// Number of the entry within that millisecond.
    pub sequence: u64,
}

impl StreamId {
    /// When the entry was written, by Redis' clock.
    #[must_use]
    pub fn written_at(self) -> Timestamp {
        Timestamp::from_millis(self.millis)
    }

    /// How far a clock that stamped the entry's message is behind Redis' clock, in microseconds;
    /// what the way to Redis took is part of it.
    ///
    /// A clock that is ahead counts as right: a window that closes too late costs seconds, and one
    /// wrong stamp must not close it too early. The oldest senders stamp a tick ahead anyway.
    pub(super) fn clock_offset_us(self, stamp: Timestamp) -> i64 {
        (self.written_at().micros() - stamp.micros()).max(0)
    }
}

impl FromStr for StreamId {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        // Not every text that Rust reads as a number: a sign has no place in an id.
        let number = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_digit()).then(|| part.parse().ok()).flatten()
        };
        let (millis, sequence) = text.split_once('-').unwrap_or((text, "0"));
        match (number(millis), number(sequence)) {
            (Some(millis), Some(sequence)) => Ok(Self { millis, sequence }),
            _ => Err(WireError::invalid("must be an id such as 1732183210000-0")),
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

impl Serialize for StreamId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StreamId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_ids_order_by_time_then_sequence() {
        let id = |text: &str| text.parse::<StreamId>().unwrap();
        assert!(id("9-5") < id("10-0"));
        assert!(id("10-9") < id("10-10"));
        assert_eq!(id("10-10").to_string(), "10-10");
        for bad in ["x-1", "", "-", "1-", "+1-0", "1-0-0", "99999999999999999999-0"] {
            assert!(bad.parse::<StreamId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_says_when_it_was_written() {
        let id: StreamId = "1795269600123-7".parse().unwrap();
        assert_eq!(id.written_at(), Timestamp::parse("2026-11-21T14:00:00.123Z").unwrap());
        let far = StreamId { millis: u64::MAX, sequence: 0 };
        assert!(far.written_at() > id.written_at(), "no id overflows");
    }
}
