//! The announcement of a window, which precedes its first heartbeat.

use super::raw::{RawMessage, named};
use super::{StreamId, Tick, Timestamp, Window, WireError};

/// A window that a sender promises heartbeats for.
#[derive(Clone, Debug, PartialEq)]
pub struct Announcement {
    /// What it promises.
    pub window: Window,
    /// The sender's clock when it announced the window, if it said.
    pub announced_at: Option<Timestamp>,
    /// The stream entry that carried the announcement, if a relay did.
    pub stream_id: Option<StreamId>,
}

impl Announcement {
    /// The announcement that a sender writes at this instant of its clock.
    #[must_use]
    pub const fn new(window: Window, announced_at: Timestamp) -> Self {
        Self { window, announced_at: Some(announced_at), stream_id: None }
    }

    /// Reads an announcement. `default_tick` stands in for a missing `tick_seconds`.
    ///
    /// # Errors
    /// Anything that is not a window within the limits of [this module](super).
    pub fn parse(payload: &[u8], default_tick: Tick) -> Result<Self, WireError> {
        let mut raw = RawMessage::parse(payload)?;
        let announced_at = raw.announced_at.take();
        let announced_at = announced_at.map(|text| named("announced_at", Timestamp::parse(&text)));
        let stream_id = raw.take_stream_id()?;
        Ok(Self {
            announced_at: announced_at.transpose()?,
            stream_id,
            window: raw.into_window(default_tick)?,
        })
    }

    /// This announcement as the stream carries it.
    #[must_use]
    pub fn to_json(&self) -> String {
        RawMessage::of_announcement(self).to_json()
    }

    /// How far the sender's clock is behind Redis' clock at the most, in microseconds, never
    /// negative. None unless both clocks left their stamp.
    #[must_use]
    pub fn clock_offset_us(&self) -> Option<i64> {
        Some(self.stream_id?.clock_offset_us(self.announced_at?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"service":"payments-a","window_uuid":
        "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10","window_from":"2026-11-21T10:00:00Z",
        "window_to":"2026-11-21T10:02:30Z","tick_seconds":10"#;

    fn parse(rest: &str) -> Result<Announcement, WireError> {
        Announcement::parse(format!("{JSON}{rest}}}").as_bytes(), Tick::DEFAULT)
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let at = Timestamp::parse("2026-11-21T09:59:58.5Z").unwrap();
        let announcement = Announcement::new(parse("").unwrap().window, at);
        let again = Announcement::parse(announcement.to_json().as_bytes(), Tick::DEFAULT);
        assert_eq!(again, Ok(announcement));
    }

    #[test]
    fn both_stamps_tell_how_the_clocks_differ() {
        let stamps = r#","announced_at":"2026-11-21T14:00:00Z","stream_id":"1795269601500-0""#;
        assert_eq!(parse(stamps).unwrap().clock_offset_us(), Some(1_500_000));
        assert_eq!(parse("").unwrap().clock_offset_us(), None);
        for bad in [r#","announced_at":"soon""#, r#","stream_id":"1; DROP""#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
