//! What is known of each service: its windows, and its last heartbeat.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};

use super::counting::LastHeartbeat;
use super::{chunks, push_list};
use crate::db;
use crate::wire::Timestamp;

/// Most services whose windows one statement asks for.
const NAMES_AT_ONCE: usize = 64;
/// Most open windows of a service in which a heartbeat is looked for.
const OPEN_LOOKED_AT: u32 = 16;

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

/// A page of services by name, behind a name.
pub(in crate::monitor) async fn services(
    pool: &MySqlPool,
    after: &str,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<KnownService>, db::Error> {
    let names = names(pool, after, limit).await?;
    let mut found = latest_windows(pool, &names, now).await?;
    let ids: Vec<i64> = found.values().flat_map(|ids| [ids.open, ids.any]).flatten().collect();
    let heard: Vec<i64> = found.values().filter_map(|ids| ids.heard).collect();
    let mut windows = windows(pool, &ids).await?;
    let mut counted = last_counted(pool, &names).await?;
    let mut current = last_of_open(pool, &heard).await?;
    let known = names.into_iter().map(|name| {
        let LatestWindows { open, heard, any } = found.remove(&name).unwrap_or_default();
        let clock_offset_us = any.and_then(|id| windows.get(&id)?.1);
        let current = heard.and_then(|id| current.remove(&id));
        KnownService {
            open: open.and_then(|id| windows.remove(&id)).map(|(window, _)| window),
            clock_offset_us,
            last: current.max(counted.remove(&name)),
            name,
        }
    });
    Ok(known.collect())
}

/// Names behind a name. Each is one step into the windows' index, however many windows there are:
/// MySQL would read the whole index to find them all in one question.
async fn names(pool: &MySqlPool, after: &str, limit: u32) -> Result<Vec<String>, db::Error> {
    let mut connection = pool.acquire().await?;
    let mut names: Vec<String> = Vec::new();
    while names.len() < limit as usize {
        let last = names.last().map_or(after, String::as_str);
        let next: Option<String> =
            sqlx::query_scalar("SELECT MIN(service_name) FROM windows WHERE service_name > ?")
                .bind(last)
                .fetch_one(&mut *connection)
                .await?;
        let Some(next) = next else { break };
        names.push(next);
    }
    Ok(names)
}

/// The windows of a service that started last: of those that are open, of those of which something
/// has arrived, and of all.
#[derive(Clone, Copy, Debug, Default)]
struct LatestWindows {
    open: Option<i64>,
    heard: Option<i64>,
    any: Option<i64>,
}

const ANY: &str = "(SELECT service_name, id, 'any' AS which FROM windows WHERE service_name = ";
const OPEN: &str = "(SELECT service_name, id, 'open' AS which FROM windows WHERE service_name = ";
const HEARD: &str = "(SELECT service_name, id, 'heard' AS which FROM (SELECT service_name, id, \
    window_from FROM windows WHERE service_name = ";

async fn latest_windows(
    pool: &MySqlPool,
    names: &[String],
    now: Timestamp,
) -> Result<HashMap<String, LatestWindows>, db::Error> {
    let now = DateTime::<Utc>::from(now);
    let mut found: HashMap<String, LatestWindows> = HashMap::with_capacity(names.len());
    for chunk in db::chunks(names, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for (name, which) in
            chunk.iter().flat_map(|name| [ANY, OPEN, HEARD].map(|which| (name, which)))
        {
            parts.push(which).push_bind_unseparated(name.as_str());
            if which != ANY {
                parts.push_unseparated(" AND status = 'OPEN'");
            }
            parts.push_unseparated(" AND window_from <= ").push_bind_unseparated(now);
            parts.push_unseparated(" ORDER BY window_from DESC, id DESC LIMIT ");
            if which == HEARD {
                parts.push_bind_unseparated(OPEN_LOOKED_AT);
                parts.push_unseparated(") latest WHERE EXISTS (SELECT 1 FROM events e ");
                parts.push_unseparated("WHERE e.window_id = latest.id) ");
                parts.push_unseparated("ORDER BY window_from DESC, id DESC LIMIT ");
            }
            parts.push_unseparated("1)");
        }
        for row in query.build().fetch_all(pool).await? {
            let windows = found.entry(row.try_get(0)?).or_default();
            let id = Some(row.try_get(1)?);
            match row.try_get(2)? {
                "open" => windows.open = id,
                "heard" => windows.heard = id,
                _ => windows.any = id,
            }
        }
    }
    Ok(found)
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
    names: &[String],
) -> Result<HashMap<String, LastHeartbeat>, db::Error> {
    let mut found = HashMap::with_capacity(names.len());
    for chunk in chunks(names) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT service_name, report_timestamp, recorded_at, stream_id FROM last_heartbeats \
             WHERE service_name IN ",
        );
        push_list(&mut query, chunk.iter().map(String::as_str));
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
