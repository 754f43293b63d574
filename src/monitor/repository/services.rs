//! What is known of each service: its windows, and its last heartbeat.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};

use super::counting::LastHeartbeat;
use super::{chunks, push_list};
use crate::db;
use crate::wire::Timestamp;

/// A service that has windows.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct KnownService {
    pub(in crate::monitor) name: String,
    /// The open window that started last.
    pub(in crate::monitor) open: Option<CurrentWindow>,
    /// How far the sender's clock is behind the stream's, in microseconds, at the most, by the
    /// window that started last.
    pub(in crate::monitor) clock_offset_us: Option<i64>,
    pub(in crate::monitor) last: Option<LastHeartbeat>,
}

/// A window in which heartbeats are due.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct CurrentWindow {
    pub(in crate::monitor) uuid: String,
    pub(in crate::monitor) from: Timestamp,
    pub(in crate::monitor) to: Timestamp,
    pub(in crate::monitor) expected: i32,
}

/// A page of services by name, behind a name. Each name is found by its own step through the
/// windows' index, so that it does not matter how many windows there are.
pub(in crate::monitor) async fn services(
    pool: &MySqlPool,
    after: &str,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<KnownService>, db::Error> {
    let now = DateTime::<Utc>::from(now);
    let rows = sqlx::query(
        "WITH RECURSIVE names (number, name) AS ( \
           SELECT 1, (SELECT MIN(service_name) FROM windows WHERE service_name > ?) \
           UNION ALL \
           SELECT number + 1, (SELECT w.service_name FROM windows w WHERE w.service_name > name \
             ORDER BY w.service_name LIMIT 1) \
           FROM names WHERE name IS NOT NULL AND number < ?) \
         SELECT n.name, \
           (SELECT w.id FROM windows w WHERE w.service_name = n.name AND w.status = 'OPEN' \
             AND w.window_from <= ? ORDER BY w.window_from DESC, w.id DESC LIMIT 1) AS open_id, \
           (SELECT w.id FROM windows w WHERE w.service_name = n.name AND w.window_from <= ? \
             ORDER BY w.window_from DESC, w.id DESC LIMIT 1) AS last_id \
         FROM names n WHERE n.name IS NOT NULL ORDER BY n.number",
    )
    .bind(after)
    .bind(limit)
    .bind(now)
    .bind(now)
    .fetch_all(pool)
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let ids: (Option<i64>, Option<i64>) = (row.try_get("open_id")?, row.try_get("last_id")?);
        found.push((row.try_get::<String, _>("name")?, ids));
    }
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    let ids: Vec<i64> =
        found.iter().flat_map(|(_, (open, last))| [*open, *last]).flatten().collect();
    let open: Vec<i64> = found.iter().filter_map(|(_, (open, _))| *open).collect();
    let mut windows = windows(pool, &ids).await?;
    let mut counted = last_counted(pool, &names).await?;
    let mut current = last_of_open(pool, &open).await?;
    let known = found.iter().map(|(name, (open, last))| {
        let clock_offset_us = last.and_then(|id| windows.get(&id)?.1);
        let current = open.and_then(|id| current.remove(&id));
        KnownService {
            name: name.clone(),
            open: open.and_then(|id| windows.remove(&id)).map(|(window, _)| window),
            clock_offset_us,
            last: current.max(counted.remove(name)),
        }
    });
    Ok(known.collect())
}

async fn windows(
    pool: &MySqlPool,
    ids: &[i64],
) -> Result<HashMap<i64, (CurrentWindow, Option<i64>)>, db::Error> {
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT id, window_uuid, window_from, window_to, expected_reports, clock_offset_us \
             FROM windows WHERE id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        for row in query.build().fetch_all(pool).await? {
            let window = CurrentWindow {
                uuid: row.try_get("window_uuid")?,
                from: row.try_get::<DateTime<Utc>, _>("window_from")?.into(),
                to: row.try_get::<DateTime<Utc>, _>("window_to")?.into(),
                expected: row.try_get("expected_reports")?,
            };
            found.insert(row.try_get("id")?, (window, row.try_get("clock_offset_us")?));
        }
    }
    Ok(found)
}

/// The last heartbeats of services in windows that have been counted.
async fn last_counted(
    pool: &MySqlPool,
    names: &[&str],
) -> Result<HashMap<String, LastHeartbeat>, db::Error> {
    let mut found = HashMap::with_capacity(names.len());
    for chunk in chunks(names) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT service_name, report_timestamp, recorded_at, stream_id FROM last_heartbeats \
             WHERE service_name IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        for row in query.build().fetch_all(pool).await? {
            found.insert(row.try_get("service_name")?, last_heartbeat(&row)?);
        }
    }
    Ok(found)
}

/// The heartbeats of the highest slot of open windows, where none counts as missing yet.
async fn last_of_open(
    pool: &MySqlPool,
    ids: &[i64],
) -> Result<HashMap<i64, LastHeartbeat>, db::Error> {
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT e.window_id, e.report_timestamp, e.recorded_at, e.stream_id FROM windows w \
             JOIN events e ON e.window_id = w.id AND e.slot = (SELECT s.slot FROM events s \
             WHERE s.window_id = w.id ORDER BY s.slot DESC LIMIT 1) \
             WHERE e.status <> 'MISSING' AND w.id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        for row in query.build().fetch_all(pool).await? {
            found.insert(row.try_get("window_id")?, last_heartbeat(&row)?);
        }
    }
    Ok(found)
}

fn last_heartbeat(row: &sqlx::mysql::MySqlRow) -> Result<LastHeartbeat, db::Error> {
    Ok(LastHeartbeat {
        timestamp: row.try_get::<DateTime<Utc>, _>("report_timestamp")?.into(),
        recorded_at: row.try_get::<DateTime<Utc>, _>("recorded_at")?.into(),
        stream_id: row.try_get("stream_id")?,
    })
}
