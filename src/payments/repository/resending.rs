//! What is sent again when Redis may have lost it, and which Redis a service has seen to.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};

use super::at;
use super::audit::StoredTick;
use super::windows::defined;
use crate::db;
use crate::payments::Payments;
use crate::payments::resend::Known;
use crate::stream::identity_mark;
use crate::wire::{Timestamp, Window};

/// A place among the published ticks: when one was published, and its row.
type Place = (Timestamp, i64);

/// Windows that one statement asks for.
const WINDOWS_PER_STATEMENT: usize = 128;

/// The Redis that a service has seen to; none if it never wrote to any.
pub(in crate::payments) async fn known_redis(
    payments: &Payments,
) -> Result<Option<Known>, db::Error> {
    let row = sqlx::query(
        "SELECT identity, seen_at, delivered_until FROM stream_identities \
         WHERE service = ? AND stream = ?",
    )
    .bind(payments.service.as_str())
    .bind(payments.producer.stream().reports())
    .fetch_optional(&payments.pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let delivered_until: Option<DateTime<Utc>> = row.try_get("delivered_until")?;
    Ok(Some(Known {
        identity: row.try_get("identity")?,
        seen_at: at(&row, "seen_at")?,
        delivered_until: delivered_until.map(Timestamp::from),
    }))
}

/// Notes the Redis that a service has seen to, and forgets [how far](note_delivered) it had come with
/// others.
pub(in crate::payments) async fn remember_redis(
    payments: &Payments,
    known: &Known,
) -> Result<(), db::Error> {
    let (service, stream) = (payments.service.to_string(), payments.producer.stream().to_string());
    let known = known.clone();
    db::transaction(&payments.pool, "remember Redis", move |connection| {
        let (service, stream, known) = (service.clone(), stream.clone(), known.clone());
        Box::pin(async move {
            sqlx::query(
                "INSERT INTO stream_identities \
                 (service, stream, identity, seen_at, delivered_until) VALUES (?, ?, ?, ?, ?) \
                 ON DUPLICATE KEY UPDATE identity = VALUES(identity), seen_at = VALUES(seen_at), \
                 delivered_until = VALUES(delivered_until)",
            )
            .bind(&service)
            .bind(&stream)
            .bind(known.identity)
            .bind(DateTime::<Utc>::from(known.seen_at))
            .bind(known.delivered_until.map(DateTime::<Utc>::from))
            .execute(&mut *connection)
            .await?;
            sqlx::query("DELETE FROM delivered_marks WHERE service = ? AND stream = ?")
                .bind(&service)
                .bind(&stream)
                .execute(connection)
                .await?;
            Ok(())
        })
    })
    .await
}

/// Windows of a service that were announced since an instant, and not to this Redis.
pub(in crate::payments) async fn announced_elsewhere(
    payments: &Payments,
    identity: &str,
    since: Timestamp,
    limit: u32,
) -> Result<Vec<Window>, db::Error> {
    let rows = sqlx::query(
        "SELECT window_uuid, service, window_from, window_to, error_status_generado, \
         error_status_no_reportado, tick_us \
         FROM report_windows FORCE INDEX (report_windows_announced) WHERE service = ? \
         AND announced_at >= ? AND announcement_mark <> ? ORDER BY announced_at LIMIT ?",
    )
    .bind(payments.service.as_str())
    .bind(DateTime::<Utc>::from(since))
    .bind(identity_mark(identity))
    .bind(limit)
    .fetch_all(&payments.pool)
    .await?;
    let readable = rows.iter().filter_map(|row| {
        defined(row).inspect_err(|error| tracing::error!(%error, "a window cannot be read")).ok()
    });
    Ok(readable.collect())
}

/// Which ticks to look for: those that were not published to this Redis.
#[derive(Clone, Copy, Debug)]
pub(in crate::payments) struct Elsewhere<'i> {
    /// This Redis.
    pub(in crate::payments) identity: &'i str,
    /// Whether also those of which nobody knows where they went, because an older program
    /// published them.
    pub(in crate::payments) and_unknown: bool,
    /// Whether also those that are [known](note_delivered) to have arrived.
    pub(in crate::payments) and_delivered: bool,
    /// Only those that were published to this one, if any is named.
    pub(in crate::payments) only: Option<&'i str>,
}

/// Notes that everything which was published to a Redis before an instant of its clock has arrived.
pub(in crate::payments) async fn note_delivered(
    payments: &Payments,
    identity: &str,
    until: Timestamp,
) -> Result<(), db::Error> {
    let (service, stream) = (payments.service.to_string(), payments.producer.stream().to_string());
    let (mark, until) = (identity_mark(identity), DateTime::<Utc>::from(until));
    db::transaction(&payments.pool, "note what has arrived", move |connection| {
        let (service, stream) = (service.clone(), stream.clone());
        Box::pin(async move {
            sqlx::query(
                "INSERT INTO delivered_marks (service, stream, redis_mark, delivered_until) \
                 VALUES (?, ?, ?, ?) ON DUPLICATE KEY UPDATE \
                 delivered_until = GREATEST(delivered_until, VALUES(delivered_until))",
            )
            .bind(service)
            .bind(stream)
            .bind(mark)
            .bind(until)
            .execute(connection)
            .await?;
            Ok(())
        })
    })
    .await
}

/// Ticks of a service that were published from a place on and not to this Redis, in that order. The
/// place of the last one is that to go on from.
pub(in crate::payments) async fn published_elsewhere(
    payments: &Payments,
    wanted: Elsewhere<'_>,
    (from, after): Place,
    limit: u32,
) -> Result<(Vec<(Window, StoredTick)>, Option<Place>), db::Error> {
    // Without the hint the databases sort all that was ever published.
    let rows = sqlx::query(
        "SELECT id, window_uuid, slot, status, timestamp, published_at \
         FROM report_audit a FORCE INDEX (report_audit_published) \
         WHERE service = ? AND published_at >= ? AND (published_at > ? OR id > ?) \
         AND (redis_mark <> ? OR (? AND redis_mark IS NULL)) AND slot IS NOT NULL \
         AND (? OR redis_mark = ?) \
         AND (? OR NOT EXISTS (SELECT 1 FROM delivered_marks d WHERE d.service = a.service \
         AND d.stream = ? AND d.redis_mark = a.redis_mark \
         AND a.published_at < d.delivered_until)) \
         ORDER BY published_at, id LIMIT ?",
    )
    .bind(payments.service.as_str())
    .bind(DateTime::<Utc>::from(from))
    .bind(DateTime::<Utc>::from(from))
    .bind(after)
    .bind(identity_mark(wanted.identity))
    .bind(wanted.and_unknown)
    .bind(wanted.only.is_none())
    .bind(wanted.only.map_or(0, identity_mark))
    .bind(wanted.and_delivered)
    .bind(payments.producer.stream().reports())
    .bind(limit)
    .fetch_all(&payments.pool)
    .await?;
    let last = match rows.last() {
        Some(row) => Some((at(row, "published_at")?, row.try_get("id")?)),
        None => None,
    };
    let uuids: BTreeSet<String> =
        rows.iter().map(|row| row.try_get("window_uuid")).collect::<Result<_, _>>()?;
    let windows = windows_by_uuid(payments, uuids.into_iter().collect()).await?;
    // One row that cannot be read must not keep the others from being sent.
    let readable = rows.iter().filter_map(|row| {
        let window = windows.get(&row.try_get::<String, _>("window_uuid").ok()?)?;
        let tick = StoredTick::read(row);
        let tick = tick.inspect_err(|error| tracing::error!(%error, "a tick cannot be read"));
        Some((window.clone(), tick.ok()?))
    });
    Ok((readable.collect(), last))
}

/// Our own windows by their uuid.
async fn windows_by_uuid(
    payments: &Payments,
    uuids: Vec<String>,
) -> Result<HashMap<String, Window>, db::Error> {
    let mut windows = HashMap::with_capacity(uuids.len());
    for chunk in db::chunks(&uuids, WINDOWS_PER_STATEMENT) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_uuid, service, window_from, window_to, error_status_generado, \
             error_status_no_reportado, tick_us FROM report_windows WHERE tick_us > 0 \
             AND window_uuid IN (",
        );
        let mut list = query.separated(", ");
        for uuid in chunk {
            list.push_bind(uuid);
        }
        for row in query.push(")").build().fetch_all(&payments.pool).await? {
            match defined(&row) {
                Ok(window) => drop(windows.insert(row.try_get("window_uuid")?, window)),
                Err(error) => tracing::error!(%error, "a window cannot be read"),
            }
        }
    }
    Ok(windows)
}
