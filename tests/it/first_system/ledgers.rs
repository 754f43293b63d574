//! What both ledgers say, whoever keeps them.

use redis::AsyncCommands;
use redis::streams::{StreamInfoGroupsReply, StreamInfoStreamReply};
use sqlx::{AssertSqlSafe, MySqlPool, Row};

use crate::support::{Ground, eventually, pool};

/// What the senders wrote about a window.
#[derive(Clone, Debug)]
pub struct Audited {
    /// Its uuid.
    pub uuid: String,
    /// Whether a sender of ours opened it. Those of the first system are called `old-`.
    pub is_ours: bool,
    /// How many heartbeats it promises.
    pub slots: i64,
    /// Heartbeats in it that the audit calls sent.
    pub sent: i64,
    /// The same beyond its end.
    pub sent_after: i64,
    /// Slots that were left out on purpose.
    pub omitted: i64,
}

/// All windows that senders opened, in that order.
pub async fn audited(ground: &Ground) -> Vec<Audited> {
    let pool = pool(&ground.payments_url).await;
    let rows = sqlx::query(
        "SELECT w.window_uuid, w.service, \
         TIMESTAMPDIFF(SECOND, w.window_from, w.window_to) AS slots, \
         CAST(COALESCE(SUM(a.sent_to_queue), 0) AS SIGNED) AS sent, \
         CAST(COALESCE(SUM(a.sent_to_queue AND a.timestamp >= w.window_to), 0) AS SIGNED) AS beyond, \
         CAST(COALESCE(SUM(a.status = 'no_reported'), 0) AS SIGNED) AS omitted \
         FROM report_windows w LEFT JOIN report_audit a ON a.window_uuid = w.window_uuid \
         GROUP BY w.id, w.window_uuid, w.service, w.window_from, w.window_to ORDER BY w.id",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    pool.close().await;
    let window = |row: &sqlx::mysql::MySqlRow| {
        let service: String = row.get("service");
        let is_ours = !service.starts_with("old-");
        // Ours names slots, and a late one may carry a time beyond the end.
        let sent_after = if is_ours { 0 } else { row.get("beyond") };
        let sent = row.get::<i64, _>("sent") - sent_after;
        let (uuid, slots) = (row.get("window_uuid"), row.get("slots"));
        Audited { uuid, is_ours, slots, sent, sent_after, omitted: row.get("omitted") }
    };
    rows.iter().map(window).collect()
}

/// What a monitor counts of a window. The columns have the same names in both systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    pub status: String,
    pub expected: i64,
    pub received: i64,
    pub missing: i64,
}

/// What is counted of a window in a monitor's database.
pub async fn counted(monitor: &MySqlPool, uuid: &str) -> Counts {
    let row = sqlx::query(
        "SELECT status, CAST(expected_reports AS SIGNED) AS expected, \
         CAST(received_reports AS SIGNED) AS received, CAST(missing_reports AS SIGNED) AS missing \
         FROM monitoring_windows WHERE window_uuid = ?",
    )
    .bind(uuid)
    .fetch_one(monitor)
    .await
    .unwrap();
    Counts {
        status: row.get("status"),
        expected: row.get("expected"),
        received: row.get("received"),
        missing: row.get("missing"),
    }
}

/// A number that a query about one text gives.
pub async fn number_of(pool: &MySqlPool, query: &'static str, text: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query)).bind(text).fetch_one(pool).await.unwrap()
}

/// Waits until a group has read all of the stream and acknowledged it.
pub async fn drained(ground: &Ground, group: &str) {
    let mut redis = ground.redis().await;
    eventually(&format!("{group} has delivered all"), async || {
        let stream = ground.stream.reports();
        let all: StreamInfoStreamReply = redis.xinfo_stream(stream).await.ok()?;
        let groups: StreamInfoGroupsReply = redis.xinfo_groups(stream).await.ok()?;
        let group = groups.groups.into_iter().find(|one| one.name == group)?;
        let is_drained = group.pending == 0 && group.last_delivered_id == all.last_generated_id;
        is_drained.then_some(())
    })
    .await;
}
