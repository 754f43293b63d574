//! Rows about what keeps windows open although the watermark has passed them: suspects, and services
//! that send again.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::db;
use crate::monitor::closing::Obstacles;
use crate::wire::PipelineReport;

/// What a claim of windows adds to leave out those with an obstacle.
pub(super) const WITHOUT_OBSTACLE: &str = " AND NOT EXISTS (SELECT 1 FROM suspect_windows s \
    WHERE s.window_uuid = windows.window_uuid) AND NOT EXISTS (SELECT 1 FROM resending_services r \
    WHERE r.service_name = windows.service_name)";

/// The statements that keep one kind of obstacle.
struct Kind {
    select: &'static str,
    delete: &'static str,
    insert: &'static str,
}

const SUSPECTS: Kind = Kind {
    select: "SELECT window_uuid FROM suspect_windows WHERE stream = ? AND consumer_group = ?",
    delete: "DELETE FROM suspect_windows WHERE window_uuid = ? AND stream = ? \
             AND consumer_group = ?",
    insert: "INSERT INTO suspect_windows (window_uuid, stream, consumer_group) VALUES (?, ?, ?) \
             ON DUPLICATE KEY UPDATE stream = stream",
};

const RESENDING: Kind = Kind {
    select: "SELECT service_name FROM resending_services WHERE stream = ? AND consumer_group = ?",
    delete: "DELETE FROM resending_services WHERE service_name = ? AND stream = ? \
             AND consumer_group = ?",
    insert: "INSERT INTO resending_services (service_name, stream, consumer_group) \
             VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE stream = stream",
};

/// Stores the obstacles that a report tells of. Writes only what has changed.
pub(in crate::monitor) async fn store_obstacles(
    connection: &mut db::Connection,
    report: &PipelineReport,
) -> Result<(), db::Error> {
    let windows = report.suspects.iter().filter_map(|suspect| suspect.report.window_uuid);
    let windows = windows.map(|uuid| uuid.to_string()).collect();
    let services = report.resending.iter().cloned().collect();
    let pipeline = (report.stream.as_str(), report.group.as_str());
    store(connection, pipeline, &SUSPECTS, &windows).await?;
    store(connection, pipeline, &RESENDING, &services).await
}

async fn store(
    connection: &mut db::Connection,
    (stream, group): (&str, &str),
    kind: &Kind,
    now: &BTreeSet<String>,
) -> Result<(), db::Error> {
    let before = sqlx::query_scalar(kind.select).bind(stream).bind(group);
    let before: BTreeSet<String> = before.fetch_all(&mut *connection).await?.into_iter().collect();
    let gone = before.difference(now).map(|name| (kind.delete, name));
    let new = now.difference(&before).map(|name| (kind.insert, name));
    for (statement, name) in gone.chain(new) {
        let change = sqlx::query(statement).bind(name).bind(stream).bind(group);
        change.execute(&mut *connection).await?;
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
