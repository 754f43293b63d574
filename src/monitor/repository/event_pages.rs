//! Reading events page by page through their windows: `events` itself has no index but its key.

use std::collections::HashMap;
use std::ops::Range;

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};
use uuid::Uuid;

use super::events::{SlotEvent, slot_event};
use super::windows::in_order;
use super::{MAX_CHUNK, filled, push_list};
use crate::db;
use crate::monitor::window::WindowStatus;
use crate::wire::{ServiceName, Timestamp};

/// What no window is called long for, in microseconds.
pub(in crate::monitor) const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;

const COLUMNS: &str = "SELECT id, window_uuid, service_name, status, window_from, ends_at, \
    expected_reports, error_reports, events_kept FROM windows ";

/// A window that may hold events that are asked for.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct Candidate {
    pub(in crate::monitor) id: i64,
    pub(in crate::monitor) uuid: Uuid,
    pub(in crate::monitor) service: String,
    pub(in crate::monitor) from: Timestamp,
    pub(in crate::monitor) ends_at: Timestamp,
    pub(in crate::monitor) slots: u32,
    /// Known only once it has closed.
    pub(in crate::monitor) errors: Option<i32>,
    /// Whether its events are kept.
    pub(in crate::monitor) events_kept: bool,
}

/// Which windows may hold events that are asked for.
#[derive(Clone, Debug, Default)]
pub(in crate::monitor) struct Candidates<'f> {
    pub(in crate::monitor) service: Option<&'f ServiceName>,
    pub(in crate::monitor) status: Option<WindowStatus>,
    /// Windows that start after this instant.
    pub(in crate::monitor) after: Option<Timestamp>,
    /// Windows of more than a day that end at this instant or later.
    pub(in crate::monitor) long_until: Option<Timestamp>,
    /// Windows that start before this instant.
    pub(in crate::monitor) before: Option<Timestamp>,
    /// This window, by its start and its row, and those behind it.
    pub(in crate::monitor) begin: Option<(Timestamp, i64)>,
}

/// Windows from the latest start to the earliest.
pub(in crate::monitor) async fn candidates(
    connection: &mut db::Connection,
    wanted: &Candidates<'_>,
    limit: u32,
) -> Result<Vec<Candidate>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    // Long windows are few, and have an index of their own.
    if wanted.long_until.is_none() {
        query.push(in_order(wanted.service.is_some(), wanted.status.is_some()));
    }
    query.push(" WHERE TRUE");
    if let Some(service) = wanted.service {
        query.push(" AND service_name = ").push_bind(service.as_str());
    }
    if let Some(status) = wanted.status {
        query.push(" AND status = ").push_bind(status.as_sql());
    }
    if let Some(after) = wanted.after {
        query.push(" AND window_from > ").push_bind(DateTime::<Utc>::from(after));
    }
    if let Some(until) = wanted.long_until {
        query.push(" AND length_us > ").push_bind(DAY_US);
        query.push(" AND ends_at >= ").push_bind(DateTime::<Utc>::from(until));
    }
    if let Some(before) = wanted.before {
        query.push(" AND window_from < ").push_bind(DateTime::<Utc>::from(before));
    }
    if let Some((from, id)) = wanted.begin {
        let from = DateTime::<Utc>::from(from);
        query.push(" AND window_from <= ").push_bind(from);
        query.push(" AND (window_from < ").push_bind(from);
        query.push(" OR id <= ").push_bind(id).push(")");
    }
    query.push(" ORDER BY window_from DESC, id DESC LIMIT ").push_bind(limit);
    query.build().fetch_all(connection).await?.iter().map(candidate).collect()
}

/// The window behind a place from which a list that leaves out windows without events goes on, of
/// whatever service: the next one that has events; none if there is none.
pub(in crate::monitor) async fn next_with_events(
    connection: &mut db::Connection,
    (from, id): (Timestamp, i64),
) -> Result<Option<(Timestamp, i64)>, db::Error> {
    let from = DateTime::<Utc>::from(from);
    let next: Option<(DateTime<Utc>, i64)> = sqlx::query_as(
        "SELECT window_from, id FROM windows FORCE INDEX (windows_with_events) \
         WHERE events_kept = TRUE AND window_from <= ? AND (window_from < ? OR id < ?) \
         ORDER BY window_from DESC, id DESC LIMIT 1",
    )
    .bind(from)
    .bind(from)
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(next.map(|(from, id)| (from.into(), id)))
}

/// One window by its uuid.
pub(in crate::monitor) async fn only_candidate(
    connection: &mut db::Connection,
    uuid: Uuid,
) -> Result<Option<Candidate>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE window_uuid = ").push_bind(uuid.to_string());
    query.build().fetch_optional(connection).await?.as_ref().map(candidate).transpose()
}

fn candidate(row: &MySqlRow) -> Result<Candidate, db::Error> {
    let id: i64 = row.try_get("id")?;
    let bad = |column: &str| {
        db::Error::bad_row(format!("table windows, row {id}, column {column} is not one of ours"))
    };
    let uuid: String = row.try_get("window_uuid")?;
    let expected: i32 = row.try_get("expected_reports")?;
    let status: String = row.try_get("status")?;
    let is_open = status == WindowStatus::Open.as_sql();
    let errors: i32 = row.try_get("error_reports")?;
    Ok(Candidate {
        id,
        uuid: Uuid::try_parse(&uuid).map_err(|_| bad("window_uuid"))?,
        service: row.try_get("service_name")?,
        from: row.try_get::<DateTime<Utc>, _>("window_from")?.into(),
        ends_at: row.try_get::<DateTime<Utc>, _>("ends_at")?.into(),
        slots: u32::try_from(expected).map_err(|_| bad("expected_reports"))?,
        errors: (!is_open).then_some(errors),
        events_kept: row.try_get("events_kept")?,
    })
}

/// How long the longest window is, in microseconds.
pub(in crate::monitor) async fn longest_window_us(
    connection: &mut db::Connection,
) -> Result<i64, db::Error> {
    let longest: Option<i64> =
        sqlx::query_scalar("SELECT MAX(length_us) FROM windows").fetch_one(connection).await?;
    Ok(longest.unwrap_or(0))
}

/// Which events of a window are asked for.
#[derive(Clone, Debug, Default)]
pub(in crate::monitor) struct EventFilter {
    /// As the database holds it.
    pub(in crate::monitor) status: Option<&'static str>,
    /// Events of this instant or later.
    pub(in crate::monitor) from: Option<Timestamp>,
    /// Events before this instant.
    pub(in crate::monitor) to: Option<Timestamp>,
}

impl EventFilter {
    fn push(&self, query: &mut QueryBuilder<MySql>) {
        if let Some(status) = self.status {
            query.push(" AND status = ").push_bind(status);
        }
        if let Some(from) = self.from {
            query.push(" AND report_timestamp >= ").push_bind(DateTime::<Utc>::from(from));
        }
        if let Some(to) = self.to {
            query.push(" AND report_timestamp < ").push_bind(DateTime::<Utc>::from(to));
        }
    }
}

/// An event of a window.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct ListedEvent {
    pub(in crate::monitor) slot: u32,
    pub(in crate::monitor) event: SlotEvent,
}

const EVENT_COLUMNS: &str = "SELECT window_id, slot, status, report_timestamp, error_message, \
    stream_id, recorded_at, late, deliveries, conflicts, cause FROM events WHERE window_id ";

/// Events of some slots of one window, the last slot first.
pub(in crate::monitor) async fn events_of_one(
    connection: &mut db::Connection,
    window_id: i64,
    slots: Range<u32>,
    filter: &EventFilter,
    limit: u32,
) -> Result<Vec<ListedEvent>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(EVENT_COLUMNS);
    query.push("= ").push_bind(window_id);
    query.push(" AND slot >= ").push_bind(slots.start);
    query.push(" AND slot < ").push_bind(slots.end);
    filter.push(&mut query);
    query.push(" ORDER BY slot DESC LIMIT ").push_bind(limit);
    query.build().fetch_all(connection).await?.iter().map(listed_event).collect()
}

/// Events of several windows, the last slot first in each.
pub(in crate::monitor) async fn events_of_several(
    connection: &mut db::Connection,
    window_ids: &[i64],
    filter: &EventFilter,
) -> Result<HashMap<i64, Vec<ListedEvent>>, db::Error> {
    let mut found: HashMap<i64, Vec<ListedEvent>> = HashMap::with_capacity(window_ids.len());
    for chunk in filled(window_ids, MAX_CHUNK) {
        let mut query = QueryBuilder::<MySql>::new(EVENT_COLUMNS);
        query.push("IN ");
        push_list(&mut query, chunk.into_iter().copied());
        filter.push(&mut query);
        for row in &query.build().fetch_all(&mut *connection).await? {
            found.entry(row.try_get("window_id")?).or_default().push(listed_event(row)?);
        }
    }
    for events in found.values_mut() {
        events.sort_unstable_by_key(|event| std::cmp::Reverse(event.slot));
    }
    Ok(found)
}

fn listed_event(row: &MySqlRow) -> Result<ListedEvent, db::Error> {
    let (slot, event) = slot_event(row)?;
    Ok(ListedEvent { slot, event })
}
