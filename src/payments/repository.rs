//! The payments services' SQL, on tables that they share with older senders.
//!
//! Leases go by the database's clock, because the processes that contend for a window may run on
//! hosts whose clocks differ. Everything else is told the time.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::{MySqlPool, Row};
use uuid::Uuid;

use super::plan::Plan;
use crate::db;
use crate::stream::StreamId;
use crate::wire::{Rates, ServiceName, Status, Tick, Timestamp, Window};

/// How the audit writes a slot that was omitted on purpose.
const OMITTED: &str = "no_reported";

/// A window with a plan, as this process works on it.
#[derive(Clone, Debug)]
pub struct PlannedWindow {
    pub(super) plan: Plan,
    /// Whether its announcement is known to be written.
    pub(super) announced: bool,
}

/// A stored tick that is not known to be sent.
#[derive(Debug)]
pub(super) struct UnsentTick {
    pub(super) slot: u32,
    pub(super) status: Status,
    pub(super) timestamp: Timestamp,
}

/// What the audit of one window adds up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditTotals {
    /// Ticks in the audit.
    pub audit_total: i64,
    /// Ticks known to be sent.
    pub sent_to_queue: i64,
    /// Ticks omitted on purpose.
    pub no_reported: i64,
    /// Ticks that reported `ok`.
    pub ok_count: i64,
    /// Ticks that reported an error.
    pub error_count: i64,
}

/// A window as it is listed.
#[derive(Debug)]
pub(super) struct ListedWindow {
    pub(super) window_uuid: String,
    pub(super) service: String,
    pub(super) window_from: Timestamp,
    pub(super) window_to: Timestamp,
    pub(super) rates: Rates,
    /// None for windows of older senders.
    pub(super) tick_us: Option<i64>,
    pub(super) finished_at: Option<Timestamp>,
}

/// A row of the audit as it is shown.
#[derive(Debug)]
pub(super) struct AuditRow {
    /// None for rows of older senders.
    pub(super) slot: Option<i32>,
    pub(super) status: String,
    pub(super) timestamp: Timestamp,
    pub(super) sent_to_queue: bool,
    pub(super) stream_id: Option<String>,
}

/// Stores a window and its plan, with a lease for its owner. Answers false if its uuid was there
/// before.
pub(super) async fn insert_window(
    pool: &MySqlPool,
    (plan, continuous): (&Plan, bool),
    owner: Uuid,
    lease: Duration,
    now: Timestamp,
) -> Result<bool, db::Error> {
    let plan = plan.clone();
    db::transaction(pool, "open a window", move |connection| {
        let plan = plan.clone();
        Box::pin(async move {
            let window = &plan.window;
            let inserted = sqlx::query(
                "INSERT INTO report_windows (window_uuid, service, window_from, window_to, \
                 error_status_generado, error_status_no_reportado, created_at, tick_us, plan, seed, \
                 continuous, owner, leased_until) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, \
                 UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND)",
            )
            .bind(window.uuid.to_string())
            .bind(window.service.as_str())
            .bind(DateTime::<Utc>::from(window.from()))
            .bind(DateTime::<Utc>::from(window.to()))
            .bind(window.rates.error_status_generado)
            .bind(window.rates.error_status_no_reportado)
            .bind(DateTime::<Utc>::from(now))
            .bind(window.tick().micros())
            .bind(plan.to_text())
            .bind(plan.seed)
            .bind(continuous)
            .bind(owner.to_string())
            .bind(micros(lease))
            .execute(connection)
            .await;
            match inserted {
                Ok(_) => Ok(true),
                Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
    })
    .await
}

/// Renews an owner's leases.
pub(super) async fn renew_leases(
    pool: &MySqlPool,
    owner: Uuid,
    lease: Duration,
) -> Result<(), db::Error> {
    update(
        pool,
        "renew leases",
        "UPDATE report_windows SET leased_until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
         WHERE owner = ? AND finished_at IS NULL",
        vec![micros(lease).into(), owner.to_string().into()],
    )
    .await
    .map(drop)
}

/// The windows that an owner holds and has not finished.
pub(super) async fn owned_windows(pool: &MySqlPool, owner: Uuid) -> Result<Vec<Uuid>, db::Error> {
    let uuids: Vec<String> = sqlx::query_scalar(
        "SELECT window_uuid FROM report_windows WHERE owner = ? AND finished_at IS NULL",
    )
    .bind(owner.to_string())
    .fetch_all(pool)
    .await?;
    uuids
        .iter()
        .map(|text| Uuid::try_parse(text).map_err(|error| bad("window_uuid", text, &error)))
        .collect()
}

/// Gives an owner up to `limit` unfinished planned windows of a service that nobody holds. Answers
/// how many.
pub(super) async fn claim_windows(
    pool: &MySqlPool,
    service: &ServiceName,
    owner: Uuid,
    lease: Duration,
    limit: u32,
) -> Result<u64, db::Error> {
    update(
        pool,
        "claim windows",
        "UPDATE report_windows SET owner = ?, \
         leased_until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
         WHERE service = ? AND finished_at IS NULL AND plan IS NOT NULL \
         AND (leased_until IS NULL OR leased_until < UTC_TIMESTAMP(6)) \
         ORDER BY window_from LIMIT ?",
        vec![
            owner.to_string().into(),
            micros(lease).into(),
            service.to_string().into(),
            i64::from(limit).into(),
        ],
    )
    .await
}

/// The unfinished windows that an owner holds.
pub(super) async fn windows_of_owner(
    pool: &MySqlPool,
    owner: Uuid,
) -> Result<Vec<PlannedWindow>, db::Error> {
    let rows = sqlx::query(
        "SELECT window_uuid, service, window_from, window_to, error_status_generado, \
         error_status_no_reportado, tick_us, plan, seed, announcement_id FROM report_windows \
         WHERE owner = ? AND finished_at IS NULL",
    )
    .bind(owner.to_string())
    .fetch_all(pool)
    .await?;
    rows.iter().map(planned).collect()
}

/// Hands an owner's windows back.
pub(super) async fn release_leases(pool: &MySqlPool, owner: Uuid) -> Result<(), db::Error> {
    update(
        pool,
        "release leases",
        "UPDATE report_windows SET owner = NULL, leased_until = NULL \
         WHERE owner = ? AND finished_at IS NULL",
        vec![owner.to_string().into()],
    )
    .await
    .map(drop)
}

/// Notes that a window's announcement is written.
pub(super) async fn mark_announced(
    pool: &MySqlPool,
    window: Uuid,
    id: StreamId,
) -> Result<(), db::Error> {
    update(
        pool,
        "mark announced",
        "UPDATE report_windows SET announcement_id = ? WHERE window_uuid = ?",
        vec![id.to_string().into(), window.to_string().into()],
    )
    .await
    .map(drop)
}

/// Notes that every slot of a window has passed and every send is confirmed.
pub(super) async fn finish(
    pool: &MySqlPool,
    window: Uuid,
    now: Timestamp,
) -> Result<(), db::Error> {
    update(
        pool,
        "finish a window",
        "UPDATE report_windows SET finished_at = ?, leased_until = NULL WHERE window_uuid = ?",
        vec![now.into(), window.to_string().into()],
    )
    .await
    .map(drop)
}

/// Stores what is done in a slot; `None` means omitted. Storing it again changes nothing.
pub(super) async fn insert_tick(
    pool: &MySqlPool,
    window: &Window,
    slot: u32,
    status: Option<&Status>,
    now: Timestamp,
) -> Result<(), db::Error> {
    update(
        pool,
        "store a tick",
        "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, \
         timestamp, sent_to_queue, created_at, slot) VALUES (?, ?, ?, ?, ?, ?, FALSE, ?, ?) \
         ON DUPLICATE KEY UPDATE slot = VALUES(slot)",
        vec![
            window.uuid.to_string().into(),
            window.service.to_string().into(),
            status.map_or_else(|| OMITTED.to_owned(), ToString::to_string).into(),
            window.from().into(),
            window.to().into(),
            now.into(),
            now.into(),
            i64::from(slot).into(),
        ],
    )
    .await
    .map(drop)
}

/// Ticks of a window that are stored and not known to be sent, in order.
pub(super) async fn unsent_ticks(
    pool: &MySqlPool,
    window: Uuid,
    limit: u32,
) -> Result<Vec<UnsentTick>, db::Error> {
    let rows = sqlx::query(
        "SELECT slot, status, timestamp FROM report_audit WHERE window_uuid = ? \
         AND slot IS NOT NULL AND NOT sent_to_queue AND status <> ? ORDER BY slot LIMIT ?",
    )
    .bind(window.to_string())
    .bind(OMITTED)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    let unsent = rows.iter().map(|row| {
        let slot: i32 = row.try_get("slot")?;
        let status: String = row.try_get("status")?;
        Ok(UnsentTick {
            slot: u32::try_from(slot).map_err(|error| bad("slot", &slot.to_string(), &error))?,
            status: status.parse().map_err(|error| bad("status", &status, &error))?,
            timestamp: at(row, "timestamp")?,
        })
    });
    unsent.collect()
}

/// Notes that a tick is sent.
pub(super) async fn mark_sent(
    pool: &MySqlPool,
    window: Uuid,
    slot: u32,
    id: StreamId,
    now: Timestamp,
) -> Result<(), db::Error> {
    update(
        pool,
        "mark sent",
        "UPDATE report_audit SET sent_to_queue = TRUE, stream_id = ?, published_at = ? \
         WHERE window_uuid = ? AND slot = ?",
        vec![id.to_string().into(), now.into(), window.to_string().into(), i64::from(slot).into()],
    )
    .await
    .map(drop)
}

/// When the last window of a service's continuous series ends.
pub(super) async fn last_continuous_end(
    pool: &MySqlPool,
    service: &ServiceName,
) -> Result<Option<Timestamp>, db::Error> {
    let end: Option<DateTime<Utc>> = sqlx::query_scalar(
        "SELECT window_to FROM report_windows WHERE service = ? AND continuous \
         ORDER BY window_from DESC LIMIT 1",
    )
    .bind(service.as_str())
    .fetch_optional(pool)
    .await?;
    Ok(end.map(Timestamp::from))
}

/// What the audit of a window adds up to; none if no such window is known.
pub(super) async fn totals(
    pool: &MySqlPool,
    window: Uuid,
) -> Result<Option<(String, AuditTotals)>, db::Error> {
    let service: Option<String> =
        sqlx::query_scalar("SELECT service FROM report_windows WHERE window_uuid = ?")
            .bind(window.to_string())
            .fetch_optional(pool)
            .await?;
    let Some(service) = service else { return Ok(None) };
    let totals = totals_by_window(pool, &[window]).await?.pop();
    Ok(Some((service, totals.map(|(_, totals)| totals).unwrap_or_default())))
}

/// What the audit adds up to for some windows; nothing for a window without ticks.
///
/// # Errors
/// When the database does not do its part.
pub async fn totals_by_window(
    pool: &MySqlPool,
    windows: &[Uuid],
) -> Result<Vec<(Uuid, AuditTotals)>, db::Error> {
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = sqlx::QueryBuilder::<sqlx::MySql>::new(
        "SELECT window_uuid, COUNT(*) AS audit_total, COUNT(IF(sent_to_queue, 1, NULL)) AS sent, \
         COUNT(IF(status = 'no_reported', 1, NULL)) AS omitted, \
         COUNT(IF(status = 'ok', 1, NULL)) AS ok, \
         COUNT(IF(status = 'error' OR status LIKE 'error:%', 1, NULL)) AS errors \
         FROM report_audit WHERE window_uuid IN (",
    );
    let mut list = query.separated(", ");
    for window in windows {
        list.push_bind(window.to_string());
    }
    query.push(") GROUP BY window_uuid");
    let rows = query.build().fetch_all(pool).await?;
    let totals = rows.iter().map(|row| {
        let uuid: String = row.try_get("window_uuid")?;
        let totals = AuditTotals {
            audit_total: row.try_get("audit_total")?,
            sent_to_queue: row.try_get("sent")?,
            no_reported: row.try_get("omitted")?,
            ok_count: row.try_get("ok")?,
            error_count: row.try_get("errors")?,
        };
        Ok((Uuid::try_parse(&uuid).map_err(|error| bad("window_uuid", &uuid, &error))?, totals))
    });
    totals.collect()
}

/// The latest windows of a service, last first.
pub(super) async fn list_windows(
    pool: &MySqlPool,
    service: &ServiceName,
    limit: u32,
) -> Result<Vec<ListedWindow>, db::Error> {
    let rows = sqlx::query(
        "SELECT window_uuid, service, window_from, window_to, error_status_generado, \
         error_status_no_reportado, tick_us, finished_at FROM report_windows WHERE service = ? \
         ORDER BY window_from DESC LIMIT ?",
    )
    .bind(service.as_str())
    .bind(limit)
    .fetch_all(pool)
    .await?;
    let listed = rows.iter().map(|row| {
        Ok(ListedWindow {
            window_uuid: row.try_get("window_uuid")?,
            service: row.try_get("service")?,
            window_from: at(row, "window_from")?,
            window_to: at(row, "window_to")?,
            rates: rates(row)?,
            tick_us: row.try_get("tick_us")?,
            finished_at: row
                .try_get::<Option<DateTime<Utc>>, _>("finished_at")?
                .map(Timestamp::from),
        })
    });
    listed.collect()
}

/// The audit of a window in the order of time, at most `limit` rows from `offset` on.
pub(super) async fn audit(
    pool: &MySqlPool,
    window: Uuid,
    (limit, offset): (u32, u32),
) -> Result<Vec<AuditRow>, db::Error> {
    let rows = sqlx::query(
        "SELECT slot, status, timestamp, sent_to_queue, stream_id FROM report_audit \
         WHERE window_uuid = ? ORDER BY timestamp, id LIMIT ? OFFSET ?",
    )
    .bind(window.to_string())
    .bind(limit)
    .bind(offset)
    .fetch_all(pool)
    .await?;
    let audit = rows.iter().map(|row| {
        Ok(AuditRow {
            slot: row.try_get("slot")?,
            status: row.try_get("status")?,
            timestamp: at(row, "timestamp")?,
            sent_to_queue: row.try_get("sent_to_queue")?,
            stream_id: row.try_get("stream_id")?,
        })
    });
    audit.collect()
}

/// A value bound to a statement.
#[derive(Clone, Debug)]
enum Value {
    Text(String),
    Number(i64),
    Time(Timestamp),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<Timestamp> for Value {
    fn from(at: Timestamp) -> Self {
        Self::Time(at)
    }
}

/// Runs one statement that changes something, in a transaction of its own. Answers the affected
/// rows.
async fn update(
    pool: &MySqlPool,
    name: &'static str,
    statement: &'static str,
    values: Vec<Value>,
) -> Result<u64, db::Error> {
    db::transaction(pool, name, move |connection| {
        let values = values.clone();
        Box::pin(async move {
            let mut query = sqlx::query(statement);
            for value in values {
                query = match value {
                    Value::Text(text) => query.bind(text),
                    Value::Number(number) => query.bind(number),
                    Value::Time(at) => query.bind(DateTime::<Utc>::from(at)),
                };
            }
            Ok(query.execute(connection).await?.rows_affected())
        })
    })
    .await
}

fn planned(row: &MySqlRow) -> Result<PlannedWindow, db::Error> {
    let uuid: String = row.try_get("window_uuid")?;
    let service: String = row.try_get("service")?;
    let announcement: Option<String> = row.try_get("announcement_id")?;
    let text: String = row.try_get("plan")?;
    let window = Window::new(
        Uuid::try_parse(&uuid).map_err(|error| bad("window_uuid", &uuid, &error))?,
        service.parse().map_err(|error| bad("service", &uuid, &error))?,
        (at(row, "window_from")?, at(row, "window_to")?),
        Tick::from_micros(row.try_get("tick_us")?)
            .map_err(|error| bad("tick_us", &uuid, &error))?,
        rates(row)?,
    )
    .map_err(|error| bad("window_to", &uuid, &error))?;
    let plan = Plan::stored(window, row.try_get("seed")?, &text);
    let plan = plan.map_err(|error| bad("plan", &uuid, &error))?;
    Ok(PlannedWindow { plan, announced: announcement.is_some() })
}

fn rates(row: &MySqlRow) -> Result<Rates, db::Error> {
    Ok(Rates {
        error_status_generado: row.try_get("error_status_generado")?,
        error_status_no_reportado: row.try_get("error_status_no_reportado")?,
    })
}

fn at(row: &MySqlRow, column: &str) -> Result<Timestamp, db::Error> {
    Ok(row.try_get::<DateTime<Utc>, _>(column)?.into())
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn bad(column: &str, row: &str, why: &dyn std::fmt::Display) -> db::Error {
    db::Error::bad_row(format!("payments database, column {column}, row {row}: {why}"))
}
