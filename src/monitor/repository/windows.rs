//! Rows of `windows`.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};
use uuid::Uuid;

use super::{chunks, push_list};
use crate::db;
use crate::monitor::window::{Counts, StoredWindow, WindowStatus};
use crate::wire::{Rates, ServiceName, Tick, Timestamp, Window};

const COLUMNS: &str = "SELECT id, window_uuid, service_name, status, window_from, window_to, \
    tick_us, received_reports, error_reports, missing_reports, error_status_generado, \
    error_status_no_reportado, created_at, updated_at, closed_at FROM windows ";

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

/// Inserts windows that are not known. A window's first definition stands.
pub(in crate::monitor) async fn insert_windows(
    connection: &mut db::Connection,
    windows: &[Window],
    now: Timestamp,
) -> Result<(), db::Error> {
    let now = DateTime::<Utc>::from(now);
    for chunk in chunks(windows) {
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO windows (window_uuid, service_name, window_from, window_to, ends_at, \
             tick_us, expected_reports, error_status_generado, error_status_no_reportado, \
             created_at, updated_at) ",
        );
        query.push_values(chunk, |mut values, window| {
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
                .push_bind(now)
                .push_bind(now);
        });
        query.push(" ON DUPLICATE KEY UPDATE id = id");
        query.build().execute(&mut *connection).await?;
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
    pool: &MySqlPool,
    uuids: &[Uuid],
) -> Result<HashMap<Uuid, StoredWindow>, db::Error> {
    let mut found = HashMap::with_capacity(uuids.len());
    for chunk in chunks(uuids) {
        let mut query = QueryBuilder::<MySql>::new(COLUMNS);
        query.push("WHERE window_uuid IN ");
        push_list(&mut query, chunk.iter().map(Uuid::to_string));
        for row in query.build().fetch_all(pool).await? {
            let window = stored(&row)?;
            found.insert(window.window.uuid, window);
        }
    }
    Ok(found)
}

/// One window with its counts as of now.
pub(in crate::monitor) async fn find_window(
    pool: &MySqlPool,
    uuid: Uuid,
) -> Result<Option<StoredWindow>, db::Error> {
    let found = windows_by_uuid(pool, &[uuid]).await?.remove(&uuid);
    Ok(with_counts(pool, found.into_iter().collect()).await?.pop())
}

/// Windows by their row, with counts as of now, in no order.
pub(in crate::monitor) async fn windows_by_id(
    pool: &MySqlPool,
    ids: &[i64],
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut found = Vec::with_capacity(ids.len());
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(COLUMNS);
        query.push("WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        for row in query.build().fetch_all(pool).await? {
            found.push(stored(&row)?);
        }
    }
    with_counts(pool, found).await
}

/// A page of windows with their counts as of now, from the latest start to the earliest.
pub(in crate::monitor) async fn list_windows(
    pool: &MySqlPool,
    filter: &Filter,
    limit: u32,
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE TRUE");
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
    query.push(" ORDER BY window_from DESC, id DESC LIMIT ").push_bind(limit);
    let rows = query.build().fetch_all(pool).await?;
    with_counts(pool, rows.iter().map(stored).collect::<Result<_, _>>()?).await
}

/// Windows past their close, locked for this transaction; none that another transaction holds.
/// They come in the order of their end, at most `limit`, and no more than about `max_slots` slots
/// together.
pub(in crate::monitor) async fn claim_due(
    connection: &mut db::Connection,
    ended_by: Timestamp,
    limit: u32,
    max_slots: u32,
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE status = 'OPEN' AND ends_at <= ");
    query.push_bind(DateTime::<Utc>::from(ended_by));
    query.push(" ORDER BY ends_at LIMIT ").push_bind(limit).push(" FOR UPDATE SKIP LOCKED");
    let rows = query.build().fetch_all(connection).await?;
    let mut claimed = Vec::with_capacity(rows.len());
    let mut slots = 0_u32;
    for row in &rows {
        // One row that cannot be read must not keep the others open.
        let Ok(window) = stored(row).inspect_err(|error| tracing::error!(%error, "not closed"))
        else {
            continue;
        };
        slots = slots.saturating_add(window.window.slots());
        if slots > max_slots && !claimed.is_empty() {
            break;
        }
        claimed.push(window);
    }
    Ok(claimed)
}

/// One window, locked for this transaction.
pub(in crate::monitor) async fn lock_window(
    connection: &mut db::Connection,
    uuid: Uuid,
) -> Result<Option<StoredWindow>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE window_uuid = ").push_bind(uuid.to_string()).push(" FOR UPDATE");
    let row = query.build().fetch_optional(connection).await?;
    row.as_ref().map(stored).transpose()
}

/// Open windows that are over but not past their close, earliest end first.
pub(in crate::monitor) async fn held(
    pool: &MySqlPool,
    now: Timestamp,
    grace_began: Timestamp,
    limit: u32,
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE status = 'OPEN' AND ends_at > ");
    query.push_bind(DateTime::<Utc>::from(grace_began));
    query.push(" AND window_to <= ").push_bind(DateTime::<Utc>::from(now));
    query.push(" ORDER BY ends_at LIMIT ").push_bind(limit);
    query.build().fetch_all(pool).await?.iter().map(stored).collect()
}

/// When the next open window ends.
pub(in crate::monitor) async fn ending_next(
    pool: &MySqlPool,
) -> Result<Option<Timestamp>, db::Error> {
    let ends_at: Option<DateTime<Utc>> =
        sqlx::query_scalar("SELECT MIN(ends_at) FROM windows WHERE status = 'OPEN'")
            .fetch_one(pool)
            .await?;
    Ok(ends_at.map(Timestamp::from))
}

/// What the events of windows say, per window; nothing for a window without events.
pub(in crate::monitor) async fn counts(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<HashMap<i64, (Counts, Timestamp)>, db::Error> {
    let mut counted = HashMap::with_capacity(ids.len());
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, COUNT(*) AS known, COUNT(IF(status = 'ERROR', 1, NULL)) AS errors, \
             COUNT(IF(status = 'MISSING', 1, NULL)) AS missing, MAX(recorded_at) AS last \
             FROM events WHERE window_id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        query.push(" GROUP BY window_id");
        for row in query.build().fetch_all(&mut *connection).await? {
            let known = number(&row, "known")?;
            let missing = number(&row, "missing")?;
            let errors = number(&row, "errors")?;
            let counts = Counts { received: known.saturating_sub(missing), errors, missing };
            let last: DateTime<Utc> = row.try_get("last")?;
            counted.insert(row.try_get("window_id")?, (counts, last.into()));
        }
    }
    Ok(counted)
}

/// Adds what is not kept in the row: the counts of open windows, and of unscheduled heartbeats.
async fn with_counts(
    pool: &MySqlPool,
    mut windows: Vec<StoredWindow>,
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut connection = pool.acquire().await?;
    let is_open = |window: &&StoredWindow| window.status == WindowStatus::Open;
    let open: Vec<i64> = windows.iter().filter(is_open).map(|window| window.id).collect();
    let all: Vec<i64> = windows.iter().map(|window| window.id).collect();
    let counted = counts(&mut connection, &open).await?;
    let unscheduled = unscheduled(&mut connection, &all).await?;
    for window in &mut windows {
        if let Some((counts, last)) = counted.get(&window.id) {
            window.counts = *counts;
            window.updated_at = window.updated_at.max(*last);
        }
        window.unscheduled = unscheduled.get(&window.id).copied().unwrap_or(0);
    }
    Ok(windows)
}

async fn unscheduled(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<HashMap<i64, u32>, db::Error> {
    let mut counted = HashMap::new();
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, COUNT(*) AS unscheduled FROM unscheduled_events WHERE window_id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        query.push(" GROUP BY window_id");
        for row in query.build().fetch_all(&mut *connection).await? {
            counted.insert(row.try_get("window_id")?, number(&row, "unscheduled")?);
        }
    }
    Ok(counted)
}

fn number(row: &MySqlRow, column: &str) -> Result<u32, db::Error> {
    let number: i64 = row.try_get(column)?;
    u32::try_from(number)
        .map_err(|_| db::Error::bad_row(format!("count {column}: {number} is out of range")))
}

/// A row of `windows`. A value that cannot be one of ours is an error that names it.
fn stored(row: &MySqlRow) -> Result<StoredWindow, db::Error> {
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
        },
        unscheduled: 0,
        created_at: at("created_at")?,
        updated_at: at("updated_at")?,
        closed_at: row.try_get::<Option<DateTime<Utc>>, _>("closed_at")?.map(Timestamp::from),
    })
}
