//! What the payments databases say, which belong to the senders: read, and never written.
//!
//! The columns are those of their schema. Older senders leave `slot` and the ids of entries empty.

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};
use uuid::Uuid;

use crate::db;
use crate::verdict::AuditRow;
use crate::wire::{Rates, ServiceName, StreamId, Tick, Timestamp, Window};

const WINDOWS: &str = "SELECT window_uuid, service, window_from, window_to, error_status_generado, \
    error_status_no_reportado, tick_us FROM report_windows WHERE ";

/// Which windows of an audit to list.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct Wanted {
    pub(in crate::monitor) service: Option<ServiceName>,
    /// Windows that start at or after this instant.
    pub(in crate::monitor) from: Timestamp,
    /// Windows behind this place of the list.
    pub(in crate::monitor) after: Option<AuditPosition>,
    /// Tick of windows that name none.
    pub(in crate::monitor) default_tick: Tick,
    /// Most windows of the answer.
    pub(in crate::monitor) limit: u32,
}

/// A place in the list of the windows of audits, which runs from the latest start to the earliest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::monitor) struct AuditPosition {
    pub(in crate::monitor) from: Timestamp,
    /// As the audit writes it.
    pub(in crate::monitor) uuid: String,
}

/// A window that an audit lists; none if its row is no window that could ever be.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct Listed {
    pub(in crate::monitor) place: AuditPosition,
    pub(in crate::monitor) window: Option<Window>,
}

/// A row of the audit, and the slot that it names.
#[derive(Debug)]
pub(in crate::monitor) struct NumberedRow {
    /// None in rows of older senders.
    pub(in crate::monitor) slot: Option<i32>,
    pub(in crate::monitor) row: AuditRow,
}

/// The audit of a window in the order in which it was written; none if no such window is known.
pub(in crate::monitor) async fn audit_of_window(
    connection: &mut db::Connection,
    window: Uuid,
) -> Result<Option<Vec<NumberedRow>>, db::Error> {
    let window = window.to_string();
    // A window is stored before its first row.
    let known: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM report_windows WHERE window_uuid = ?")
            .bind(&window)
            .fetch_optional(&mut *connection)
            .await?;
    if known.is_none() {
        return Ok(None);
    }
    let rows = sqlx::query(
        "SELECT id, slot, status, timestamp, sent_to_queue, stream_id, first_stream_id \
         FROM report_audit WHERE window_uuid = ?",
    )
    .bind(&window)
    .fetch_all(connection)
    .await?;
    let mut rows: Vec<(i64, NumberedRow)> = rows
        .iter()
        .map(|row| Ok((row.try_get("id")?, numbered_row(row)?)))
        .collect::<Result<_, db::Error>>()?;
    // Sorted here: the database would sort rows of very wide columns.
    rows.sort_unstable_by_key(|(id, _)| *id);
    Ok(Some(rows.into_iter().map(|(_, row)| row).collect()))
}

/// A window as its sender defined it; none if no such window is known.
pub(in crate::monitor) async fn audited_window(
    connection: &mut db::Connection,
    uuid: Uuid,
    default_tick: Tick,
) -> Result<Option<Window>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(WINDOWS);
    query.push("window_uuid = ").push_bind(uuid.to_string());
    let row = query.build().fetch_optional(connection).await?;
    row.map(|row| window(&row, default_tick)).transpose()
}

/// A page of windows, from the latest start to the earliest.
pub(in crate::monitor) async fn audited_windows(
    connection: &mut db::Connection,
    wanted: &Wanted,
) -> Result<Vec<Listed>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(WINDOWS);
    query.push("window_from >= ").push_bind(DateTime::<Utc>::from(wanted.from));
    if let Some(service) = &wanted.service {
        query.push(" AND service = ").push_bind(service.as_str().to_owned());
    }
    if let Some(AuditPosition { from, uuid }) = &wanted.after {
        let from = DateTime::<Utc>::from(*from);
        query.push(" AND window_from <= ").push_bind(from);
        query.push(" AND (window_from < ").push_bind(from);
        query.push(" OR window_uuid < ").push_bind(uuid.clone()).push(")");
    }
    query.push(" ORDER BY window_from DESC, window_uuid DESC LIMIT ").push_bind(wanted.limit);
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(|row| listed(row, wanted.default_tick)).collect()
}

fn listed(row: &MySqlRow, default_tick: Tick) -> Result<Listed, db::Error> {
    let place = AuditPosition { from: at(row, "window_from")?, uuid: row.try_get("window_uuid")? };
    // One row that cannot be read must not hide the others.
    let window = window(row, default_tick)
        .inspect_err(|error| tracing::warn!(%error, "a window of an audit cannot be read"));
    // One whose UUID is written in another way would not be found by it.
    let window = window.ok().filter(|window| window.uuid.to_string() == place.uuid);
    Ok(Listed { place, window })
}

/// The window that a row defines.
fn window(row: &MySqlRow, default_tick: Tick) -> Result<Window, db::Error> {
    let uuid: String = row.try_get("window_uuid")?;
    let bad = |column: &str, why: &dyn std::fmt::Display| {
        db::Error::bad_row(format!("table report_windows, window {uuid:?}, column {column}: {why}"))
    };
    let service: String = row.try_get("service")?;
    let tick: Option<i64> = row.try_get("tick_us")?;
    Window::new(
        Uuid::try_parse(&uuid).map_err(|error| bad("window_uuid", &error))?,
        service.parse().map_err(|error| bad("service", &error))?,
        (at(row, "window_from")?, at(row, "window_to")?),
        tick.map_or(Ok(default_tick), Tick::from_micros).map_err(|error| bad("tick_us", &error))?,
        Rates {
            error_status_generado: row.try_get("error_status_generado")?,
            error_status_no_reportado: row.try_get("error_status_no_reportado")?,
        },
    )
    .map_err(|error| bad("window_to", &error))
}

fn at(row: &MySqlRow, column: &str) -> Result<Timestamp, db::Error> {
    Ok(row.try_get::<DateTime<Utc>, _>(column)?.into())
}

fn numbered_row(row: &MySqlRow) -> Result<NumberedRow, db::Error> {
    let entry = |column: &str| {
        let text: Option<String> = row.try_get(column)?;
        text.map(|text| text.parse::<StreamId>()).transpose().map_err(|error| {
            let id = row.try_get::<i64, _>("id").unwrap_or(0);
            db::Error::bad_row(format!("table report_audit, row {id}, column {column}: {error}"))
        })
    };
    let audited = AuditRow {
        status: row.try_get("status")?,
        timestamp: at(row, "timestamp")?,
        sent_to_queue: row.try_get("sent_to_queue")?,
        stream_id: entry("stream_id")?,
        first_stream_id: entry("first_stream_id")?,
    };
    Ok(NumberedRow { slot: row.try_get("slot")?, row: audited })
}
