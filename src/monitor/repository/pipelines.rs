//! Rows about the way from the senders: pipelines, reports, dead letters, and the time that monitors
//! have been running.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};

use super::chunks;
use super::conditions::end;
use crate::db;
use crate::monitor::closing::NOTHING_DELIVERED;
use crate::monitor::pipeline::Condition;
use crate::monitor::watermark::Progress;
use crate::wire::{DeadLetterReport, PipelineReport, Timestamp};

/// How long the last report of a relay is kept that reports no more: names come and go.
const RELAY_REMEMBERED: Duration = Duration::from_hours(1);

/// A consumer group that relays have reported from.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct Pipeline {
    pub(in crate::monitor) stream: String,
    pub(in crate::monitor) group: String,
    pub(in crate::monitor) progress: Progress,
    pub(in crate::monitor) reported_at: Timestamp,
    /// For how long nothing was heard while a monitor ran.
    pub(in crate::monitor) silent_for: Duration,
}

/// The last report of one relay, and when it came.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct Reported {
    pub(in crate::monitor) report: PipelineReport,
    pub(in crate::monitor) at: Timestamp,
}

/// Adds the time since monitors were last known to run, but not more than `longest`. Answers for
/// how long they have been running, in microseconds. What a monitor whose clock was wrong has left
/// in the future is put right.
pub(in crate::monitor) async fn count_uptime(
    connection: &mut db::Connection,
    now: Timestamp,
    longest: Duration,
) -> Result<i64, db::Error> {
    sqlx::query(
        "INSERT INTO monitor_uptime (id, running_us, ticked_at) VALUES (1, 0, ?) \
         ON DUPLICATE KEY UPDATE running_us = running_us + GREATEST(0, LEAST(?, \
         TIMESTAMPDIFF(MICROSECOND, ticked_at, VALUES(ticked_at)))), \
         ticked_at = IF(ticked_at > VALUES(ticked_at) + INTERVAL ? MICROSECOND, \
         VALUES(ticked_at), GREATEST(ticked_at, VALUES(ticked_at)))",
    )
    .bind(DateTime::<Utc>::from(now))
    .bind(i64::try_from(longest.as_micros()).unwrap_or(i64::MAX))
    .bind(i64::try_from(longest.as_micros()).unwrap_or(i64::MAX))
    .execute(&mut *connection)
    .await?;
    uptime(connection).await
}

async fn uptime(connection: &mut db::Connection) -> Result<i64, db::Error> {
    let running_us: Option<i64> =
        sqlx::query_scalar("SELECT running_us FROM monitor_uptime WHERE id = 1")
            .fetch_optional(connection)
            .await?;
    Ok(running_us.unwrap_or(0))
}

/// The smallest watermark, if there is any, or long ago while the first report is
/// [awaited](await_report); and for how long monitors have been running, in
/// microseconds.
pub(in crate::monitor) async fn low_watermark(
    connection: &mut db::Connection,
) -> Result<(Option<Timestamp>, i64), db::Error> {
    let row = sqlx::query(
        "SELECT COALESCE((SELECT MIN(watermark) FROM pipelines), \
         (SELECT CAST(? AS DATETIME(6)) FROM awaited_report)) AS watermark, \
         (SELECT running_us FROM monitor_uptime WHERE id = 1) AS running_us",
    )
    .bind(DateTime::<Utc>::from(NOTHING_DELIVERED))
    .fetch_one(connection)
    .await?;
    let watermark: Option<DateTime<Utc>> = row.try_get("watermark")?;
    let running_us: Option<i64> = row.try_get("running_us")?;
    Ok((watermark.map(Timestamp::from), running_us.unwrap_or(0)))
}

/// Notes that windows of the stream were taken over, unless relays report already: nothing counts as
/// delivered until one does.
pub(in crate::monitor) async fn await_report(
    connection: &mut db::Connection,
) -> Result<(), db::Error> {
    sqlx::query(
        "INSERT INTO awaited_report (id) SELECT 1 FROM DUAL \
         WHERE NOT EXISTS (SELECT 1 FROM pipelines) ON DUPLICATE KEY UPDATE id = VALUES(id)",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that no report is awaited any more.
async fn await_no_report(connection: &mut db::Connection) -> Result<(), db::Error> {
    sqlx::query("DELETE FROM awaited_report").execute(connection).await?;
    Ok(())
}

/// What is known of a report's pipeline, locked for this transaction.
pub(in crate::monitor) async fn lock_progress(
    connection: &mut db::Connection,
    report: &PipelineReport,
) -> Result<Progress, db::Error> {
    let unknown = Progress::unknown(&report.redis_identity);
    sqlx::query(
        "INSERT INTO pipelines (stream, consumer_group, redis_identity, redis_time, watermark, \
         reported_at, reported_us) VALUES (?, ?, ?, ?, ?, ?, 0) \
         ON DUPLICATE KEY UPDATE stream = stream",
    )
    .bind(&report.stream)
    .bind(&report.group)
    .bind(&report.redis_identity)
    .bind(DateTime::<Utc>::from(unknown.redis_time))
    .bind(DateTime::<Utc>::from(unknown.watermark))
    .bind(DateTime::<Utc>::from(unknown.redis_time))
    .execute(&mut *connection)
    .await?;
    let row = sqlx::query(
        "SELECT redis_identity, previous_identity, changed_at, redis_time, watermark, \
         frozen_until, recovered_at FROM pipelines WHERE stream = ? AND consumer_group = ? \
         FOR UPDATE",
    )
    .bind(&report.stream)
    .bind(&report.group)
    .fetch_one(connection)
    .await?;
    progress(&row)
}

/// Stores what a report has changed.
pub(in crate::monitor) async fn store_progress(
    connection: &mut db::Connection,
    report: &PipelineReport,
    progress: &Progress,
    now: Timestamp,
) -> Result<(), db::Error> {
    let running_us = uptime(connection).await?;
    let optional = |at: Option<Timestamp>| at.map(DateTime::<Utc>::from);
    sqlx::query(
        "UPDATE pipelines SET redis_identity = ?, previous_identity = ?, changed_at = ?, \
         redis_time = ?, watermark = ?, frozen_until = ?, recovered_at = ?, reported_at = ?, \
         reported_us = ? WHERE stream = ? AND consumer_group = ?",
    )
    .bind(&progress.identity)
    .bind(&progress.previous)
    .bind(optional(progress.changed_at))
    .bind(DateTime::<Utc>::from(progress.redis_time))
    .bind(DateTime::<Utc>::from(progress.watermark))
    .bind(optional(progress.frozen_until))
    .bind(optional(progress.recovered_at))
    .bind(DateTime::<Utc>::from(now))
    .bind(running_us)
    .bind(&report.stream)
    .bind(&report.group)
    .execute(&mut *connection)
    .await?;
    await_no_report(connection).await
}

/// Stores a report as its relay's last, and the dead letters that it tells of for good.
pub(in crate::monitor) async fn store_report(
    connection: &mut db::Connection,
    report: &PipelineReport,
    now: Timestamp,
) -> Result<(), db::Error> {
    let last = PipelineReport { dead_letters: Vec::new(), ..report.clone() };
    let text =
        serde_json::to_string(&last).map_err(|error| db::Error::bad_row(error.to_string()))?;
    sqlx::query(
        "INSERT INTO pipeline_relays (stream, consumer_group, relay, reported_at, report) \
         VALUES (?, ?, ?, ?, ?) ON DUPLICATE KEY UPDATE reported_at = VALUES(reported_at), \
         report = VALUES(report)",
    )
    .bind(&report.stream)
    .bind(&report.group)
    .bind(&report.relay)
    .bind(DateTime::<Utc>::from(now))
    .bind(text)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "DELETE FROM pipeline_relays WHERE stream = ? AND consumer_group = ? AND reported_at < ?",
    )
    .bind(&report.stream)
    .bind(&report.group)
    .bind(DateTime::<Utc>::from(now.minus(RELAY_REMEMBERED)))
    .execute(&mut *connection)
    .await?;
    let mut letters: Vec<&DeadLetterReport> = report.dead_letters.iter().collect();
    letters.sort_by_key(|letter| (&letter.stream, letter.stream_id.to_string()));
    for chunk in chunks(&letters) {
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO dead_letters (stream, stream_id, window_uuid, slot, reason, dead_at) ",
        );
        query.push_values(chunk, |mut values, letter| {
            values
                .push_bind(&letter.stream)
                .push_bind(letter.stream_id.to_string())
                .push_bind(letter.window_uuid.map(|uuid| uuid.to_string()))
                .push_bind(letter.slot)
                .push_bind(&letter.reason)
                .push_bind(DateTime::<Utc>::from(letter.at));
        });
        query.push(" ON DUPLICATE KEY UPDATE stream = stream");
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Every pipeline.
pub(in crate::monitor) async fn pipelines(
    connection: &mut db::Connection,
) -> Result<Vec<Pipeline>, db::Error> {
    let rows = sqlx::query(
        "SELECT stream, consumer_group, redis_identity, previous_identity, changed_at, \
         redis_time, watermark, frozen_until, recovered_at, reported_at, \
         COALESCE((SELECT running_us FROM monitor_uptime WHERE id = 1), 0) - reported_us \
         AS silent_us FROM pipelines ORDER BY stream, consumer_group",
    )
    .fetch_all(connection)
    .await?;
    let pipelines = rows.iter().map(|row| {
        let silent_us: i64 = row.try_get("silent_us")?;
        Ok(Pipeline {
            stream: row.try_get("stream")?,
            group: row.try_get("consumer_group")?,
            progress: progress(row)?,
            reported_at: row.try_get::<DateTime<Utc>, _>("reported_at")?.into(),
            silent_for: Duration::from_micros(u64::try_from(silent_us).unwrap_or(0)),
        })
    });
    pipelines.collect()
}

/// The last report of every relay. One that cannot be read is left out.
pub(in crate::monitor) async fn reports(
    connection: &mut db::Connection,
) -> Result<Vec<Reported>, db::Error> {
    let rows = sqlx::query(
        "SELECT reported_at, report FROM pipeline_relays ORDER BY stream, consumer_group, relay",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut reports = Vec::with_capacity(rows.len());
    for row in &rows {
        let text: String = row.try_get("report")?;
        let at = row.try_get::<DateTime<Utc>, _>("reported_at")?.into();
        match serde_json::from_str(&text) {
            Ok(report) => reports.push(Reported { report, at }),
            Err(error) => tracing::error!(%error, "a stored report cannot be read"),
        }
    }
    Ok(reports)
}

/// Forgets a pipeline, so that nothing waits for it any more. Answers whether it was known.
pub(in crate::monitor) async fn forget(
    pool: &MySqlPool,
    stream: String,
    group: String,
    now: Timestamp,
) -> Result<bool, db::Error> {
    db::transaction(pool, "forget a group", move |connection| {
        let (stream, group) = (stream.clone(), group.clone());
        Box::pin(async move {
            await_no_report(connection).await?;
            let mut known = false;
            for statement in [
                "DELETE FROM pipelines WHERE stream = ? AND consumer_group = ?",
                "DELETE FROM pipeline_relays WHERE stream = ? AND consumer_group = ?",
                "DELETE FROM suspect_windows WHERE stream = ? AND consumer_group = ?",
                "DELETE FROM resending_services WHERE stream = ? AND consumer_group = ?",
            ] {
                let deleted = sqlx::query(statement).bind(&stream).bind(&group);
                known |= deleted.execute(&mut *connection).await?.rows_affected() > 0;
            }
            for condition in [Condition::Stalled, Condition::GroupSilent] {
                end(connection, (&stream, &group), condition, now).await?;
            }
            Ok(known)
        })
    })
    .await
}

fn progress(row: &MySqlRow) -> Result<Progress, db::Error> {
    let at = |column: &str| row.try_get::<DateTime<Utc>, _>(column).map(Timestamp::from);
    let perhaps = |column: &str| {
        row.try_get::<Option<DateTime<Utc>>, _>(column).map(|at| at.map(Timestamp::from))
    };
    Ok(Progress {
        identity: row.try_get("redis_identity")?,
        previous: row.try_get("previous_identity")?,
        changed_at: perhaps("changed_at")?,
        redis_time: at("redis_time")?,
        watermark: at("watermark")?,
        frozen_until: perhaps("frozen_until")?,
        recovered_at: perhaps("recovered_at")?,
    })
}
