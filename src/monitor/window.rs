//! The rules of a window, apart from any database and clock.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use utoipa::ToSchema;

use crate::wire::{Timestamp, Window};

/// The cause of a slot that is missing only because it could not be observed.
pub const UNOBSERVED: &str = "unobserved";

/// Where a window stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowStatus {
    /// Its time is not over, or nobody has closed it yet.
    Open,
    /// Over, and every heartbeat that it promised arrived.
    Closed,
    /// Over, and at least one heartbeat is missing.
    Alert,
}

impl WindowStatus {
    /// The status as the database holds it.
    #[must_use]
    pub const fn as_sql(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Closed => "CLOSED",
            Self::Alert => "ALERT",
        }
    }
}

impl FromStr for WindowStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Open, Self::Closed, Self::Alert]
            .into_iter()
            .find(|status| status.as_sql().eq_ignore_ascii_case(text))
            .ok_or_else(|| "must be open, closed or alert".to_owned())
    }
}

impl fmt::Display for WindowStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Alert => "alert",
        })
    }
}

/// What arrived for a window, and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counts {
    /// Distinct scheduled slots that truly arrived.
    pub received: u32,
    /// Those of them that reported an error.
    pub errors: u32,
    /// Slots found missing when the window closed, less those that arrived since.
    pub missing: u32,
    /// Those of them that are missing only because they could not be observed.
    pub unobserved: u32,
}

impl Counts {
    /// The status of a window that is over.
    #[must_use]
    pub const fn verdict(self) -> WindowStatus {
        if self.missing == 0 { WindowStatus::Closed } else { WindowStatus::Alert }
    }

    /// Why slots are missing, if for one reason only that is not the sender's.
    #[must_use]
    pub const fn cause(self) -> Option<&'static str> {
        if self.missing > 0 && self.unobserved == self.missing { Some(UNOBSERVED) } else { None }
    }
}

/// A window as the monitor keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredWindow {
    /// Its row in the database.
    pub id: i64,
    /// Its first definition.
    pub window: Window,
    /// Where it stands.
    pub status: WindowStatus,
    /// Counts; those of an open window are of the instant at which they were read.
    pub counts: Counts,
    /// Distinct heartbeats outside of its slots.
    pub unscheduled: u32,
    /// Whether its events are kept; if not, its counts are all that is known of its slots.
    pub events_kept: bool,
    /// Whether anything of it came through the stream.
    pub via_stream: bool,
    /// How far the sender's clock is behind the stream's, in microseconds, at the most; not negative.
    pub clock_offset_us: Option<i64>,
    /// For how long monitors had been running, in microseconds, when it was found to be held.
    pub held_from_us: Option<i64>,
    /// When the monitor first heard of it.
    pub created_at: Timestamp,
    /// When anything about it last changed.
    pub updated_at: Timestamp,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
}

impl StoredWindow {
    /// End of its last slot by the stream's clock.
    #[must_use]
    pub fn due_at(&self) -> Timestamp {
        self.window.ends_at().plus_micros(self.clock_offset_us.unwrap_or(0))
    }
}

/// The slots of a window that are not among those present.
#[must_use]
pub fn missing_slots(window: &Window, present: &BTreeSet<u32>) -> Vec<u32> {
    (0..window.slots()).filter(|slot| !present.contains(slot)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_missing_slot_is_an_alert() {
        let counts = |missing| Counts { received: 3, errors: 3, missing, unobserved: 0 };
        assert_eq!(counts(0).verdict(), WindowStatus::Closed);
        assert_eq!(counts(1).verdict(), WindowStatus::Alert);
    }

    #[test]
    fn one_slot_that_was_observed_is_reason_enough_for_an_alert() {
        let cause =
            |missing, unobserved| Counts { missing, unobserved, ..Counts::default() }.cause();
        assert_eq!(cause(0, 0), None);
        assert_eq!(cause(2, 2), Some(UNOBSERVED));
        assert_eq!(cause(2, 1), None);
    }

    #[test]
    fn statuses_are_read_in_either_case() {
        for status in [WindowStatus::Open, WindowStatus::Closed, WindowStatus::Alert] {
            assert_eq!(status.as_sql().parse(), Ok(status));
            assert_eq!(status.to_string().parse(), Ok(status));
        }
        assert!("shut".parse::<WindowStatus>().is_err());
    }
}
