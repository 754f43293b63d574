//! Rows of `windows`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};
use uuid::Uuid;

use super::{MAX_CHUNK, chunks, filled, push_list};
use crate::db;
use crate::monitor::register::Sighting;
use crate::monitor::window::{Counts, StoredWindow, WindowStatus};
use crate::wire::{Rates, ServiceName, Tick, Timestamp, Window};

pub(super) const COLUMNS: &str = "SELECT id, window_uuid, service_name, status, window_from, window_to, \
    tick_us, received_reports, error_reports, missing_reports, unobserved_reports, \
    error_status_generado, error_status_no_reportado, via_stream, clock_offset_us, held_from_us, \
    created_at, updated_at, closed_at, events_kept, unscheduled_reports FROM windows ";

/// Most slots of open windows that are counted for one page, unless one window alone has more.
const MOST_COUNTED: u32 = 20_000;

/// Which windows to list.
#[derive(Clone, Debug, Default)]
pub(in crate::monitor) struct Filter {
    pub(in crate::monitor) service: Option<ServiceName>,
    pub(in crate::monitor) status: Option<WindowStatus>,
    /// Windows that start at or after this instant.
    pub(in crate::monitor) from: Option<Timestamp>,
    /// Windows that start before this instant.
    pub(in crate::monitor) to: Option<Timestamp>,
    /// Windows behind this place of the list.
    pub(in crate::monitor) after: Option<Position>,
}

/// A place in the list of windows, which runs from the latest start to the earliest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::monitor) struct Position {
    pub(in crate::monitor) from: Timestamp,
    pub(in crate::monitor) id: i64,
}

/// Inserts windows that are not known. A window's first definition stands: where one has become
/// known meanwhile, nothing is inserted and the answer is false.
///
/// No `ON DUPLICATE KEY` here: on a table with two unique keys, and with several such statements at
/// a time, MariaDB 10.11 answers that all is well and leaves rows out.
pub(in crate::monitor) async fn insert_windows(
    connection: &mut db::Connection,
    windows: &[Sighting],
    now: Timestamp,
) -> Result<bool, db::Error> {
    let now = DateTime::<Utc>::from(now);
    for chunk in chunks(windows) {
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO windows (window_uuid, service_name, window_from, window_to, ends_at, \
             tick_us, expected_reports, error_status_generado, error_status_no_reportado, \
             via_stream, clock_offset_us, created_at, updated_at) ",
        );
        query.push_values(chunk, |mut values, sighting| {
            let window = &sighting.window;
            values
                .push_bind(window.uuid.to_string())
                .push_bind(window.service.as_str())
                .push_bind(DateTime::<Utc>::from(window.from()))
                .push_bind(DateTime::<Utc>::from(window.to()))
                .push_bind(DateTime::<Utc>::from(window.ends_at()))
                .push_bind(window.tick().micros())
                .push_bind(window.slots())
                .push_bind(window.rates.error_status_generado)
                .push_bind(window.rates.error_status_no_reportado)
                .push_bind(sighting.via_stream)
                .push_bind(sighting.clock_offset_us)
                .push_bind(now)
                .push_bind(now);
        });
        if !db::is_inserted(query.build().execute(&mut *connection).await)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Notes what has become known of open windows since they were inserted: that they come through the
/// stream, and a smaller offset of their sender's clock. Their order must be that of their rows.
pub(in crate::monitor) async fn correct_windows(
    connection: &mut db::Connection,
    corrections: &BTreeMap<i64, (bool, Option<i64>)>,
) -> Result<(), db::Error> {
    for (id, (via_stream, offset_us)) in corrections {
        sqlx::query(
            "UPDATE windows SET via_stream = via_stream OR ?, clock_offset_us = \
             COALESCE(LEAST(clock_offset_us, ?), ?, clock_offset_us) WHERE id = ? \
             AND status = 'OPEN'",
        )
        .bind(via_stream)
        .bind(offset_us)
        .bind(offset_us)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// How many windows of a service are open.
pub(in crate::monitor) async fn open_windows(
    pool: &MySqlPool,
    service: &ServiceName,
) -> Result<u64, db::Error> {
    let open: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM windows WHERE service_name = ? AND status = 'OPEN'",
    )
    .bind(service.as_str())
    .fetch_one(pool)
    .await?;
    Ok(open.unsigned_abs())
}

/// Windows by their uuid, without counts of open ones.
pub(in crate::monitor) async fn windows_by_uuid(
    connection: &mut db::Connection,
    uuids: &[Uuid],
) -> Result<HashMap<Uuid, StoredWindow>, db::Error> {
    let mut found = HashMap::with_capacity(uuids.len());
    for chunk in filled(uuids, MAX_CHUNK) {
        let mut query = QueryBuilder::<MySql>::new(COLUMNS);
        query.push("WHERE window_uuid IN ");
        push_list(&mut query, chunk.into_iter().map(Uuid::to_string));
        for row in query.build().fetch_all(&mut *connection).await? {
            let window = stored(&row)?;
            found.insert(window.window.uuid, window);
        }
    }
    Ok(found)
}

/// Windows by their uuid, with their counts as of now.
pub(in crate::monitor) async fn find_windows(
    connection: &mut db::Connection,
    uuids: &[Uuid],
) -> Result<HashMap<Uuid, StoredWindow>, db::Error> {
    let distinct: BTreeSet<Uuid> = uuids.iter().copied().collect();
    let distinct: Vec<Uuid> = distinct.into_iter().collect();
    let found = windows_by_uuid(connection, &distinct).await?;
    let found = with_counts(connection, found.into_values().collect()).await?;
    Ok(found.into_iter().map(|window| (window.window.uuid, window)).collect())
}

/// Windows by their row, with counts as of now, in no order.
pub(in crate::monitor) async fn windows_by_id(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut found = Vec::with_capacity(ids.len());
    for chunk in filled(ids, MAX_CHUNK) {
        let mut query = QueryBuilder::<MySql>::new(COLUMNS);
        query.push("WHERE id IN ");
        push_list(&mut query, chunk.into_iter().copied());
        for row in query.build().fetch_all(&mut *connection).await? {
            found.push(stored(&row)?);
        }
    }
    with_counts(connection, found).await
}

/// A page of windows with their counts as of now, from the latest start to the earliest, and whether
/// there are more. It ends early where open windows have very many slots, because they are counted.
pub(in crate::monitor) async fn list_windows(
    connection: &mut db::Connection,
    filter: &Filter,
    limit: u32,
) -> Result<(Vec<StoredWindow>, bool), db::Error> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push(in_order(filter.service.is_some(), filter.status.is_some())).push(" WHERE TRUE");
    if let Some(service) = &filter.service {
        query.push(" AND service_name = ").push_bind(service.as_str().to_owned());
    }
    if let Some(status) = filter.status {
        query.push(" AND status = ").push_bind(status.as_sql());
    }
    if let Some(from) = filter.from {
        query.push(" AND window_from >= ").push_bind(DateTime::<Utc>::from(from));
    }
    if let Some(to) = filter.to {
        query.push(" AND window_from < ").push_bind(DateTime::<Utc>::from(to));
    }
    if let Some(Position { from, id }) = filter.after {
        let from = DateTime::<Utc>::from(from);
        query.push(" AND window_from <= ").push_bind(from);
        query.push(" AND (window_from < ").push_bind(from);
        query.push(" OR id < ").push_bind(id).push(")");
    }
    // One more than asked for shows whether there are more.
    query.push(" ORDER BY window_from DESC, id DESC LIMIT ").push_bind(limit + 1);
    let rows = query.build().fetch_all(&mut *connection).await?;
    let mut windows: Vec<_> = rows.iter().map(stored).collect::<Result<_, _>>()?;
    let fit = as_far_as_they_can_be_counted(&windows).min(limit as usize);
    let are_more = fit < windows.len();
    windows.truncate(fit);
    Ok((with_counts(connection, windows).await?, are_more))
}

/// Names the index that holds windows of a service, a status or both in the order of lists. MariaDB
/// would rather sort all windows of a status, and read far more of them than a page shows.
pub(super) const fn in_order(of_service: bool, of_status: bool) -> &'static str {
    match (of_service, of_status) {
        (false, false) => "FORCE INDEX (windows_by_time)",
        (true, false) => "FORCE INDEX (windows_by_service)",
        (false, true) => "FORCE INDEX (windows_by_status)",
        (true, true) => "FORCE INDEX (windows_of_service_by_status)",
    }
}

/// How many windows of a list are shown at once, so that what is counted for them is not too much.
fn as_far_as_they_can_be_counted(windows: &[StoredWindow]) -> usize {
    let mut slots = 0_u32;
    let fit = windows.iter().enumerate().take_while(|(number, known)| {
        if known.status == WindowStatus::Open {
            slots = slots.saturating_add(known.window.slots());
        }
        *number == 0 || slots <= MOST_COUNTED
    });
    fit.count()
}

/// What the events of windows say, per window; nothing for a window without events.
pub(in crate::monitor) async fn counts(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<HashMap<i64, (Counts, Timestamp)>, db::Error> {
    let mut counted = HashMap::with_capacity(ids.len());
    for chunk in filled(ids, MAX_CHUNK) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, COUNT(*) AS known, COUNT(IF(status = 'ERROR', 1, NULL)) AS errors, \
             COUNT(IF(status = 'MISSING', 1, NULL)) AS missing, COUNT(cause) AS unobserved, \
             MAX(recorded_at) AS last FROM events WHERE window_id IN ",
        );
        push_list(&mut query, chunk.into_iter().copied());
        query.push(" GROUP BY window_id");
        for row in query.build().fetch_all(&mut *connection).await? {
            let known = number(&row, "known")?;
            let missing = number(&row, "missing")?;
            let errors = number(&row, "errors")?;
            let unobserved = number(&row, "unobserved")?;
            let received = known.saturating_sub(missing);
            let counts = Counts { received, errors, missing, unobserved };
            let last: DateTime<Utc> = row.try_get("last")?;
            counted.insert(row.try_get("window_id")?, (counts, last.into()));
        }
    }
    Ok(counted)
}

/// Adds what is not kept in the row: the counts of open windows, and of unscheduled heartbeats.
async fn with_counts(
    connection: &mut db::Connection,
    mut windows: Vec<StoredWindow>,
) -> Result<Vec<StoredWindow>, db::Error> {
    let is_open = |window: &&StoredWindow| window.status == WindowStatus::Open;
    let open: Vec<i64> = windows.iter().filter(is_open).map(|window| window.id).collect();
    let all: Vec<i64> = windows.iter().map(|window| window.id).collect();
    let counted = counts(connection, &open).await?;
    let unscheduled = unscheduled(connection, &all).await?;
    for window in &mut windows {
        if let Some((counts, last)) = counted.get(&window.id) {
            window.counts = *counts;
            window.updated_at = window.updated_at.max(*last);
        }
        if window.events_kept {
            window.unscheduled = unscheduled.get(&window.id).copied().unwrap_or(0);
        }
    }
    Ok(windows)
}

/// How many unscheduled heartbeats windows have; nothing for a window without any.
pub(in crate::monitor) async fn unscheduled(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<HashMap<i64, u32>, db::Error> {
    let mut counted = HashMap::new();
    for chunk in filled(ids, MAX_CHUNK) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, COUNT(*) AS unscheduled FROM unscheduled_events WHERE window_id IN ",
        );
        push_list(&mut query, chunk.into_iter().copied());
        query.push(" GROUP BY window_id");
        for row in query.build().fetch_all(&mut *connection).await? {
            counted.insert(row.try_get("window_id")?, number(&row, "unscheduled")?);
        }
    }
    Ok(counted)
}

/// A count in a row.
pub(super) fn number(row: &MySqlRow, column: &str) -> Result<u32, db::Error> {
    let number: i64 = row.try_get(column)?;
    u32::try_from(number)
        .map_err(|_| db::Error::bad_row(format!("count {column}: {number} is out of range")))
}

/// A row of `windows`. A value that cannot be one of ours is an error that names it.
pub(super) fn stored(row: &MySqlRow) -> Result<StoredWindow, db::Error> {
    let id: i64 = row.try_get("id")?;
    let bad = |column: &str, why: &dyn std::fmt::Display| {
        db::Error::bad_row(format!("table windows, row {id}, column {column}: {why}"))
    };
    let at = |column: &str| row.try_get::<DateTime<Utc>, _>(column).map(Timestamp::from);
    let count = |column: &str| {
        let count: i32 = row.try_get(column)?;
        u32::try_from(count).map_err(|error| bad(column, &error))
    };
    let uuid: String = row.try_get("window_uuid")?;
    let service: String = row.try_get("service_name")?;
    let status: String = row.try_get("status")?;
    let window = Window::new(
        Uuid::try_parse(&uuid).map_err(|error| bad("window_uuid", &error))?,
        service.parse().map_err(|error| bad("service_name", &error))?,
        (at("window_from")?, at("window_to")?),
        Tick::from_micros(row.try_get("tick_us")?).map_err(|error| bad("tick_us", &error))?,
        Rates {
            error_status_generado: row.try_get("error_status_generado")?,
            error_status_no_reportado: row.try_get("error_status_no_reportado")?,
        },
    )
    .map_err(|error| bad("window_to", &error))?;
    Ok(StoredWindow {
        id,
        window,
        status: status.parse().map_err(|error: String| bad("status", &error))?,
        counts: Counts {
            received: count("received_reports")?,
            errors: count("error_reports")?,
            missing: count("missing_reports")?,
            unobserved: count("unobserved_reports")?,
        },
        unscheduled: count("unscheduled_reports")?,
        events_kept: row.try_get("events_kept")?,
        via_stream: row.try_get("via_stream")?,
        clock_offset_us: row.try_get("clock_offset_us")?,
        held_from_us: row.try_get("held_from_us")?,
        created_at: at("created_at")?,
        updated_at: at("updated_at")?,
        closed_at: row.try_get::<Option<DateTime<Utc>>, _>("closed_at")?.map(Timestamp::from),
    })
}
