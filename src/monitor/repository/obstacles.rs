//! Rows about what keeps windows open although the watermark has passed them: suspects, and services
//! that send again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::db;
use crate::monitor::closing::Obstacles;
use crate::monitor::watermark::News;
use crate::wire::{PipelineReport, Timestamp};

/// What a claim of windows adds to leave out those with an obstacle.
pub(super) const WITHOUT_OBSTACLE: &str = " AND NOT EXISTS (SELECT 1 FROM suspect_windows s \
    WHERE s.window_uuid = windows.window_uuid) AND NOT EXISTS (SELECT 1 FROM resending_services r \
    WHERE r.service_name = windows.service_name)";

const INSERT_SUSPECT: &str = "INSERT INTO suspect_windows (window_uuid, stream, consumer_group) \
    VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE stream = stream";
const DELETE_SUSPECT: &str =
    "DELETE FROM suspect_windows WHERE window_uuid = ? AND stream = ? AND consumer_group = ?";

/// How long a service is waited for of which nothing is heard, once it is known to owe something.
const AWAITED: Duration = Duration::from_secs(30);
/// How much shorter that may become before it is stored again.
const STORE_EVERY: Duration = Duration::from_secs(5);

/// Stores the obstacles that a report tells of. Writes only what has changed.
pub(in crate::monitor) async fn store_obstacles(
    connection: &mut db::Connection,
    report: &PipelineReport,
    news: News,
    now: Timestamp,
) -> Result<(), db::Error> {
    store_suspects(connection, report).await?;
    let mut owing: BTreeSet<String> = report.resending.iter().cloned().collect();
    if news == News::Replacement {
        // Those who are silent at this moment may owe something as well.
        owing.extend(services_that_wait(connection).await?);
        owing.retain(|service| !report.resent.contains(service));
    }
    store_awaited(connection, report, &owing, now).await
}

async fn store_suspects(
    connection: &mut db::Connection,
    report: &PipelineReport,
) -> Result<(), db::Error> {
    let windows = report.suspects.iter().filter_map(|suspect| suspect.report.window_uuid);
    let now: BTreeSet<String> = windows.map(|uuid| uuid.to_string()).collect();
    let before: Vec<String> = sqlx::query_scalar(
        "SELECT window_uuid FROM suspect_windows WHERE stream = ? AND consumer_group = ?",
    )
    .bind(&report.stream)
    .bind(&report.group)
    .fetch_all(&mut *connection)
    .await?;
    let before: BTreeSet<String> = before.into_iter().collect();
    let gone = before.difference(&now).map(|uuid| (uuid, DELETE_SUSPECT));
    let new = now.difference(&before).map(|uuid| (uuid, INSERT_SUSPECT));
    for (uuid, statement) in gone.chain(new) {
        let change = sqlx::query(statement).bind(uuid).bind(&report.stream).bind(&report.group);
        change.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Services with windows whose heartbeats may be lost with a Redis.
async fn services_that_wait(connection: &mut db::Connection) -> Result<Vec<String>, db::Error> {
    Ok(sqlx::query_scalar(
        "SELECT service_name FROM windows WHERE status = 'OPEN' AND via_stream = TRUE \
         UNION SELECT service_name FROM windows WHERE unobserved_reports > 0",
    )
    .fetch_all(connection)
    .await?)
}

/// Keeps the services that owe something, and those that are only silent, for a while.
async fn store_awaited(
    connection: &mut db::Connection,
    report: &PipelineReport,
    owing: &BTreeSet<String>,
    now: Timestamp,
) -> Result<(), db::Error> {
    let rows = sqlx::query_as::<_, (String, DateTime<Utc>)>(
        "SELECT service_name, awaited_until FROM resending_services WHERE stream = ? \
         AND consumer_group = ?",
    )
    .bind(&report.stream)
    .bind(&report.group)
    .fetch_all(&mut *connection)
    .await?;
    let before: BTreeMap<String, Timestamp> =
        rows.into_iter().map(|(service, until)| (service, until.into())).collect();
    let until = now.plus(AWAITED);
    let is_stored = |service: &&String| {
        before.get(*service).is_some_and(|stored| until <= stored.plus(STORE_EVERY))
    };
    for service in owing.iter().filter(|service| !is_stored(service)) {
        sqlx::query(
            "INSERT INTO resending_services (service_name, stream, consumer_group, awaited_until) \
             VALUES (?, ?, ?, ?) ON DUPLICATE KEY UPDATE awaited_until = VALUES(awaited_until)",
        )
        .bind(service)
        .bind(&report.stream)
        .bind(&report.group)
        .bind(DateTime::<Utc>::from(until))
        .execute(&mut *connection)
        .await?;
    }
    let is_over = |(service, until): &(&String, &Timestamp)| {
        !owing.contains(*service) && (report.resent.contains(service) || **until <= now)
    };
    for (service, _) in before.iter().filter(is_over) {
        sqlx::query(
            "DELETE FROM resending_services WHERE service_name = ? AND stream = ? \
             AND consumer_group = ?",
        )
        .bind(service)
        .bind(&report.stream)
        .bind(&report.group)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Everything that is in the way of any window.
pub(in crate::monitor) async fn obstacles(
    connection: &mut db::Connection,
) -> Result<Obstacles, db::Error> {
    let windows: Vec<String> = sqlx::query_scalar("SELECT window_uuid FROM suspect_windows")
        .fetch_all(&mut *connection)
        .await?;
    let services: Vec<String> = sqlx::query_scalar("SELECT service_name FROM resending_services")
        .fetch_all(connection)
        .await?;
    Ok(Obstacles {
        suspects: windows.iter().filter_map(|uuid| Uuid::try_parse(uuid).ok()).collect(),
        resending: services.into_iter().collect(),
    })
}
