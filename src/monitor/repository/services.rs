//! What is known of each service: its windows, and its last heartbeat.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};

use super::counting::LastHeartbeat;
use super::{chunks, push_list};
use crate::db;
use crate::monitor::window::WindowStatus;
use crate::wire::Timestamp;

/// Most services, or windows, that one statement asks for one by one.
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
    let mut latest = latest_windows(pool, &names, Which::Any, now).await?;
    let mut windows = windows(pool, &ids(&latest)).await?;
    let is_open = |id: &i64| {
        windows.get(id).is_some_and(|(_, status, _)| status == WindowStatus::Open.as_sql())
    };
    let mut open = latest.clone();
    open.retain(|_, id| is_open(id));
    // Nearly always the window that started last is the open one, and something of it has arrived.
    let others: Vec<String> = missing(&names, &open);
    let others = latest_windows(pool, &others, Which::Open, now).await?;
    windows.extend(self::windows(pool, &ids(&others)).await?);
    open.extend(others);
    let mut current = last_of_open(pool, &ids(&open)).await?;
    let mut heard = open.clone();
    heard.retain(|_, id| current.contains_key(id));
    let unheard: Vec<String> = missing(open.keys(), &heard);
    let others = latest_windows(pool, &unheard, Which::Heard, now).await?;
    current.extend(last_of_open(pool, &ids(&others)).await?);
    heard.extend(others);
    let mut counted = last_counted(pool, &names).await?;
    let known = names.into_iter().map(|name| {
        let clock_offset_us = latest.remove(&name).and_then(|id| windows.get(&id)?.2);
        let current = heard.remove(&name).and_then(|id| current.remove(&id));
        KnownService {
            open: open.remove(&name).and_then(|id| Some(windows.remove(&id)?.0)),
            clock_offset_us,
            last: current.max(counted.remove(&name)),
            name,
        }
    });
    Ok(known.collect())
}

/// The names that have no window in a list.
fn missing<'n>(
    names: impl IntoIterator<Item = &'n String>,
    windows: &HashMap<String, i64>,
) -> Vec<String> {
    names.into_iter().filter(|name| !windows.contains_key(*name)).cloned().collect()
}

fn ids(windows: &HashMap<String, i64>) -> Vec<i64> {
    windows.values().copied().collect()
}

/// Names behind a name. Each is one step into the windows' index, however many windows there are:
/// MySQL would read the whole index to find them all by one condition.
///
/// A step needs the name before. Services that have been counted give a guess at those, so that all
/// steps are one question; the index itself says what comes behind each, and so what was not guessed.
async fn names(pool: &MySqlPool, after: &str, limit: u32) -> Result<Vec<String>, db::Error> {
    let mut connection = pool.acquire().await?;
    let guessed = "SELECT service_name FROM last_heartbeats WHERE service_name > ? \
        ORDER BY service_name LIMIT ?";
    let mut before: Vec<String> =
        sqlx::query_scalar(guessed).bind(after).bind(limit).fetch_all(&mut *connection).await?;
    before.insert(0, after.to_owned());
    let mut asked = BTreeSet::new();
    let mut found = BTreeSet::new();
    while !before.is_empty() {
        found.extend(next_names(&mut connection, &before).await?);
        asked.extend(before);
        let names = found.iter().take(limit as usize);
        before = names.filter(|name| !asked.contains(*name)).cloned().collect();
    }
    Ok(found.into_iter().take(limit as usize).collect())
}

/// The next name behind each of some names, where there is one.
async fn next_names(
    connection: &mut db::Connection,
    before: &[String],
) -> Result<Vec<String>, db::Error> {
    let mut found = Vec::with_capacity(before.len());
    for chunk in db::chunks(before, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for name in chunk {
            parts.push("SELECT MIN(service_name) FROM windows WHERE service_name > ");
            parts.push_bind_unseparated(name.as_str());
        }
        let next: Vec<Option<String>> =
            query.build_query_scalar().fetch_all(&mut *connection).await?;
        found.extend(next.into_iter().flatten());
    }
    Ok(found)
}

/// Which windows of a service to look at for the one that started last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Any,
    Open,
    /// Open ones of which something has arrived, among the latest.
    Heard,
}

/// The index is named because MySQL would otherwise read every window of a service.
const ANY: &str = "(SELECT service_name, id FROM windows FORCE INDEX (windows_by_service) \
    WHERE service_name = ";
const OF_OPEN: &str = "(SELECT service_name, id FROM windows WHERE service_name = ";
const OF_HEARD: &str = "(SELECT service_name, id FROM (SELECT service_name, id, window_from \
    FROM windows WHERE service_name = ";

/// The window that started last, of each service that has one.
async fn latest_windows(
    pool: &MySqlPool,
    names: &[String],
    which: Which,
    now: Timestamp,
) -> Result<HashMap<String, i64>, db::Error> {
    let now = DateTime::<Utc>::from(now);
    let mut found = HashMap::with_capacity(names.len());
    for chunk in db::chunks(names, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for name in chunk {
            parts.push(match which {
                Which::Any => ANY,
                Which::Open => OF_OPEN,
                Which::Heard => OF_HEARD,
            });
            parts.push_bind_unseparated(name.as_str());
            if which != Which::Any {
                parts.push_unseparated(" AND status = 'OPEN'");
            }
            parts.push_unseparated(" AND window_from <= ").push_bind_unseparated(now);
            parts.push_unseparated(" ORDER BY window_from DESC, id DESC LIMIT ");
            if which == Which::Heard {
                parts.push_bind_unseparated(OPEN_LOOKED_AT);
                parts.push_unseparated(") latest WHERE EXISTS (SELECT 1 FROM events e ");
                parts.push_unseparated("WHERE e.window_id = latest.id) ");
                parts.push_unseparated("ORDER BY window_from DESC, id DESC LIMIT ");
            }
            parts.push_unseparated("1)");
        }
        found.extend(query.build_query_as::<(String, i64)>().fetch_all(pool).await?);
    }
    Ok(found)
}

/// Windows by their row, with their status, and how far the sender's clock is behind.
async fn windows(
    pool: &MySqlPool,
    ids: &[i64],
) -> Result<HashMap<i64, (CurrentWindow, String, Option<i64>)>, db::Error> {
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT id, window_uuid, status, window_from, window_to, expected_reports, \
             clock_offset_us FROM windows WHERE id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        for row in query.build().fetch_all(pool).await? {
            let window = CurrentWindow {
                uuid: row.try_get("window_uuid")?,
                from: row.try_get::<DateTime<Utc>, _>("window_from")?.into(),
                to: row.try_get::<DateTime<Utc>, _>("window_to")?.into(),
                expected: row.try_get("expected_reports")?,
            };
            let (status, offset_us) = (row.try_get("status")?, row.try_get("clock_offset_us")?);
            found.insert(row.try_get("id")?, (window, status, offset_us));
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

/// The heartbeats of the highest slot of open windows, where none counts as missing yet. Each is one
/// step into the key of events: asked by a join, MySQL would read every event of the windows.
async fn last_of_open(
    pool: &MySqlPool,
    ids: &[i64],
) -> Result<HashMap<i64, LastHeartbeat>, db::Error> {
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in db::chunks(ids, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for id in chunk {
            parts.push("(SELECT window_id, status, report_timestamp, recorded_at, stream_id ");
            parts.push_unseparated("FROM events WHERE window_id = ").push_bind_unseparated(*id);
            parts.push_unseparated(" ORDER BY slot DESC LIMIT 1)");
        }
        for row in query.build().fetch_all(pool).await? {
            if row.try_get::<String, _>("status")? != "MISSING" {
                found.insert(row.try_get("window_id")?, last_heartbeat(&row)?);
            }
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
