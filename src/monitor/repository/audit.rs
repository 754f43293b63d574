//! What the payments databases say, which belong to the senders: read, and never written.
//!
//! The columns are those of their schema. Older senders leave `slot` and the ids of entries empty.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::mysql::MySqlRow;
use uuid::Uuid;

use crate::db;
use crate::verdict::AuditRow;
use crate::wire::{StreamId, Timestamp};

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
         FROM report_audit WHERE window_uuid = ? ORDER BY id",
    )
    .bind(&window)
    .fetch_all(connection)
    .await?;
    rows.iter().map(numbered_row).collect::<Result<_, _>>().map(Some)
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
        timestamp: Timestamp::from(row.try_get::<DateTime<Utc>, _>("timestamp")?),
        sent_to_queue: row.try_get("sent_to_queue")?,
        stream_id: entry("stream_id")?,
        first_stream_id: entry("first_stream_id")?,
    };
    Ok(NumberedRow { slot: row.try_get("slot")?, row: audited })
}
