//! Rows of `dead_letters`: the messages that were ever set aside.

use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use crate::db;
use crate::wire::{StreamId, Timestamp};

/// A heartbeat that was set aside.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct DeadHeartbeat {
    /// None if the message named none.
    pub(in crate::monitor) slot: Option<i64>,
    /// The entry that carried it.
    pub(in crate::monitor) stream_id: StreamId,
    pub(in crate::monitor) reason: String,
    pub(in crate::monitor) at: Timestamp,
}

/// The heartbeats of a window that were ever set aside, the first first.
pub(in crate::monitor) async fn dead_heartbeats(
    connection: &mut db::Connection,
    window: Uuid,
) -> Result<Vec<DeadHeartbeat>, db::Error> {
    // The streams beside that of the heartbeats begin with a brace, which no name has.
    let rows = sqlx::query(
        "SELECT slot, stream_id, reason, dead_at FROM dead_letters WHERE window_uuid = ? \
         AND stream NOT LIKE '{%' ORDER BY dead_at",
    )
    .bind(window.to_string())
    .fetch_all(connection)
    .await?;
    let letters = rows.iter().map(|row| {
        let id: String = row.try_get("stream_id")?;
        let bad = |error| {
            db::Error::bad_row(format!("table dead_letters, column stream_id, {id}: {error}"))
        };
        Ok(DeadHeartbeat {
            slot: row.try_get("slot")?,
            stream_id: id.parse().map_err(bad)?,
            reason: row.try_get("reason")?,
            at: Timestamp::from(row.try_get::<DateTime<Utc>, _>("dead_at")?),
        })
    });
    letters.collect()
}
