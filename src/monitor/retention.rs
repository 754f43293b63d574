//! How long the monitor keeps what it knows, and what it says of what it keeps no longer.
//!
//! Pure. The age of a window counts from when it was over and closed. Its events go first, and the
//! window later; an open window has no age. What [prunes](super::prune) them is elsewhere.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::window::StoredWindow;
use crate::wire::{Timestamp, Window};

/// Shortest time that anything is kept for: what comes late after an outage finds its window.
pub const SHORTEST: Duration = Duration::from_hours(24);
const DAY_SECONDS: u64 = 24 * 60 * 60;
/// Longest time, unless it is for ever.
const LONGEST: Duration = Duration::from_hours(100 * 366 * 24);
/// How long slices are kept: longer than the longest period of a summary, by more than monitors'
/// clocks differ.
pub const SLICES_KEPT: Duration = Duration::from_hours(8 * 24);

/// How long something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retain {
    /// So long after its window was over and closed.
    For(Duration),
    /// For ever.
    Forever,
}

impl Retain {
    /// What was over by this instant is kept no longer; none if everything is.
    #[must_use]
    pub fn until(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::For(age) => Some(now.minus(age)),
            Self::Forever => None,
        }
    }
}

impl fmt::Display for Retain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(age) if age.as_secs() % DAY_SECONDS == 0 && age.subsec_nanos() == 0 => {
                write!(f, "{}d", age.as_secs() / DAY_SECONDS)
            }
            Self::For(age) => humantime::format_duration(*age).fmt(f),
            Self::Forever => f.write_str("forever"),
        }
    }
}

impl FromStr for Retain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let age = humantime::parse_duration(text)
            .map_err(|error| format!("{error}; write a duration such as 30d, or `forever`"))?;
        if age < SHORTEST {
            return Err("must be at least 1d, or `forever`".to_owned());
        }
        if age > LONGEST {
            return Err("is longer than a hundred years; write `forever`".to_owned());
        }
        Ok(Self::For(age))
    }
}

/// How long what is kept.
#[derive(Args, Clone, Copy, Debug)]
pub struct RetentionArgs {
    /// How long the events of a window are kept after it was over and closed, at least 1d, or
    /// `forever`
    #[arg(long, env = "RETAIN_EVENTS", default_value = "30d", value_name = "DURATION")]
    pub retain_events: Retain,

    /// How long windows and their history are kept, not shorter than their events, or `forever`
    #[arg(long, env = "RETAIN_WINDOWS", default_value = "400d", value_name = "DURATION")]
    pub retain_windows: Retain,
}

impl RetentionArgs {
    /// Checks what no single option shows.
    ///
    /// # Errors
    /// Events that would be kept for longer than their windows.
    pub fn validate(&self) -> anyhow::Result<()> {
        let Self { retain_events, retain_windows } = self;
        if retain_events > retain_windows {
            bail!(
                "--retain-events ({retain_events}) is longer than --retain-windows \
                 ({retain_windows}): events cannot be kept without their window; shorten the one \
                 or lengthen the other"
            );
        }
        Ok(())
    }
}

/// Whether some monitor may be deleting what belongs to a window that ended at an instant, whatever
/// it was told and however far its clock is off, up to half of the shortest time.
#[must_use]
pub fn may_be_pruned(ends_at: Timestamp, now: Timestamp) -> bool {
    ends_at <= now.minus(SHORTEST / 2)
}

/// Why a heartbeat is refused whose window has no events any more.
#[must_use]
pub fn events_gone(StoredWindow { window, .. }: &StoredWindow) -> String {
    format!(
        "window {} ended at {}, and its events are no longer kept: see --retain-events",
        window.uuid,
        window.ends_at()
    )
}

/// Why a window is refused that may have been known.
#[must_use]
pub fn window_gone(window: &Window) -> String {
    format!(
        "window {} ended at {}, and windows that ended so long ago are no longer kept: see \
         --retain-windows",
        window.uuid,
        window.ends_at()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn days(days: u64) -> Retain {
        Retain::For(Duration::from_hours(days * 24))
    }

    #[test]
    fn a_time_is_read_and_has_bounds() {
        assert_eq!("30d".parse(), Ok(days(30)));
        assert_eq!("forever".parse(), Ok(Retain::Forever));
        for (text, complaint) in [
            ("23h", "must be at least 1d, or `forever`"),
            ("0s", "must be at least 1d, or `forever`"),
            ("200y", "is longer than a hundred years; write `forever`"),
            ("never", "write a duration such as 30d, or `forever`"),
        ] {
            let error = text.parse::<Retain>().unwrap_err();
            assert!(error.ends_with(complaint), "{text}: {error}");
        }
        let odd = Retain::For(Duration::from_millis(100_000_001));
        for retain in [days(1), days(400), odd, Retain::Forever] {
            assert_eq!(retain.to_string().parse(), Ok(retain), "{retain}");
        }
    }

    #[test]
    fn events_are_not_kept_for_longer_than_their_windows() {
        for (retain_events, retain_windows, is_good) in [
            (days(30), days(400), true),
            (days(30), days(30), true),
            (days(30), Retain::Forever, true),
            (Retain::Forever, Retain::Forever, true),
            (days(31), days(30), false),
            (Retain::Forever, days(400), false),
        ] {
            let args = RetentionArgs { retain_events, retain_windows };
            assert_eq!(args.validate().is_ok(), is_good, "{args:?}");
        }
    }

    #[test]
    fn what_monitors_may_delete_begins_well_before_any_does() {
        let now = Timestamp::from_micros(1_795_000_000_000_000);
        let kept = days(1).until(now).unwrap();
        assert!(may_be_pruned(kept, now) && may_be_pruned(kept.plus(SHORTEST / 2), now));
        assert!(!may_be_pruned(now, now));
        assert_eq!(Retain::Forever.until(now), None);
    }
}
