//! Rows of `report_audit`: what was done in each slot, and the outbox.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};
use uuid::Uuid;

use super::{at, bad};
use crate::db;
use crate::stream::{StreamId, Written, identity_mark};
use crate::wire::{OMITTED, Status, Timestamp, Window};

/// Ticks that one statement marks as sent.
const MARKS_PER_STATEMENT: usize = 128;

/// A stored tick that is to be sent.
#[derive(Clone, Debug)]
pub(in crate::payments) struct StoredTick {
    id: i64,
    pub(in crate::payments) slot: u32,
    pub(in crate::payments) status: Status,
    pub(in crate::payments) timestamp: Timestamp,
}

impl StoredTick {
    pub(super) fn read(row: &MySqlRow) -> Result<Self, db::Error> {
        let slot: i32 = row.try_get("slot")?;
        let status: String = row.try_get("status")?;
        Ok(Self {
            id: row.try_get("id")?,
            slot: u32::try_from(slot).map_err(|error| bad("slot", &slot.to_string(), &error))?,
            status: status.parse().map_err(|error| bad("status", &status, &error))?,
            timestamp: at(row, "timestamp")?,
        })
    }
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

/// A row of the audit as it is shown.
#[derive(Debug)]
pub(in crate::payments) struct AuditRow {
    /// None for rows of older senders.
    pub(in crate::payments) slot: Option<i32>,
    pub(in crate::payments) status: String,
    pub(in crate::payments) timestamp: Timestamp,
    pub(in crate::payments) sent_to_queue: bool,
    pub(in crate::payments) stream_id: Option<String>,
}

/// Stores what is done in a slot; `None` means omitted. Answers false where that changes nothing: it is
/// stored already, or this process no longer owns the window, because it stood still and another goes
/// on.
pub(in crate::payments) async fn insert_tick(
    pool: &MySqlPool,
    (window, owner): (&Window, Uuid),
    slot: u32,
    status: Option<&Status>,
    now: Timestamp,
) -> Result<bool, db::Error> {
    let window = window.clone();
    let status = status.map_or_else(|| OMITTED.to_owned(), ToString::to_string);
    db::transaction(pool, "store a tick", move |connection| {
        let (window, status) = (window.clone(), status.clone());
        Box::pin(async move {
            let inserted = sqlx::query(
                "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, \
                 timestamp, sent_to_queue, created_at, slot) \
                 SELECT ?, ?, ?, ?, ?, ?, FALSE, ?, ? FROM report_windows \
                 WHERE window_uuid = ? AND owner = ? AND finished_at IS NULL",
            )
            .bind(window.uuid.to_string())
            .bind(window.service.as_str())
            .bind(status)
            .bind(DateTime::<Utc>::from(window.from()))
            .bind(DateTime::<Utc>::from(window.to()))
            .bind(DateTime::<Utc>::from(now))
            .bind(DateTime::<Utc>::from(now))
            .bind(slot)
            .bind(window.uuid.to_string())
            .bind(owner.to_string())
            .execute(connection)
            .await;
            let is_news = inserted.as_ref().is_ok_and(|done| done.rows_affected() > 0);
            // One that is stored already stands.
            db::is_inserted(inserted).map(|_| is_news)
        })
    })
    .await
}

/// Ticks of a window from a slot on that are stored and not known to be sent, in order.
pub(in crate::payments) async fn unsent_ticks(
    pool: &MySqlPool,
    window: Uuid,
    from_slot: u32,
    limit: u32,
) -> Result<Vec<StoredTick>, db::Error> {
    let rows = sqlx::query(
        "SELECT id, slot, status, timestamp FROM report_audit WHERE window_uuid = ? \
         AND slot >= ? AND NOT sent_to_queue AND status <> ? ORDER BY slot LIMIT ?",
    )
    .bind(window.to_string())
    .bind(from_slot)
    .bind(OMITTED)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.iter().map(StoredTick::read).collect()
}

/// Notes that ticks are sent, each as a stream entry, first or again.
pub(in crate::payments) async fn mark_sent(
    pool: &MySqlPool,
    ticks: &[StoredTick],
    written: &Written,
) -> Result<(), db::Error> {
    let ids = ticks.iter().map(|tick| tick.id).zip(written.ids.iter().copied());
    let mut sent: Vec<(i64, StreamId)> = ids.collect();
    // In the order of the key, so that no two processes wait for each other in a circle.
    sent.sort_unstable();
    let (sent, mark): (Arc<[_]>, u64) = (sent.into(), identity_mark(&written.identity));
    db::transaction(pool, "mark sent", move |connection| {
        let sent = Arc::clone(&sent);
        Box::pin(async move {
            for chunk in db::chunks(&sent, MARKS_PER_STATEMENT) {
                mark_chunk(connection, chunk, mark).await?;
            }
            Ok(())
        })
    })
    .await
}

async fn mark_chunk(
    connection: &mut db::Connection,
    sent: &[(i64, StreamId)],
    mark: u64,
) -> Result<(), db::Error> {
    let mut query = QueryBuilder::<MySql>::new("UPDATE report_audit SET sent_to_queue = TRUE, ");
    query.push("redis_mark = ").push_bind(mark).push(", published_at = CASE id");
    for (id, stream_id) in sent {
        query.push(" WHEN ").push_bind(id).push(" THEN ");
        query.push_bind(DateTime::<Utc>::from(stream_id.written_at()));
    }
    query.push(" END, stream_id = CASE id");
    for (id, stream_id) in sent {
        query.push(" WHEN ").push_bind(id).push(" THEN ").push_bind(stream_id.to_string());
    }
    // Assignments run from left to right: this is the new one.
    query.push(" END, first_stream_id = COALESCE(first_stream_id, stream_id) WHERE id IN (");
    let mut list = query.separated(", ");
    for (id, _) in sent {
        list.push_bind(id);
    }
    query.push(")").build().execute(connection).await?;
    Ok(())
}

/// What the audit of a window adds up to; none if no such window is known.
pub(in crate::payments) async fn totals(
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
    let mut query = QueryBuilder::<MySql>::new(
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

/// The audit of a window in the order of time, at most `limit` rows from `offset` on.
pub(in crate::payments) async fn audit(
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
