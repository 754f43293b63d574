//! Counting what arrived for open windows, without reading again what cannot change.
//!
//! An event of an open window is never replaced or removed. So once every slot before some slot has
//! arrived, what they add up to stands, and only the slots from there on need counting.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};

use super::chunks;
use super::windows::number;
use crate::db;
use crate::wire::Timestamp;

/// The beginning of a window: slots that have all arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::monitor) struct Tally {
    /// The first slot beyond them, which is also their number.
    pub(in crate::monitor) slots: u32,
    /// Those of them that reported an error.
    pub(in crate::monitor) errors: u32,
    /// When the last of them was recorded.
    pub(in crate::monitor) last: Option<Timestamp>,
}

/// What was found from some slot of a window on.
#[derive(Clone, Copy, Debug)]
pub(in crate::monitor) struct Found {
    /// Events, whatever they say.
    pub(in crate::monitor) events: u32,
    /// Those of them that reported an error.
    pub(in crate::monitor) errors: u32,
    /// Those of them that say that a slot is missing: the window has closed.
    pub(in crate::monitor) missing: u32,
    /// When the last of them was recorded.
    pub(in crate::monitor) last: Timestamp,
    /// The last slot of them.
    last_slot: u32,
}

impl Tally {
    /// The longest beginning that is known after more was found behind this one.
    pub(in crate::monitor) fn extended(self, found: &Found) -> Self {
        // Without a gap the last slot says how many there are.
        if found.missing > 0 || self.slots + found.events != found.last_slot + 1 {
            return self;
        }
        Self {
            slots: self.slots + found.events,
            errors: self.errors + found.errors,
            last: self.last.max(Some(found.last)),
        }
    }
}

/// Counts the events of windows, each from a slot on. Nothing for a window without such events.
pub(in crate::monitor) async fn count_from(
    connection: &mut db::Connection,
    windows: &[(i64, u32)],
) -> Result<HashMap<i64, Found>, db::Error> {
    let mut counted = HashMap::with_capacity(windows.len());
    for chunk in chunks(windows) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, COUNT(*) AS events, COUNT(IF(status = 'ERROR', 1, NULL)) AS errors, \
             COUNT(IF(status = 'MISSING', 1, NULL)) AS missing, MAX(recorded_at) AS last, \
             CAST(MAX(slot) AS SIGNED) AS last_slot FROM events WHERE ",
        );
        let mut ranges = query.separated(" OR ");
        for (id, slot) in chunk {
            ranges.push("(window_id = ").push_bind_unseparated(*id);
            ranges.push_unseparated(" AND slot >= ").push_bind_unseparated(*slot);
            ranges.push_unseparated(")");
        }
        query.push(" GROUP BY window_id");
        for row in query.build().fetch_all(&mut *connection).await? {
            let last: DateTime<Utc> = row.try_get("last")?;
            let found = Found {
                events: number(&row, "events")?,
                errors: number(&row, "errors")?,
                missing: number(&row, "missing")?,
                last: last.into(),
                last_slot: number(&row, "last_slot")?,
            };
            counted.insert(row.try_get("window_id")?, found);
        }
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(events: u32, errors: u32, missing: u32, last_slot: u32) -> Found {
        Found { events, errors, missing, last_slot, last: Timestamp::from_micros(9) }
    }

    #[test]
    fn a_beginning_grows_only_as_long_as_it_has_no_gap() {
        let before = Tally { slots: 3, errors: 1, last: None };
        let grown = Tally { slots: 5, errors: 2, last: Some(Timestamp::from_micros(9)) };
        assert_eq!(before.extended(&found(2, 1, 0, 4)), grown);
        assert_eq!(before.extended(&found(2, 1, 0, 5)), before, "slot 3 or 4 has not arrived");
        assert_eq!(before.extended(&found(2, 1, 1, 4)), before, "a missing one may still arrive");
        assert_eq!(Tally::default().extended(&found(1, 0, 0, 0)).slots, 1);
    }
}
