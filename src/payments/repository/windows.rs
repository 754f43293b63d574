//! Rows of `report_windows`: plans, and who works on them.
//!
//! Leases go by the database's clock, because the processes that contend for a window may run on
//! hosts whose clocks differ. Everything else is told the time.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::{MySqlPool, Row};
use uuid::Uuid;

use super::{at, bad, update};
use crate::db;
use crate::payments::plan::Plan;
use crate::stream::{StreamId, identity_mark};
use crate::wire::{Rates, ServiceName, Tick, Timestamp, Window};

/// A window with a plan, as this process works on it.
#[derive(Clone, Debug)]
pub struct PlannedWindow {
    pub(in crate::payments) plan: Plan,
    /// Whether its announcement is known to be written.
    pub(in crate::payments) announced: bool,
}

/// A window as it is listed.
#[derive(Debug)]
pub(in crate::payments) struct ListedWindow {
    pub(in crate::payments) window_uuid: String,
    pub(in crate::payments) service: String,
    pub(in crate::payments) window_from: Timestamp,
    pub(in crate::payments) window_to: Timestamp,
    pub(in crate::payments) rates: Rates,
    /// None for windows of older senders.
    pub(in crate::payments) tick_us: Option<i64>,
    pub(in crate::payments) finished_at: Option<Timestamp>,
}

/// Stores a window and its plan, with a lease for its owner. Answers false if its uuid was there
/// before.
pub(in crate::payments) async fn insert_window(
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
            db::is_inserted(inserted)
        })
    })
    .await
}

/// Renews an owner's leases.
pub(in crate::payments) async fn renew_leases(
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
pub(in crate::payments) async fn owned_windows(
    pool: &MySqlPool,
    owner: Uuid,
) -> Result<Vec<Uuid>, db::Error> {
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
pub(in crate::payments) async fn claim_windows(
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
         WHERE service = ? AND finished_at IS NULL AND tick_us > 0 \
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
pub(in crate::payments) async fn windows_of_owner(
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
    // One row that cannot be read must not keep the others from being carried out.
    let readable = rows.iter().filter_map(|row| {
        planned(row).inspect_err(|error| tracing::error!(%error, "a window cannot be read")).ok()
    });
    Ok(readable.collect())
}

/// Hands an owner's windows back.
pub(in crate::payments) async fn release_leases(
    pool: &MySqlPool,
    owner: Uuid,
) -> Result<(), db::Error> {
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

/// Notes that announcements of windows are written, first or again, and to which Redis.
pub(in crate::payments) async fn mark_announced(
    pool: &MySqlPool,
    mut announced: Vec<(Uuid, StreamId)>,
    identity: &str,
) -> Result<(), db::Error> {
    announced.sort_unstable();
    let (announced, mark): (Arc<[_]>, u64) = (announced.into(), identity_mark(identity));
    db::transaction(pool, "mark announced", move |connection| {
        let announced = Arc::clone(&announced);
        Box::pin(async move {
            for (window, id) in announced.iter() {
                sqlx::query(
                    "UPDATE report_windows SET announcement_id = ?, announced_at = ?, \
                     announcement_mark = ? WHERE window_uuid = ?",
                )
                .bind(id.to_string())
                .bind(DateTime::<Utc>::from(id.written_at()))
                .bind(mark)
                .bind(window.to_string())
                .execute(&mut *connection)
                .await?;
            }
            Ok(())
        })
    })
    .await
}

/// Notes that every slot of a window has passed and every send is confirmed. Answers false if one is
/// not: another process that took itself for the owner may have stored it late.
pub(in crate::payments) async fn finish(
    pool: &MySqlPool,
    window: Uuid,
    now: Timestamp,
) -> Result<bool, db::Error> {
    let finished = update(
        pool,
        "finish a window",
        "UPDATE report_windows SET finished_at = ?, leased_until = NULL WHERE window_uuid = ? \
         AND NOT EXISTS (SELECT 1 FROM report_audit a WHERE a.window_uuid = \
         report_windows.window_uuid AND a.slot IS NOT NULL AND NOT a.sent_to_queue \
         AND a.status <> 'no_reported')",
        vec![now.into(), window.to_string().into()],
    );
    Ok(finished.await? > 0)
}

/// When the last window of a service's continuous series ends.
pub(in crate::payments) async fn last_continuous_end(
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

/// The latest windows of a service, last first.
pub(in crate::payments) async fn list_windows(
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

fn planned(row: &MySqlRow) -> Result<PlannedWindow, db::Error> {
    let window = defined(row)?;
    let uuid = window.uuid.to_string();
    let announcement: Option<String> = row.try_get("announcement_id")?;
    let text: String = row.try_get("plan")?;
    let plan = Plan::stored(window, row.try_get("seed")?, &text);
    let plan = plan.map_err(|error| bad("plan", &uuid, &error))?;
    Ok(PlannedWindow { plan, announced: announcement.is_some() })
}

/// The window that a row defines.
pub(super) fn defined(row: &MySqlRow) -> Result<Window, db::Error> {
    let uuid: String = row.try_get("window_uuid")?;
    let service: String = row.try_get("service")?;
    Window::new(
        Uuid::try_parse(&uuid).map_err(|error| bad("window_uuid", &uuid, &error))?,
        service.parse().map_err(|error| bad("service", &uuid, &error))?,
        (at(row, "window_from")?, at(row, "window_to")?),
        Tick::from_micros(row.try_get("tick_us")?)
            .map_err(|error| bad("tick_us", &uuid, &error))?,
        rates(row)?,
    )
    .map_err(|error| bad("window_to", &uuid, &error))
}

fn rates(row: &MySqlRow) -> Result<Rates, db::Error> {
    Ok(Rates {
        error_status_generado: row.try_get("error_status_generado")?,
        error_status_no_reportado: row.try_get("error_status_no_reportado")?,
    })
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
