//! The rows of an audit whose heartbeats are sent again, in the payments database.

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};

use super::ask::Repairable;
use crate::db;
use crate::wire::{StreamId, Timestamp, Window};

/// A row of the audit.
#[derive(Clone, Debug)]
pub(super) struct SentRow {
    pub(super) id: i64,
    /// None in rows of older senders.
    pub(super) slot: Option<i32>,
    pub(super) status: String,
    pub(super) timestamp: Timestamp,
    /// The entry that carried the heartbeat last.
    pub(super) stream_id: Option<StreamId>,
}

/// Whether a database has the tables of an audit.
pub(super) async fn is_audit(pool: &MySqlPool) -> Result<bool, db::Error> {
    let tables: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() \
         AND table_name IN ('report_windows', 'report_audit')",
    )
    .fetch_one(pool)
    .await?;
    Ok(tables == 2)
}

/// The rows of some slots of a window, and maybe some others of it, held until the transaction ends:
/// nobody else sends them again meanwhile. Lost slots are found by their number or their entry,
/// unconfirmed ones by their number or, in rows without one, by the timestamp.
///
/// # Errors
/// Also when they cannot be written.
pub(super) async fn hold_rows(
    connection: &mut db::Connection,
    window: &Window,
    slots: &[Repairable],
) -> Result<Vec<SentRow>, db::Error> {
    // What `mark_sent_again` writes is written as it is: a replica, or a user who may only read,
    // refuses now, and not after the heartbeats were sent.
    let mut query = QueryBuilder::<MySql>::new(
        "UPDATE report_audit SET first_stream_id = first_stream_id, stream_id = stream_id, \
         published_at = published_at, redis_mark = redis_mark, sent_to_queue = sent_to_queue",
    );
    push_which(&mut query, window, slots);
    query.build().execute(&mut *connection).await?;
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, slot, status, timestamp, stream_id FROM report_audit",
    );
    push_which(&mut query, window, slots);
    let rows = query.push(" ORDER BY id FOR UPDATE").build().fetch_all(connection).await?;
    rows.iter().map(sent_row).collect()
}

fn push_which(query: &mut QueryBuilder<MySql>, window: &Window, slots: &[Repairable]) {
    query.push(" WHERE window_uuid = ").push_bind(window.uuid.to_string()).push(" AND (slot IN (");
    let mut list = query.separated(", ");
    for slot in slots {
        list.push_bind(slot.slot);
    }
    query.push(")");
    let mut entries = slots.iter().filter_map(|slot| slot.lost).peekable();
    if entries.peek().is_some() {
        query.push(" OR stream_id IN (");
        let mut list = query.separated(", ");
        for entry in entries {
            list.push_bind(entry.to_string());
        }
        query.push(")");
    }
    let unconfirmed = slots.iter().filter(|slot| slot.lost.is_none()).map(|slot| slot.slot);
    if let Some((first, last)) = unconfirmed.clone().min().zip(unconfirmed.max()) {
        // A tick more at both ends: only the window knows where exactly a slot begins.
        let tick = window.tick().duration();
        let [from, to] = [window.due(first).minus(tick), window.due(last).plus(tick)];
        query.push(" OR (slot IS NULL AND timestamp BETWEEN ");
        query.push_bind(DateTime::<Utc>::from(from)).push(" AND ");
        query.push_bind(DateTime::<Utc>::from(to)).push(")");
    }
    query.push(")");
}

fn sent_row(row: &MySqlRow) -> Result<SentRow, db::Error> {
    let id: i64 = row.try_get("id")?;
    let entry: Option<String> = row.try_get("stream_id")?;
    let bad = |error| {
        db::Error::bad_row(format!("table report_audit, row {id}, column stream_id: {error}"))
    };
    Ok(SentRow {
        id,
        slot: row.try_get("slot")?,
        status: row.try_get("status")?,
        timestamp: row.try_get::<DateTime<Utc>, _>("timestamp")?.into(),
        stream_id: entry.map(|entry| entry.parse()).transpose().map_err(bad)?,
    })
}

/// Notes that the heartbeats of rows were sent again, each as an entry of a Redis, as their sender
/// would.
pub(super) async fn mark_sent_again(
    connection: &mut db::Connection,
    sent: &[(i64, StreamId)],
    redis_mark: u64,
) -> Result<(), db::Error> {
    if sent.is_empty() {
        return Ok(());
    }
    let mut query =
        QueryBuilder::<MySql>::new("UPDATE report_audit SET sent_to_queue = TRUE, redis_mark = ");
    query.push_bind(redis_mark).push(", published_at = ");
    push_by_id(&mut query, sent, |entry| DateTime::<Utc>::from(entry.written_at()));
    // Assignments run from left to right: the first entry is kept before it is replaced. Where nobody
    // knew of any, the new one is the first.
    query.push(", first_stream_id = COALESCE(first_stream_id, stream_id, ");
    push_by_id(&mut query, sent, ToString::to_string);
    query.push("), stream_id = ");
    push_by_id(&mut query, sent, ToString::to_string);
    query.push(" WHERE id IN (");
    let mut list = query.separated(", ");
    for (id, _) in sent {
        list.push_bind(id);
    }
    query.push(")").build().execute(connection).await?;
    Ok(())
}

/// What belongs to the entry of each row, by its id.
fn push_by_id<T>(
    query: &mut QueryBuilder<MySql>,
    sent: &[(i64, StreamId)],
    value: impl Fn(&StreamId) -> T,
) where
    T: for<'q> sqlx::Encode<'q, MySql> + sqlx::Type<MySql> + Send + 'static,
{
    query.push("CASE id");
    for (id, entry) in sent {
        query.push(" WHEN ").push_bind(*id).push(" THEN ").push_bind(value(entry));
    }
    query.push(" END");
}
