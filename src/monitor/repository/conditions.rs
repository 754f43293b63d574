//! Rows of `pipeline_conditions`: what is or was wrong with the way from the senders.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;

use crate::db;
use crate::monitor::pipeline::Condition;
use crate::monitor::watermark::News;
use crate::wire::{PipelineReport, Timestamp};

/// A relay that has not reported for longer is not asked what it saw.
const LATELY: Duration = Duration::from_secs(10);

/// Something that is or was wrong.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct RecordedCondition {
    pub(in crate::monitor) stream: String,
    pub(in crate::monitor) group: String,
    pub(in crate::monitor) kind: String,
    pub(in crate::monitor) detail: String,
    pub(in crate::monitor) began_at: Timestamp,
    pub(in crate::monitor) ended_at: Option<Timestamp>,
}

/// Begins and ends what a report shows to begin and to end.
pub(in crate::monitor) async fn store_conditions(
    connection: &mut db::Connection,
    report: &PipelineReport,
    news: News,
    now: Timestamp,
) -> Result<(), db::Error> {
    let (stream, group) = (report.stream.as_str(), report.group.as_str());
    end(connection, (stream, group), Condition::Stalled, now).await?;
    if news == News::Replacement {
        let detail = format!("it is {} now", report.redis_identity);
        begin(connection, (stream, group), (Condition::RedisReplaced, &detail), now).await?;
        end(connection, (stream, group), Condition::RedisReplaced, now).await?;
    }
    let lasting: Vec<String> = sqlx::query_scalar(
        "SELECT consumer_group FROM pipeline_conditions WHERE stream = ? AND kind = ? AND lasting",
    )
    .bind(stream)
    .bind(Condition::GroupSilent.name())
    .fetch_all(&mut *connection)
    .await?;
    let over = lasting.iter().filter(|name| !report.silent_groups.contains(name));
    let over: Vec<&String> = over.collect();
    // Each relay looks once a minute: what another has just seen may be news to this one.
    if !over.is_empty() && !is_seen_by_others(connection, report, &over, now).await? {
        for over in over {
            end(connection, (stream, over), Condition::GroupSilent, now).await?;
        }
    }
    for silent in report.silent_groups.iter().filter(|name| !lasting.contains(name)) {
        let detail = format!(
            "it has not read for a day, and the stream keeps everything for it; if nobody needs \
             it: heartbeat forget-group {silent}"
        );
        begin(connection, (stream, silent), (Condition::GroupSilent, &detail), now).await?;
    }
    Ok(())
}

/// Whether another relay has told lately that one of some groups is silent.
async fn is_seen_by_others(
    connection: &mut db::Connection,
    report: &PipelineReport,
    groups: &[&String],
    now: Timestamp,
) -> Result<bool, db::Error> {
    let reports: Vec<String> = sqlx::query_scalar(
        "SELECT report FROM pipeline_relays WHERE stream = ? AND consumer_group = ? \
         AND relay <> ? AND reported_at > ?",
    )
    .bind(&report.stream)
    .bind(&report.group)
    .bind(&report.relay)
    .bind(DateTime::<Utc>::from(now.minus(LATELY)))
    .fetch_all(connection)
    .await?;
    let told = reports.iter().filter_map(|text| serde_json::from_str::<PipelineReport>(text).ok());
    Ok(told.into_iter().any(|told| groups.iter().any(|group| told.silent_groups.contains(group))))
}

/// Begins the stall of each pipeline of which nothing was heard for too long. Answers their streams.
pub(in crate::monitor) async fn begin_stalls(
    connection: &mut db::Connection,
    running_us: i64,
    after: Duration,
    now: Timestamp,
) -> Result<Vec<String>, db::Error> {
    let stalled: Vec<(String, String)> = sqlx::query_as(
        "SELECT stream, consumer_group FROM pipelines p WHERE reported_us <= ? AND NOT EXISTS \
         (SELECT 1 FROM pipeline_conditions c WHERE c.stream = p.stream \
         AND c.consumer_group = p.consumer_group AND c.kind = ? AND c.lasting)",
    )
    .bind(silent_since(running_us, after))
    .bind(Condition::Stalled.name())
    .fetch_all(&mut *connection)
    .await?;
    for (stream, group) in &stalled {
        let detail = format!("no relay has reported for {} s", after.as_secs());
        begin(connection, (stream, group), (Condition::Stalled, &detail), now).await?;
    }
    Ok(stalled.into_iter().map(|(stream, _)| stream).collect())
}

/// How many pipelines there are of which nothing was heard for too long.
pub(in crate::monitor) async fn count_stalled(
    connection: &mut db::Connection,
    running_us: i64,
    after: Duration,
) -> Result<i64, db::Error> {
    let counting = sqlx::query_scalar("SELECT COUNT(*) FROM pipelines WHERE reported_us <= ?");
    Ok(counting.bind(silent_since(running_us, after)).fetch_one(connection).await?)
}

/// Until when something must have been heard, in microseconds for which monitors had been running.
fn silent_since(running_us: i64, after: Duration) -> i64 {
    running_us - i64::try_from(after.as_micros()).unwrap_or(i64::MAX)
}

async fn begin(
    connection: &mut db::Connection,
    (stream, group): (&str, &str),
    (condition, detail): (Condition, &str),
    now: Timestamp,
) -> Result<(), db::Error> {
    let begun = sqlx::query(
        "INSERT INTO pipeline_conditions (stream, consumer_group, kind, detail, began_at, lasting) \
         VALUES (?, ?, ?, ?, ?, TRUE)",
    )
    .bind(stream)
    .bind(group)
    .bind(condition.name())
    .bind(detail)
    .bind(DateTime::<Utc>::from(now))
    .execute(connection)
    .await;
    // One that lasts already is recorded.
    db::is_inserted(begun).map(drop)
}

pub(super) async fn end(
    connection: &mut db::Connection,
    (stream, group): (&str, &str),
    condition: Condition,
    now: Timestamp,
) -> Result<(), db::Error> {
    sqlx::query(
        "UPDATE pipeline_conditions SET ended_at = ?, lasting = NULL WHERE stream = ? \
         AND consumer_group = ? AND kind = ? AND lasting",
    )
    .bind(DateTime::<Utc>::from(now))
    .bind(stream)
    .bind(group)
    .bind(condition.name())
    .execute(connection)
    .await?;
    Ok(())
}

/// The conditions that began last, the latest first.
pub(in crate::monitor) async fn conditions(
    connection: &mut db::Connection,
    limit: u32,
) -> Result<Vec<RecordedCondition>, db::Error> {
    let rows = sqlx::query(
        "SELECT stream, consumer_group, kind, detail, began_at, ended_at FROM pipeline_conditions \
         ORDER BY lasting DESC, began_at DESC, id DESC LIMIT ?",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let conditions = rows.iter().map(|row| {
        Ok(RecordedCondition {
            stream: row.try_get("stream")?,
            group: row.try_get("consumer_group")?,
            kind: row.try_get("kind")?,
            detail: row.try_get("detail")?,
            began_at: row.try_get::<DateTime<Utc>, _>("began_at")?.into(),
            ended_at: row.try_get::<Option<DateTime<Utc>>, _>("ended_at")?.map(Timestamp::from),
        })
    });
    conditions.collect()
}
